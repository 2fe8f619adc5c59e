"""``simclr evaluate RUN KEY=VALUE ...``: score an encoder on any labelled data by kNN and a linear probe."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simclr_lightning.cli import config, errors
from simclr_lightning.cli.errors import UserError

USAGE = "usage: simclr evaluate RUN ['protocol=[knn,lbfgs]'] [data=... data.path=...]"
PROTOCOLS = {"knn": "knn_top1", "lbfgs": "linear_top1"}


def main(argv: Sequence[str]) -> int:
    """Evaluate as the words say; returns the exit code."""
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    words = config.quote_paths(argv[1:])
    return errors.guard(lambda: _main(argv, words), debug=config.flag(words, "debug"))


def _main(argv: Sequence[str], words: list[str]) -> int:
    if not argv or ("=" in argv[0] and not Path(argv[0]).exists()):
        raise UserError(f"evaluate needs a run's folder or an exported encoder first\n{USAGE}", code=2)
    import torch
    from rich.console import Console
    from rich.table import Table

    from simclr_lightning.cli import checks, judge
    from simclr_lightning.cli.job import make_data
    from simclr_lightning.export import load_encoder

    run = Path(argv[0])
    protocols = _protocols(words)
    encoder = load_encoder(run)
    own = [word for word in words if not word.startswith("protocol=")]
    cfg = config.compose([*_saved_data(run, own), f"views.size={encoder.size}", *own])
    checks.check_config(cfg)
    checks.check_targets(cfg, trusted=tuple(cfg.trusted))
    data = make_data(config.from_plain(config.to_plain(cfg)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    knn, linear = judge.score(encoder, data, device=device)
    if knn is None:
        raise UserError("there are no labels for test to score with; give labelled data: data=... data.path=...")
    found = {name: {"knn": knn, "lbfgs": linear}[name] for name in protocols}
    table = Table(title=f"top-1 on test, {len(data.load().test or ())} images", title_justify="left")
    table.add_column("protocol")
    table.add_column("score", justify="right")
    for name, value in found.items():
        table.add_row(name, "-" if value is None else f"{value:.1%}")
    Console().print(table)
    target = (run if run.is_dir() else run.parent) / "evaluation.json"
    result: dict[str, Any] = {"data": cfg.data.dataset._target_, "path": cfg.data.path, "seed": cfg.seed}
    result |= {PROTOCOLS[name]: value for name, value in found.items()}
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {target}")
    return 0


def _protocols(words: Sequence[str]) -> list[str]:
    asked = [word.partition("=")[2] for word in words if word.startswith("protocol=")]
    names = re.findall(r"[^\s,\[\]'\"]+", asked[-1]) if asked else list(PROTOCOLS)
    unknown = [name for name in names if name not in PROTOCOLS]
    if unknown or not names:
        raise UserError(f"protocol={','.join(unknown)}: the protocols are {', '.join(PROTOCOLS)}", code=2)
    return names


def _saved_data(run: Path, words: Sequence[str]) -> list[str]:
    """The data that the run was trained on, when it has a configuration and the words choose no other."""
    from simclr_lightning.cli.folder import saved_overrides

    if any(word.startswith("data=") for word in words) or not (run / ".hydra").is_dir():
        return []
    keep = ("data=", "data.", "experiment=", "seed=")
    given = {word.partition("=")[0] for word in words}
    return [word for word in saved_overrides(run) if word.startswith(keep) and word.partition("=")[0] not in given]
