"""``simclr evaluate RUN KEY=VALUE ...``: every protocol of the paper for one encoder, in one table and one file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simclr_lightning.cli import config, errors
from simclr_lightning.cli.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE = """usage: simclr evaluate RUN ['protocol=[knn,lbfgs,linear,semi,finetune]'] [data=... data.path=...] [KEY=VALUE]
       RUN is a run's folder, an exported encoder, or a state dict with model=ARCHITECTURE
"""


def main(argv: Sequence[str]) -> int:
    """Evaluate as the words say; returns the exit code."""
    if argv and argv[0] in ("-h", "--help"):
        print(f"{USAGE}\nKeys and defaults:\n")
        print((config.conf_folder() / "evaluate.yaml").read_text("utf-8"), end="")
        return 0
    words = config.quote_paths(argv[1:])
    return errors.guard(lambda: _main(argv, words), debug=config.flag(words, "debug"))


def _main(argv: Sequence[str], words: list[str]) -> int:
    if not argv or ("=" in argv[0] and not Path(argv[0]).exists()):
        raise UserError(f"evaluate needs a run's folder or an exported encoder first\n{USAGE}", code=2)
    from simclr_lightning.cli import subject

    run = Path(argv[0])
    cfg = subject.configure(run, words)
    others = subject.configure_transfer(run, words, cfg)
    return _judge(run, cfg, others, sized=any(word.startswith("views.size=") for word in words))


def _judge(run: Path, cfg: DictConfig, others: dict[str, DictConfig], *, sized: bool) -> int:
    from rich.console import Console

    from simclr_lightning.cli import results, subject
    from simclr_lightning.cli.evaluation import Evaluation
    from simclr_lightning.cli.training import quiet_libraries

    quiet_libraries()
    folder = run if run.is_dir() else run.parent
    encoder = subject.load(run, cfg)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written, and evaluation.json is written there; copy the run elsewhere")
    assert encoder.size is not None
    size = int(cfg.views.size) if sized else encoder.size
    evaluation = Evaluation(run, encoder, size=size, console=Console(highlight=False))
    found = evaluation.judge(cfg, others)
    results.show(found, evaluation.console)
    for path in results.write(found, folder):
        print(f"written to {path}")
    return 0
