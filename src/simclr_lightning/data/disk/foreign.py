"""Name the format of a file that the decoder does not read, by its first bytes."""

from typing import Final

HEAD_BYTES: Final = 512
ADVICE: Final = "convert it to JPEG or PNG"
STARTS: Final = {
    b"\x00\x00\x01\x00": "Windows icon (ICO)",
    b"8BPS": "Photoshop (PSD)",
    b"%PDF": "PDF",
    b"%!PS": "PostScript (EPS)",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"II\xbc\x01": "JPEG XR",
    b"P7\n": "PAM",
    b"PF\n": "color PFM",
    b"PF ": "color PFM",
    b"<svg": "SVG",
    b"<?xml": "XML (perhaps SVG)",
    b"SIMPLE  =": "FITS",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "NumPy",
}
BRANDS: Final = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIF"}
NO_PICTURES: Final = {
    b"version https://git-lfs": "a Git LFS pointer instead of the file; run `git lfs pull`",
    b"<!doctype html": "a web page instead of an image; download the image again",
    b"<html": "a web page instead of an image; download the image again",
}
# Formats that are read: a file that starts like one and still is not opened is damaged, or of an unusual kind.
READ: Final = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}


def described(head: bytes) -> str | None:
    """Return the format of a file that starts with `head`, and what to do instead; None if it is not known."""
    for start, text in NO_PICTURES.items():
        if head.lower().startswith(start):
            return text
    if head[4:8] == b"ftyp" and head[8:12] in BRANDS:
        return f"{BRANDS[head[8:12]]}, which is not read; {ADVICE}"
    if head[128:132] == b"DICM":
        return f"DICOM, which is not read; {ADVICE}"
    for start, name in STARTS.items():
        if head.startswith(start):
            return f"{name}, which is not read; {ADVICE}"
    for start, name in READ.items():
        if head.startswith(start):
            return f"{name} that is damaged or of an unusual kind (such as 12-bit JPEG); save it again as PNG"
    return None
