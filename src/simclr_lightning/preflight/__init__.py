"""What a run will cost, measured before it starts: images a second of the data path and of the encoder, and memory.

Everything is measured on copies: the module's weights and BatchNorm statistics, the data module's position and every
global random number generator are afterwards what they were.
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
