"""Depths, palettes, transparency and frames of PNG, PNM, BMP, GIF, WebP and JPEG, against values computed by hand."""

import re
import struct
import zlib
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from made_images import GRAY, GRAY_ALPHA, PALETTE, PNG_BANDS, RGB, RGB_ALPHA, bmp, chunk, packed, png, read
from PIL import Image, ImageCms, PngImagePlugin

from simclr_lightning.data import ImageError, read_image
from simclr_lightning.data.disk.decode import check_header

RNG = np.random.default_rng(0)
INPUTS = Path(__file__).resolve().parents[3] / "shared" / "inputs" / "files"
H, W = 13, 19


def random_samples(depth, color):
    values = RNG.integers(0, 2**depth, (H, W, PNG_BANDS[color]))
    values[0, 0], values[0, 1] = 0, 2**depth - 1
    return values


def eight_bits(values, depth, color):
    """By hand: 0 to the largest value is 0 to 255, rounded; alpha is laid on white."""
    shares = values / (2**depth - 1)
    if color in (GRAY_ALPHA, RGB_ALPHA):
        shares = shares[:, :, :-1] * shares[:, :, -1:] + 1 - shares[:, :, -1:]
    return np.broadcast_to(np.floor(shares * 255 + 0.5), (H, W, 3))


DEPTHS = [(GRAY, 1), (GRAY, 2), (GRAY, 4), *((c, d) for c in (GRAY, RGB, GRAY_ALPHA, RGB_ALPHA) for d in (8, 16))]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("color", "depth"), DEPTHS)
def test_png_of_every_color_type_and_depth(tmp_path, color, depth, interlaced):
    values = random_samples(depth, color)
    path = png(tmp_path / "a.png", values, depth, color, interlaced=interlaced)
    difference = np.abs(read(path) - eight_bits(values, depth, color))
    # In 8 bits Pillow rounds the color before it lays it on white.
    assert difference.max() <= (depth == 8 and color in (GRAY_ALPHA, RGB_ALPHA))
    if (color, depth) == (GRAY, 16):
        assert np.array_equal(imageio.imread(path), values[:, :, 0])


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("color", "depth"), [pair for pair in DEPTHS if pair[0] in (GRAY, RGB)])
def test_the_transparent_color_of_a_png_is_white_and_no_other(tmp_path, color, depth, interlaced):
    values = random_samples(depth, color)
    key = values[5, 6]
    values[7, 8] = key
    values[9] = key ^ 1  # the nearest color, which in 16 bits has the same upper byte
    transparent = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    path = png(tmp_path / "a.png", values, depth, color, interlaced=interlaced, chunks=transparent)
    expected = eight_bits(values, depth, color).copy()
    expected[(values == key).all(axis=2)] = 255
    assert np.array_equal(read(path), expected)


@pytest.mark.parametrize("opacities", [None, [0], [255, 0, 128]])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_png_palettes_of_every_depth(tmp_path, depth, opacities):
    colors = RNG.integers(0, 256, (2**depth, 3), dtype=np.uint8)
    values = random_samples(depth, PALETTE)
    chunks = chunk(b"PLTE", colors.tobytes())
    alpha = np.ones(256)
    if opacities:
        opacities = opacities[: 2**depth]
        chunks += chunk(b"tRNS", bytes(opacities))
        alpha[: len(opacities)] = np.array(opacities) / 255
    path = png(tmp_path / "a.png", values, depth, PALETTE, chunks=chunks)
    numbers = values[:, :, 0]
    opacity = alpha[numbers][:, :, None]
    expected = colors[numbers] * opacity + 255 * (1 - opacity)
    assert np.abs(read(path) - expected).max() <= (1 if opacities else 0)


@pytest.mark.parametrize("depth", [8, 16])
def test_gamma_and_color_profiles_of_png_are_not_applied(tmp_path, depth):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    chunks = chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"iCCP", b"a\0\0" + zlib.compress(profile))
    values = random_samples(depth, RGB)
    path = png(tmp_path / "a.png", values, depth, RGB, chunks=chunks)
    assert np.array_equal(read(path), eight_bits(values, depth, RGB))


@pytest.mark.parametrize("depth", [4, 16])
def test_png_of_other_than_8_bits_comes_upright(tmp_path, depth):
    values = random_samples(depth, GRAY)
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored row 0 is shown right, the stored column 0 on top
    chunks = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    chunks += chunk(b"tRNS", struct.pack(">H", values[2, 3, 0]))
    shown = eight_bits(values, depth, GRAY).copy()
    shown[values[:, :, 0] == values[2, 3, 0]] = 255
    path = png(tmp_path / "a.png", values, depth, GRAY, chunks=chunks)
    assert np.array_equal(read(path), shown.swapaxes(0, 1)[:, ::-1])


@pytest.mark.parametrize("color", [GRAY, RGB, GRAY_ALPHA, RGB_ALPHA])
def test_12_bits_in_a_16_bit_png_without_a_full_scale_are_refused(tmp_path, color):
    values = random_samples(12, color)
    values[:, :, 0][0, 1] = 4095
    if color in (GRAY_ALPHA, RGB_ALPHA):
        values[:, :, -1] = 65535
    path = png(tmp_path / "a.png", values, 16, color)
    with pytest.raises(ImageError, match=r"a\.png: 16-bit PNG: its samples reach 4095 .* almost black; .*full_scale"):
        read_image(path)
    assert np.array_equal(read(path, full_scale=65535), eight_bits(values, 16, color))
    if color in (GRAY, RGB):
        assert np.array_equal(read(path, full_scale=4095), eight_bits(values, 12, color))


def test_a_16_bit_png_cut_anywhere_is_refused(tmp_path):
    for color in (GRAY, RGB, GRAY_ALPHA):
        data = png(tmp_path / "a.png", random_samples(16, color), 16, color).read_bytes()
        cut = tmp_path / "cut.png"
        for at in range(len(data)):
            cut.write_bytes(data[:at])
            with pytest.raises(ImageError, match=re.escape(str(cut))):
                read_image(cut)


@pytest.mark.parametrize("white", [1, 3, 15, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_pgm_and_ppm_record_their_full_scale(tmp_path, kind, white):
    bands = 3 if kind in ("P3", "P6") else 1
    values = RNG.integers(0, white + 1, (H, W, bands))
    data = " ".join(map(str, values.ravel())).encode()
    if kind in ("P5", "P6"):
        data = values.astype(">u2" if white > 255 else np.uint8).tobytes()
    path = tmp_path / "a.pnm"
    path.write_bytes(f"{kind} {W} {H} {white}\n".encode() + data)
    expected = np.broadcast_to(np.floor(values / white * 255 + 0.5), (H, W, 3))
    assert np.array_equal(read(path), expected)
    assert np.array_equal(read(path, full_scale=2047), expected)


def test_pbm_and_pfm(tmp_path):
    bits, path = RNG.integers(0, 2, (H, W), dtype=np.uint8), tmp_path / "a.pnm"
    path.write_bytes(f"P4 {W} {H}\n".encode() + np.packbits(bits, axis=1).tobytes())
    assert np.array_equal(read(path)[:, :, 0], 255 - 255 * bits), "1 is black"
    shares = RNG.random((H, W)).astype(np.float32)
    for order, scale in (("<", "-1.0"), (">", "1.0")):
        path.write_bytes(f"Pf {W} {H} {scale}\n".encode() + shares[::-1].astype(f"{order}f4").tobytes())
        assert np.array_equal(read(path)[:, :, 1], np.floor(shares.astype(float) * 255 + 0.5)), (
            "the last row comes first"
        )
    path.write_bytes(f"Pf {W} {H} -1.0\n".encode() + (shares * 255).astype("<f4").tobytes())
    with pytest.raises(ImageError, match=r"PFM: samples from .* outside 0 \(black\) to 1 \(white\); .*full_scale"):
        read_image(path)
    assert np.abs(read(path, full_scale=255)[::-1, :, 1] - shares * 255).max() <= 0.51


def test_bmp_of_every_depth(tmp_path):
    words = RNG.integers(0, 65536, (H, W - 3))  # 16 pixels a row, so that every row ends at 4 bytes
    for masks, shifts, widths in (((), (10, 5, 0), (5, 5, 5)), ((0xF800, 0x7E0, 0x1F), (11, 5, 0), (5, 6, 5))):
        path = bmp(tmp_path / "16.bmp", 16, W - 3, H, words.astype("<u2").tobytes(), masks=masks)
        channels = [(words >> s & (1 << w) - 1) / ((1 << w) - 1) for s, w in zip(shifts, widths, strict=True)]
        assert np.abs(read(path) - 255 * np.stack(channels, axis=2)).max() <= 1
    pixels = RNG.integers(0, 256, (H, W - 3, 4), dtype=np.uint8)
    assert np.array_equal(read(bmp(tmp_path / "32.bmp", 32, W - 3, H, pixels.tobytes())), pixels[:, :, 2::-1])
    assert np.array_equal(read(bmp(tmp_path / "24.bmp", 24, W - 3, H, pixels[:, :, :3].tobytes())), pixels[:, :, 2::-1])
    for bits in (1, 4, 8):
        colors = RNG.integers(0, 256, (2**bits, 4), dtype=np.uint8)
        numbers = RNG.integers(0, 2**bits, (H, W - 3))
        rows = packed(numbers, bits)
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
        path = bmp(tmp_path / "p.bmp", bits, W - 3, H, rows.tobytes(), palette=colors.tobytes())
        assert np.array_equal(read(path), colors[numbers][:, :, 2::-1])


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_frame_of_an_animation_or_page_of_several(tmp_path, name):
    frames = [np.full((H, W, 3), value, dtype=np.uint8) for value in (10, 100, 200)]
    options = {"lossless": True} if name == "a.webp" else {}
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(tmp_path / name, save_all=True, append_images=rest, **options)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 3
    assert np.array_equal(read(tmp_path / name), frames[0])


def test_a_transparent_gif_is_laid_on_white(tmp_path):
    numbers = RNG.integers(0, 4, (H, W), dtype=np.uint8)
    colors = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [9, 9, 9]], dtype=np.uint8)
    image = Image.fromarray(numbers)
    image.putpalette(colors.tobytes())
    image.save(tmp_path / "a.gif", transparency=2)
    colors[2] = 255
    assert np.array_equal(read(tmp_path / "a.gif"), colors[numbers])


def cmyk_jpeg(path, samples):
    """A JPEG of one color, stored as these four samples: Pillow stores ink inverted."""
    ink = bytes(255 - sample for sample in samples)
    Image.frombytes("CMYK", (16, 16), ink * 256).save(path, quality=100)


@pytest.mark.parametrize("stored", [(255, 128, 0, 200), (30, 60, 90, 255), (10, 20, 30, 40)])
def test_cmyk_and_ycck_jpeg_as_adobe_stores_them(tmp_path, stored):
    """Adobe stores 255 for no ink, and in YCCK the luminance and differences of inverted cyan, magenta and yellow."""
    path = tmp_path / "a.jpg"
    cmyk_jpeg(path, stored)
    cyan, magenta, yellow, black = stored
    assert np.abs(read(path)[8, 8] - np.array([cyan, magenta, yellow]) * black / 255).max() <= 2
    data = bytearray(path.read_bytes())
    data[data.index(b"Adobe") + 11] = 2  # the transform: YCCK
    path.write_bytes(data)
    luminance, blue, red = cyan, magenta - 128, yellow - 128
    ink = [luminance + 1.402 * red, luminance - 0.344136 * blue - 0.714136 * red, luminance + 1.772 * blue]
    expected = (255 - np.clip(ink, 0, 255)) * black / 255
    assert np.abs(read(path)[8, 8] - expected).max() <= 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0\0\1\0\1\0" + bytes(100), "Windows icon (ICO), which is not read; convert it to JPEG or PNG"),
        (b"\0\0\0\x1cftypheic" + bytes(100), "HEIC, which is not read; convert it to JPEG or PNG"),
        (b"\0\0\0\x1cftypavif" + bytes(100), "AVIF, which is not read; convert it to JPEG or PNG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "JPEG 2000, which is not read; convert it to JPEG or PNG"),
        (b"\xff\x4f\xff\x51" + bytes(100), "JPEG 2000, which is not read"),
        (b"8BPS\0\1" + bytes(100), "Photoshop (PSD), which is not read"),
        (bytes(128) + b"DICM" + bytes(100), "DICOM, which is not read"),
        (b"PF 1 1 -1.0\n" + bytes(12), "color PFM, which is not read"),
        (b"<svg xmlns=", "SVG, which is not read"),
        (b"<!DOCTYPE html><html>", "a web page instead of an image; download the image again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer instead of the file; run `git lfs pull`"),
        (b"\xff\xd8\xff\xc1\0\x0b\x0c\0\x10\0\x10\1\1\x11\0" + bytes(20), "JPEG that is damaged or of an unusual kind"),
    ],
)
def test_other_formats_are_named_with_the_way_out(tmp_path, content, said):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for check in (read_image, lambda path: check_header(path, 1000)):
        with pytest.raises(ImageError, match=re.escape(f"{path}: {said}")):
            check(path)


@pytest.mark.skipif(not INPUTS.exists(), reason="these files are not on this machine")
def test_a_png_that_once_lost_its_transparency():
    path = INPUTS / "grey16_trns0.png"
    with Image.open(path) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert image.info["transparency"] == 0
        raw = np.asarray(image).astype(float)
    expected = np.where(raw == 0, 255, np.floor(raw / 65535 * 255 + 0.5))
    assert np.array_equal(read(path)[:, :, 0], expected)
