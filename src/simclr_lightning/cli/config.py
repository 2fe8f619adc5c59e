"""One run's configuration: composed from conf/ and the command line, with every mistake said clearly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from simclr_lightning.cli import mistakes
from simclr_lightning.cli.errors import UserError, mistake
from simclr_lightning.cli.quoting import PATH_KEYS, literal, quote_paths
from simclr_lightning.cli.words import CONFIG_NAME, Groups, Word, check_groups, first_value, parse, trusted_by

__all__ = [
    "PATH_KEYS",
    "compose",
    "conf_folder",
    "diff",
    "first_job",
    "flag",
    "from_plain",
    "prepare_hydra",
    "quote_paths",
    "register_resolvers",
    "set_sweep_overrides",
    "to_plain",
]

# Said anew at every start: not saved with a run, not inherited by its resumption, and no difference between the two.
NOT_OF_THE_RUN: Final = frozenset({"hydra", "ckpt_path", "force", "debug", "dry_run", "trusted"})
_ABSENT: Final = "(absent)"
_ALIKE: Final = {"model.channels_last": (True, "auto")}  # two words for what a run did

_sweep_overrides: tuple[str, ...] = ()


def conf_folder() -> Path:
    """The folder of the configuration: the repository's in an editable install, else the one in the package.

    Raises:
        UserError: when neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    # An editable install may leave a stale copy in the package: the repository's comes first.
    candidates = [package.parents[1] / "conf"] if package.parent.name == "src" else []
    candidates.append(package / "conf")
    for folder in candidates:
        if (folder / f"{CONFIG_NAME}.yaml").is_file():
            return folder
    raise UserError(f"the configuration folder is missing: {candidates[-1]}; install the package again")


def compose(overrides: Sequence[str], *, name: str = CONFIG_NAME) -> DictConfig:
    """Compose the configuration of one run or one judgement, ``hydra`` node included.

    Args:
        overrides: words such as ``loss.temperature=0.5``; paths are quoted here (see `quote_paths`).
        name: the file of conf/ to begin with, train or evaluate.

    Raises:
        UserError: for an unknown key, group or option (with the nearest real name), a word that cannot be
            read, a value that is missing, or an interpolation that leads nowhere.
    """
    words = quote_paths(overrides)
    with _hydra() as loader:
        parsed = parse(words)
        groups = Groups(loader, parsed, name)
        kept = check_groups(parsed, groups)
        try:
            cfg = _load(loader, kept, name)
        except Exception as error:  # Hydra raises many types, mostly without the near name
            raise _explained(error, loader, kept, groups, name) from error
    named = cfg.trusted if OmegaConf.is_list(cfg.trusted) else ()  # what is no list is refused by its range
    if [str(name) for name in named] != list(trusted_by(parsed)):
        raise mistake("trusted is read from the command line alone: trusted=[PACKAGE]")
    mistakes.check_missing(cfg)
    _check_resolves(cfg)
    mistakes.check_keys(cfg, kept, groups)
    return cfg


def first_job(words: Sequence[str]) -> list[str]:
    """Return the words of a sweep with the first value of each: one job of it, to be composed and checked.

    Raises:
        UserError: for a word that cannot be read, or that has no value.
    """
    with _hydra() as loader:
        return [first_value(word) for word in parse(quote_paths(words), sweep=True, loader=loader)]


def flag(words: Sequence[str], name: str) -> bool:
    """Whether the words set a switch such as ``debug`` to true; the last word counts, nothing is composed."""
    values = [word.partition("=")[2] for word in words if word.lstrip("+").partition("=")[0] == name]
    return bool(values) and values[-1].strip().lower() == "true"


def prepare_hydra() -> None:
    """Register this project's interpolations and launcher with Hydra; again is harmless."""
    from simclr_lightning.cli import launcher

    register_resolvers()
    launcher.register()


def register_resolvers() -> None:
    """Register the interpolations that conf/ uses: ``stem_for`` and ``sweep_hash``; again is harmless."""
    OmegaConf.register_new_resolver("stem_for", _stem_for, replace=True)
    OmegaConf.register_new_resolver("sweep_hash", _sweep_hash, replace=True)


def set_sweep_overrides(overrides: Sequence[str]) -> None:
    """Tell ``sweep_hash`` the words of the sweep; their order does not matter."""
    global _sweep_overrides
    _sweep_overrides = tuple(sorted(overrides))


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain containers, without the ``hydra`` node."""
    return {str(key): _plain(cfg[key]) for key in cfg if key != "hydra"}


def from_plain(plain: Mapping[str, Any], *, reads: int = 1) -> DictConfig:
    """Return a configuration in which every string stands for itself, a ``${`` in a path included.

    Args:
        plain: plain containers.
        reads: how often a string is resolved before it is used.
    """
    escaped: Any = dict(plain)
    for _ in range(reads):
        escaped = _literal(escaped)
    return cast(DictConfig, OmegaConf.create(escaped))


def diff(saved: DictConfig, fresh: DictConfig, *, usual: DictConfig | None = None) -> list[str]:
    """Return a line "key: saved -> now" for every resolved value that differs, sorted by key.

    Left out is what does not belong to the run: hydra, ckpt_path, force, debug, dry_run and trusted.

    Args:
        saved: a run's configuration.
        fresh: another one.
        usual: what stands for a key that ``saved`` lacks: the program had no such key when it was written.
    """
    before, now = _flat_run(saved), _flat_run(fresh)
    if usual is not None:
        before = {key: value for key, value in _flat_run(usual).items() if key in now} | before
    keys = sorted(before.keys() | now.keys())
    shown = {key: (before.get(key, _ABSENT), now.get(key, _ABSENT)) for key in keys}
    return [f"{key}: {old} -> {new}" for key, (old, new) in shown.items() if not _same(key, old, new)]


@contextmanager
def _hydra() -> Iterator[Any]:
    """Hydra's config loader over conf/, with this project's resolvers and launcher registered."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    prepare_hydra()
    # A sweep composes its jobs while Hydra's own program runs: its state is set aside.
    instance = GlobalHydra.instance()
    outer, instance.hydra = instance.hydra, None
    try:
        with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3", job_name=CONFIG_NAME):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = outer


def _load(loader: Any, words: Sequence[Word], name: str) -> DictConfig:
    from hydra.types import RunMode

    texts = [word.text for word in words]
    cfg = loader.load_configuration(config_name=name, overrides=texts, run_mode=RunMode.RUN, from_shell=False)
    return cast(DictConfig, cfg)


def _explained(error: Exception, loader: Any, words: Sequence[Word], groups: Groups, name: str) -> UserError:
    """The message for what Hydra raised, by comparing the words with what the group choices alone give."""
    try:
        base = _load(loader, [word for word in words if word.is_group or word.key == "hydra.searchpath"], name)
    except Exception as cause:  # a file of conf/ that cannot be read, or a group that is not in this configuration
        if str(cause).startswith("Could not override"):
            return mistake(str(cause).partition(".")[0].replace("Could not override", f"simclr {name} takes no"))
        first = (str(cause).strip() or type(cause).__name__).splitlines()
        return mistake("the configuration cannot be composed: " + " ".join(line.strip() for line in first[:3]))
    return mistakes.explain(error, words, base, groups)


def _check_resolves(cfg: DictConfig) -> None:
    try:
        to_plain(cfg)
        folders = {"hydra.run.dir": cfg.hydra.run.dir, "hydra.sweep.dir": cfg.hydra.sweep.dir}
    except OmegaConfBaseException as error:
        reason = str(error).strip().partition("\n")[0]
        raise mistake(
            f"{error.full_key or 'an interpolation'}: {reason}\n"
            "${...} must name a key of the configuration; write \\${ for the two letters"
        ) from error
    for key, folder in folders.items():
        if not str(folder).strip():  # it would be the folder one is in
            raise mistake(f"{key} is empty; is a variable of the shell not set?")


def _stem_for(side: Any) -> str:
    # A side that is no number is left to the checks, which name views.size.
    return "cifar" if isinstance(side, int | float) and side <= 32 else "imagenet"


def _sweep_hash() -> str:
    return hashlib.sha256("\0".join(_sweep_overrides).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _plain(value: Any) -> Any:
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    return value


def _literal(value: Any) -> Any:
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, dict):
        return {key: _literal(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(part) for part in value]
    return value


def _flat_run(cfg: DictConfig) -> dict[str, Any]:
    plain = {key: value for key, value in to_plain(cfg).items() if key not in NOT_OF_THE_RUN}
    return mistakes.flatten(plain)


def _same(key: str, old: Any, new: Any) -> bool:
    if old in _ALIKE.get(key, ()) and new in _ALIKE.get(key, ()):
        return True
    return bool(old == new) and isinstance(old, bool) == isinstance(new, bool)
