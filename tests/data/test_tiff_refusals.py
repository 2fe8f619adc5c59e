"""TIFF kinds that are refused by name, full scales, and damaged files."""

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from made_images import lzw, outcome, packed, read, refusal, tiff
from made_tiff_samples import BANDS, RNG, H, W, eight_bits, random_samples

from simclr_lightning.data import ImageError, read_image
from simclr_lightning.data.disk.decode import check_header

INPUTS = Path(__file__).resolve().parents[3] / "shared" / "inputs" / "files"


def made(path, data, bits, *, width=W, height=H, **more):
    return tiff(path, data, bits, width, height, **more)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands", [2, 5, 13])
def test_other_bands_are_counted_and_refused_at_the_head(tmp_path, dtype, bands):
    path = tmp_path / "a.tif"
    for photometric in ("minisblack", "rgb"):
        if photometric == "rgb" and bands == 2:
            continue
        extra = ["unspecified"] * (bands - BANDS[photometric])
        values = np.ones((H, W, bands), dtype)
        tifffile.imwrite(path, values, photometric=photometric, planarconfig="contig", extrasamples=extra)
        assert f"TIFF with {bands} bands of " in refusal(path)
        assert "save three bands as RGB" in refusal(path)
        with pytest.raises(ImageError, match=f"TIFF with {bands} bands of "):
            check_header(path, 10**6)


@pytest.mark.parametrize(
    ("said", "tags"),
    [
        ("TIFF with CIE Lab colors; convert it to RGB", {"bands": 3, "photometric": 8}),
        ("TIFF with ICC Lab colors; convert it to RGB", {"bands": 3, "photometric": 9}),
        ("TIFF with YCbCr colors without JPEG compression; convert it to RGB", {"bands": 3, "photometric": 6}),
        ("TIFF with raw camera data; convert it to RGB", {"photometric": 32803}),
        ("TIFF with colors of kind 99; convert it to RGB", {"photometric": 99}),
        ("raw photograph (DNG); convert it to JPEG or PNG", {"t50706": ("I", [1])}),
        ("TIFF whose first page is a reduced copy; save the full page alone", {"t254": ("I", [1])}),
        ("8-bit TIFF with JPEG 2000 compression; save it with deflate", {"t259": ("H", [34712])}),
        ("8-bit TIFF with unknown (4711) compression; save it with deflate", {"t259": ("H", [4711])}),
        ("12-bit TIFF with JPEG compression; save it", {"bits": 12, "t259": ("H", [7])}),
        ("24-bit TIFF; save it with 8 or 16 bits", {"bits": 24}),
        ("complex-number 64-bit TIFF; save it with 8 or 16 bits", {"bits": 64, "t339": ("H", [6])}),
        ("TIFF with bands of different depths; save it", {"bands": 3, "photometric": 2, "t258": ("H", [8, 16, 8])}),
    ],
)
def test_kinds_without_an_agreed_meaning_are_refused_by_name_at_the_head(tmp_path, said, tags):
    path = made(tmp_path / "a.tif", bytes(8 * H * W * 3), **{"bits": 8, **tags})
    assert refusal(path).startswith(said)
    with pytest.raises(ImageError, match=re.escape(said)):
        check_header(path, 10**6)


def test_12_bits_in_16_without_a_full_scale_are_refused(tmp_path):
    values, path = random_samples("uint16", 1, 4095), tmp_path / "a.tif"
    tifffile.imwrite(path, values[:, :, 0], photometric="minisblack")
    message = refusal(path)
    assert message.startswith("16-bit TIFF: its samples reach 4095 where full scale is 65535, which would be almost bl")
    assert "data.dataset.full_scale" in message
    assert np.array_equal(read(path, full_scale=4095), eight_bits(values, 4095))
    assert np.array_equal(read(path, full_scale=65535), eight_bits(values, 65535))
    tifffile.imwrite(path, values[:, :, 0], photometric="miniswhite")
    assert "almost white" in refusal(path)
    tifffile.imwrite(path, values[:, :, 0] + np.uint16(1), photometric="minisblack")
    assert np.array_equal(read(path), eight_bits(values + 1, 65535)), "4096 is a sixteenth of 65535"
    tifffile.imwrite(path, 0 * values[:, :, 0], photometric="minisblack")
    assert (read(path) == 0).all(), "black is black whatever white is"


@pytest.mark.parametrize("tag", [281, 341])
def test_a_recorded_full_scale_is_used_and_a_mere_maximum_is_not(tmp_path, tag):
    values, path = random_samples("uint16", 1, 1023), tmp_path / "a.tif"
    for white in (1023, 4095, 65535):
        tifffile.imwrite(path, values[:, :, 0], photometric="minisblack", extratags=[(tag, "H", 1, white, True)])
        assert np.array_equal(read(path), eight_bits(values, white))
        assert np.array_equal(read(path, full_scale=2047), eight_bits(values, 2047)), "the caller knows better"
    tifffile.imwrite(path, values[:, :, 0], photometric="minisblack", extratags=[(tag, "H", 1, 1022, True)])
    assert "its samples reach 1023 where full scale is 65535" in refusal(path)


def test_a_full_scale_leaves_8_bits_and_palettes_alone(tmp_path):
    values, path = random_samples("uint8", 3, 255), tmp_path / "a.tif"
    for planar in ("contig", "separate"):
        stored = values if planar == "contig" else np.moveaxis(values, 2, 0)
        tifffile.imwrite(path, stored, photometric="rgb", planarconfig=planar)
        assert np.array_equal(read(path, full_scale=4095), values)


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (-1, "int16", "signed 16-bit TIFF: samples from -1 to 20000, outside 0 (black) to 32767 (white)"),
        (255.0, "float32", "floating-point 32-bit TIFF: samples from 0 to 20000, outside 0 (black) to 1 (white)"),
        (np.nan, "float64", "floating-point 64-bit TIFF: samples that are infinite or not a number"),
        (-np.inf, "float16", "floating-point 16-bit TIFF: samples that are infinite or not a number"),
        (300, "int32", "signed 32-bit TIFF: its samples reach 20000 where full scale is 2147483647"),
        (300, "uint32", "32-bit TIFF: its samples reach 20000 where full scale is 4294967295"),
    ],
)
def test_samples_outside_the_range_are_refused_with_their_range(tmp_path, value, dtype, said):
    values, path = np.zeros((H, W), dtype), tmp_path / "a.tif"
    values[3, 4], values[5, 6] = value, 20000
    tifffile.imwrite(path, values, photometric="minisblack")
    assert refusal(path).startswith(said)
    assert refusal(path).endswith("save it with 8 bits")
    if said.endswith("(white)"):
        assert "outside 0 (black) to 10000 (white)" in refusal(path, full_scale=10000)
    elif "reach" in said:
        assert read(path, full_scale=20000)[5, 6, 0] == 255


def deep_files(folder):
    wide, floats = random_samples("uint16", 3, 65535), random_samples("float32", 1, 1)[:, :, 0]
    for name, compression in (("raw", None), ("zlib", "zlib"), ("lzma", "lzma")):
        tifffile.imwrite(folder / f"{name}.tif", wide, photometric="rgb", compression=compression, rowsperstrip=8)
        yield folder / f"{name}.tif"
    tifffile.imwrite(folder / "tiles.tif", floats, photometric="minisblack", tile=(16, 16), bigtiff=True)
    yield folder / "tiles.tif"
    yield made(folder / "lzw.tif", lzw(wide.tobytes()), 16, bands=3, photometric=2, t259=("H", [5]))
    yield made(folder / "12.tif", packed(wide[:, :, 0] >> 4, 12).tobytes(), 12)


def test_a_deep_file_cut_anywhere_is_an_error_that_names_it_or_gives_every_pixel(tmp_path):
    cut = tmp_path / "cut.tif"
    for whole in deep_files(tmp_path):
        data, expected = whole.read_bytes(), read(whole)
        found = []
        for at in {*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 12, len(data))}:
            cut.write_bytes(data[:at])
            found.append(outcome(cut))
        errors = [error for error in found if isinstance(error, str)]
        assert all(error.startswith(f"{cut}: ") and len(error.splitlines()) == 1 for error in errors)
        assert all(np.array_equal(image, expected) for image in found if not isinstance(image, str))
        assert len(errors) > 50


def test_flipped_bytes_of_deep_files_raise_nothing_but_image_errors(tmp_path):
    path = tmp_path / "broken.tif"
    for whole in deep_files(tmp_path):
        data = whole.read_bytes()
        heads = [*range(16), *range(len(data) - 400, len(data))]
        for _ in range(150):
            broken = bytearray(data)
            for at in RNG.choice(heads, size=2):
                broken[at] = RNG.integers(0, 256)
            path.write_bytes(broken)
            found = outcome(path, max_pixels=1_000_000)
            assert found.startswith(f"{path}: ") if isinstance(found, str) else found.shape[2] == 3


def test_sizes_are_capped_before_anything_is_decoded(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, random_samples("uint16", 3, 65535), photometric="rgb")
    assert read(path, max_pixels=H * W).shape == (H, W, 3)
    assert refusal(path, max_pixels=H * W - 1) == f"37 x 21 = 777 pixels, above data.dataset.max_pixels={H * W - 1}"
    side = 60_000
    made(path, b"", 16, width=side, height=side, bands=3, photometric=2)
    for check in (lambda: read_image(path), lambda: check_header(path, 64_000_000)):
        with pytest.raises(ImageError, match="60000 x 60000 = 3,600,000,000 pixels, above"):
            check()


def test_lying_tags_cost_no_memory(tmp_path):
    """Tiles of more pixels than an address space, strips that are not there, counts beyond the file."""
    path, tile = tmp_path / "a.tif", {"t324": ("I", [8]), "t325": ("I", [100])}
    made(path, bytes(100), 16, t322=("I", [2**31]), t323=("I", [2**31]), **tile)
    assert "tiles of 2147483648 x 2147483648 pixels" in refusal(path)
    made(path, bytes(100), 16, t322=("I", [0]), t323=("I", [16]), **tile)
    assert "strips or tiles of 0 x 16 pixels" in refusal(path)
    made(path, bytes(100), 16, t278=("I", [1]))
    assert "1 strips or tiles instead of 21" in refusal(path)
    every = {"t278": ("I", [1]), "t273": ("I", [8] * 8000), "t279": ("I", [2**32 - 1] * 8000), "t259": ("H", [5])}
    made(path, bytes(10**6), 16, width=100, height=8000, **every)
    assert "strips or tiles that overlap" in refusal(path)
    made(path, bytes(100), 16, t279=("I", [2**32 - 1]), width=8000, height=8000)
    assert "a strip or tile is cut short" in refusal(path)


@pytest.mark.skipif(not INPUTS.exists(), reason="these files are not on this machine")
def test_files_that_once_came_out_wrong():
    def raw(name):
        return tifffile.imread(INPUTS / name).astype(float)

    for name, shares in {
        "float64.tif": raw("float64.tif"),
        "minIsWhite.tif": 1 - raw("minIsWhite.tif") / 255,
        "minIsWhite16.tif": 1 - raw("minIsWhite16.tif") / 65535,
    }.items():
        assert np.array_equal(read(INPUTS / name)[:, :, 0], np.floor(shares * 255 + 0.5)), name
    for name, white in {"grey12in16.tif": 4095, "int32_0_255.tif": 255}.items():
        assert "data.dataset.full_scale" in refusal(INPUTS / name)
        found = read(INPUTS / name, full_scale=white)[:, :, 0]
        assert np.array_equal(found, np.floor(raw(name) / white * 255 + 0.5))


@pytest.mark.parametrize("full_scale", [0, -1, float("nan")])
def test_a_full_scale_is_above_0(tmp_path, full_scale):
    with pytest.raises(ValueError, match=r"full_scale=.*: must be above 0"):
        read_image(tmp_path / "a.tif", full_scale=full_scale)
