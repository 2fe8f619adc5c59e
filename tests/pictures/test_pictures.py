import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from simclr_lightning import pictures
from simclr_lightning.pictures import canvas, lines, maps

Color = tuple[int, int, int]
BLUE, ORANGE = (0, 114, 178), (213, 94, 0)
RED, GREEN, TEAL, PINK = (250, 10, 20), (10, 200, 30), (20, 160, 170), (255, 120, 200)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(path: Path, color: Color) -> int:
    return int((pixels_of(path) == color).all(2).sum())


def center(path: Path, color: Color) -> tuple[float, float]:
    """Return (row, column) of the center of mass of a color."""
    rows, columns = np.nonzero((pixels_of(path) == color).all(2))
    assert len(rows) > 1000
    return rows.mean(), columns.mean()


def plain(*colors: Color, side: int = 8) -> Tensor:
    """One image (3, side, side) uint8 of each color."""
    return torch.tensor(colors, dtype=torch.uint8)[:, :, None, None].expand(-1, 3, side, side)


def test_the_two_views_of_an_image_are_drawn_in_one_column(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "views.png"
    x_a, x_b = plain(RED, GREEN, BLUE).float() / 255, plain(TEAL, PINK, BLUE).float() / 255
    assert pictures.view_pairs(x_a, x_b, path, count=2) == path
    where = {color: center(path, color) for color in (RED, GREEN, TEAL, PINK)}
    assert where[RED][0] == pytest.approx(where[GREEN][0], abs=1)
    assert where[TEAL][0] == pytest.approx(where[PINK][0], abs=1)
    assert where[RED][0] < where[TEAL][0]
    assert where[RED][1] == pytest.approx(where[TEAL][1], abs=1)
    assert where[GREEN][1] == pytest.approx(where[PINK][1], abs=1)
    assert where[RED][1] < where[GREEN][1]
    assert count(path, BLUE) == 0  # count=2 leaves the third image out
    assert [file.name for file in path.parent.iterdir()] == ["views.png"]


def test_the_frame_of_a_neighbor_shows_whether_it_has_the_class_of_the_query(tmp_path: Path) -> None:
    queries, found = plain(RED, GREEN), torch.stack([plain(TEAL, PINK), plain(PINK, TEAL)])

    def frames(correct: Tensor | None) -> Counter[str]:
        path = pictures.neighbours(queries, found, tmp_path / "n.png", correct=correct, query_names=["a", "b"])
        return Counter(blue=count(path, BLUE), orange=count(path, ORANGE))

    path = pictures.neighbours(queries, found, tmp_path / "plain.png")
    assert center(path, RED)[1] < center(path, TEAL)[1]
    assert center(path, RED)[0] < center(path, GREEN)[0]
    assert count(path, BLUE) == count(path, ORANGE) == 0
    all_right, all_wrong = frames(torch.ones(2, 2).bool()), frames(torch.zeros(2, 2).bool())
    mixed = frames(torch.tensor([[True, False], [False, True]]))
    assert all_right["orange"] == all_wrong["blue"] == 0
    assert all_right["blue"] > 2000
    assert mixed["blue"] == pytest.approx(all_right["blue"] / 2, rel=0.02)
    assert mixed["orange"] == pytest.approx(all_wrong["orange"] / 2, rel=0.02)


def test_a_map_colors_the_classes_and_keeps_them_together(tmp_path: Path) -> None:
    y = torch.arange(120) % 3
    h = torch.eye(3)[y] * 9 + torch.rand(120, 3, generator=torch.Generator().manual_seed(0))
    xy = maps._tsne(h)
    distance = torch.cdist(xy, xy).fill_diagonal_(torch.inf)
    assert (y[distance.argmin(1)] == y).all()
    path = pictures.embedding_map(h, y, ["one", "two", "three"], tmp_path / "map.png")
    first = path.read_bytes()
    assert len(np.unique(pixels_of(path).reshape(-1, 3), axis=0)) > 30
    assert pictures.embedding_map(h, y, ["one", "two", "three"], path).read_bytes() == first
    gray = pixels_of(pictures.embedding_map(h, None, None, path)).astype(int)
    assert (gray.max(2) == gray.min(2)).all()
    colored = pixels_of(pictures.embedding_map(h, y, None, path, method="pca")).astype(int)
    assert (colored.max(2) != colored.min(2)).any()


def test_principal_axes_are_those_of_largest_variance() -> None:
    h = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 9, 2, 5, 1, 1.0])
    _, singular, right = np.linalg.svd((h - h.mean(0)).numpy())
    got = maps._principal_axes(h, 2)
    expected = (h - h.mean(0)).numpy() @ right[:2].T
    np.testing.assert_allclose(np.abs(got.numpy()), np.abs(expected), atol=1e-3)
    assert got.norm(dim=0).tolist() == pytest.approx(singular[:2].tolist(), rel=1e-4)


def test_umap_gets_cosines_and_its_absence_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    class Peer:  # the real one compiles for half a minute
        def __init__(self, **options: object) -> None:
            asked.append(options)

        def fit_transform(self, h: np.ndarray) -> np.ndarray:
            return h[:, [1, 0]]

    h = torch.rand(40, 6)
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Peer))
    assert torch.equal(maps._umap(h), h[:, [1, 0]])
    pixels_of(pictures.embedding_map(h, None, None, tmp_path / "map.png", method="umap"))
    pixels_of(pictures.embedding_map(h[:9], None, None, tmp_path / "few.png", method="umap"))  # too few for UMAP
    assert [(options["metric"], options["random_state"]) for options in asked] == [("cosine", 0)] * 2
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match=r"simclr-lightning\[umap\]"):
        pictures.embedding_map(h, None, None, tmp_path / "map.png", method="umap")


def test_rows_of_images_may_differ_in_length(tmp_path: Path) -> None:
    image = torch.rand(3, 10, 10)
    rows = [[(image, ""), (image, "0.98")], [(image, ""), *[(image, "0.97")] * 3]]
    path = pictures.image_rows(rows, tmp_path / "rows.png", titles=("first", "others"), names=["a", "b"])
    pixels = pixels_of(path)
    assert pixels.shape[0] < pixels.shape[1]
    pixels_of(pictures.image_rows([[(image, "alone")]], path, titles=("first", "others")))


def test_large_sets_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(maps._MOST_POINTS, "pca", 50)
    h, y = maps._sample(torch.arange(1000.0)[:, None], torch.arange(1000), 50)
    assert h.shape == (50, 1)
    assert y is not None
    assert torch.equal(h[:, 0], y.float())
    assert (y.diff() > 0).all()
    assert y.max() > 500
    pictures.embedding_map(torch.rand(1000, 4), torch.arange(1000) % 3, None, tmp_path / "m.png", method="pca")


@pytest.mark.parametrize(
    ("h", "labels", "names"),
    [
        pytest.param(torch.ones(50, 8), None, None, id="collapsed to a point"),
        pytest.param(torch.zeros(50, 8), None, None, id="zeros"),
        pytest.param(torch.rand(50, 1) * torch.ones(8), None, None, id="collapsed to a ray"),
        pytest.param(torch.rand(3, 5), None, None, id="three images"),
        pytest.param(torch.rand(1, 5), torch.tensor([0]), ["one"], id="one image"),
        pytest.param(torch.rand(20, 1), torch.arange(20) % 2, ["a", "b"], id="one feature"),
        pytest.param(torch.rand(300, 4), torch.arange(300) % 150, None, id="many classes"),
        pytest.param(torch.rand(9, 4), torch.arange(9) % 3, ["_x", "$y_{$ $", "名\n" * 40], id="odd names"),
        pytest.param(torch.rand(9, 4).half(), torch.arange(9) % 3, None, id="half precision"),
    ],
)
def test_a_map_of_odd_features_is_drawn(
    tmp_path: Path, h: Tensor, labels: Tensor | None, names: list[str] | None
) -> None:
    pixels_of(pictures.embedding_map(h, labels, names, tmp_path / "map.png"))


def test_names_have_no_special_characters_of_matplotlib() -> None:
    assert canvas.plain_name("_hidden") == " _hidden"
    assert canvas.plain_name("a$b$") == r"a\$b\$"
    assert canvas.plain_name("two\nlines\udcff") == "two?lines?"
    assert canvas.plain_name("x" * 50) == "x" * 21 + "…"


def test_curves_leave_missing_values_out(tmp_path: Path) -> None:
    rows = [
        {"epoch": 0, "loss": 5.0},
        {"epoch": 1, "loss": float("nan"), "knn": 0.5},
        {"epoch": 2, "loss": 3.0, "knn": None, "never": None},
    ]
    assert lines._points(rows, "epoch", "loss") == [(0, 5.0), (2, 3.0)]
    assert lines._points(rows, "epoch", "knn") == [(1, 0.5)]
    one = pixels_of(pictures.curves({(): [{"epoch": 0, "loss": 5.0}]}, tmp_path / "one.png"))
    both = pixels_of(pictures.curves({(): rows}, tmp_path / "both.png"))
    assert both.shape[1] == 2 * one.shape[1]
    with pytest.raises(ValueError, match="nothing to draw"):
        pictures.curves({(): [{"epoch": 1, "loss": None}]}, tmp_path / "none.png")


def test_a_failed_picture_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = pictures.view_pairs(plain(RED), plain(RED), tmp_path / "v.png")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="finite"):
        pictures.embedding_map(torch.full((5, 2), torch.nan), None, None, path)
    with pytest.raises(ValueError, match="finite"):
        pictures.embedding_map(torch.zeros(0, 2), None, None, path)
    figure = canvas.figure(1, 1)
    figure.savefig = lambda file, **_: Path(file).write_bytes(b"half") and 1 / 0
    with pytest.raises(ZeroDivisionError):
        canvas.save(figure, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["v.png"]


def test_importing_pictures_imports_no_plotting_library_and_drawing_no_pyplot(tmp_path: Path) -> None:
    # An empty module replaces simclr_lightning/__init__.py, which imports Lightning, which imports many packages.
    package = Path(pictures.__file__).parents[1]
    code = f"""
import sys, types
from pathlib import Path
import torch
package = sys.modules["simclr_lightning"] = types.ModuleType("simclr_lightning")
package.__path__ = [{str(package)!r}]
from simclr_lightning import evaluation, pictures
assert not {{"matplotlib", "sklearn", "scipy", "lightning"}} & set(sys.modules), "imported too early"
pictures.view_pairs(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4), Path({str(tmp_path / "v.png")!r}))
assert "matplotlib.pyplot" not in sys.modules, "pyplot"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_heat_map_frames_its_best_cell(tmp_path: Path) -> None:
    cells = {(x, y): (10.0 * i, 1.0) for i, (x, y) in enumerate((x, y) for x in (0.1, 0.5) for y in (64, 256))}
    for best in cells:
        one = pictures.HeatMap("score, %", cells, best)
        path = pictures.heat_maps([one], tmp_path / "m.png", x=[0.1, 0.5], y=[64, 256], names=("t", "b"))
        rows, columns = np.nonzero((pixels_of(path) == ORANGE).all(2))
        height, width = pixels_of(path).shape[:2]
        assert (columns.mean() > 0.45 * width) == (best[0] == 0.5)  # left and right
        assert (rows.mean() < 0.45 * height) == (best[1] == 256)  # from bottom to top
    with pytest.raises(ValueError, match="nothing to draw"):
        pictures.heat_maps([], tmp_path / "none.png", x=[], y=[], names=("t", "b"))


def test_heat_maps_of_equal_and_of_missing_cells_are_drawn(tmp_path: Path) -> None:
    for cells in ({(1, 1): (5.0, None), (2, 2): (5.0, 0.5)}, {(1, 2): (0.0, None)}):
        one = pictures.HeatMap("score", cells, next(iter(cells)))
        pixels_of(pictures.heat_maps([one], tmp_path / "m.png", x=[1, 2], y=[1, 2], names=("$x", "_y")))


def test_trends_draw_the_values_of_a_setting_in_order(tmp_path: Path) -> None:
    rising = [(0.05, 1.0, 0.1), (0.1, 2.0, None), (1.0, 3.0, 0.2)]
    path = pictures.trends({"a": {(): rising}}, tmp_path / "t.png", x="temperature")
    rows, columns = np.nonzero((pixels_of(path) == BLUE).all(2))
    assert np.corrcoef(rows, columns)[0, 1] < -0.8  # upwards to the right
    shuffled = pictures.trends({"a": {(): rising[::-1]}}, tmp_path / "s.png", x="temperature")
    assert (pixels_of(shuffled) == pixels_of(path)).all()
    two = {"a": {("b=1",): rising, ("b=2",): [("deep", 5.0, None), (None, 4.0, None)]}, "c": {("b=1",): rising}}
    assert pixels_of(pictures.trends(two, tmp_path / "two.png", x="x")).shape[1] > pixels_of(path).shape[1]
    with pytest.raises(ValueError, match="nothing to draw"):
        pictures.trends({}, tmp_path / "none.png", x="x")


def test_similarities_show_positives_right_of_negatives(tmp_path: Path) -> None:
    edges = [-1, -0.5, 0, 0.5, 1]
    one = pictures.Histogram("τ", edges, [0, 0, 0, 5], [0, 900, 0, 0])
    pixels = pixels_of(pictures.similarities([[one]], tmp_path / "h.png")).astype(int)
    pixels = pixels[: int(0.75 * len(pixels))]  # above the legend
    blue = np.nonzero((pixels[..., 2] - pixels[..., 0] > 60).ravel())[0] % pixels.shape[1]
    orange = np.nonzero((pixels[..., 0] - pixels[..., 2] > 60).ravel())[0] % pixels.shape[1]
    assert blue.min() > orange.max()
    assert len(blue) == pytest.approx(len(orange), rel=0.1)  # both have area 1
    with pytest.raises(ValueError, match="nothing to draw"):
        pictures.similarities([[]], tmp_path / "none.png")


def test_the_cells_of_a_confusion_matrix_are_dark_where_the_predictions_are(tmp_path: Path) -> None:
    """Class 0 is always correct, half of class 1 is predicted as 2, all of class 2 as 0."""
    labels = torch.tensor([0] * 10 + [1] * 4 + [2] * 6)
    predicted = torch.tensor([0] * 10 + [1, 1, 2, 2] + [0] * 6)
    path = pictures.confusion(predicted, labels, ["a", "b", "c"], tmp_path / "confusion.png", title="x")
    image = pixels_of(path)
    full, half = (8, 48, 107), (107, 174, 214)  # Matplotlib's Blues at 1 and near a half
    found = (image == full).all(2)
    found[:, found.any(0).nonzero()[0][-1] - 40 :] = False  # the end of the color bar
    rows, columns = np.nonzero(found)
    assert len(rows) > 1000
    middle_row = (rows.min() + rows.max()) / 2
    top, bottom = columns[rows < middle_row], columns[rows > middle_row]
    assert abs(top.mean() - bottom.mean()) < 2  # both in the column of class 0
    assert len(top) == pytest.approx(len(bottom), rel=0.1)
    close = (np.abs(image.astype(int) - half).max(2) <= 3).nonzero()
    between = (close[0] > middle_row - 10) & (close[0] < middle_row + 10)
    assert len(np.unique(close[1][between] > top.mean() + 1.5 * np.ptp(top))) == 2  # two cells of a half in row 1


def test_the_length_of_a_bar_is_the_accuracy_of_its_class(tmp_path: Path) -> None:
    labels = torch.tensor([0] * 10 + [1] * 20 + [3] * 5)  # class 2 has no image and no bar
    predicted = torch.cat((torch.zeros(10), torch.tensor([1] * 10 + [0] * 10), torch.tensor([3] + [1] * 4))).long()
    path = pictures.per_class(predicted, labels, ["a", "b", "c", "d"], tmp_path / "bars.png", title="x")
    blue = (pixels_of(path) == BLUE).all(2)
    lengths = [int(np.ptp(row.nonzero()[0])) for row in blue if row.any()]  # the dashed line crosses some
    steps = [length for length, times in Counter(lengths).items() if times > 5]
    assert len(steps) == 3
    longest = max(steps)
    assert sorted(step / longest for step in steps) == pytest.approx([0.2, 0.5, 1.0], abs=0.02)
    assert lengths[0] > lengths[-1]  # the best at the top
    many = torch.arange(120).repeat(3)
    pictures.per_class(many, many, [str(i) for i in range(120)], tmp_path / "many.png")
    assert pixels_of(tmp_path / "many.png").shape[0] < 2000
