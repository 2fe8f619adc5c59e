"""Decide which TIFF pages Pillow reads, which `samples` reads, which are refused; and what their samples mean."""

from typing import Final

from simclr_lightning.data.disk.depth import BANDS, Color, Samples, UnsupportedImageError
from simclr_lightning.data.disk.tiff.page import FLOAT, SIGNED, UNSIGNED, UNTYPED, Page, Tag

BIG_ENDIAN_BIGTIFF: Final = b"MM\0+"  # Pillow reads this header as another one
COLORS: Final[dict[int, Color]] = {0: "gray", 1: "gray", 2: "RGB", 5: "CMYK"}
PALETTE, YCBCR = 3, 6
OTHER_COLORS: Final = {
    4: "a transparency mask",
    8: "CIE Lab colors",
    9: "ICC Lab colors",
    10: "ITU Lab colors",
    32803: "raw camera data",
    32844: "LogL colors",
    32845: "LogLuv colors",
    34892: "raw camera data",
}
PREDICTED: Final = {5, 8, 32946, 34925, 50000}  # LZW, deflate, LZMA, zstd: they may store differences of neighbors
LOSSLESS: Final = PREDICTED | {1, 32773}  # none, PackBits
BY_PILLOW: Final = {2, 3, 4, 6, 7, 50001}  # CCITT, JPEG, WebP
COMPRESSIONS: Final = {
    6: "JPEG",
    7: "JPEG",
    50001: "WebP",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    50002: "JPEG XL",
}

# (photometric, ExtraSamples) of the contiguous 8-bit layouts whose pixels Pillow gets right
PILLOW_LAYOUTS: Final = {
    *((0, ()), (1, ()), (1, (2,)), (2, ()), (2, (0,)), (2, (1,)), (2, (2,)), (2, (999,))),
    *((PALETTE, ()), (PALETTE, (2,)), (5, ())),
}


def is_pillows(page: Page) -> bool:
    """Return whether Pillow opens this kind of page and gets its pixels right."""
    if page.magic == BIG_ENDIAN_BIGTIFF or max(page.tags.get(Tag.COLOR_MAP, (256,))) < 256:
        return False
    if page.number(Tag.COMPRESSION) in BY_PILLOW:
        return True
    bits, bands = page.number(Tag.BITS), page.number(Tag.BANDS)
    palette = page.number(Tag.PHOTOMETRIC) == PALETTE
    return (
        page.number(Tag.FORMAT) in (UNSIGNED, UNTYPED)
        and (bits == 8 or (bits in (1, 2, 4) and bands == 1))
        and (page.number(Tag.FILL_ORDER) == 1 or palette)
        and (page.number(Tag.PLANAR) == 1 or bands == 1)
        and (page.number(Tag.PHOTOMETRIC), page.extra) in PILLOW_LAYOUTS
    )


def check(page: Page) -> None:
    """Refuse the kinds that have no agreed meaning as a picture, or that nothing here reads.

    Raises:
        UnsupportedImageError: naming the kind.
    """
    photometric, compression, bits = page.number(Tag.PHOTOMETRIC), page.number(Tag.COMPRESSION), page.number(Tag.BITS)
    name = OTHER_COLORS.get(photometric, f"colors of kind {photometric}")
    if Tag.DNG_VERSION in page.tags:
        raise UnsupportedImageError("raw photograph (DNG); convert it to JPEG or PNG")
    if page.tags.get(Tag.NEW_SUBFILE, (0,))[0] in (1, 3):
        raise UnsupportedImageError("TIFF whose first page is a reduced copy; save the full page alone")
    if photometric not in (*COLORS, PALETTE, YCBCR):
        raise UnsupportedImageError(f"TIFF with {name}; convert it to RGB")
    if compression not in LOSSLESS and (compression not in BY_PILLOW or bits > 8):
        raise _bad_compression(page)
    if photometric == YCBCR and compression not in BY_PILLOW:
        raise UnsupportedImageError("TIFF with YCbCr colors without JPEG compression; convert it to RGB")
    if len({*page.tags.get(Tag.BITS, ())}) > 1:
        raise UnsupportedImageError("TIFF with bands of different depths; save it with 8 or 16 bits")
    if photometric == PALETTE:
        page.number(Tag.COLOR_MAP)  # raises where there is none
    _check_bands(page)
    if not is_pillows(page):
        _check_samples(page)


def _check_bands(page: Page) -> None:
    bands, photometric = page.number(Tag.BANDS), page.number(Tag.PHOTOMETRIC)
    color = {PALETTE: 1, YCBCR: 3}.get(photometric) or BANDS[COLORS[photometric]]
    # In RGB one more band is alpha where no tag says so, and left out when it is unspecified, as by other readers.
    # For ink and min-is-white nobody defines what a premultiplied sample is.
    alpha = page.extra in ((2,), (999,)) or (photometric in (1, 2) and page.extra == (1,))
    alpha |= photometric == 2 and page.extra in ((), (0,))
    if bands != color and not (bands == color + 1 and alpha):
        space = {0: " of gray", 1: " of gray", 2: " of RGB"}.get(photometric, "")
        count = f"{bands} band{'s' * (bands != 1)}"
        raise UnsupportedImageError(
            f"TIFF with {count}{space}: an image has 1 (gray) or 3 (RGB), and alpha or not; save three bands as RGB"
        )


def _bad_compression(page: Page) -> UnsupportedImageError:
    number = page.number(Tag.COMPRESSION)
    name = COMPRESSIONS.get(number, f"unknown ({number})")
    return UnsupportedImageError(f"{page.kind} with {name} compression; save it with deflate or without compression")


def _check_samples(page: Page) -> None:
    """Refuse the kinds that neither Pillow nor `samples` reads."""
    form = page.number(Tag.FORMAT)
    whole = {*range(1, 17), 32, 64}
    allowed = {UNSIGNED: whole, UNTYPED: whole, SIGNED: {8, 16, 32, 64}, FLOAT: {16, 32, 64}}.get(form, set())
    if page.number(Tag.BITS) not in allowed:
        raise UnsupportedImageError(f"{page.kind}; save it with 8 or 16 bits")
    if page.number(Tag.COMPRESSION) not in LOSSLESS:
        raise _bad_compression(page)
    if page.number(Tag.PHOTOMETRIC) == PALETTE and (page.extra or form in (SIGNED, FLOAT)):
        raise UnsupportedImageError(f"{page.kind} with a palette; convert it to RGB")


def meaning(page: Page, full_scale: float | None) -> Samples:
    """Return what the samples of a page mean that `samples` reads; a palette's are RGB.

    Args:
        page: the page.
        full_scale: the sample value of white, from 16 bits on; None takes what the page records, or the largest value.
    """
    bits, form = page.number(Tag.BITS), page.number(Tag.FORMAT)
    if page.number(Tag.PHOTOMETRIC) == PALETTE:
        return Samples(page.kind, "RGB", 255 if max(page.tags[Tag.COLOR_MAP]) < 256 else 65535, certain=True)
    color = COLORS[page.number(Tag.PHOTOMETRIC)]
    largest = 1 if form == FLOAT else 2 ** (bits - (form == SIGNED)) - 1
    named = None if bits < 16 else full_scale or _recorded_white(page, 65535 if form == FLOAT else largest)
    has_alpha = page.number(Tag.BANDS) > BANDS[color] and page.extra != (0,)
    return Samples(
        page.kind,
        color,
        named or largest,
        certain=named is not None or bits < 16,
        inverted=page.number(Tag.PHOTOMETRIC) == 0,
        alpha=None if not has_alpha else "premultiplied" if page.extra == (1,) else "straight",
    )


def _recorded_white(page: Page, largest: int) -> int | None:
    """Return the value of white that a page records: a maximum of all ones, such as 4095; others are statistics."""
    for tag in (Tag.S_MAX_VALUE, Tag.MAX_VALUE):
        value = max(page.tags.get(tag, (0,)))
        if 255 <= value <= largest and int(value) & (int(value) + 1) == 0:
            return int(value)
    return None
