"""One file to pixels: every mode and orientation against values known beforehand; damage always noticed."""

import re
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

from simclr_lightning.data import ImageError, read_image
from simclr_lightning.data.disk import decode as decoding
from simclr_lightning.data.disk.decode import PILLOW_LIMIT, check_header

RNG = np.random.default_rng(0)
MINI = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenette-mini"


def photo(height=48, width=64):
    """A smooth colour picture, which JPEG keeps nearly as it is, without any symmetry."""
    y, x = np.mgrid[:height, :width]
    planes = (4 * x % 256, 5 * y, 255 * (x + 2 * y) / (width + 2 * height))
    return np.stack([np.clip(plane, 0, 255) for plane in planes], axis=2).astype(np.uint8)


def written(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def hwc(tensor):
    assert tensor.dtype == torch.uint8
    assert tensor.shape[0] == 3
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.webp"])
def test_lossless_formats_give_the_same_pixels(tmp_path, name):
    pixels = photo()
    path = written(tmp_path / name, pixels, **({"lossless": True} if name.endswith("webp") else {}))
    assert np.array_equal(hwc(read_image(path)), pixels)
    assert np.array_equal(hwc(read_image(str(path))), pixels)


def test_the_content_decides_and_not_the_name(tmp_path):
    pixels = photo()
    path = tmp_path / "really_a_png.jpg"
    written(tmp_path / "a.png", pixels).rename(path)
    assert np.array_equal(hwc(read_image(path)), pixels)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(48, 64), (47, 61), (1, 1)])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_what_pillow_decodes(tmp_path, subsampling, size, progressive):
    path = written(tmp_path / "a.jpg", photo(*size), subsampling=subsampling, progressive=progressive)
    with Image.open(path) as image:
        assert np.array_equal(hwc(read_image(path)), np.asarray(image))


def test_jpeg_without_torchvisions_operator_is_the_same(tmp_path, monkeypatch):
    path = written(tmp_path / "a.jpg", photo())
    fast = read_image(path)
    monkeypatch.setattr(decoding, "_jpeg_operator", lambda: None)
    assert torch.equal(read_image(path), fast)


def test_torchvisions_operator_is_there():
    """Else the test above compares Pillow with itself."""
    assert decoding._jpeg_operator() is not None


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.pgm"])
def test_greyscale_gets_three_equal_channels(tmp_path, name):
    grey = photo()[:, :, 2]
    found = hwc(read_image(written(tmp_path / name, grey)))
    assert np.array_equal(found[:, :, 0], found[:, :, 1])
    assert np.array_equal(found[:, :, 0], found[:, :, 2])
    assert np.abs(found[:, :, 0].astype(int) - grey).max() <= (3 if name.endswith("jpg") else 0)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_greyscale_keeps_its_range(tmp_path, name):
    wide = np.array([[0, 1, 128, 129, 257, 385, 386], [1000, 32767, 32768, 40000, 65000, 65406, 65535]])
    path = tmp_path / name
    if name.endswith("pgm"):
        path.write_bytes(b"P5 7 2 65535\n" + wide.astype(">u2").tobytes())
    else:
        Image.fromarray(wide.astype(np.uint16)).save(path)
    found = hwc(read_image(path))
    assert np.array_equal(found[:, :, 0], np.floor(wide / 257 + 0.5))
    assert np.array_equal(found[:, :, 0], found[:, :, 2])


def test_one_bit_images(tmp_path):
    bits = RNG.integers(0, 2, size=(5, 9)).astype(bool)
    path = tmp_path / "a.png"
    Image.fromarray(bits).save(path)
    assert np.array_equal(hwc(read_image(path))[:, :, 1], bits * 255)


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_palettes_are_looked_up(tmp_path, name):
    colours = RNG.integers(0, 256, size=(16, 3), dtype=np.uint8)
    numbers = RNG.integers(0, 16, size=(9, 7), dtype=np.uint8)
    image = Image.fromarray(numbers)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / name)
    assert np.array_equal(hwc(read_image(tmp_path / name)), colours[numbers])


def test_a_transparent_palette_entry_is_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8))
    image.putpalette(bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))
    image.save(tmp_path / "one.png", transparency=1)
    image.save(tmp_path / "each.png", transparency=bytes([255, 0, 255]))
    for name in ("one.png", "each.png"):
        assert hwc(read_image(tmp_path / name)).tolist() == [
            [[255, 0, 0], [255, 255, 255]],
            [[0, 0, 255], [255, 255, 255]],
        ]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_alpha_is_composited_on_white(tmp_path, mode, name):
    if mode == "LA" and name == "a.webp":
        pytest.skip("WebP has no greyscale")
    pixels = RNG.integers(0, 256, size=(8, 6, len(mode)), dtype=np.uint8)
    pixels[0, :, -1], pixels[1, :, -1] = 0, 255
    options = {"lossless": True, "exact": True} if name == "a.webp" else {}
    Image.fromarray(pixels).save(tmp_path / name, **options)
    alpha = pixels[:, :, -1:] / 255
    expected = alpha * pixels[:, :, :-1] + (1 - alpha) * 255
    assert np.abs(hwc(read_image(tmp_path / name)) - expected).max() <= 1
    assert (hwc(read_image(tmp_path / name))[0] == 255).all()


def test_cmyk_jpegs_are_not_inverted(tmp_path):
    """Ink, as printers see it: 255 is full. Pillow writes such files inverted, with Adobe's marker."""
    ink = np.zeros((16, 64, 4), dtype=np.uint8)
    ink[:, :16, 0] = ink[:, 16:32, 1] = ink[:, 32:48, 3] = 255
    Image.frombytes("CMYK", (64, 16), ink.tobytes()).save(tmp_path / "a.jpg", quality=100)
    found = hwc(read_image(tmp_path / "a.jpg"))
    expected = [(0, 255, 255), (255, 0, 255), (0, 0, 0), (255, 255, 255)]
    for colour, x in zip(expected, (8, 24, 40, 56), strict=True):
        assert np.abs(found[8, x].astype(int) - colour).max() <= 3


TURNS = {
    # EXIF orientation -> the stored pixels of an image that is upright when shown, by its definition:
    # where row 0 and column 0 of the stored image are in the shown one.
    1: lambda a: a,
    2: lambda a: a[:, ::-1],  # row 0: top, column 0: right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.swapaxes(0, 1),  # left, top
    6: lambda a: a.swapaxes(0, 1)[::-1],  # right, top
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "grey.jpg"])
def test_rotated_images_come_upright(tmp_path, orientation, name):
    upright = photo(31, 47)[:, :, 0] if name.startswith("grey") else photo(31, 47)
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(name.split(".")[1], {})
    stored.save(tmp_path / name, exif=exif, **options)
    found = hwc(read_image(tmp_path / name)).astype(int)
    assert found.shape[:2] == (31, 47)
    difference = np.abs(found - (upright[..., None] if upright.ndim == 2 else upright))
    assert difference.max() <= (12 if name.endswith("jpg") else 0)


def test_the_orientations_of_the_test_are_those_of_pillow():
    upright = photo(31, 47)
    for orientation, turn in TURNS.items():
        image = Image.fromarray(np.ascontiguousarray(turn(upright)))
        image.getexif()[0x0112] = orientation
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(image)), upright)


def test_broken_exif_does_not_lose_the_pixels(tmp_path):
    path = written(tmp_path / "a.jpg", photo(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(20))
    plain = written(tmp_path / "b.jpg", photo())
    assert torch.equal(read_image(path), read_image(plain))


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), value, dtype=np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (hwc(read_image(tmp_path / "a.gif")) == 10).all()


def all_formats(folder):
    pixels = photo()
    for name in ("a.jpg", "a.png", "a.bmp", "a.tif", "a.ppm", "a.webp", "a.gif"):
        yield written(folder / name, pixels)
    written(folder / "progressive.jpg", pixels, progressive=True)
    yield folder / "progressive.jpg"


def test_a_file_cut_anywhere_is_an_error_that_names_it_or_gives_every_pixel(tmp_path):
    """Grey filler, as of a JPEG read to where it stops, would be a third result."""
    errors = 0
    for whole in all_formats(tmp_path):
        data, expected = whole.read_bytes(), read_image(whole)
        cut = tmp_path / f"cut{whole.suffix}"
        for at in {*range(0, len(data), max(1, len(data) // 40)), *range(len(data) - 12, len(data))}:
            cut.write_bytes(data[:at])
            found = outcome(cut)
            if isinstance(found, str):
                errors += 1
                assert found.startswith(f"{cut}: ")
                assert "torchvision" not in found
                assert len(found.splitlines()) == 1
            else:
                assert torch.equal(found, expected)
    assert errors > 8 * 40 * 0.9


def outcome(path, **options):
    """The image, or the error's message."""
    try:
        return read_image(path, **options)
    except ImageError as error:
        return str(error)


def test_flipped_bytes_and_noise_raise_nothing_but_image_errors(tmp_path):
    path = tmp_path / "broken"
    refused = 0
    for whole in all_formats(tmp_path):
        data = whole.read_bytes()
        for _ in range(60):
            broken = bytearray(data)
            for at in RNG.integers(0, min(len(data), 400), size=3):
                broken[at] = RNG.integers(0, 256)
            path.write_bytes(broken)
            found = outcome(path, max_pixels=1_000_000)
            refused += isinstance(found, str)
            assert str(path) in found if isinstance(found, str) else found.shape[0] == 3
    assert refused > 50


def test_every_flipped_bit_of_a_png_is_noticed(tmp_path):
    whole = written(tmp_path / "a.png", photo(6, 7))
    data, expected = whole.read_bytes(), read_image(whole)
    path = tmp_path / "b.png"
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 << at % 8
        path.write_bytes(broken)
        found = outcome(path)
        # A flip may turn a chunk's name into that of one that can be done without: then the pixels are whole.
        assert isinstance(found, str) or torch.equal(found, expected), at


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b"not an image at all", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript (EPS), which is not read"),
        (b"\xff\xd8\xff\xe0", "JPEG that is damaged or of an unusual kind"),
    ],
)
def test_files_that_are_no_images(tmp_path, content, said):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=re.escape(f"{path}: {said}")):
        read_image(path)
    with pytest.raises(ImageError, match=re.escape(f"{path}: {said}")):
        check_header(path, 1000)


def test_absent_files_and_folders_are_named(tmp_path):
    for path, said in ((tmp_path / "no.png", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ImageError, match=re.escape(f"{path}: {said}")):
            read_image(path)


def bomb(side):
    """A small PNG file of side x side white pixels."""
    data = BytesIO()
    Image.new("1", (8, 8), 1).save(data, "PNG")
    content = bytearray(data.getvalue())
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize("side", [8001, 12000, 60000])
def test_a_decompression_bomb_is_refused_before_decoding(tmp_path, side, monkeypatch):
    def refuse(*args):
        raise AssertionError("it was decoded")

    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side))
    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    with pytest.raises(ImageError, match=r"bomb\.png: .*pixels"):
        read_image(path)
    with pytest.raises(ImageError, match=r"bomb\.png: .*pixels"):
        check_header(path, PILLOW_LIMIT if side == 60000 else 64_000_000)


def test_the_cap_on_pixels_is_exact_and_can_be_moved(tmp_path):
    path = written(tmp_path / "a.jpg", photo(20, 30))
    assert read_image(path, max_pixels=600).shape == (3, 20, 30)
    with pytest.raises(ImageError, match=r"30 x 20 = 600 pixels, above data\.dataset\.max_pixels=599"):
        read_image(path, max_pixels=599)


def test_reading_leaves_the_callers_warning_filters(tmp_path):
    path = written(tmp_path / "a.jpg", photo())
    before = list(warnings.filters)
    read_image(path)
    assert warnings.filters == before


@pytest.mark.skipif(not MINI.exists(), reason="the real photographs are not on this machine")
def test_real_photographs_are_what_pillow_decodes():
    paths = sorted(MINI.glob("val/*/*"))[::5]
    assert len(paths) == 100
    for path in paths:
        with Image.open(path) as image:
            assert np.array_equal(hwc(read_image(path)), np.asarray(image.convert("RGB")))
