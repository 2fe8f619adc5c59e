"""SimCLR on two processes that a plain Trainer starts, with no further option."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from made_modules import BATCH, COUNT, Pairs, loader, module, trainer, weights
from torch.utils.data import DataLoader, DistributedSampler

from simclr_lightning import Schedule

SCRIPT = """
import sys, torch
import lightning as L
from made_modules import BATCH, loader, module, weights
from simclr_lightning import Schedule

if __name__ == "__main__":
    options = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, log_every_n_steps=1, **options)
    made = module(schedule=Schedule(warmup_epochs=0))
    trainer.fit(made, loader(batch=BATCH // 2), loader(batch=BATCH // 2))
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        torch.save({"weights": weights(made), "metrics": found, "batch": made.global_batch_size}, sys.argv[1])
"""


class GlobalBatches:
    """The images of both processes in each step."""

    batch_size = BATCH

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return COUNT // BATCH

    def __iter__(self) -> Iterator[list[int]]:
        ranks = [DistributedSampler(Pairs(), num_replicas=2, rank=rank, seed=0) for rank in range(2)]
        for sampler in ranks:
            sampler.set_epoch(self.epoch)
        self.epoch += 1
        orders = [torch.tensor(list(sampler)).split(BATCH // 2) for sampler in ranks]
        yield from (torch.cat(parts).tolist() for parts in zip(*orders, strict=True))


def test_two_processes_end_in_the_weights_of_one(tmp_path: Path) -> None:
    """The loss compares the images of both processes, in the order of torch's DistributedSampler."""
    script, out = tmp_path / "script.py", tmp_path / "out.pt"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-W", "ignore", str(script), str(out)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path}, timeout=200)
    two = torch.load(out, weights_only=True)
    one, fit = module(schedule=Schedule(warmup_epochs=0)), trainer()
    fit.fit(one, DataLoader(Pairs(), batch_sampler=GlobalBatches()), loader())
    for name, value in weights(one).items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-4, atol=1e-6)
    assert two["batch"] == BATCH
    assert two["metrics"].keys() == fit.callback_metrics.keys()
    for name, value in fit.callback_metrics.items():
        torch.testing.assert_close(torch.tensor(two["metrics"][name]), value, rtol=1e-4, atol=1e-5)
