"""Quoting: any path can be given as it is."""

from __future__ import annotations

import random

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.quoting import PATH_KEYS, quote_paths, quoted

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
