"""The losses next to NT-Xent from the command line, whole runs with micro-batches, pre-flight and hardness."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import OVERRIDES, small_images


@pytest.mark.parametrize(
    ("overrides", "loss"),
    [
        (("loss=dcl", "loss.sigma=0.5"), "DCL"),
        (("loss=debiased", "loss.beta=1"), "Debiased"),
        (("loss=supcon",), "SupCon"),
        (("loss=supcon", "micro_batch_size=8", "preflight=true", "callbacks.hardness.every_n_steps=1"), "SupCon"),
    ],
)
def test_every_loss_trains_to_the_end(
    overrides: tuple[str, ...], loss: str, npz: Path, simclr: Callable[..., int]
) -> None:
    assert simclr("train", *OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", *overrides) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["status"] == "finished"
    assert np.isfinite([summary[key] for key in ("loss", "contrastive_accuracy", "contrastive_entropy")]).all()
    assert f"_target_: simclr_lightning.ntxent.{loss}\n" in Path("run/.hydra/config.yaml").read_text()


def test_a_supervised_loss_without_labels_is_refused_before_a_step(
    tmp_path: Path, simclr: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "alone.npz", train_images=small_images(64)[0])
    assert simclr("train", *OVERRIDES, "data.path=alone.npz", "loss=supcon", "hydra.run.dir=run") == 1
    assert "needs labels, and these images have none: choose loss=nt_xent or loss=dcl" in capsys.readouterr().err
    assert not list(Path("run").glob("checkpoints/*.ckpt"))
