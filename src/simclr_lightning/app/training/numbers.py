"""Give a resumed run the optimizer's and the schedule's numbers of its configuration, not of its checkpoint."""

from __future__ import annotations

import lightning as L
from torch.optim.lr_scheduler import LambdaLR

from simclr_lightning.simclr import SimCLR


class CurrentNumbers(L.Callback):
    """Replaces the numbers in the parameter groups and the base rates that a checkpoint restored.

    Rates, decays and momenta are those that the configuration gives, and the rate of the next step is that of the
    configured schedule at that step. The optimizer's moments and the step count stay those of the checkpoint. In a new
    run, and in a run resumed with the same configuration, nothing changes.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the numbers after Lightning has restored the checkpoint."""
        assert isinstance(pl_module, SimCLR)
        today = pl_module.configure_optimizers()  # on the same parameters, without state
        live, schedule = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
        for group, fresh in zip(live.param_groups, today["optimizer"].param_groups, strict=True):
            group.update({key: value for key, value in fresh.items() if key not in ("params", "lr")})
        fresh_schedule = today["lr_scheduler"]["scheduler"]
        if not isinstance(schedule, LambdaLR) or not isinstance(fresh_schedule, LambdaLR):
            return  # a schedule of the user keeps its saved state
        schedule.base_lrs = fresh_schedule.base_lrs
        rates = zip(live.param_groups, schedule.base_lrs, fresh_schedule.lr_lambdas, strict=True)
        for group, base, factor in rates:
            group["lr"] = base * factor(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in live.param_groups]
