"""Learning-rate rules, and linear warm-up with cosine decay, per optimiser step.

Legend: B the global batch, the images in one optimiser step over all devices.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Rule = Literal["linear", "sqrt", "constant"]
RULES: Final[tuple[Rule, ...]] = ("linear", "sqrt", "constant")


def scaled_lr(base_lr: float, batch_size: int, rule: Rule) -> float:
    """Return the peak learning rate for a global batch.

    linear: base_lr * B / 256 (paper section 2.3, with base 0.3); sqrt: base_lr * sqrt(B) (appendix B.1, with
    base 0.075); constant: base_lr.

    Raises:
        ValueError: an unknown rule, or a batch below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if rule == "linear":
        return base_lr * batch_size / 256
    if rule == "sqrt":
        return base_lr * math.sqrt(batch_size)
    if rule == "constant":
        return base_lr
    raise ValueError(f"schedule.rule is {rule!r}; choose one of {', '.join(RULES)}")


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Return the factor in [0, 1] on the peak learning rate at a step (the first is 0).

    With w = warmup_steps and T = total_steps: step / w during warm-up, then
    (1 + cos(pi (step - w) / (T - w))) / 2, and exactly 0 from T on. Source: paper section 2.3 (linear
    warm-up, then cosine decay without restarts).

    Raises:
        ValueError: a negative step, total_steps below 1, or a warm-up outside [0, total_steps].
    """
    if step < 0:
        raise ValueError(f"step is {step}; it must be at least 0")
    if total_steps < 1:
        raise ValueError(f"total_steps is {total_steps}; it must be at least 1")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps is {warmup_steps}; it must be in [0, total_steps], here [0, {total_steps}]")
    if step >= total_steps:
        return 0.0
    if step < warmup_steps:
        return step / warmup_steps
    return (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2


@dataclass(frozen=True)
class Schedule:
    """Learning-rate rule, linear warm-up and cosine decay; the optimiser's own lr is the base rate.

    Args:
        rule: linear, sqrt or constant, as in ``scaled_lr``.
        warmup_epochs: length of the warm-up in epochs, >= 0; fractions are allowed.

    Raises:
        ValueError: an unknown rule, or a warm-up that is negative or not finite.
    """

    rule: Rule = "linear"
    warmup_epochs: float = 10

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"schedule.rule is {self.rule!r}; choose one of {', '.join(RULES)}")
        if not 0 <= self.warmup_epochs < math.inf:
            raise ValueError(f"schedule.warmup_epochs is {self.warmup_epochs}; it must be at least 0 and finite")

    def warmup_steps(self, steps_per_epoch: int, total_steps: int) -> int:
        """Return the warm-up in steps; one longer than the run becomes a tenth of the run."""
        wanted = round(self.warmup_epochs * steps_per_epoch)
        return wanted if wanted <= total_steps else total_steps // 10

    def __call__(
        self, optimizer: Optimizer, *, global_batch_size: int, steps_per_epoch: int, total_steps: int
    ) -> LambdaLR:
        """Return the scheduler to be stepped once an optimiser step; it sets the first step's rate at once.

        Args:
            optimizer: its groups' lr are base rates.
            global_batch_size: images in one optimiser step over all devices.
            steps_per_epoch: optimiser steps in one epoch, >= 1.
            total_steps: optimiser steps of the whole run, >= 1.
        """
        peak = scaled_lr(1.0, global_batch_size, self.rule)
        warmup_steps = self.warmup_steps(steps_per_epoch, total_steps)

        def factor(step: int) -> float:
            return peak * warmup_cosine(step, warmup_steps=warmup_steps, total_steps=total_steps)

        return LambdaLR(optimizer, factor)
