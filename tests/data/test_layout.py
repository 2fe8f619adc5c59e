"""Which folders are parts and which are classes: found, or refused with both readings. No file is needed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from simclr_lightning.data.disk.layout import Layout, lay_out
from simclr_lightning.data.disk.part_names import part_name
from simclr_lightning.data.disk.readings import AmbiguousFolder, Chosen

CLASSES = ("cat", "dog")


def files(**folders: int | dict[str, int]) -> list[str]:
    """Names of files: files(train={"cat": 2}, extra=1) -> extra/0.png, train/cat/0.png, train/cat/1.png."""
    names = []
    for folder, inside in folders.items():
        below = inside if isinstance(inside, dict) else {"": inside}
        for name, count in below.items():
            names += ["/".join(filter(None, (folder, name, f"{number}.png"))) for number in range(count)]
    return sorted(names)


def classed(count: int, classes: tuple[str, ...] = CLASSES) -> dict[str, int]:
    return dict.fromkeys(classes, count)


def laid(names: list[str], *, labels: bool = True, **chosen: str) -> Layout:
    return lay_out(sorted(names), labels=labels, seed=0, chosen=Chosen(**chosen))


def tops(names: list[str] | None) -> set[str]:
    return {name.split("/")[0] for name in names or []}


def parts(layout: Layout) -> tuple[set[str], set[str], set[str]]:
    """The folders of the first level that train, val and test come from."""
    val, test = (part.names if part is not None else [] for part in (layout.val, layout.test))
    return tops(layout.train.names), tops(val), tops(test)


# -- names ----------------------------------------------------------------------------------------------------

NAMES = {
    "train": """train TRAIN Train training Training TRAINING trn trainset train_set train-set train.set TrainSet
        trainval train_val train2017 train_2017 2017train train_images images_train train_imgs img_train trainData
        training_data train_dataset train01 Entrenamiento entraînement Entrainement Trainingsdaten treino
        addestramento 训练 训练集""",
    "test": """test TEST Test testing Testing tst testset test_set TestSet test2017 test1 test_images images-test
        test_data Testdaten prueba Pruebas teste 测试""",
    "val": """val VAL Val valid VALID validation Validation val2017 val_images images_val valset validation_set dev
        devset validación Validierung validação validazione""",
    "held_out": "eval evaluation holdout hold_out HoldOut heldout held_out held-out eval2017 holdout_set",
    "unlabeled": """unlabeled unlabelled UNLABELED Unlabelled unlabeled2017 unlabeled_images un-labeled extra
        extra_images""",
    None: """cat trainer trains strain restrain brain terrain detest contest attest protest greatest testament value
        validator invalid invalidation interval carnival medieval devil device extraordinary extract bus 0 12 2017
        IMG_1 train_masks test_labels train_test_split""",
}
TRAIN, TEST, VAL, EITHER, UNLABELED, _ = (names.split() for names in NAMES.values())


@pytest.mark.parametrize("role", NAMES)
def test_a_folders_name_shows_its_part_whatever_its_case_year_suffix_or_language(role: str | None) -> None:
    for name in NAMES[role].split():
        assert part_name(name).role == role, name


def test_other_words_of_a_name_stay() -> None:
    for name, rest in (
        ("seg_train", ("seg",)),
        ("trainA", ("a",)),
        ("asl_alphabet_test", ("asl", "alphabet")),
        ("TEST_SIMPLE", ("simple",)),
    ):
        assert part_name(name).role in ("train", "test")
        assert part_name(name).rest == rest


# -- certain --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *[(train, "test_set") for train in TRAIN],
        *[("TRAIN", test) for test in (*TEST, *VAL, *EITHER)],
        ("seg_train", "seg_test"),
        ("asl_alphabet_train", "asl_alphabet_test"),
        ("train2017", "val2017"),
    ],
)
def test_train_and_a_part_for_scores_are_found_by_their_names(train: str, test: str) -> None:
    layout = laid(files(**{train: classed(6), test: classed(2)}))
    assert parts(layout) == ({train}, set(), {test})
    assert layout.class_names == CLASSES
    assert layout.train.labels.bincount().tolist() == [6, 6]
    assert layout.test.labels.bincount().tolist() == [2, 2]
    taken = [f"{test}/ is taken as the test part, as there is no other" in note for note in layout.notes]
    assert taken == ([] if test in (*TEST, "test_set", "seg_test", "asl_alphabet_test") else [True])


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("train", "valid", "test"),  # Roboflow
        ("Train", "Validation", "Test"),
        ("train", "dev", "test"),
        ("train", "eval", "test"),
        ("train", "holdout", "test"),
        ("train", "val", "holdout"),
        ("train", "dev", "eval"),
        ("train2017", "val2017", "test2017"),
        ("seg_train", "seg_val", "seg_test"),
    ],
)
def test_of_two_parts_next_to_train_one_is_held_out_and_one_is_scored(train: str, val: str, test: str) -> None:
    layout = laid(files(**{train: classed(6), val: classed(3), test: classed(2)}))
    assert parts(layout) == ({train}, {val}, {test})
    assert layout.held_out(0).tolist() == list(range(12, 18))
    assert layout.rows().labels.bincount().tolist() == [9, 9]
    assert [note for note in layout.notes if "is never trained on" in note] == [*layout.notes]
    flat = laid(files(**{train: 6, val: 3, test: 2}))
    assert parts(flat) == ({train}, {val}, {test})
    assert flat.class_names is flat.train.labels is None


def test_images_without_labels_next_to_train_are_trained_on() -> None:
    for name in UNLABELED:
        for more in ({}, {"test": classed(2)}):
            layout = laid(files(**{"train": classed(6), name: 5}, **more))
            assert parts(layout)[0] == {"train", name}
            labels = Counter(layout.train.labels.tolist())
            assert labels == ({0: 6, 1: 6, -1: 5} if more else {0: 5, 1: 5, -1: 5})
            assert layout.train.names == sorted(layout.train.names)
            assert all((label < 0) == image.startswith(name) for image, label in pairs(layout))
            assert any(f"{name}/ (5 images) is trained on too, without labels" in note for note in layout.notes)
            only = laid(files(**{"train": classed(6), name: 5}, **more), train="train")
            assert parts(only)[0] == {"train"}
            assert any(f"not used, being no part: {name}/" in note for note in only.notes)
            flat = laid(files(**{"train": 6, name: 5}, **dict.fromkeys(more, 3)))
            assert parts(flat) == ({"train", name}, set(), {*more})


def pairs(layout: Layout) -> list[tuple[str, int]]:
    return list(zip(layout.train.names, layout.train.labels.tolist(), strict=True))


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_a_class_folder_for_images_without_a_label_is_no_class(prefix: str) -> None:
    names = [prefix + name for name in files(cat=10, dog=10, unlabeled=5)]
    layout = laid(names)
    assert layout.class_names == CLASSES
    assert Counter(layout.train.labels.tolist()) == {0: 8, 1: 8, -1: 5}
    assert any("unlabeled/ (5 images) is trained on without labels" in note for note in layout.notes)
    assert laid(names, train=prefix or ".").class_names == ("cat", "dog", "unlabeled")
    assert laid([prefix + name for name in files(cat=10, unlabeled=5)]).class_names is None


def test_parts_one_level_deeper_are_found() -> None:
    """Intel's images: seg_train/seg_train/CLASS; archives that hold one folder; Kaggle's doubled folders."""
    inner = {f"seg_train/{name}": 5 for name in CLASSES}
    layout = laid(
        files(seg_train=inner, seg_test={f"seg_test/{name}": 2 for name in CLASSES}, seg_pred={"seg_pred": 3})
    )
    assert parts(layout) == ({"seg_train"}, set(), {"seg_test"})
    assert (layout.class_names, layout.notes) == (CLASSES, ("not used, being no part: seg_pred/",))
    archive = laid(
        [f"archive/images/{name}" for name in files(TRAIN=classed(6), TEST=classed(2), TEST_SIMPLE=classed(1))]
    )
    assert {name.split("/")[2] for name in archive.train.names} == {"TRAIN"}
    assert {name.split("/")[2] for name in archive.test.names} == {"TEST"}
    assert archive.class_names == CLASSES
    roboflow = laid(files(train={"images": 5}, valid={"images": 2}, test={"images": 3}))
    assert parts(roboflow) == ({"train"}, {"valid"}, {"test"})


def test_a_class_called_train_among_classes_is_said() -> None:
    layout = laid(files(bus=10, car=10, train=12))
    assert layout.class_names == ("bus", "car", "train")
    assert layout.notes[0] == ("train/ is read as a class; for a folder of training images: data.dataset.train=train")
    assert laid(files(bus=5, toy_train=5, freight_train=5, car=5)).class_names == (
        "bus",
        "car",
        "freight_train",
        "toy_train",
    )
    assert laid(files(valid=5, invalid=5)).class_names == ("invalid", "valid")
    assert laid(files(dev=5, prod=5)).class_names == ("dev", "prod")
    assert laid(files(extra=5, cat=5)).class_names == ("cat", "extra")


def test_what_is_no_part_is_not_used_and_said() -> None:
    names = files(train=classed(6), test=classed(2), notes=1, masks={"cat": 3})
    layout = laid([*names, "logo.png"])
    assert parts(layout) == ({"train"}, set(), {"test"})
    assert layout.notes == ("not used, being no part: masks/, notes/, images next to the folders",)


def test_a_part_without_classes_of_train_gives_way() -> None:
    kaggle = laid(files(train=classed(6), val=classed(2), test=4))
    assert parts(kaggle) == ({"train"}, set(), {"val"})
    assert kaggle.notes[0] == "test/ is not used: it has no class folders like those of train"
    other = laid(files(train=classed(6), val=4, test=classed(2)))
    assert parts(other) == ({"train"}, set(), {"test"})


# -- not certain ----------------------------------------------------------------------------------------------

TWO_WAYS = [
    (files(train=30, bus=10), "training images train/, not used bus/: data.dataset.train=train"),
    (files(train=classed(5), bus=10, car=10), "training images train/, not used bus/, car/: data.dataset.train=train"),
    (files(train=classed(5), query=classed(3)), "training images train/, not used query/: data.dataset.train=train"),
    (files(train=10, train_masks=10), "training images train/, not used train_masks/: data.dataset.train=train"),
    (files(train=10, images=10), "training images train/, not used images/: data.dataset.train=train"),
    (files(train=10, test=5, bus=9), "parts test/, train/, not used bus/: data.dataset.train=train"),
    (files(train=10, extra=5, bus=9), "parts extra/, train/, not used bus/: data.dataset.train=train"),
    (
        files(cat=5, dog=5, test=5),
        "classes cat/, dog/, not trained on test/: data.dataset.train=. data.dataset.test=test",
    ),
    (
        files(cat=5, dog=5, val=classed(5)),
        "classes cat/, dog/, not trained on val/: data.dataset.train=. data.dataset.val=val",
    ),
    (
        files(cat=5, dog=5, eval=classed(5)),
        "classes cat/, dog/, not trained on eval/: data.dataset.train=. data.dataset.val=eval",
    ),
    (
        files(cat=5, dog=5, holdout=5),
        "classes cat/, dog/, not trained on holdout/: data.dataset.train=. data.dataset.val=holdout",
    ),
    (files(test=classed(5)), "parts test/, one of them to train on: data.dataset.train=test"),
    (files(val=5, test=5), "parts test/, val/, one of them to train on: data.dataset.train=NAME"),
    (
        files(train1=classed(3), train2=classed(3), val=classed(3)),
        "training images in one of train1/, train2/: data.dataset.train=train1 or data.dataset.train=train2",
    ),
    (
        files(train=classed(3), Train=classed(3)),
        "training images in one of Train/, train/: data.dataset.train=Train or data.dataset.train=train",
    ),
    (
        files(train=classed(3), val=classed(3), valid=classed(3)),
        "held-out part in one of val/, valid/: data.dataset.val=val or data.dataset.val=valid",
    ),
    (
        files(train=classed(3), test1=classed(3), test2=classed(3)),
        "test part in one of test1/, test2/: data.dataset.test=test1 or data.dataset.test=test2",
    ),
    (
        files(trainA=5, trainB=5, testA=5, testB=5),
        "training images in one of trainA/, trainB/: data.dataset.train=trainA or data.dataset.train=trainB",
    ),
    (
        [f"{name}/{part}/{n}.png" for name in CLASSES for part in ("train", "test") for n in range(3)],
        "parts inside cat/, dog/: data.path=.../cat, or sort the images into train/CLASS/ and test/CLASS/",
    ),
    (
        [*[f"archive/{name}" for name in files(train=classed(3), test=classed(3))], "figures/1.png"],
        "parts inside archive/: data.path=.../archive, or sort the images into train/CLASS/ and test/CLASS/",
    ),
    (
        [*[f"a/b/{name}" for name in files(train=classed(3), val=classed(3))], "figures/1.png"],
        "parts inside a/b/: data.path=.../a/b, or sort the images into train/CLASS/ and test/CLASS/",
    ),
    (
        ["1.png", "2.png", *files(train=3)],
        "training images train/, not used 2 images next to it: data.dataset.train=train",
    ),
]


@pytest.mark.parametrize(("names", "parts_line"), TWO_WAYS)
@pytest.mark.parametrize("labels", [True, False])
def test_what_can_be_read_in_two_ways_is_refused_with_both_and_the_keys(
    names: list[str], parts_line: str, labels: bool
) -> None:
    with pytest.raises(AmbiguousFolder) as caught:
        laid(names, labels=labels)
    message = str(caught.value)
    lines = message.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("the folders in data.path can be read in two ways; add the keys of the right one")
    assert lines[1] == f"  1. {parts_line}"
    assert lines[2].startswith("  2. classes ")
    assert lines[2].endswith(", all trained on: data.dataset.train=.")
    assert all(f"{top}/" in lines[2] for top in tops(names) if "." not in top)


@pytest.mark.parametrize(("names", "parts_line"), TWO_WAYS)
def test_every_key_of_a_refusal_decides(names: list[str], parts_line: str) -> None:
    both = laid(names, train=".")
    assert sorted([*both.train.names, *(both.test.names if both.test else ())]) == sorted(names)
    readings = [
        dict(re.findall(r"data\.dataset\.(\w+)=(\S+)", reading)) for reading in parts_line.split(": ")[1].split(" or ")
    ]
    for keys in readings:
        if not keys or "NAME" in keys.values():
            continue
        layout = laid(names, **keys)
        found = dict(zip(("train", "val", "test"), parts(layout), strict=True))
        for key, folder in keys.items():
            if folder == ".":
                assert found["train"] == tops(names) - set(keys.values())
            elif key == "train" or f"{folder}/cat/0.png" in names:
                assert found[key] == {folder}
            else:  # it has no class folders to be scored by
                assert folder not in found["train"]
                assert any(note.startswith(f"{folder}/ is not used: it has no class folders") for note in layout.notes)


def test_the_refusal_in_the_documentation_is_the_programs() -> None:
    docs = (Path(__file__).parents[2] / "docs/data.md").read_text()
    with pytest.raises(AmbiguousFolder) as caught:
        laid(files(train=classed(5), query=classed(3)))
    assert f"```\nerror: {caught.value}\n```" in docs


def test_a_folder_with_many_classes_is_shown_in_part() -> None:
    with pytest.raises(AmbiguousFolder) as caught:
        laid(files(**{f"c{number:03d}": 1 for number in range(1000)}, test=5))
    assert "classes c000/, c001/, c002/, c003/, c004/ and 995 more, not trained on test/" in str(caught.value)
    assert len(str(caught.value)) < 500


# -- keys -----------------------------------------------------------------------------------------------------


def test_keys_name_folders_of_any_name_and_depth() -> None:
    names = files(a={"x/cat": 5, "x/dog": 5, "y/cat": 2, "y/dog": 2}, b=classed(3), c=4)
    layout = laid(names, train="a/x", val="./a/y/", test="b")
    assert {name.rsplit("/", 2)[0] for name in layout.train.names} == {"a/x"}
    assert {name.rsplit("/", 2)[0] for name in layout.val.names} == {"a/y"}
    assert parts(layout)[2] == {"b"}
    assert (layout.class_names, layout.val.labels.tolist()) == (CLASSES, [0, 0, 1, 1])
    assert "not used, being no part: c/" in layout.notes


def test_keys_leave_the_other_parts_to_their_names() -> None:
    names = files(train=classed(6), val=classed(3), test=classed(2), more=classed(4))
    assert parts(laid(names, train="more")) == ({"more"}, {"val"}, {"test"})
    assert parts(laid(names, test="more")) == ({"train"}, {"val"}, {"more"})
    assert parts(laid(names, val="more")) == ({"train"}, {"more"}, {"test"})
    assert parts(laid(names, test="val")) == ({"train"}, set(), {"val"})
    assert parts(laid(files(cat=9, dog=9, checked=classed(2)), test="checked")) == ({"cat", "dog"}, set(), {"checked"})


def test_val_that_a_key_names_is_held_out_without_a_test_part_too() -> None:
    layout = laid(files(train=classed(10), val=classed(3)), val="val")
    assert parts(layout) == ({"train"}, {"val"}, {"train"})
    assert (len(layout.train.names), len(layout.val.names), len(layout.test.names)) == (16, 6, 4)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"train": "trian"}, "data.dataset.train=trian: there is no such folder with images in data.path; its folders"),
        ({"train": "trian"}, "folders with images are bus/, query/, train/"),
        ({"test": "../test"}, "data.dataset.test=../test: there is no such folder"),
        ({"val": "/data/val"}, "data.dataset.val=/data/val: there is no such folder"),
        ({"val": "."}, "data.dataset.val=.: there is no such folder"),
        ({"train": "train", "test": "train"}, "data.dataset.train=train data.dataset.test=train: name another folder"),
        ({"train": "train", "test": "query"}, "data.dataset.test=query: none of its folders is a class of train"),
    ],
)
def test_keys_that_name_no_folder_are_refused(chosen: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        laid(files(train=classed(5), bus=9, query={"yak": 2}), **chosen)
    assert len(str(caught.value).splitlines()) == 1


def test_classes_that_train_lacks_are_refused_by_name() -> None:
    for part in ("val", "test"):
        for names, said in (
            (("cat", "yak"), f"{part}/ has a class that train does not have: yak/; rename"),
            (("cat", "Dog", "yak"), f"{part}/ has 2 classes that train does not have: Dog/, yak/; rename"),
        ):
            split = files(train=classed(5), **{part: dict.fromkeys(names, 2)})
            with pytest.raises(ValueError, match=re.escape(said)):
                laid(split)
            assert parts(laid(split, labels=False))[0] == {"train"}
