"""What the measured rates mean: which part limits the run, and what to change."""

from __future__ import annotations

import math

from simclr_lightning.preflight.rates import Rates

NOTABLE = 0.2  # a part of the step that is worth a word


def step_rate(rates: Rates) -> float:
    """Images a second of the whole step: workers load beside it, everything else takes its turn."""
    if not rates.workers:
        return 1 / (1 / rates.data + 1 / rates.encoder)
    return min(rates.data, 1 / (1 / rates.finish + 1 / rates.encoder))


def data_limits(rates: Rates) -> bool:
    """Whether the data path costs the run a fifth or more of the encoder's speed."""
    return step_rate(rates) < (1 - NOTABLE) * rates.encoder


def advice(rates: Rates, *, cores: int, in_memory: bool, resident: bool, packable: bool) -> str:
    """What to change in a configuration whose data path limits; empty where it does not, or nothing would help.

    Args:
        rates: of one process.
        cores: processor cores for one process.
        in_memory: whether the set is one tensor, without workers.
        resident: whether that tensor is on the training device.
        packable: whether the images are files that `simclr pack` can make smaller.
    """
    if not data_limits(rates):
        return ""
    if in_memory:
        return "" if resident else "keep the images on the device: data.resident=true"
    if rates.workers and rates.finish < 2 * rates.encoder and rates.data > 0.8 * rates.finish:
        return ""  # what the device itself has to make: neither workers nor packing would help
    one_worker = rates.data / max(1, rates.workers)
    enough = math.ceil(rates.encoder / one_worker)
    pack = "make the files small once: simclr pack IMAGES OUT" if packable else ""
    if rates.workers >= cores:
        return pack
    more = f"data.num_workers={min(max(enough, rates.workers + 1), cores)}"
    return more if enough <= cores or not pack else f"{more} of {cores} cores, and {pack}"


def line(rates: Rates, *, processes: int, cores: int, in_memory: bool, resident: bool, packable: bool) -> str:
    """The line at the start of a run; rates are those of all processes together.

    Args:
        rates: of one process.
        processes: all of them.
        cores: processor cores for one process.
        in_memory: whether the set is one tensor, without workers.
        resident: whether that tensor is on the training device.
        packable: whether the images are files that `simclr pack` can make smaller.
    """
    helpers = f" with {rates.workers} workers" if rates.workers else ""
    if processes > 1 and helpers:
        helpers += " a process"
    what = f"pre-flight: data {_shown(rates.data * processes)} images/s{helpers}, "
    what += f"encoder {_shown(rates.encoder * processes)} images/s; "
    if not data_limits(rates):
        return f"{what}the encoder limits"
    mend = advice(rates, cores=cores, in_memory=in_memory, resident=resident, packable=packable)
    share = 1 - step_rate(rates) / rates.encoder
    return f"{what}the data path costs {share:.0%} of the encoder's speed{f': {mend}' if mend else ''}"


def _shown(rate: float) -> str:
    """Two significant digits and a bit: the measure is a short one."""
    return f"{float(f'{rate:.3g}'):,.0f}" if rate >= 10 else f"{rate:.2g}"
