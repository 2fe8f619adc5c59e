"""``simclr report``: every number computed again from runs.csv, the HTML parsed, and odd folders."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import random
import re
import statistics
from collections.abc import Callable
from html.parser import HTMLParser
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
from simclr_lightning.report import paper as paper_module
from simclr_lightning.report.write import write_report

# 97.5 % quantiles of Student's t, from any table.
STUDENT = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645}
LETTERS = re.compile(r"\\([\\`*_\[\]|<])")
Table = list[dict[str, str]]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reported sweep: two temperatures, two batch sizes, three seeds, and a failed, a killed and a torn run."""
    root, draw, number = tmp_path_factory.mktemp("sweep"), random.Random(7), 0
    for tau in (0.1, 0.5):
        for batch in (64, 256):
            for seed in (1, 2, 3):
                words = f"loss.temperature={tau}", f"data.batch_size={batch}", f"seed={seed}"
                score = 0.5 + 0.3 * tau + batch / 2000
                numbers = {name: score + draw.gauss(0, 0.02) for name in ("knn_top1", "linear_top1", "held_out_score")}
                make_run(root / f"{number}_{','.join(words)}", *words, steps=2560 // batch, **numbers)
                number += 1
    make_run(
        root / "12_nan", "loss.temperature=0.1", "data.batch_size=64", "seed=4",
        status="failed", knn_top1=None, linear_top1=None, reason="NaN at step 3 | <b>images</b> 1",
    )  # fmt: skip
    make_run(root / "13_killed", "loss.temperature=0.5", "data.batch_size=64", "seed=4", summary="")
    make_run(root / "14_torn", "loss.temperature=0.5", "data.batch_size=64", "seed=5", summary='{"status": "fin')
    assert main(["report", str(root)]) == 0
    return root


def csv_rows(folder: Path) -> Table:
    with (folder / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def finished(folder: Path) -> Table:
    return [row for row in csv_rows(folder) if row["status"] == "finished"]


def tables(folder: Path) -> dict[str, Table]:
    """Return the tables of report.md by their heading; a second table of one heading gets a number."""
    found: dict[str, Table] = {}
    heading = ""
    for part in (folder / "report.md").read_text().split("\n\n"):
        if part.startswith("## "):
            heading = part[3:].strip()
        elif part.startswith("| "):
            lines = [
                [LETTERS.sub(r"\1", c.strip()) for c in re.split(r"(?<!\\)\|", x)[1:-1]] for x in part.splitlines()
            ]
            name = heading if heading not in found else f"{heading} {len(found)}"
            found[name] = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    return found


def sentences(folder: Path) -> list[str]:
    text = (folder / "report.md").read_text()
    return [LETTERS.sub(r"\1", part).strip("*") for part in text.split("\n\n")]


SHOWN = {  # column of the report -> column of runs.csv, scale, digits
    "linear probe, top-1 %": ("linear_top1", 100, 1),
    "kNN, top-1 %": ("knn_top1", 100, 1),
    "kNN on held-out train, top-1 %": ("held_out_score", 100, 1),
    "loss, nats": ("loss", 1, 3),
    "contrastive accuracy, %": ("contrastive_accuracy", 100, 1),
    "contrastive entropy, nats": ("contrastive_entropy", 1, 2),
    "gradient on the hardest 1 % of negatives, %": ("train/hardest_1", 100, 1),
    "gradient on the hardest 10 % of negatives, %": ("train/hardest_10", 100, 1),
    "effective number of negatives": ("train/effective_negatives", 1, 1),
    "same class among the hardest 10 % of negatives, %": ("train/same_class_hardest_10", 100, 1),
    "steps": ("steps", 1, 0),
    "epochs": ("epochs", 1, 2),
    "images/s": ("images_per_second", 1, 0),
    "seconds": ("seconds", 1, 0),
}


def numbers(rows: Table, column: str) -> list[float]:
    return [float(row[column]) for row in rows if row[column]]


def check(text: str, values: list[float], scale: float, digits: int) -> None:
    """Compare a cell with the mean of its values, and with the standard deviation of several."""
    if not values:
        assert text == "–"
        return
    wanted = [statistics.fmean(values)] + ([statistics.stdev(values)] if len(values) > 1 else [])
    told = [float(part) for part in text.split("±")]
    assert told == pytest.approx([scale * value for value in wanted], abs=0.51 * 10**-digits)


def test_runs_csv_has_every_run_with_all_fields_of_its_summary(sweep: Path) -> None:
    rows = csv_rows(sweep)
    assert [row["run"].partition("_")[0] for row in rows] == [str(i) for i in range(14)]  # 10 after 9
    for row in rows[:12]:
        folder = sweep / row["run"]
        for key, value in json.loads((folder / "summary.json").read_text()).items():
            assert row[key] == str(value), key
        with (folder / "metrics.csv").open(newline="") as file:
            metrics = list(csv.DictReader(file))
        for name in ("train/loss", "online/knn_top1", "lr", "train/hardest_10"):
            assert float(row[name]) == float([entry[name] for entry in metrics if entry[name]][-1])
        keys = {"loss.temperature": "temperature", "data.batch_size": "global_batch_size", "seed": "seed"}
        assert row["overrides"] == " ".join(f"{key}={row[column]}" for key, column in keys.items())
        assert (row["loss.temperature"], row["reason"]) == (row["temperature"], "")
    assert [row["status"] for row in rows[12:]] == ["failed", "unfinished"]


def test_every_number_of_the_tables_follows_from_runs_csv(sweep: Path) -> None:
    found, rows = tables(sweep), finished(sweep)
    assert len(found["Settings"]) == 4
    seen = set()
    for line in found["Settings"]:
        own = [row for row in rows if float(row["temperature"]) == float(line["loss.temperature"])]
        own = [row for row in own if row["global_batch_size"] == line["data.batch_size"]]
        assert int(line["runs"]) == len(own) == 3
        for name in line.keys() & SHOWN.keys():
            column, scale, digits = SHOWN[name]
            check(line[name], numbers(own, column), scale, digits)
            seen.add(name)
    for line, row in zip(found["Runs"], csv_rows(sweep), strict=True):
        assert (line["run"], line["status"], line["seed"]) == (row["run"], row["status"], row["seed"])
        for name in line.keys() & SHOWN.keys():
            column, scale, digits = SHOWN[name]
            check(line[name], numbers([row], column), scale, digits)
            seen.add(name)
        assert line.keys() - SHOWN.keys() == {"run", "loss.temperature", "data.batch_size", "seed", "status"}
    assert seen == SHOWN.keys()


def test_the_means_of_the_sweep_are_shown_with_the_papers_tables(sweep: Path) -> None:
    by_temperature, by_batch = (table for name, table in tables(sweep).items() if name.startswith("Comparison"))
    assert [line["loss.temperature"] for line in by_temperature] == ["0.05", "0.1", "0.5", "1"]
    assert [line["data.batch_size"] for line in by_batch] == ["64", "256", "512", "1024", "2048", "4096", "8192"]
    for key, column, table in (
        ("loss.temperature", "temperature", by_temperature), ("data.batch_size", "global_batch_size", by_batch)
    ):  # fmt: skip
        for line in table:
            own = [row for row in finished(sweep) if float(row[column]) == float(line[key])]
            for name in (name for name in line if name.startswith("sweep: ")):
                source, scale, digits = SHOWN[name.removeprefix("sweep: ")]
                mean = [statistics.fmean(numbers(own, source))] if own else []
                check(line[name], mean, scale, digits)
    # From table 5 and table B.1 of the paper.
    entropy = {line["loss.temperature"]: line["paper: contrastive entropy, nats"] for line in by_temperature}
    assert entropy == {"0.05": "1.0", "0.1": "4.5", "0.5": "8.2", "1": "8.3"}
    square = [line["paper: linear probe, square-root rule, top-1 %"] for line in by_batch]
    assert square == ["–", "62.8", "63.8", "64.3", "64.7", "64.5", "64.8"]
    assert paper_module.TEMPERATURES[0.1].linear == 64.4


@pytest.mark.parametrize(
    ("start", "column"),
    [("By linear probe", "linear_top1"), ("By kNN, top", "knn_top1"), ("By kNN on held-out", "held_out_score")],
)
def test_the_sentences_name_the_best_setting_and_its_lead(sweep: Path, start: str, column: str) -> None:
    (said,) = [line for line in sentences(sweep) if line.startswith(start)]
    groups: dict[str, dict[str, float]] = {}
    for row in finished(sweep):
        name = f"loss.temperature={row['temperature']}, data.batch_size={row['global_batch_size']}"
        groups.setdefault(name, {})[row["seed"]] = 100 * float(row[column])
    best, second = sorted(groups, key=lambda name: -statistics.fmean(groups[name].values()))[:2]
    assert f"{best} won: " in said
    assert f"above {second} at " in said
    a, b = groups[best], groups[second]
    check(said.split("won: ")[1].split(" (")[0], list(a.values()), 1, 1)
    check(said.split(f"{second} at ")[1].split(". The")[0], list(b.values()), 1, 1)
    differences = [a[seed] - b[seed] for seed in a]
    half = STUDENT[2] * statistics.stdev(differences) / math.sqrt(3)
    (told,) = re.findall(r"([\d.]+) points above", said)
    assert float(told) == pytest.approx(statistics.fmean(differences), abs=0.0051)
    (told,) = re.findall(r"interval of the difference is ± ([\d.]+) points \(paired t-test over 3 seeds\)", said)
    assert float(told) == pytest.approx(half, abs=0.0051)
    assert ("the difference exceeds it" in said) == (statistics.fmean(differences) > half)
    assert ("does not exceed" in said) == (statistics.fmean(differences) <= half)


def test_equal_epochs_and_failed_runs_are_reported(sweep: Path) -> None:
    text = "\n".join(sentences(sweep))
    assert "14 runs, 12 finished." in text
    assert "the same number of epochs, so a larger batch makes fewer steps: 5 epochs, 10 to 40 steps." in text
    assert "Learning-rate rule: linear, 0.3 * batch / 256." in text
    assert "- 12_nan: failed. NaN at step 3 | <b>images</b> 1" in text
    assert "- 13_killed: unfinished. no summary.json: it was killed after step 40, or is still running" in text
    assert "- 14_torn was skipped: its summary.json cannot be read" in text


# -- the files -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Check that elements are closed in order; collect the references of a page and the cells of its tables."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.used: list[tuple[str, str]] = []
        self.cells: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.used += [(name, value or "") for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_the_html_is_valid_and_self_contained(sweep: Path) -> None:
    text = (sweep / "report.html").read_text("utf-8")
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert "b" not in page.tags  # a reason is text, not markup
    assert not re.search(r"https?://|url\(|@import|fetch\(", text)
    pictures = sorted(path.name for path in sweep.glob("*.png"))
    assert pictures == ["curves.png", "hardness.png", "score.png", "similarity.png"]
    embedded = []
    for name, value in page.used:
        assert name == "src"
        assert value.startswith("data:image/png;base64,")
        embedded.append(base64.b64decode(value.partition(",")[2], validate=True))
        with Image.open(io.BytesIO(embedded[-1])) as image:
            image.load()
            assert min(image.size) > 200
    assert sorted(embedded) == sorted((sweep / name).read_bytes() for name in pictures)
    told = [cell for table in tables(sweep).values() for cell in (*table[0], *(c for x in table for c in x.values()))]
    assert page.cells == told
    assert len(told) > 100


def test_a_second_report_replaces_the_first(sweep: Path) -> None:
    before = {path.name: path.read_bytes() for path in sweep.iterdir() if path.is_file()}
    assert main(["report", str(sweep)]) == 0
    assert {path.name: path.read_bytes() for path in sweep.iterdir() if path.is_file()} == before


# -- other folders ---------------------------------------------------------------------------------------------------


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
        ("list", 1, "not an object"),
        ("readonly", 1, "cannot be written"),
        ("nothing", 2, "usage: simclr report DIR"),
        ("more", 2, "does not know 'hello'"),
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
