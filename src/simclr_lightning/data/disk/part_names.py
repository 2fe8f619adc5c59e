"""Folder names of the parts of a data set: train2017, Testing, seg_val, held_out, unlabeled."""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

Role = Literal["train", "val", "test", "held_out", "unlabeled"]

# Words that name a part wherever they stand. The last lines of each role are Spanish, French, German, Portuguese,
# Italian and Chinese, without accents.
_CLEAR: Final[dict[Role, str]] = {
    "train": """train training trn trainval
        entrenamiento entrainement apprentissage trainingsdaten treino treinamento addestramento 训练 训练集""",
    "val": """val validation
        validacion validierung validierungsdaten validacao validazione 验证 验证集""",
    "held_out": "holdout heldout",
    "test": """test testing tst
        prueba pruebas testdaten teste 测试 测试集""",
    "unlabeled": "unlabeled unlabelled unlab nolabel nolabels",
}
# Words that name a part next to a folder for training, and may be a class elsewhere ("valid" and "invalid").
_POSSIBLE: Final[dict[Role, str]] = {
    "train": "labeled labelled",
    "val": "valid dev",
    "test": "tests",
    "held_out": "eval evaluation",
    "unlabeled": "extra",
}
_ROLES: Final[dict[str, tuple[Role, bool]]] = {
    word: (role, clear) for table, clear in ((_POSSIBLE, False), (_CLEAR, True))
    for role, words in table.items() for word in words.split()
}  # fmt: skip

# Words that add nothing to the word next to them: train_images, test-set.
_FILLERS: Final = frozenset(
    """set sets data dataset datasets daten image images img imgs photo photos picture pictures pic pics
    file files folder dir split part subset sample samples jpg jpeg png""".split()  # noqa: SIM905 - one word a column
)
# Names of what lies next to images in a data set and is no class.
_COMPANIONS: Final = frozenset(
    """mask masks label labels annotation annotations depth gt groundtruth truth segmentation segmentations
    bbox boxes meta metadata doc docs""".split()  # noqa: SIM905 - as above
)
_JOINED: Final = (("held out", "heldout"), ("hold out", "holdout"), ("un label", "unlabel"), ("no label", "nolabel"))


@dataclass(frozen=True)
class PartName:
    """The part that a folder's name shows.

    Attributes:
        role: "train", "val", "test", "unlabeled", or "held_out", which is val or test depending on the others; None
            where the name is not that of a part, as in train_masks.
        clear: whether the word is hardly ever a class; "valid", "dev", "eval" and "extra" may be.
        rest: the other words of the name, such as ("seg",) of seg_train; numbers and words like "images" are dropped.
        is_class: whether the name can be that of a class: it has neither a part's word nor that of a companion of
            images, such as "masks".
    """

    role: Role | None
    clear: bool
    rest: tuple[str, ...]
    is_class: bool


@lru_cache(maxsize=4096)
def part_name(name: str) -> PartName:
    """Return the `PartName` of a folder's name, whatever its case, accents, year, prefix or suffix.

    >>> part_name("TRAIN").role, part_name("val2017").role, part_name("Held-Out").role
    ('train', 'val', 'held_out')
    >>> part_name("seg_test")
    PartName(role='test', clear=True, rest=('seg',), is_class=False)
    >>> part_name("trainer").role is part_name("cat").role is None
    True
    """
    words = [word for word in _words(name) if not word.isdigit() and word not in _FILLERS]
    found = {at: known for at, word in enumerate(words) if (known := _role(word)) is not None}
    rest = tuple(word for at, word in enumerate(words) if at not in found)
    is_class = (bool(rest) or name.isdigit()) and not found and not _COMPANIONS & set(rest)
    clear = all(clear for _, clear in found.values())
    roles = set() if _COMPANIONS & set(rest) else {role for role, _ in found.values()}
    return PartName(_one(roles), clear, rest, is_class)


def _one(roles: set[Role]) -> Role | None:
    """The role of a name whose words have these roles; None for none, or for a mixture such as train_test."""
    if roles == {"train", "unlabeled"}:
        return "unlabeled"
    if roles == {"train", "val"}:  # train_val: both are for training
        return "train"
    return next(iter(roles)) if len(roles) == 1 else None


def _words(name: str) -> list[str]:
    """Split a name at signs, digits and capitals; lower case, without accents."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    plain = "".join(c for c in unicodedata.normalize("NFKD", spaced) if not unicodedata.combining(c)).casefold()
    text = " ".join(re.findall(r"[^\W\d_]+|\d+", plain))
    for apart, joined in _JOINED:
        text = re.sub(rf"\b{apart}", joined, text)
    return text.split()


def _role(word: str) -> tuple[Role, bool] | None:
    """The role of one word, also with a filler at its end: testset, traindata."""
    if word in _ROLES:
        return _ROLES[word]
    starts = (word.removesuffix(filler) for filler in sorted(_FILLERS) if word.endswith(filler))
    return next((_ROLES[start] for start in starts if start in _ROLES), None)
