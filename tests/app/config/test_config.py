"""Composition: any path can be given unquoted, and the message for a mistake names the nearest real name."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from simclr_lightning.app.config import composition
from simclr_lightning.app.config.composition import compose, conf_folder, first_job, set_sweep_overrides
from simclr_lightning.app.config.keys import EVALUATION_RULES, RULES
from simclr_lightning.app.config.plain import diff, flatten, from_plain, to_plain, unresolved
from simclr_lightning.app.config.quoting import PATH_KEYS, quote_paths, quoted
from simclr_lightning.app.errors import LINES, UserError
from simclr_lightning.data import SOURCES
from simclr_lightning.overrides import flag

CONF = Path(__file__).parents[3] / "conf"


@pytest.fixture(scope="module")
def default() -> DictConfig:
    return compose([])


# -- quoting ------------------------------------------------------------------------------------------------

PIECES = [
    *" \t\n=,()~[]{}'\"\\$:;#@!%&*?|<>+-./^`abcXYZ019_éñßø漢字かな한글रतילעربи\u0301\u200b😀",
    *(
        "${",
        "\\${",
        "${now:%Y}",
        "${seed}",
        "}",
        "\\\\",
        "\\'",
        '\\"',
        "''",
        '""',
        "null",
        "true",
        "1e3",
        "../",
        "   ",
    ),
]


def nasty_names(count: int) -> list[str]:
    rng = random.Random(0)
    names = ["".join(rng.choices(PIECES, k=rng.randint(1, 10))) for _ in range(count)]
    return [name for name in names if name.strip().lower() != "null" and name != "???"]


def read_back(override: str) -> object:
    """Return the value that reaches the program, after Hydra's parser and OmegaConf's interpolation."""
    return OmegaConf.create({"value": OverridesParser.create().parse_override(override).value()}).value


def test_any_file_name_can_be_given_unquoted() -> None:
    changed = 0
    for number, name in enumerate(nasty_names(1500)):
        key = ("data.path", "+data.path", "++ckpt_path", "model.weights")[number % 4]
        override = f"{key}={name}"
        (safe,) = quote_paths([override])
        assert quote_paths([safe]) == [safe], name
        if safe == override:  # a name in quotes counts as a quoted value
            assert name.strip()[0] in "'\"", name
            continue
        changed += 1
        assert read_back(safe) == name, name
    assert changed > 1400


def test_hydras_parser_returns_the_quoted_text() -> None:
    parser = OverridesParser.create()
    for name in nasty_names(1500):
        assert parser.parse_override(f"x={quoted(name)}").value() == name


def test_without_quotes_hydra_changes_or_refuses_names() -> None:
    # This is why paths are quoted: without quotes, Hydra changes names or cannot parse them.
    parser, wrong = OverridesParser.create(), 0
    for name in ["a,b", "a=b", "é", "f(x", "a b ", "1e3", "[x]", "#1"]:
        try:
            wrong += parser.parse_override(f"data.path={name}").value() != name
        except Exception:
            wrong += 1
    assert wrong >= 6


@pytest.mark.parametrize(
    "override",
    [
        "data.path='a b'",
        'data.path="a, b"',
        r"data.path='it\'s'",
        r"data.path='ends in a backslash\\'",
        "data.path='one','two'",
        "data.path=null",
        "ckpt_path=NULL",
        "ckpt_path=last",
        "model.weights=imagenet",
        "loss.temperature=0.1,0.5",
        "data.pathology=a b",
        "-m",
        "--config-dir=/tmp/a b",
        "~data.path",
    ],
)
def test_other_keys_and_quoted_values_are_unchanged(override: str) -> None:
    assert quote_paths([override]) == [override]


def test_a_keyword_is_one_only_for_its_key() -> None:
    assert quote_paths(["data.path=last", "ckpt_path=imagenet"]) == [
        "data.path='last'",
        "ckpt_path='imagenet'",
    ]


def test_a_path_of_question_marks_is_not_a_missing_value() -> None:
    assert compose(["data=folder", "data.path=???"]).data.path == "./???"


def test_interpolations_work_in_hydras_folders_and_nowhere_else() -> None:
    cfg = compose(["hydra.run.dir=runs, mine/${seed}", "data.path=cost ${5}, ${now:%Y}", "seed=7"])
    assert cfg.hydra.run.dir == "runs, mine/7"
    assert cfg.data.path == "cost ${5}, ${now:%Y}"
    assert compose(["hydra.run.dir=a${b"]).hydra.run.dir == "a${b"
    assert compose([r"hydra.sweep.dir=a\${seed}"]).hydra.sweep.dir == "a${seed}"


@pytest.mark.parametrize("key", PATH_KEYS)
def test_every_path_key_accepts_a_difficult_path(key: str) -> None:
    name = "/a b/=,(c)~[d]{e}'f\"\\g:漢 $/"
    source = ["data=folder", "data.path=x"] if key.startswith("data.dataset.") else []
    cfg = compose([*source, f"{key}={name}"], name="evaluate" if key.startswith("paths.") else "train")
    assert OmegaConf.select(cfg, key) == name


def test_quoting_does_not_slow_down_on_hostile_input() -> None:
    # A pattern that backtracks would take hours for these.
    for text in ("'" + "\\'" * 20_000, "'" + "\\" * 20_001, "'a'," * 5_000 + "b"):
        assert quote_paths([f"data.path={text}"])[0].endswith("'")


# -- the configuration --------------------------------------------------------------------------------------


def test_the_repositorys_folder_is_preferred() -> None:
    assert conf_folder() == CONF.resolve()


def test_a_package_without_its_repository_uses_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "simclr_lightning"
    (package / "app/config").mkdir(parents=True)
    monkeypatch.setattr(composition, "__file__", str(package / "app/config/composition.py"))
    with pytest.raises(UserError, match="configuration folder is missing"):
        conf_folder()
    (package / "conf").mkdir()
    (package / "conf" / "train.yaml").write_text("")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "train.yaml").write_text("")  # of another project, since the package is not in a src/ folder
    assert conf_folder() == package / "conf"


def test_the_defaults(default: DictConfig) -> None:
    assert default.loss.temperature == 0.5  # experiment=photos
    assert compose(["experiment=null"]).loss.temperature == 0.2
    assert default.model.encoder.stem == "cifar"
    assert str(default.hydra.run.dir).startswith("outputs/")


def test_the_stem_follows_the_side() -> None:
    assert compose(["views=simclr"]).model.encoder.stem == "imagenet"
    assert compose(["views.size=33"]).model.encoder.stem == "imagenet"
    assert compose(["views.size=32"]).model.encoder.stem == "cifar"
    assert compose(["views=simclr", "model.encoder.stem=cifar"]).model.encoder.stem == "cifar"


def test_plain_containers(default: DictConfig) -> None:
    plain = to_plain(default)
    assert "hydra" not in plain
    assert plain["model"]["encoder"]["stem"] == "cifar"
    assert type(plain["views"]["area"]) is list


def test_plain_and_back_keeps_every_string() -> None:
    plain = {"a": {"path": r"x\${y} ${seed} \\${z}"}, "b": ["${", 1, None, True], "seed": 3}
    assert to_plain(from_plain(plain)) == plain


def test_every_experiment_accepts_other_data() -> None:
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        cfg = compose([f"experiment={path.stem}", "data=array", "data.path=x.npz"])
        assert cfg.data.dataset._target_ == "simclr_lightning.data.array", path


def test_the_table_of_ranges_has_every_key_of_every_option_and_no_other() -> None:
    found: set[str] = set()
    for group in (
        "model",
        "data",
        "views",
        "loss",
        "optimizer",
        "schedule",
        "trainer",
        "callbacks",
        "logger",
    ):
        for path in (CONF / group).glob("*.yaml"):
            overrides = [f"{group}={path.stem}", *(["data.path=x"] if group == "data" else [])]
            if path.stem == "custom":
                overrides.append({"model": "model.encoder", "data": "data.dataset"}[group] + "._target_=mypkg.Mine")
            found |= flatten(unresolved(compose(overrides))).keys()
    assert found == RULES.keys()
    paths = [f"paths.{name}=x" for name in SOURCES]
    evaluated = flatten(unresolved(compose(paths, name="evaluate"))).keys()
    known = {key for key in EVALUATION_RULES if not key.startswith("model.")} - found
    assert evaluated - found == known


# -- mistakes -----------------------------------------------------------------------------------------------

MISTAKES = {
    "loss.temprature=1": ["loss.temprature", "did you mean loss.temperature?"],
    "temperature=1": ["did you mean loss.temperature?"],
    "tau=1": ["did you mean loss.temperature?"],
    "lr=3": ["did you mean optimizer.lr?"],
    "optimizer.LR=3": ["did you mean optimizer.lr?"],
    "epochs=3": ["did you mean trainer.max_epochs?"],
    "max_epochs=3": ["did you mean trainer.max_epochs?"],
    "trainer.epochs=3": ["did you mean trainer.max_epochs?"],
    "trainer.gpus=2": ["did you mean trainer.devices?"],
    "batch_size=64": ["did you mean data.batch_size?"],
    "data.batchsize=64": ["did you mean data.batch_size?"],
    "model.projector.out=64": ["did you mean model.projector.out_dim?"],
    "modle=resnet50": ["did you mean model?"],
    "optimiser=sgd": ["did you mean optimizer?"],
    "hydra.rundir=x": ["did you mean hydra.run.dir?"],
    "loss.temperature.x=1": ["did you mean loss.temperature?"],
    "model=resnet51": ["did you mean resnet50?", "resnet101, resnet152, resnet18, resnet34, resnet50"],
    "data=Folder": ["did you mean folder?"],
    "views=simclr_cifra": ["did you mean simclr_cifar?"],
    "optimizer=sdg": ["did you mean sgd?"],
    "experiment=nope": ["cifar10, cifar10_fast, fashion_mnist, imagenet, photos, stl10, temperature_batch"],
    "hydra/launcher=simcl": ["did you mean simclr?"],
    "model=null": ["the options are"],
    "model=[resnet18,resnet50]": ["the options are"],
    "model=18": ["the options are"],
    "+experiment=cifar10": ["write experiment=cifar10"],
    "~model": ["cannot be removed"],
    "~trainer.max_epoch": ["~trainer.max_epoch", "did you mean trainer.max_epochs?"],
    "+seed=3": ["write seed=3"],
    "+foo=1": ["foo: unknown key", "the groups are callbacks, data"],
    "++foo=1": ["foo: unknown key"],
    "++loss.temprature=1": ["did you mean loss.temperature?"],
    "+loss.gatherr=false": ["did you mean loss.gather?"],
    "+trainer.gradient_clip_vall=1": ["did you mean trainer.gradient_clip_val?"],
    "+model.encoder.img_size=32": ["model.encoder.img_size: unknown key", "model.encoder has depth"],
    "+linear.lr=0.1": ["linear.lr: unknown key"],  # a key of evaluate.yaml
    "+callbacks.foo=1": ["callbacks has checkpoints, hardness, metrics, online"],
    "model.encoder={depth:18,foo:3}": ["model.encoder.foo: unknown key"],
    "a@b=c": ["a: unknown key"],
    "data=folder": ["data=folder needs data.path=DIR"],
    "data=array": ["data=array needs data.path=FILE.npz"],
    "loss.temperature": ["must be KEY=VALUE"],
    "--foo": ["must be KEY=VALUE"],
    "": ["must be KEY=VALUE"],
    "=x": ["must be KEY=VALUE"],
    "loss.temperature=(1": ["cannot be parsed", "quotes"],
    "loss.temperature=[1": ["cannot be parsed", "quotes"],
    "views.size=3)": ["cannot be parsed", "quotes"],
    "'x'=1": ["cannot be parsed"],
    "loss.temperature=0.1,0.5": ["add -m for a sweep"],
    "seed=range(1,3)": ["add -m for a sweep"],
    "loss.temperature=${nope}": ["loss.temperature", "nope"],
    "seed=${seed}": ["seed"],
    "loss.temperature=${oc.env:NO_SUCH_VARIABLE}": ["loss.temperature", "NO_SUCH_VARIABLE"],
    "loss.temperature=${nope:1}": ["loss.temperature", "nope"],
    "hydra.run.dir=${nope}": ["nope"],
    "hydra.run.dir=null": ["hydra.run.dir"],
    "hydra.run.dir=": ["hydra.run.dir is empty"],
    "hydra.sweep.dir=' '": ["hydra.sweep.dir is empty"],
    "hydra.job.chdir=maybe": ["hydra.job.chdir"],
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_gets_a_helpful_message(override: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([override])
    message = str(caught.value)
    assert caught.value.code == 2
    assert len(message.splitlines()) <= LINES
    for part in MISTAKES[override]:
        assert part in message, message
    assert "append" not in message  # never the advice to add the typo


def test_a_mistake_among_correct_overrides_is_found() -> None:
    with pytest.raises(UserError, match=r"did you mean loss\.temperature"):
        compose(["model=resnet50", "optimizer=sgd", "loss.temprature=1", "seed=3"])


def test_two_options_of_one_group() -> None:
    with pytest.raises(UserError, match="model is chosen twice: resnet18 and resnet50"):
        compose(["model=resnet18", "seed=1", "model=resnet50"])
    assert compose(["model=resnet18", "model=resnet18"]).model.encoder.depth == 18


def test_the_last_of_two_values_counts() -> None:
    assert compose(["seed=1", "seed=2"]).seed == 2


def test_arguments_of_targets_may_be_added() -> None:
    overrides = ["+loss.gather=false", "+trainer.gradient_clip_val=1.0", "+hydra.job.env_set.A=1"]
    cfg = compose(["experiment=null", *overrides])
    assert cfg.loss.gather is False
    cfg = compose(["hydra/launcher=slurm", "hydra.launcher.options={mail-type: END}"])
    assert cfg.hydra.launcher.options == {"mail-type": "END"}
    cfg = compose(["model=timm", "+model.encoder.img_size=32", "~trainer.deterministic"])
    assert cfg.model.encoder.img_size == 32


def test_trusted_can_be_set_only_on_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrusted: [mypkg]\n")
    where = f"hydra.searchpath=['file://{tmp_path}']"
    with pytest.raises(UserError, match="only on the command line"):
        compose([where, "experiment=mine"])
    assert list(compose([where, "experiment=mine", "trusted=[other]"]).trusted) == ["other"]


def test_an_experiment_may_set_any_key(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 5\nmicro_batch_size: 64\n")
    cfg = compose([f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine", "micro_batch_size=32"])
    assert (cfg.seed, cfg.micro_batch_size) == (5, 32)


def test_a_misspelled_key_in_a_file_is_found_too(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nloss:\n  temprature: 0.1\n")
    with pytest.raises(UserError, match=r"loss\.temprature: unknown key; did you mean loss\.temperature"):
        compose([f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"])


def test_a_file_that_is_not_yaml(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nloss: [1,\n")
    with pytest.raises(UserError):
        compose([f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"])


# -- resolvers, sweeps, differences -------------------------------------------------------------------------


def test_a_sweeps_folder_is_named_after_its_overrides() -> None:
    def folder(*overrides: str) -> str:
        set_sweep_overrides(overrides)
        return str(compose([]).hydra.sweep.dir)

    try:
        first = folder("seed=1,2", "data.batch_size=64,128")
        assert first == folder("data.batch_size=64,128", "seed=1,2")
        assert first != folder("seed=1,2", "data.batch_size=64,256")
        # sha256sum of the sorted overrides, joined by zero bytes
        printed = "printf 'data.batch_size=64,128\\0seed=1,2' | sha256sum"
        digest = subprocess.run(["sh", "-c", printed], capture_output=True, text=True, check=True).stdout
        assert first == f"outputs/sweeps/{digest[:8]}"
    finally:
        set_sweep_overrides([])


def test_the_first_job_of_a_sweep() -> None:
    overrides = ["-m", "loss.temperature=0.1,0.5", "model=resnet18,resnet50", "seed=range(3,9)", "data.path=a,b"]
    job = first_job(overrides[1:])
    assert job == ["loss.temperature=0.1", "model=resnet18", "seed=3", "data.path='a,b'"]
    assert first_job(["data.path='a b','c'", "optimizer.lr=interval(0.1,1)"]) == [
        "data.path='a b'",
        "optimizer.lr=0.1",
    ]
    assert first_job(["model=glob(resnet*,exclude=resnet1*)"]) == ["model=resnet34"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed=[1", "cannot be parsed"),
        ("seed=range(3,0)", "no value"),
        ("seed=range(0,3,0)", "no value"),
        ("optimizer.lr=range(0.1,0.5,0.0)", "no value"),
        ("model=glob(vit*)", "no value"),
        ("loss.temperature=interval(0.5,0.1)", "the lower one first"),
        ("loss.temperature=interval(0.1,inf)", "finite"),
        ("loss.temperature=tag(log,interval(0,1))", "above 0"),
        ("+hydra.sweeper.params.seed=0,1", "takes one value"),
        ("hydra/launcher=simclr,slurm", "takes one value"),
    ],
)
def test_an_override_of_a_sweep_without_values_is_refused(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        first_job([override])
    assert override.split("=")[0] in str(caught.value)
    assert caught.value.code == 2


def test_flags() -> None:
    assert flag(["seed=1", "debug=true"], "debug")
    assert flag(["++debug=True"], "debug")
    assert not flag(["debug=true", "debug=false"], "debug")
    assert not flag(["nodebug=true"], "debug")


def test_the_difference_of_two_runs() -> None:
    default = to_plain(compose(["experiment=null"]))
    assert diff(default, default) == {}
    fresh = compose(
        [
            "experiment=null",
            "loss.temperature=0.5",
            "optimizer=sgd",
            "views.area=[0.2,1]",
            "hydra.run.dir=x",
            "ckpt_path=last",
        ]
    )
    assert list(diff(default, to_plain(fresh)).items()) == [
        ("loss.temperature", (0.2, 0.5)),
        ("optimizer._target_", ("simclr_lightning.optim.LARS", "torch.optim.SGD")),
        ("optimizer.fused", ("(absent)", True)),
        ("optimizer.lr", (0.3, 0.03)),
        ("optimizer.nesterov", ("(absent)", False)),
        ("optimizer.trust_coefficient", (0.001, "(absent)")),
        ("optimizer.weight_decay", (1e-06, 0.0001)),
        ("views.area", ([0.08, 1.0], [0.2, 1])),
    ]


def test_channels_last_true_and_auto_are_equal() -> None:
    default = to_plain(compose([]))
    assert default["model"]["channels_last"] == "auto"
    assert diff(to_plain(compose(["model.channels_last=true"])), default) == {}
    changed = diff(to_plain(compose(["model.channels_last=false"])), default)
    assert changed == {"model.channels_last": (False, "auto")}


def test_a_difference_compares_types_and_ignores_keys_of_one_start() -> None:
    saved = {"views": {"size": 32}, "seed": 1, "force": False}
    assert diff(saved, {"views": {"size": 32.0}, "seed": 1, "force": True}) == {}
    assert diff(saved, {**saved, "seed": True}) == {"seed": (1, True)}


def test_composing_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from simclr_lightning.app.config.composition import compose\n"
        "compose(['seed=1'])\n"
        "assert not {'torch', 'lightning', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
