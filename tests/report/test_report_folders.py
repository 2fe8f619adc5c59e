"""``simclr report`` on folders of few, odd and damaged runs."""

from __future__ import annotations

import csv
import math
import os
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from made_runs import SUMMARY, make_run
from simclr_lightning.cli import main
from simclr_lightning.report import (
    ReportError,
    blocks,
    compare,
    content,
    draw,
    metrics,
    read_runs,
    settings,
    swept_keys,
)
from simclr_lightning.report.write import write_report

# 97.5 % quantiles of Student's t, from any table.
STUDENT = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645}
LETTERS = re.compile(r"\\([\\`*_\[\]|<])")
Table = list[dict[str, str]]


def csv_rows(folder: Path) -> Table:
    with (folder / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def said_of(folder: Path) -> list[str]:
    """Return the paragraphs with the results and the lengths of the runs, without drawing."""
    runs, _ = read_runs(folder)
    keys = swept_keys(runs)
    parts = [*content.verdicts(settings(runs, keys), keys, runs), *content.run_lengths(runs)]
    return [part.text for part in parts if isinstance(part, blocks.Paragraph)]


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    for tau, score in ((0.1, 0.5), (0.2, 0.625), (0.5, 0.25)):
        make_run(tmp_path / str(tau), f"loss.temperature={tau}", linear_top1=score)
    assert said_of(tmp_path)[0] == (
        "By linear probe, top-1 %, loss.temperature=0.2 won: 62.5 (one seed), 12.50 points above loss.temperature=0.1 "
        "at 50.0. One seed: no interval, so the difference may be due to chance."
    )


def test_settings_with_different_seeds_are_compared_by_welchs_test(tmp_path: Path) -> None:
    a, b = {1: 0.5, 2: 0.52, 3: 0.57}, {4: 0.40, 5: 0.50}
    for tau, scores in ((0.1, a), (0.2, b)):
        for seed, score in scores.items():
            make_run(tmp_path / f"{tau}_{seed}", f"loss.temperature={tau}", f"seed={seed}", knn_top1=score)
    runs, _ = read_runs(tmp_path)
    found = compare(settings(runs, ["loss.temperature"]), metrics.KNN.read)
    assert found is not None
    parts = [statistics.variance(x.values()) / len(x) for x in (a, b)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 1)
    assert 1 < freedom < 2
    assert found.difference == pytest.approx(0.53 - 0.45)
    assert STUDENT[2] * math.sqrt(sum(parts)) < found.half < STUDENT[1] * math.sqrt(sum(parts))
    assert found.test == "Welch's t-test over 3 and 2 runs"


def test_welchs_test_with_equal_variances_has_the_degrees_of_freedom_of_both(tmp_path: Path) -> None:
    for tau, seed, score in ((0.1, 1, 0.5), (0.1, 2, 0.6), (0.2, 3, 0.2), (0.2, 4, 0.3)):
        make_run(tmp_path / f"{seed}", f"loss.temperature={tau}", f"seed={seed}", knn_top1=score)
    runs, _ = read_runs(tmp_path)
    found = compare(settings(runs, ["loss.temperature"]), metrics.KNN.read)
    assert found is not None
    assert found.half == pytest.approx(STUDENT[2] * math.sqrt(0.005 / 2 + 0.005 / 2), rel=1e-5)


def test_equal_scores_have_no_winner(tmp_path: Path) -> None:
    for tau in (0.1, 0.2):
        make_run(tmp_path / str(tau), f"loss.temperature={tau}")
    assert said_of(tmp_path)[0].startswith(
        "By linear probe, top-1 %, loss.temperature=0.1 and loss.temperature=0.2 are equal at"
    )


def test_equal_steps_are_reported_and_a_config_group_can_be_swept(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "model=resnet18", "data.batch_size=32", steps=100, epochs=2.5, linear_top1=0.9)
    make_run(tmp_path / "b", "model=resnet50", "data.batch_size=64", steps=100, epochs=5, linear_top1=0.8)
    first, *_, last = said_of(tmp_path)
    assert "data.batch_size=32, model=resnet18 won" in first
    assert "the same number of steps, so a larger batch sees more images: 2.5 to 5 epochs, 100 steps." in last


def test_without_labels_settings_are_compared_by_the_held_out_loss(tmp_path: Path) -> None:
    none = dict.fromkeys(("knn_top1", "linear_top1", "knn_top1_untrained", "knn_top1_pixels"))
    for tau, score in ((0.1, -2.5), (0.2, -2.25)):
        make_run(tmp_path / str(tau), f"loss.temperature={tau}", held_out_score=score, **none)
    assert said_of(tmp_path)[0].startswith(
        "By minus NT-Xent on held-out train, nats, loss.temperature=0.2 won: -2.250 (one seed), 0.250 nats above"
    )
    report = write_report(tmp_path)
    assert "score.png" not in report.files


def test_axes_are_any_two_swept_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    number = 0
    for tau in (0.1, 0.5):
        for lr in (0.1, 0.2):
            for area in ("[0.2,1]", "[0.08,1]"):
                words = f"optimizer.lr={lr}", f"views.area={area}", f"loss.temperature={tau}"
                make_run(tmp_path / str(number), *words, linear_top1=0.5 + 0.01 * number, similarity=False)
                number += 1
    runs, _ = read_runs(tmp_path)
    assert swept_keys(runs) == ["loss.temperature", "optimizer.lr", "views.area"]
    assert main(["report", str(tmp_path), "axes=[views.area, optimizer.lr]"]) == 0
    text = LETTERS.sub(r"\1", (tmp_path / "report.md").read_text())
    assert "Scores over views.area and optimizer.lr" in text
    assert "Each cell shows the best setting of loss.temperature." in text
    capsys.readouterr()
    for axes in ("axes=[lr]", "axes=seed", "axes=[loss.temperature,optimizer.lr,views.area]", "axes="):
        assert main(["report", str(tmp_path), axes]) == 1
        assert "optimizer.lr" in capsys.readouterr().err


def test_the_report_of_one_run_is_written_into_its_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "loss.temperature=0.25", linear_top1=0.5, seed=3)
    Image.new("RGB", (300, 300)).save(run / "views.png")
    report = write_report(run)
    assert set(report.files) == {"report.md", "report.html", "runs.csv", "curves.png", "similarity.png"}
    assert report.headline == "linear probe, top-1 %: 50.0. There is one setting, so there is no winner."
    assert (run / "report.html").read_text().count("data:image/png") == 3
    assert csv_rows(run)[0]["run"] == "run"


def test_a_folder_of_failures_is_reported(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "loss.temperature=0.1", status="stopped", similarity=False)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "summary.json").write_text('{"status": "failed", "knn_top1": NaN, "seed": "x"}')
    (tmp_path / "b" / "train.log").write_text("epoch 1\nTraceback ...\nRuntimeError: the disk went away\n")
    make_run(tmp_path / "c", status="failed", similarity=False)
    (tmp_path / "c" / "output.log").write_text("epoch 1\nerror: rank 1 was killed by SIGKILL\nlast words\n")
    report = write_report(tmp_path)
    assert report.headline == "None of the 3 runs is finished: there is no score yet."
    text = (tmp_path / "report.md").read_text()
    assert "- a: stopped. stopped after step 40; train.log may say why" in text
    assert "- b: failed. RuntimeError: the disk went away" in text
    assert "- c: failed. error: rank 1 was killed by SIGKILL" in text


@pytest.fixture
def bad(tmp_path: Path) -> Callable[[str], list[str]]:
    def words(case: str) -> list[str]:
        folder = tmp_path / case
        if case != "missing":
            folder.mkdir()
        if case in ("torn", "list"):
            make_run(folder / "a", summary={"torn": "{", "list": "[1]"}[case])
        if case == "readonly":
            make_run(folder / "a")
        return ["report", *([] if case == "nothing" else [str(folder)]), *(["hello"] if case == "more" else [])]

    return words


@pytest.mark.parametrize(
    ("case", "code", "says"),
    [
        ("missing", 1, "there is no such folder"),
        ("empty", 1, "holds no run"),
        ("torn", 1, "no run in"),
        ("list", 1, "is not a JSON object"),
        ("readonly", 1, "cannot be written"),
        ("nothing", 2, "usage: simclr report DIR"),
        ("more", 2, "has no argument 'hello'"),
    ],
)
def test_bad_input_gives_a_short_message(
    bad: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, case: str, code: int, says: str,
) -> None:  # fmt: skip
    words = bad(case)
    if case == "readonly":  # permissions do not stop root
        monkeypatch.setattr(os, "access", lambda *args: False)
    assert main(words) == code
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert told.count("\n") <= 5
    assert not list(tmp_path.rglob("report.*"))


def test_help_names_the_axes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--help"]) == 0
    assert "axes=" in capsys.readouterr().out


def test_the_complete_cells_of_a_truncated_table_are_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    with (run / "metrics.csv").open("ab") as file:
        file.write(b"48,5,\xff\xfe,,0.2")
    (read,), _ = read_runs(tmp_path)
    assert read.last("step") == 48
    assert read.last("train/contrastive_entropy") == 0.2
    assert read.last("train/loss") == pytest.approx(SUMMARY["loss"] + 2 * math.exp(-2.5))


@pytest.mark.parametrize(
    ("spoil", "left"),
    [
        (lambda text: text.removeprefix("step,"), 0),  # every number is in the wrong column
        (lambda text: text.partition("\n")[2], 0),
        (lambda text: text[:40], 0),
        (lambda text: text.replace("\n20,", "\n,"), 16),  # the bins of one step of two
        (lambda text: text.replace("0.875,1.0,", "0.875,-1.0,"), 30),
    ],
)
def test_the_valid_rows_of_a_damaged_similarity_table_are_drawn(
    tmp_path: Path, spoil: Callable[[str], str], left: int
) -> None:
    table = make_run(tmp_path / "a", "loss.temperature=0.1") / "similarity.csv"
    table.write_text(spoil(table.read_text()))
    ((run,), _), picture = read_runs(tmp_path), tmp_path / "similarity.png"
    assert len(run.similarity) == left
    make = draw.all_pictures([run], settings([run], []), [], [])["similarity.png"]
    assert (make(picture) is not None) == picture.exists() == (left > 0)
    for name in "bc":
        make_run(tmp_path / name, "loss.temperature=0.2", status="stopped")
    runs, _ = read_runs(tmp_path)
    for axes in ([], ["loss.temperature"]):
        picture.unlink(missing_ok=True)
        make = draw.all_pictures(runs, settings(runs, axes), axes, axes)["similarity.png"]
        assert (make(picture) is not None) == picture.exists() == (left > 0 or not axes)  # of finished runs


def test_a_damaged_run_is_skipped_and_the_others_are_reported(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    (make_run(tmp_path / "words") / ".hydra/overrides.yaml").write_text("5")
    (make_run(tmp_path / "long") / "metrics.csv").write_text('step\n"' + "x" * 200_000)
    table = make_run(tmp_path / "table") / "metrics.csv"
    table.unlink(missing_ok=True)
    table.mkdir()
    runs, notes = read_runs(tmp_path)
    assert [run.name for run in runs] == ["good"]
    assert [note.partition(" ")[0] for note in notes] == ["long", "table", "words"]


def test_report_error_is_a_value_error_of_the_library(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no such folder"):
        write_report(tmp_path / "gone")
