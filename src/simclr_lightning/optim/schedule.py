"""Set the learning rate of every optimizer step: scaling rules, linear warm-up and cosine decay.

Legend: B the global batch size, the images in one optimizer step over all devices.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Rule = Literal["linear", "sqrt", "constant"]
RULES: Final[tuple[Rule, ...]] = ("linear", "sqrt", "constant")


def scaled_lr(base_lr: float, batch_size: int, rule: Rule) -> float:
    """Return the peak learning rate for a global batch of B images.

    Args:
        base_lr: the base rate.
        batch_size: B, at least 1.
        rule: "linear": base_lr * B / 256 (paper section 2.3, base 0.3); "sqrt": base_lr * sqrt(B) (appendix B.1, base
            0.075); "constant": base_lr.

    Raises:
        ValueError: the rule is unknown, or ``batch_size`` is below 1.

    >>> scaled_lr(0.3, 4096, "linear")
    4.8
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
    """Return the factor in [0, 1] on the peak learning rate at one optimizer step.

    With w = warmup_steps and T = total_steps, the factor is step / w during warm-up, then
    (1 + cos(pi (step - w) / (T - w))) / 2, and exactly 0 from step T on. Source: paper section 2.3 (linear warm-up,
    then cosine decay without restarts).

    Args:
        step: the number of the step, from 0.
        warmup_steps: from 0 to ``total_steps``.
        total_steps: at least 1.

    Raises:
        ValueError: an argument is out of its range.

    >>> [warmup_cosine(step, warmup_steps=2, total_steps=4) for step in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if step < 0:
        raise ValueError(f"step is {step}; it must be at least 0")
    if total_steps < 1:
        raise ValueError(f"total_steps is {total_steps}; it must be at least 1")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps is {warmup_steps}; it must be from 0 to total_steps, which is {total_steps}")
    if step >= total_steps:
        return 0.0
    if step < warmup_steps:
        return step / warmup_steps
    return (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2


@dataclass(frozen=True)
class Schedule:
    """Make schedulers with a scaling rule, linear warm-up and cosine decay.

    Args:
        rule: "linear", "sqrt" or "constant", see ``scaled_lr``.
        warmup_epochs: length of the warm-up in epochs, at least 0; fractions are allowed.

    Raises:
        ValueError: the rule is unknown, or the warm-up is negative or not finite.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    >>> schedule = Schedule("linear", warmup_epochs=0)
    >>> schedule(optimizer, global_batch_size=512, steps_per_epoch=10, total_steps=100).get_last_lr()
    [0.6]
    """

    rule: Rule = "linear"
    warmup_epochs: float = 10

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"schedule.rule is {self.rule!r}; choose one of {', '.join(RULES)}")
        if not 0 <= self.warmup_epochs < math.inf:
            raise ValueError(f"schedule.warmup_epochs is {self.warmup_epochs}; it must be at least 0 and finite")

    def warmup_steps(self, steps_per_epoch: int, total_steps: int) -> int:
        """Return the length of the warm-up in optimizer steps; if it exceeds the run, a tenth of the run."""
        wanted = round(self.warmup_epochs * steps_per_epoch)
        return wanted if wanted <= total_steps else total_steps // 10

    def __call__(
        self, optimizer: Optimizer, *, global_batch_size: int, steps_per_epoch: int, total_steps: int
    ) -> LambdaLR:
        """Return a scheduler to step after every optimizer step; it sets the rate of the first step now.

        Args:
            optimizer: the ``lr`` of each of its groups is a base rate.
            global_batch_size: images in one optimizer step over all devices, at least 1.
            steps_per_epoch: optimizer steps in one epoch, at least 1.
            total_steps: optimizer steps of the whole run, at least 1.
        """
        peak = scaled_lr(1.0, global_batch_size, self.rule)
        warmup_steps = self.warmup_steps(steps_per_epoch, total_steps)

        def factor(step: int) -> float:
            return peak * warmup_cosine(step, warmup_steps=warmup_steps, total_steps=total_steps)

        return LambdaLR(optimizer, factor)
