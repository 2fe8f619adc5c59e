"""The end of a run on the terminal."""

import io
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from simclr_lightning.app.training.messages import closing_block

METRICS = """\
step,epoch,train/loss,online/held_out_loss,online/contrastive_accuracy,online/effective_rank,online/neighbour_agreement
10,0,4.5,,,,
10,0,,4.25,0.125,11.5,0.25
20,1,4.1,,,,
20,1,,3.5,0.5,20.25,0.75
"""


def said(folder: Path, summary: dict[str, object], loss: str = "simclr_lightning.ntxent.NTXent") -> str:
    console = Console(file=io.StringIO(), width=100)
    closing_block(
        folder, OmegaConf.create({"loss": {"_target_": loss}}), summary, console, limits=["trainer.max_steps"]
    )
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_labels_the_first_and_last_scores_of_held_out_views_are_shown(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said(tmp_path, {}).splitlines() if "│" in line]
    assert rows == [
        ["loss (NT-Xent)", "4.250", "3.500"],
        ["the other view is the nearest", "12.5%", "50.0%"],
        ["neighbours that the views share", "25.0%", "75.0%"],
        ["effective rank of h", "11.5", "20.2"],
    ]


def test_a_run_that_scored_nothing_still_ends_with_its_commands(tmp_path: Path) -> None:
    text = said(tmp_path, {})
    assert "effective rank of h" in text
    assert f"simclr embed {tmp_path} IMAGES OUT.npz\n" in text
    assert f"simclr evaluate {tmp_path} data=folder data.path=LABELLED\n" in text  # the run's own data have no labels


def test_with_labels_the_scores_on_test_are_shown(tmp_path: Path) -> None:
    text = said(tmp_path, {"knn_top1": 0.815, "knn_top1_pixels": 0.3, "knn_top1_untrained": 0.4})
    assert "81.5%" in text
    assert "kNN on raw pixels" in text
    assert f"simclr evaluate {tmp_path}\n" in text
    assert "the other view" not in text


def test_the_commands_trust_the_packages_that_the_run_used(tmp_path: Path) -> None:
    text = said(tmp_path, {}, loss="mypkg.losses.Own")
    assert f"simclr embed {tmp_path} IMAGES OUT.npz --trusted mypkg\n" in text
    assert f"ckpt_path={tmp_path} 'trusted=[mypkg]' trainer.max_steps=N\n" in text
    assert f"simclr evaluate {tmp_path} data=folder data.path=LABELLED 'trusted=[mypkg]'\n" in text
