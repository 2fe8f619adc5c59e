"""Turn the measured rates into advice: which part limits the run, and what to change."""

from __future__ import annotations

import math

from simclr_lightning.preflight.rates import Rates

NOTABLE = 0.2  # share of the encoder's speed from which the data path is reported as the limit


def step_rate(rates: Rates) -> float:
    """Return images per second of the whole step; workers load during the step, all other work is sequential.

    Example:
        >>> step_rate(Rates(data=300, finish=300, encoder=150, workers=0))
        100.0
    """
    if not rates.workers:
        return 1 / (1 / rates.data + 1 / rates.encoder)
    return min(rates.data, 1 / (1 / rates.finish + 1 / rates.encoder))


def data_limits(rates: Rates) -> bool:
    """Return whether the data path makes the step slower than the encoder alone by more than `NOTABLE`."""
    return step_rate(rates) < (1 - NOTABLE) * rates.encoder


def advice(rates: Rates, *, cores: int, in_memory: bool, resident: bool, packable: bool) -> str:
    """Return what to change if the data path limits the run; "" if it does not, or if no change would help.

    Args:
        rates: of one process.
        cores: CPU cores for one process.
        in_memory: whether the data set is one tensor, which needs no workers.
        resident: whether that tensor is on the training device.
        packable: whether the images are files that `simclr pack` can make smaller.
    """
    if not data_limits(rates):
        return ""
    if in_memory:
        return "" if resident else "set data.resident=true to store the images on the device"
    if rates.workers and rates.finish < 2 * rates.encoder and rates.data > 0.8 * rates.finish:
        return ""  # the device limits: neither workers nor packing would help
    one_worker = rates.data / max(1, rates.workers)
    enough = math.ceil(rates.encoder / one_worker)
    pack = "make the files smaller once with simclr pack IMAGES OUT" if packable else ""
    if rates.workers >= cores:
        return pack
    more = f"set data.num_workers={min(max(enough, rates.workers + 1), cores)}"
    return more if enough <= cores or not pack else f"{more} of {cores} cores, and {pack}"


def line(rates: Rates, *, processes: int, cores: int, in_memory: bool, resident: bool, packable: bool) -> str:
    """Return the line that a run prints at its start, with the rates of all processes together.

    Args:
        rates: of one process.
        processes: their number.
        cores: as in `advice`.
        in_memory: as in `advice`.
        resident: as in `advice`.
        packable: as in `advice`.
    """
    helpers = f" with {rates.workers} workers" if rates.workers else ""
    if processes > 1 and helpers:
        helpers += " per process"
    what = f"pre-flight: data {_shown(rates.data * processes)} images/s{helpers}, "
    what += f"encoder {_shown(rates.encoder * processes)} images/s; "
    if not data_limits(rates):
        return f"{what}the encoder limits the run"
    change = advice(rates, cores=cores, in_memory=in_memory, resident=resident, packable=packable)
    share = 1 - step_rate(rates) / rates.encoder
    return f"{what}the data path makes the run {share:.0%} slower{f': {change}' if change else ''}"


def _shown(rate: float) -> str:
    """Return a rate with three significant digits, or two below 10."""
    return f"{float(f'{rate:.3g}'):,.0f}" if rate >= 10 else f"{rate:.2g}"
