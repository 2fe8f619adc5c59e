"""What a report says: sentences and tables, from runs and settings alone."""

from __future__ import annotations

from collections.abc import Sequence

from simclr_lightning.report import figures, paper
from simclr_lightning.report.blocks import Block, Bullets, Cell, Heading, Paragraph, Table
from simclr_lightning.report.figures import Figure, setting_text, shown
from simclr_lightning.report.grouping import Setting, compare, order, spread
from simclr_lightning.report.runs import Run
from simclr_lightning.run_folder import as_number


def verdicts(groups: list[Setting], keys: list[str], runs: list[Run]) -> list[Block]:
    """Sentences that say which setting won, by how much, and whether that is more than its interval over seeds."""
    finished = [run for run in runs if run.finished]
    if not finished:
        return [Paragraph(f"None of the {len(runs)} runs is finished: there is no score yet.", strong=True)]
    found = figures.scores(finished)
    if not found:
        return [Paragraph("The runs have no scores.", strong=True)]
    if len(groups) < 2:
        return [Paragraph(_one(figure, groups[0], keys), strong=place == 0) for place, figure in enumerate(found)]
    blocks: list[Block] = [
        Paragraph(text, strong=place == 0)
        for place, figure in enumerate(found)
        if (text := _won(figure, groups, keys)) is not None
    ]
    blocks.append(
        Paragraph(
            f"Each interval is of the best of {len(groups)} settings against the second best, and does not allow for "
            "that choice. Test scores are compared as in the paper's tables; what to train with is better chosen by "
            "the held-out part of train, which a sweeper maximises and which never sees test."
        )
    )
    return blocks


def _one(figure: Figure, group: Setting, keys: list[str]) -> str:
    found = group.of(figure.read)
    where = f" of {setting_text(keys, group.values)}" if keys else ""
    many = f" over {found.count} runs" if found is not None and found.count > 1 else ""
    return f"{figure.name}{where}: {figure.spread(found)}{many}. There is one setting, so there is no winner."


def _won(figure: Figure, groups: list[Setting], keys: list[str]) -> str | None:
    found = compare(groups, figure.read)
    if found is None:
        return None
    first, second = (group.of(figure.read) for group in (found.best, found.second))
    assert first is not None
    unit = f" {figure.unit}" if figure.unit else ""
    digits = 2 if figure.scale == 100 else 3
    if found.difference == 0:
        both = f"{setting_text(keys, found.best.values)} and {setting_text(keys, found.second.values)}"
        return f"By {figure.name}, {both} are level at {figure.spread(first)} ({_seeds(first.count)})."
    said = (
        f"By {figure.name}, {setting_text(keys, found.best.values)} won: {figure.spread(first)} "
        f"({_seeds(first.count)}), {found.difference * figure.scale:.{digits}f}{unit} above "
        f"{setting_text(keys, found.second.values)} at {figure.spread(second)}. "
    )
    if found.half is None:
        return said + f"{found.test.capitalize()}, so the difference may be chance."
    exceeds = found.difference > found.half
    verdict = "exceeds" if exceeds else "does not exceed"
    rest = "" if exceeds else ": more seeds are needed to tell them apart"
    interval = f"± {found.half * figure.scale:.{digits}f}{unit}"
    return f"{said}The 95 % interval of the difference is {interval} ({found.test}); the difference {verdict} it{rest}."


def _seeds(count: int) -> str:
    return f"mean ± standard deviation over {count} seeds" if count > 1 else "one seed"


def kept_equal(runs: Sequence[Run]) -> list[Block]:
    """Whether epochs or steps were kept equal, and the rule of the learning rate."""
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
    kept = {
        ("epochs", "steps"): "Epochs and steps are the same in every run",
        ("epochs",): "Epochs were kept equal, so a larger batch makes fewer steps",
        ("steps",): "Steps were kept equal, so a larger batch sees more images",
        (): "Neither epochs nor steps are the same in every run",
    }[tuple(equal)]
    return [Paragraph(f"{kept}: {', '.join(parts)}. {_rates(finished)}")]


def _rates(runs: Sequence[Run]) -> str:
    says = {
        "linear": "linear, {lr} * batch / 256",
        "sqrt": "square root, {lr} * sqrt(batch)",
        "constant": "constant, {lr} whatever the batch",
    }
    found = {(str(run.config.get("schedule.rule")), shown(run.config.get("optimizer.lr"))) for run in runs}
    texts = [says.get(rule, "unknown ({lr})").format(lr=lr) for rule, lr in sorted(found)]
    return f"Learning-rate rule: {'; '.join(texts)}."


def settings_table(groups: list[Setting], keys: list[str]) -> list[Block]:
    """One row a setting: its figures over seeds."""
    if not keys or not groups:
        return []
    finished = [run for group in groups for run in group.runs]
    columns = [*figures.scores(finished), *figures.known((*figures.TABLE, *figures.HARDNESS), finished)]
    rows = []
    for group in groups:
        row = [value_cell(value) for value in group.values]
        row.append(Cell(str(len(group.runs)), len(group.runs)))
        for figure in columns:
            found = group.of(figure.read)
            row.append(Cell(figure.spread(found), None if found is None else found.mean))
        rows.append(row)
    text = "Mean ± standard deviation over seeds. Click a heading to sort." if len(groups) > 1 else "Mean over seeds."
    return [Heading("Settings"), Paragraph(text), Table([*keys, "runs", *(f.name for f in columns)], rows)]


def runs_table(runs: list[Run], keys: list[str]) -> list[Block]:
    """One row a run, finished or not."""
    columns = [*figures.scores(runs), *figures.known((*figures.TABLE, *figures.PROGRESS), runs)]
    rows = [
        [
            Cell(run.name),
            *(value_cell(run.value(key)) for key in keys),
            value_cell(run.seed),
            Cell(run.status),
            *(Cell(figure.text(figure.read(run)), figure.read(run)) for figure in columns),
        ]
        for run in runs
    ]
    return [Heading("Runs"), Table(["run", *keys, "seed", "status", *(figure.name for figure in columns)], rows)]


def unfinished(runs: list[Run], notes: list[str]) -> list[Block]:
    """Failed, stopped and unfinished runs with their reason, and folders that could not be read."""
    items = [f"{run.name}: {run.status}. {run.reason}" for run in runs if not run.finished] + notes
    return [Heading("Failed and unfinished"), Bullets(items)] if items else []


def beside_the_paper(groups: list[Setting], keys: list[str]) -> list[Block]:
    """The paper's tables of temperature and batch, where these were swept, with the means of this sweep beside."""
    blocks: list[Block] = []
    here = (figures.LINEAR, figures.KNN, figures.ACCURACY, figures.ENTROPY)
    if "loss.temperature" in keys:
        names = ["linear probe, top-1 %", "contrastive accuracy, %", "contrastive entropy, nats"]
        numbers = {key: tuple(row) for key, row in paper.TEMPERATURES.items()}
        blocks += _beside("loss.temperature", names, numbers, groups, keys, here)
    if "data.batch_size" in keys:
        names = ["linear probe, linear rule, top-1 %", "linear probe, square-root rule, top-1 %"]
        rates = {float(key): tuple(row) for key, row in paper.BATCHES.items()}
        blocks += _beside("data.batch_size", names, rates, groups, keys, here[:2])
    if not blocks:
        return []
    says = (
        f"{paper.SOURCE}. Other images, another encoder and batch: compare the shape, not the height. Figures of this "
        "sweep are means over all its runs at that value."
    )
    return [Heading("Beside the paper"), Paragraph(says), *blocks]


def _beside(
    key: str,
    names: list[str],
    numbers: dict[float, tuple[float, ...]],
    groups: list[Setting],
    keys: list[str],
    here: tuple[Figure, ...],
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
        for figure in here:
            found = spread([number for run in own if (number := figure.read(run)) is not None])
            row.append(Cell(figure.text(found.mean) if found else "–", found.mean if found else None))
        rows.append(row)
    return [Table([key, *(f"paper: {name}" for name in names), *(f"here: {figure.name}" for figure in here)], rows)]


def value_cell(value: object) -> Cell:
    """A cell that sorts as a number where the value is one."""
    return Cell(shown(value), as_number(value))


def levels(groups: Sequence[Setting], place: int) -> list[object]:
    """The values that one key takes, in order."""
    return sorted({group.values[place] for group in groups}, key=order)
