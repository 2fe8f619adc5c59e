"""Numbers and errors as short texts for a terminal."""

from __future__ import annotations


def first_line(text: object) -> str:
    """Return the first line of an error or a text that is not blank; for an error without text, its type's name."""
    lines = (line.strip() for line in str(text).splitlines() if line.strip())
    return next(lines, type(text).__name__ if isinstance(text, BaseException) else "no message")


def size(number: float, unit: str) -> str:
    """Return a number in three digits with a prefix.

    >>> size(1.82e9, "FLOP"), size(345_000_000, "B")
    ('1.82 GFLOP', '345 MB')
    """
    for prefix in ("", "k", "M", "G", "T"):
        if number < 999.5:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:.3g} P{unit}"


def duration(seconds: float | None) -> str:
    """Return a time in its two largest units; empty for None.

    >>> duration(75), duration(600), duration(4980)
    ('75 s', '10 min', '1 h 23 min')
    """
    if seconds is None:
        return ""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours} h"


def score(value: float | None) -> str:
    """Return a score as readers expect it: a fraction in percent, a negated loss as the loss; empty for None."""
    return "" if value is None else f"{value:.1%}" if 0 <= value <= 1 else f"{abs(value):.3f}"


def share_name(fraction: float) -> str:
    """Return a share of the labels as keys, files and titles name it: percent, in six digits.

    >>> share_name(0.01), share_name(0.125)
    ('1', '12.5')
    """
    return f"{100 * fraction:g}"
