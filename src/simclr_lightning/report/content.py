"""Make the sentences and tables of a report from runs and settings."""

from __future__ import annotations

from collections.abc import Sequence

from simclr_lightning.report import metrics, paper
from simclr_lightning.report.blocks import Block, Bullets, Cell, Heading, Paragraph, Table
from simclr_lightning.report.grouping import Setting, compare, order, spread
from simclr_lightning.report.metrics import Metric, setting_text, shown
from simclr_lightning.report.runs import Run
from simclr_lightning.run_folder import as_number


def verdicts(groups: list[Setting], keys: list[str], runs: list[Run]) -> list[Block]:
    """Return paragraphs: for each score the best setting, its difference to the second best, and the 95 % interval."""
    finished = [run for run in runs if run.finished]
    if not finished:
        return [Paragraph(f"None of the {len(runs)} runs is finished: there is no score yet.", strong=True)]
    found = metrics.scores(finished)
    if not found:
        return [Paragraph("The runs have no scores.", strong=True)]
    if len(groups) < 2:
        return [Paragraph(_one(metric, groups[0], keys), strong=place == 0) for place, metric in enumerate(found)]
    blocks: list[Block] = [
        Paragraph(text, strong=place == 0)
        for place, metric in enumerate(found)
        if (text := _won(metric, groups, keys)) is not None
    ]
    blocks.append(
        Paragraph(
            f"Each interval compares the best of {len(groups)} settings with the second best; it does not account for "
            "the selection of these two. The test scores are for a comparison with the paper. To choose a setting, use "
            "the score on the held-out part of train: a sweeper maximizes it, and it uses no test image."
        )
    )
    return blocks


def _one(metric: Metric, group: Setting, keys: list[str]) -> str:
    found = group.spread(metric.read)
    where = f" of {setting_text(keys, group.values)}" if keys else ""
    many = f" over {found.count} runs" if found is not None and found.count > 1 else ""
    return f"{metric.name}{where}: {metric.spread(found)}{many}. There is one setting, so there is no winner."


def _won(metric: Metric, groups: list[Setting], keys: list[str]) -> str | None:
    found = compare(groups, metric.read)
    if found is None:
        return None
    first, second = (group.spread(metric.read) for group in (found.best, found.second))
    assert first is not None
    unit = f" {metric.unit}" if metric.unit else ""
    digits = 2 if metric.scale == 100 else 3
    if found.difference == 0:
        both = f"{setting_text(keys, found.best.values)} and {setting_text(keys, found.second.values)}"
        return f"By {metric.name}, {both} are equal at {metric.spread(first)} ({_seeds(first.count)})."
    text = (
        f"By {metric.name}, {setting_text(keys, found.best.values)} won: {metric.spread(first)} "
        f"({_seeds(first.count)}), {found.difference * metric.scale:.{digits}f}{unit} above "
        f"{setting_text(keys, found.second.values)} at {metric.spread(second)}. "
    )
    if found.half is None:
        return text + f"{found.test.capitalize()}, so the difference may be due to chance."
    exceeds = found.difference > found.half
    verdict = "exceeds" if exceeds else "does not exceed"
    rest = "" if exceeds else ": more seeds are needed to decide"
    interval = f"± {found.half * metric.scale:.{digits}f}{unit}"
    return f"{text}The 95 % interval of the difference is {interval} ({found.test}); the difference {verdict} it{rest}."


def _seeds(count: int) -> str:
    return f"mean ± standard deviation over {count} seeds" if count > 1 else "one seed"


def run_lengths(runs: Sequence[Run]) -> list[Block]:
    """Return a paragraph: whether all runs have the same epochs or steps, and the learning-rate rule."""
    finished = [run for run in runs if run.finished]
    if not finished:
        return []
    counts = {name: sorted({value for run in finished if (value := run.number(name)) is not None}) for name in
              ("epochs", "steps", "images_seen")}  # fmt: skip
    equal = [name for name in ("epochs", "steps") if len(counts[name]) == 1]
    parts = [
        f"{counts[name][0]:g} {name}"
        if len(counts[name]) == 1
        else f"{counts[name][0]:g} to {counts[name][-1]:g} {name}"
        for name in ("epochs", "steps")
        if counts[name]
    ]
    which = {
        ("epochs", "steps"): "All runs have the same number of epochs and of steps",
        ("epochs",): "All runs have the same number of epochs, so a larger batch makes fewer steps",
        ("steps",): "All runs have the same number of steps, so a larger batch sees more images",
        (): "The runs differ in their numbers of epochs and of steps",
    }[tuple(equal)]
    return [Paragraph(f"{which}: {', '.join(parts)}. {_rates(finished)}")]


def _rates(runs: Sequence[Run]) -> str:
    rules = {
        "linear": "linear, {lr} * batch / 256",
        "sqrt": "square root, {lr} * sqrt(batch)",
        "constant": "constant, {lr} for every batch size",
    }
    found = {(str(run.config.get("schedule.rule")), shown(run.config.get("optimizer.lr"))) for run in runs}
    texts = [rules.get(rule, "unknown ({lr})").format(lr=lr) for rule, lr in sorted(found)]
    return f"Learning-rate rule: {'; '.join(texts)}."


def settings_table(groups: list[Setting], keys: list[str]) -> list[Block]:
    """Return a table with one row for each setting: its metrics over seeds."""
    if not keys or not groups:
        return []
    finished = [run for group in groups for run in group.runs]
    columns = [*metrics.scores(finished), *metrics.known((*metrics.TABLE, *metrics.HARDNESS), finished)]
    rows = []
    for group in groups:
        row = [value_cell(value) for value in group.values]
        row.append(Cell(str(len(group.runs)), len(group.runs)))
        for metric in columns:
            found = group.spread(metric.read)
            row.append(Cell(metric.spread(found), None if found is None else found.mean))
        rows.append(row)
    text = "Mean ± standard deviation over seeds. In report.html, a click on a heading sorts the table."
    return [Heading("Settings"), Paragraph(text), Table([*keys, "runs", *(f.name for f in columns)], rows)]


def runs_table(runs: list[Run], keys: list[str]) -> list[Block]:
    """Return a table with one row for each run, finished or not."""
    columns = [*metrics.scores(runs), *metrics.known((*metrics.TABLE, *metrics.PROGRESS), runs)]
    rows = [
        [
            Cell(run.name),
            *(value_cell(run.value(key)) for key in keys),
            value_cell(run.seed),
            Cell(run.status),
            *(Cell(metric.text(metric.read(run)), metric.read(run)) for metric in columns),
        ]
        for run in runs
    ]
    return [Heading("Runs"), Table(["run", *keys, "seed", "status", *(metric.name for metric in columns)], rows)]


def unfinished(runs: list[Run], notes: list[str]) -> list[Block]:
    """Return a list of failed, stopped and unfinished runs with their reasons, and of folders that cannot be read."""
    items = [f"{run.name}: {run.status}. {run.reason}" for run in runs if not run.finished] + notes
    return [Heading("Failed and unfinished"), Bullets(items)] if items else []


def paper_tables(groups: list[Setting], keys: list[str]) -> list[Block]:
    """Return the paper's tables of temperature and batch size, if these were swept, with the means of this sweep."""
    blocks: list[Block] = []
    here = (metrics.LINEAR, metrics.KNN, metrics.ACCURACY, metrics.ENTROPY)
    if "loss.temperature" in keys:
        names = ["linear probe, top-1 %", "contrastive accuracy, %", "contrastive entropy, nats"]
        numbers = {key: tuple(row) for key, row in paper.TEMPERATURES.items()}
        blocks += _paper_table("loss.temperature", names, numbers, groups, keys, here)
    if "data.batch_size" in keys:
        names = ["linear probe, linear rule, top-1 %", "linear probe, square-root rule, top-1 %"]
        rates = {float(key): tuple(row) for key, row in paper.BATCHES.items()}
        blocks += _paper_table("data.batch_size", names, rates, groups, keys, here[:2])
    if not blocks:
        return []
    text = (
        f"The paper's numbers: {paper.SOURCE}. This sweep has other images and another encoder, so compare trends and "
        "not values. Its numbers are means over all its runs with the value in the first column."
    )
    return [Heading("Comparison with the paper"), Paragraph(text), *blocks]


def _paper_table(
    key: str,
    names: list[str],
    numbers: dict[float, tuple[float, ...]],
    groups: list[Setting],
    keys: list[str],
    here: tuple[Metric, ...],
) -> list[Block]:
    place, rows = keys.index(key), []
    values = {value for group in groups if (value := as_number(group.values[place])) is not None}
    for value in sorted({*numbers, *values}):
        own = [run for group in groups if as_number(group.values[place]) == value for run in group.runs]
        row = [Cell(f"{value:g}", value)]
        row += (
            [Cell(f"{number:.1f}", number) for number in numbers[value]]
            if value in numbers
            else [Cell("–")] * len(names)
        )
        for metric in here:
            found = spread([number for run in own if (number := metric.read(run)) is not None])
            row.append(Cell(metric.text(found.mean) if found else "–", found.mean if found else None))
        rows.append(row)
    return [Table([key, *(f"paper: {name}" for name in names), *(f"sweep: {metric.name}" for metric in here)], rows)]


def value_cell(value: object) -> Cell:
    """Return a cell that is sorted as a number if the value is one."""
    return Cell(shown(value), as_number(value))


def levels(groups: Sequence[Setting], place: int) -> list[object]:
    """Return the values of one swept key, sorted; ``place`` is its position in the keys."""
    return sorted({group.values[place] for group in groups}, key=order)
