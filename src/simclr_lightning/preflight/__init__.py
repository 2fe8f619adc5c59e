"""Measure before a run starts: images per second of the data path and of the encoder, and memory.

``rates`` measures images per second, ``cost`` memory and floating-point operations, ``verdict`` turns both into advice;
``copies`` has what they share. All measurements use copies: they change no weight or BatchNorm statistic of the module,
no position of the data module, and no global random number generator.
"""

from simclr_lightning.preflight.cost import Cost, free_bytes, largest_batch, measure_cost
from simclr_lightning.preflight.rates import Rates, data_rate, encoder_rate, measure_rates
from simclr_lightning.preflight.verdict import advice, line, step_rate

__all__ = [
    "Cost",
    "Rates",
    "advice",
    "data_rate",
    "encoder_rate",
    "free_bytes",
    "largest_batch",
    "line",
    "measure_cost",
    "measure_rates",
    "step_rate",
]
