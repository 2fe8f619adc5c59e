"""Find the real name nearest to a mistyped one; no other module calls difflib."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Final

OPTIONS_SHOWN: Final = 15
# Names of the same settings in other programs.
_ALSO_CALLED: Final = {
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "learning_rate": "optimizer.lr",
    "num_gpus": "trainer.devices",
    "root": "data.path",
    "steps": "trainer.max_steps",
    "tau": "loss.temperature",
    "warmup": "schedule.warmup_epochs",
    "wd": "optimizer.weight_decay",
    "workers": "data.num_workers",
}


def listed(names: Sequence[str]) -> str:
    """Return names joined by commas: at most `OPTIONS_SHOWN`, then the number of the others.

    >>> listed(["a", "b"])
    'a, b'
    """
    more = len(names) - OPTIONS_SHOWN
    return ", ".join(names[:OPTIONS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def did_you_mean(name: str, options: Collection[str], *, count: int = 1, cutoff: float = 0.6) -> str:
    """Return "; did you mean OPTION?" with the options nearest to a name; empty if none is near.

    >>> did_you_mean("tran", ["train", "pack"])
    '; did you mean train?'
    """
    near = get_close_matches(name, options, n=count, cutoff=cutoff)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def nearest(key: str, known: Iterable[str], *, count: int = 2) -> list[str]:
    """Return up to ``count`` known keys near a mistyped one.

    The first of these that finds any: `_ALSO_CALLED`; the key above, if it is a value and has no parts; a key of the
    same node whose last part is nearly the same; keys with the same last part; a similar key; keys of the same node
    that contain the mistyped last part; keys with a similar last part; keys whose last part contains the mistyped one.
    """
    names = list(dict.fromkeys(known))
    node, _, last = key.rpartition(".")
    if _ALSO_CALLED.get(last) in names:
        return [_ALSO_CALLED[last]]
    if node in names and not any(name.startswith(f"{node}.") for name in names):
        return [node]
    last = last.lower()
    lasts: dict[str, list[str]] = {}
    for name in names:
        lasts.setdefault(name.rpartition(".")[2], []).append(name)
    own = [part for part in lasts if node and f"{node}.{part}" in names]
    if almost := get_close_matches(last, own, n=1, cutoff=0.85):
        return [f"{node}.{almost[0]}"]
    if last in lasts:
        return get_close_matches(key, lasts[last], n=count, cutoff=0.0)
    close = get_close_matches(key, names, n=1, cutoff=0.75)
    # Keys with the same beginning are similar whatever their last parts are, so compare the last parts too.
    if close and (not node or get_close_matches(last, [close[0].rpartition(".")[2]], cutoff=0.5)):
        return close
    inside = [
        name
        for name in names
        if len(last) > 3 and node and name.startswith(f"{node}.") and last in name.rpartition(".")[2]
    ]
    if inside:
        return inside[:count]
    similar = get_close_matches(last, lasts, n=count, cutoff=0.7)
    similar = similar or [part for part in lasts if len(last) > 3 and last in part]
    return [name for part in similar for name in lasts[part]][:count]
