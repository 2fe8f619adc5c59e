"""Run ``simclr search RUN IMAGES``: find the nearest images of a query, or the near-duplicates in a folder."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from simclr_lightning import app, data, evaluation, files, machine, pictures
from simclr_lightning.app import runs
from simclr_lightning.app.errors import UserError, mistake
from simclr_lightning.cli.parser import Parser, trusting
from simclr_lightning.extras import require

if TYPE_CHECKING:
    from torch import Tensor

_ROWS_SHOWN: Final = 20  # pairs on the terminal
_GROUPS_DRAWN, _IMAGES_DRAWN = 12, 10
_SIDE: Final = 96  # least side of a drawn image, in pixels
_HALF: Final = 0.5  # share of the machine's memory that the exact search may use


def main(argv: Sequence[str]) -> int:
    """Run ``simclr search`` with these arguments; return the exit code."""
    return _parser().run(_main, argv)


def _parser() -> Parser:
    parser = Parser("simclr search", description="Find similar images by the cosine of h.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder or an exported encoder")
    parser.add_argument("images", metavar="IMAGES", type=Path, help="the folder to search in")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--query", metavar="IMAGE", type=Path, nargs="+", help="list the nearest images of each of these")
    what.add_argument("--duplicates", action="store_true", help="list pairs of similar images (the default)")
    parser.add_argument("-k", type=int, default=10, help="number of nearest images per query (default 10)")
    parser.add_argument("--threshold", type=float, default=0.95, help="least cosine of a duplicate (default 0.95)")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="write a CSV file and a picture to DIR, replacing those of before"
    )
    parser.add_argument(
        "--index", choices=("exact", "faiss"), default="exact", help="faiss: approximate, for sets larger than memory"
    )
    trusting(parser)
    return parser


def _main(asked: Any) -> int:
    if asked.k < 1:
        raise mistake(f"-k {asked.k}: it must be at least 1")
    if not 0 < asked.threshold <= 1:
        raise mistake(f"--threshold {asked.threshold:g}: it must be above 0 and at most 1")
    if asked.out is not None and (found := files.in_the_way(asked.out)):
        raise UserError(f"--out {asked.out} is {found}; give a folder")
    if asked.index == "faiss":
        require("faiss", "--index faiss")
    missing = [path for path in asked.query or () if not path.is_file()]
    if missing:
        raise UserError(f"--query {missing[0]}: there is no such image file")
    if asked.out is not None:
        files.check_writable(asked.out)
    load = partial(runs.load_export, trusted=asked.trusted)
    gallery = app.open_gallery(asked.run, asked.images, keep=True, load=load)
    for note in gallery.notes:
        print(note)
    find = _finder(gallery, asked.index)
    if asked.query is None:
        return _duplicates(gallery, find, asked)
    queries, h = app.features(gallery.encoder, gallery.size, asked.query)
    return _nearest(gallery, find, asked, queries, h)


def _finder(gallery: app.Gallery, index: str) -> evaluation.Finder | None:
    """Return the FAISS index; None for the exact search.

    Raises:
        UserError: h is too large for the exact search.
    """
    if index == "faiss":
        return evaluation.faiss_index(gallery.h)
    needed = gallery.h.numel() * 4
    memory = machine.memory()
    if needed > _HALF * memory:
        raise UserError(
            f"h of {len(gallery.h):,} images takes {needed / 1e9:.0f} of this machine's {memory / 1e9:.0f} GB of "
            "memory; add --index faiss (pip install 'simclr-lightning[faiss]')"
        )
    return None


def _nearest(
    gallery: app.Gallery, find: evaluation.Finder | None, asked: Any, queries: data.FolderImages, h: Tensor
) -> int:
    names, root = gallery.files.names, gallery.files.root
    own = [{i for i, name in enumerate(names) if (root / name) == path.resolve()} for path in asked.query]
    if len(names) - max(map(len, own)) < 1:
        raise UserError(f"{asked.images} contains only the query; give a folder with other images")
    similarity, index = (find or evaluation.exact(gallery.h))(h, min(asked.k + 1, len(names)))
    rows: list[list[tuple[str, float, int]]] = []
    for place, query in enumerate(asked.query):  # a query that lies in the folder is no result of itself
        found = zip(similarity[place].tolist(), index[place].tolist(), strict=True)
        rows.append([(str(query), s, i) for s, i in found if i not in own[place]][: asked.k])
    for query, row in zip(asked.query, rows, strict=True):
        lines = ((names[i], f"{s:.4f}") for _, s, i in row)
        _table(f"nearest to {query} of {len(names):,} images, by cosine", ("file", "similarity"), lines)
    if asked.out is not None:
        written = [(q, place + 1, names[i], f"{s:.6f}") for row in rows for place, (q, s, i) in enumerate(row)]
        columns = ("query", "rank", "file", "similarity")
        side = max(_SIDE, gallery.size)
        images = [
            [
                (_crop(queries, n, side), ""),
                *((_crop(gallery.files, i, side), f"{s:.4f}") for _, s, i in row[:_IMAGES_DRAWN]),
            ]
            for n, row in enumerate(rows[:_GROUPS_DRAWN])
        ]
        titles = ("query", "nearest first, with the cosine")
        with files.together(asked.out, asked.out.name) as fresh:
            _csv(fresh / "nearest.csv", columns, written)
            _draw(images, fresh / "nearest.png", titles, [q.name for q in asked.query])
        print(f"written: {asked.out / 'nearest.csv'} and {asked.out / 'nearest.png'}")
    return 0


def _duplicates(gallery: app.Gallery, find: evaluation.Finder | None, asked: Any) -> int:
    names = gallery.files.names
    if len(names) < 2:
        raise UserError(f"{asked.images} contains one image; give a folder with more, or use --query")
    if find is None:
        pairs = evaluation.near_duplicates(gallery.h, asked.threshold)
    else:
        pairs = evaluation.near_duplicates_by(find, gallery.h, asked.threshold)
    group = evaluation.groups(pairs, len(names))
    _report(pairs, names, group, asked.threshold)
    if asked.out is not None:
        order = group[pairs.first].argsort(stable=True).tolist()  # by group; in a group the most similar pair first
        columns = [group[pairs.first] + 1, pairs.first, pairs.second, pairs.similarity]
        found = zip(*(column.tolist() for column in columns), strict=True)
        lines = [(g, names[i], names[j], f"{s:.6f}") for g, i, j, s in found]
        with files.together(asked.out, asked.out.name) as fresh:
            _csv(fresh / "duplicates.csv", ("group", "file", "other", "similarity"), (lines[place] for place in order))
            if len(pairs.first):
                _draw_groups(gallery, pairs, group, asked.threshold, fresh / "duplicates.png")
        picture = asked.out / "duplicates.png"
        if not len(pairs.first):  # of an earlier search
            picture.unlink(missing_ok=True)
        print(f"written: {asked.out / 'duplicates.csv'}{f' and {picture}' if len(pairs.first) else ''}")
    return 0


def _report(pairs: evaluation.Pairs, names: Sequence[str], group: Any, threshold: float) -> None:
    if not len(pairs.first):
        print(
            f"no two of the {len(names)} images have a cosine of {threshold:g} or more; lower --threshold to find more"
        )
        return
    shown = list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.similarity.tolist(), strict=True))
    title = f"{pairs.total:,} pairs with a cosine of at least {threshold:g}, in {int(group.max()) + 1:,} groups"
    _table(
        title, ("group", "file", "other", "similarity"),
        ((str(int(group[i]) + 1), names[i], names[j], f"{s:.4f}") for i, j, s in shown[:_ROWS_SHOWN]),
    )  # fmt: skip
    if pairs.total > _ROWS_SHOWN:
        print(f"the {_ROWS_SHOWN} most similar are shown; --out DIR writes {len(shown):,} of them")
    if pairs.total > len(names):
        print("there are more pairs than images: the threshold is too low for this encoder; raise --threshold")


def _draw_groups(gallery: app.Gallery, pairs: evaluation.Pairs, group: Any, threshold: float, path: Path) -> None:
    """Draw one row per group; the caption of an image is its cosine with the first image of the group."""
    import torch

    rows = []
    for number in range(min(_GROUPS_DRAWN, int(group.max()) + 1)):
        members = (group == number).nonzero().flatten()[:_IMAGES_DRAWN]
        h = gallery.h[members]
        cosines = torch.nn.functional.cosine_similarity(h[:1], h).tolist()
        captions = ["", *(f"{cosine:.4f}" for cosine in cosines[1:])]
        rows.append(
            [
                (_crop(gallery.files, int(i), max(_SIDE, gallery.size)), caption)
                for i, caption in zip(members, captions, strict=True)
            ]
        )
    titles = ("first", f"its near-duplicates, with the cosine (at least {threshold:g})")
    _draw(rows, path, titles, [f"group {n + 1}" for n in range(len(rows))])


def _draw(rows: Any, path: Path, titles: tuple[str, str], names: Sequence[str]) -> None:
    pictures.image_rows(rows, path, titles=titles, names=names[: len(rows)])


def _crop(files: data.ImageSet, index: int, side: int) -> Tensor:
    """Return one image for a picture, (3, side, side)."""
    import torch

    return data.centred(files, torch.tensor([index]), size=side)[0]


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    print(title)  # rich would break a table's title at the width of the table
    table = Table()
    for name in columns:
        table.add_column(name, justify="right" if name in ("similarity", "group") else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def _csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
