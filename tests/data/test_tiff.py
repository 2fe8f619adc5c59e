"""Every depth, layout and color space of TIFF against tifffile and values computed by hand."""

import itertools
import zlib

import numpy as np
import pytest
import tifffile
from made_images import lzw, packed, read, refusal, tiff
from made_tiff_samples import BANDS, RNG, TYPES, H, W, eight_bits, random_samples
from PIL import Image


def made(path, data, bits, *, width=W, height=H, **more):
    return tiff(path, data, bits, width, height, **more)


@pytest.mark.parametrize("alpha", [None, "unassalpha", "assocalpha"])
@pytest.mark.parametrize("photometric", BANDS)
@pytest.mark.parametrize("dtype", TYPES)
def test_samples_of_every_type_and_layout_are_scaled_and_rounded(tmp_path, dtype, photometric, alpha):
    values = random_samples(dtype, BANDS[photometric] + bool(alpha), TYPES[dtype])
    if alpha == "assocalpha":
        values[:, :, :-1] = np.minimum(values[:, :, :-1], values[:, :, -1:])
    expected = eight_bits(values, TYPES[dtype], photometric, alpha)
    layouts = itertools.product(("contig", "separate"), (None, "zlib"), ((16, 32), None))
    heads = itertools.cycle([("<", False), (">", True), (">", False), ("<", True), ("<", False)])
    for number, ((planar, compression, tile), (order, big)) in enumerate(zip(layouts, heads, strict=False)):
        path = tmp_path / f"{number}.tif"
        is_planar = planar == "separate" and values.shape[2] > 1
        layout = {"planarconfig": planar} if values.shape[2] > 1 else {}
        tifffile.imwrite(
            path,
            np.moveaxis(values, 2, 0) if is_planar else values if values.shape[2] > 1 else values[:, :, 0],
            photometric=photometric,
            extrasamples=[alpha] if alpha else None,
            byteorder=order,
            bigtiff=big,
            compression=compression,
            **({"tile": tile} if tile else {"rowsperstrip": 8}),
            **layout,
        )
        if alpha == "assocalpha" and photometric in ("miniswhite", "separated"):
            assert "bands" in refusal(path)
            continue
        stored = tifffile.imread(path)
        assert np.array_equal(np.moveaxis(stored, 0, 2) if is_planar else stored.reshape(values.shape), values)
        # In 8 bits Pillow rounds the color before it lays it on white.
        tolerance = 1 if dtype == "uint8" and (alpha or photometric == "separated") else 0
        assert np.abs(read(path) - expected).max() <= tolerance, (order, big, planar, compression, tile)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32"])
def test_differences_between_neighbors_are_added_up(tmp_path, dtype):
    for bands, order, tile in itertools.product((1, 3), "<>", (None, (16, 16))):
        values = random_samples(dtype, bands, TYPES[dtype])
        path = tmp_path / f"{bands}.tif"
        options = {"tile": tile} if tile else {}
        photometric = "rgb" if bands == 3 else "minisblack"
        stored = values if bands == 3 else values[:, :, 0]
        tifffile.imwrite(
            path, stored, photometric=photometric, compression="zlib", predictor=2, byteorder=order, **options
        )
        assert np.array_equal(tifffile.imread(path), stored)
        assert np.array_equal(read(path), eight_bits(values, TYPES[dtype], photometric))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", range(1, 17))
def test_gray_of_1_to_16_bits_from_black_and_from_white(tmp_path, bits, order):
    values = random_samples("uint16", 1, 2**bits - 1)
    data = values.astype(f"{order}u2") if bits == 16 else packed(values, bits)
    for photometric, name in enumerate(("miniswhite", "minisblack")):
        path = made(tmp_path / "a.tif", data.tobytes(), bits, order=order, photometric=photometric)
        assert np.array_equal(read(path), eight_bits(values, 2**bits - 1, name))
        turned = np.packbits(np.unpackbits(np.frombuffer(data.tobytes(), np.uint8), bitorder="little"))
        path = made(path, turned.tobytes(), bits, order=order, photometric=photometric, t266=("H", [2]))
        assert np.array_equal(read(path), eight_bits(values, 2**bits - 1, name)), "the bits of each byte turned round"


@pytest.mark.parametrize("bits", [2, 4, 5, 12])
def test_rgb_of_unusual_depth(tmp_path, bits):
    values = random_samples("uint16", 3, 2**bits - 1)
    path = made(tmp_path / "a.tif", packed(values, bits).tobytes(), bits, bands=3, photometric=2)
    assert np.array_equal(read(path), eight_bits(values, 2**bits - 1, "rgb"))


@pytest.mark.parametrize("order", "<>")
def test_16_bit_rgb_with_lzw_compression(tmp_path, order):
    values = random_samples("uint16", 3, 65535)
    data = lzw(values.astype(f"{order}u2").tobytes())
    path = made(tmp_path / "a.tif", data, 16, order=order, bands=3, photometric=2, t259=("H", [5]))
    assert np.array_equal(read(path), eight_bits(values, 65535, "rgb"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("order", "<>")
def test_the_floating_point_predictor(tmp_path, dtype, order):
    """Each row: the most significant bytes of all numbers first, then differences between neighbors."""
    values = random_samples(dtype, 3, 1)
    size = np.dtype(dtype).itemsize
    rows = values.astype(f">f{size}").view(np.uint8).reshape(H, W * 3, size).swapaxes(1, 2).reshape(H, -1, 3)
    data = zlib.compress(np.diff(rows, axis=1, prepend=np.uint8(0)).tobytes())
    more = {"t259": ("H", [8]), "t317": ("H", [3]), "t339": ("H", [3] * 3)}
    path = made(tmp_path / "a.tif", data, 8 * size, order=order, bands=3, photometric=2, **more)
    assert np.array_equal(read(path), eight_bits(values, 1, "rgb"))


@pytest.mark.parametrize("compression", ["packbits", "tiff_lzw", "tiff_deflate", "lzma", "zstd", "group4"])
def test_compressions_that_pillow_writes(tmp_path, compression):
    wide, path = random_samples("uint16", 1, 65535), tmp_path / "a.tif"
    if compression == "group4":
        Image.fromarray(wide[:, :, 0] > 30000).save(path, compression=compression)
        assert np.array_equal(read(path), np.broadcast_to(255 * (wide > 30000), (H, W, 3)))
        return
    try:
        Image.fromarray(wide[:, :, 0]).save(path, compression=compression)
    except OSError:
        pytest.skip("this Pillow does not write it")
    assert np.array_equal(read(path), eight_bits(wide, 65535))


@pytest.mark.parametrize("scale", [1, 256, 257])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_palettes_of_16_bits_and_such_that_hold_8_bits_by_mistake(tmp_path, bits, scale):
    colors = RNG.integers(0, 256, (2**bits, 3))
    colors[0] = 255
    numbers = random_samples("uint16", 1, 2**bits - 1)
    data = numbers.astype("<u2") if bits == 16 else packed(numbers, bits)
    table = ("H", [int(value) for value in (colors * scale).T.ravel()])
    path = made(tmp_path / "a.tif", data.tobytes(), bits, photometric=3, t320=table)
    # Scaled by 256, only Pillow's way of reading (the upper 8 bits) gives the colors themselves.
    assert np.abs(read(path) - colors[numbers[:, :, 0]]).max() <= (bits == 16 and scale == 256)


def test_jpeg_in_tiff_is_the_picture(tmp_path):
    y, x = np.mgrid[:48, :64]
    picture = np.stack([4 * x % 256, 5 * y, 2 * x + y], axis=2).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.tif", compression="jpeg", quality=100)
    assert np.abs(read(tmp_path / "a.tif").astype(int) - picture)[:, 1:].mean() < 5
    Image.fromarray(picture[:, :, 1]).save(tmp_path / "gray.tif", compression="jpeg", quality=100)
    assert np.abs(read(tmp_path / "gray.tif").astype(int) - picture[:, :, 1:2]).max() <= 3


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_fourth_band_without_a_meaning_is_left_out(tmp_path, dtype):
    values = random_samples(dtype, 4, TYPES[dtype])
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(read(tmp_path / "a.tif"), eight_bits(values[:, :, :3], TYPES[dtype], "rgb"))


def test_the_first_page_of_several(tmp_path):
    pages = RNG.integers(0, 65536, (3, H, W), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    assert np.array_equal(read(tmp_path / "a.tif"), eight_bits(pages[0][:, :, None], 65535))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_come_upright(tmp_path, orientation):
    """By the definition of the tag: where the stored row 0 and column 0 are shown."""
    shown = random_samples("uint16", 1, 65535)
    turns = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.swapaxes(0, 1),
        6: shown.swapaxes(0, 1)[::-1],
        7: shown[::-1, ::-1].swapaxes(0, 1),
        8: shown.swapaxes(0, 1)[:, ::-1],
    }
    stored, path = np.ascontiguousarray(turns[orientation][:, :, 0]), tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="minisblack", extratags=[(274, "H", 1, orientation, True)])
    assert np.array_equal(read(path), eight_bits(shown, 65535))
