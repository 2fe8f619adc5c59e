"""``simclr report``: every number computed again from runs.csv, and the HTML parsed."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import random
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from made_runs import make_run
from simclr_lightning.cli import main
from simclr_lightning.report import paper as paper_module

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
