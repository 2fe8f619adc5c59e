"""Faults in large numbers: kills, signals, damage, hostile files, malformed input and NaN.

The tests have a short form of each.

    python benchmarks/faults.py                          # everything: about 50 minutes on two cores
    python benchmarks/faults.py --part saves chains      # two of the kinds
    python benchmarks/faults.py --share 0.1              # a tenth of the trials
    python benchmarks/faults.py --part signals --count 40
    python benchmarks/faults.py --quick                  # one to ten trials of each kind

The kinds are in `_faults`, one module for each. The script prints a table of trials and failures, and exits with 1
after a failure.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _faults.chains import chains
from _faults.child import Failures
from _faults.flips import flips
from _faults.hostile import hostile_checkpoints, hostile_configs
from _faults.inputs import inputs
from _faults.nan import nan
from _faults.saves import saves
from _faults.signals import signals
from _harness import arguments, parse, table, write

PARTS: dict[str, tuple[Callable[[int, Path], Failures], int]] = {
    "saves": (saves, 300),
    "chains": (chains, 50),
    "flips": (flips, 1000),
    "inputs": (inputs, 500),
    "hostile checkpoints": (hostile_checkpoints, 25),
    "hostile configs": (hostile_configs, 25),
    "nan": (nan, 20),
    "signals": (signals, 200),
}
COLUMNS = {"fault": "{fault}", "trials": "{trials}", "failures": "{failures}", "seconds": "{seconds}"}


def measure(name: str, share: float, count: int | None) -> dict[str, Any]:
    check, trials = PARTS[name]
    trials, started = count or max(1, round(trials * share)), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # runs without hydra.run.dir write here
        failures = list(check(trials, Path(folder).resolve()))
    row = {"fault": name, "trials": trials, "failures": failures, "seconds": round(time.monotonic() - started, 1)}
    print(
        f"{name}: {trials} trials, {len(failures)} failures, {row['seconds']} s", *failures[:5], sep="\n  ", flush=True
    )
    return row


def main() -> int:
    parser = arguments(__file__, __doc__, threads=1)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--share", type=float, default=1.0, help="of the trials")
    parser.add_argument("--count", type=int, help="trials of each kind, instead of a share")
    options = parse(parser)
    rows = [measure(name, 0.01 if options.quick else options.share, options.count) for name in options.part]
    print(table(COLUMNS, [{**row, "failures": len(row["failures"])} for row in rows]))
    write(options, "torch", rows=rows)
    return int(any(row["failures"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
