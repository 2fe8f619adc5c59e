"""Arrays from one .npz: the right pixels in, and a clear line for everything that is wrong with the file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from simclr_lightning.data import array
from simclr_lightning.data.images import choose, choose_held_out, digest

RNG = np.random.default_rng(0)
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "unpack_cifar10.py"


def images(*shape):
    return RNG.integers(0, 256, size=shape, dtype=np.uint8)


def saved(folder, **arrays):
    path = folder / "set.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def whole(tmp_path):
    arrays = {
        "train_images": images(60, 5, 7, 3),
        "train_labels": np.repeat(np.arange(3), 20),
        "test_images": images(12, 5, 7, 3),
        "test_labels": np.arange(12) % 3,
    }
    return saved(tmp_path, **arrays), arrays


def test_pixels_labels_and_names(whole):
    path, arrays = whole
    splits = array(path)
    for split, images_ in (("train", splits.train), ("test", splits.test)):
        expected = arrays[f"{split}_images"]
        assert images_.tensor.shape == (len(expected), 3, 5, 7)
        assert images_.tensor.is_contiguous()
        for index in (0, 5, len(expected) - 1):
            assert np.array_equal(images_.load(index).permute(1, 2, 0).numpy(), expected[index])
        assert images_.labels.tolist() == arrays[f"{split}_labels"].tolist()
        assert images_.names[3] == f"{split}/000003"
        assert len(images_.names) == len(expected)
    assert splits.class_names == ("0", "1", "2")
    assert splits.notes == ()


@pytest.mark.parametrize("shape", [(4, 6, 9), (4, 6, 9, 1), (4, 1, 6, 9)])
def test_grey_is_repeated_over_three_channels(tmp_path, shape):
    grey = images(4, 6, 9)
    path = saved(tmp_path, train_images=grey.reshape(shape))
    tensor = array(path).train.tensor
    assert tensor.shape == (4, 3, 6, 9)
    for channel in range(3):
        assert np.array_equal(tensor[:, channel].numpy(), grey)


def test_channels_first(tmp_path):
    planes = images(4, 3, 6, 9)
    splits = array(saved(tmp_path, train_images=planes))
    assert np.array_equal(splits.train.tensor.numpy(), planes)


def test_without_labels_and_without_test(tmp_path):
    splits = array(saved(tmp_path, train_images=images(30, 4, 4, 3)))
    assert splits.test is None
    assert splits.train.labels is None
    assert splits.class_names is None
    assert splits.held_out.shape == (3,)
    with_test = array(saved(tmp_path, train_images=images(30, 4, 4, 3), test_images=images(5, 4, 4, 3)))
    assert len(with_test.test) == 5
    assert with_test.test.labels is None


def test_held_out_is_a_seeded_tenth_of_every_class(tmp_path):
    labels = RNG.permutation(np.repeat(np.arange(4), [100, 50, 30, 20]))
    path = saved(tmp_path, train_images=images(200, 2, 2, 3), train_labels=labels)
    held = array(path, seed=3).held_out
    assert torch.equal(held, held.unique())
    assert np.bincount(labels[held]).tolist() == [10, 5, 3, 2]
    assert torch.equal(held, array(path, seed=3).held_out)
    assert not torch.equal(held, array(path, seed=4).held_out)


def test_every_image_is_held_out_equally_often():
    labels = torch.tensor([0] * 13 + [1] * 27)
    times = torch.zeros(40)
    for seed in range(1500):
        times[choose_held_out(40, labels, seed=seed)] += 1
    assert times.sum() == 1500 * 4
    # 150 times each, binomially with a standard deviation of 11.6: five of them are out of the question.
    assert (times - 150).abs().max() < 58


def test_choosing_leaves_images_without_a_label_alone_and_takes_at_least_one():
    labels = torch.tensor([-1, 0, -1, 1, 1, -1, 0, 0, 1, 1, 0, 1])
    held = choose(12, labels, fraction=0.5, seed=0, stream=-1)
    assert (labels[held] >= 0).all()
    assert len(held) == 4
    assert len(choose(3, None, fraction=0.1, seed=0, stream=-1)) == 1


def test_class_numbers_are_made_dense_and_keep_their_names(tmp_path):
    path = saved(
        tmp_path,
        train_images=images(4, 2, 2, 3),
        train_labels=np.array([7, 1000000, 7, 3]),
        test_images=images(2, 2, 2, 3),
        test_labels=np.array([3, 12], dtype=np.uint8),
    )
    splits = array(path)
    assert splits.class_names == ("3", "7", "12", "1000000")
    assert splits.train.labels.tolist() == [1, 3, 1, 0]
    assert splits.test.labels.tolist() == [0, 2]


def test_the_fingerprint_follows_the_data_and_not_the_file(whole, tmp_path):
    path, arrays = whole
    before = array(path).fingerprint
    np.savez_compressed(tmp_path / "other.npz", **arrays)
    assert array(tmp_path / "other.npz").fingerprint == before
    for key in arrays:
        changed = {name: value.copy() for name, value in arrays.items()}
        changed[key].flat[1] ^= 1
        assert array(saved(tmp_path, **changed)).fingerprint != before
    swapped = dict(arrays, train_images=arrays["train_images"][::-1])
    assert array(saved(tmp_path, **swapped)).fingerprint != before


def test_the_digest_keeps_parts_apart():
    sequences = [
        (["a", "b"],),
        (["ab"],),
        (["a"], ["b"]),
        ("ab",),
        ("a", "b"),
        (None,),
        (),
        (torch.zeros(2).byte(),),
    ]
    assert len({digest(*parts) for parts in sequences}) == len(sequences)
    assert digest(torch.zeros(2, 3).byte()) != digest(torch.zeros(3, 2).byte())
    assert digest(torch.tensor([1, 2])) == digest(torch.tensor([[1, 9], [2, 9]])[:, 0])


def test_keys_that_are_not_used_are_said(tmp_path):
    splits = array(saved(tmp_path, train_images=images(4, 2, 2, 3), query_images=images(2, 2, 2, 3)))
    assert "query_images" in splits.notes[0]


GOOD = images(4, 6, 6, 3)
LABELS = np.arange(4)
FAULTS = {
    "floats": ({"train_images": GOOD / 255}, "train_images", "astype('uint8')"),
    "int64": ({"train_images": GOOD.astype(int)}, "train_images", "use uint8"),
    "two dimensions": ({"train_images": images(4, 6)}, "train_images", "must be (n, H, W, 3)"),
    "one image": ({"train_images": images(6, 6, 3)}, "train_images", "which is one image"),
    "alpha": ({"train_images": images(4, 6, 6, 4)}, "train_images", "leave the alpha channel out"),
    "two channels": ({"train_images": images(4, 6, 6, 2)}, "train_images", "must be (n, H, W, 3)"),
    "no images": ({"train_images": images(0, 6, 6, 3)}, "train_images", "at least 2 images"),
    "a single image": ({"train_images": images(1, 6, 6, 3)}, "train_images", "at least 2 images"),
    "no pixels": ({"train_images": images(4, 0, 6, 3)}, "train_images", "it needs at least 2 images"),
    "empty test": ({"train_images": GOOD, "test_images": GOOD[:0]}, "test_images", "leave the key out"),
    "objects": ({"train_images": np.array([GOOD, None], dtype=object)}, "train_images", "Python objects"),
    "text": ({"train_images": np.array(["a", "b"])}, "train_images", "must be uint8"),
    "too few labels": ({"train_images": GOOD, "train_labels": LABELS[:3]}, "train_labels", "needs (4,)"),
    "a column of labels": (
        {"train_images": GOOD, "train_labels": LABELS[:, None]},
        "train_labels",
        "use reshape(-1)",
    ),
    "one-hot labels": (
        {"train_images": GOOD, "train_labels": np.eye(4, dtype=int)},
        "train_labels",
        "needs (4,)",
    ),
    "negative": ({"train_images": GOOD, "train_labels": LABELS - 1}, "train_labels", "holds -1"),
    "float labels": ({"train_images": GOOD, "train_labels": LABELS / 1}, "train_labels", "astype('int64')"),
    "object labels": (
        {"train_images": GOOD, "train_labels": LABELS.astype(object)},
        "train_labels",
        "Python objects",
    ),
    "labels of one split": (
        {"train_images": GOOD, "train_labels": LABELS, "test_images": GOOD},
        "train_labels",
        "test_labels is not",
    ),
    "labels of the other": (
        {"train_images": GOOD, "test_images": GOOD, "test_labels": LABELS},
        "test_labels",
        "train_labels is not",
    ),
    "labels without images": ({"train_images": GOOD, "test_labels": LABELS}, "test_labels", "needs (0,)"),
    "no train_images": ({"x_train": GOOD}, "train_images", "the keys found are: x_train"),
    "nothing": ({}, "train_images", "none"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_array_is_named_with_its_mend(tmp_path, fault):
    arrays, key, mend = FAULTS[fault]
    path = saved(tmp_path, **arrays)
    with pytest.raises(ValueError, match="npz") as caught:
        array(path)
    message = str(caught.value)
    assert str(path) in message
    assert key in message
    assert mend in message
    assert len(message.splitlines()) == 1


def test_files_that_are_not_npz(tmp_path):
    np.save(tmp_path / "one.npy", GOOD)
    (tmp_path / "text.npz").write_text("not at all")
    (tmp_path / "empty.npz").touch()
    for name in ("one.npy", "text.npz", "empty.npz"):
        with pytest.raises(ValueError, match=f"{name}.*numpy.savez"):
            array(tmp_path / name)
    with pytest.raises(ValueError, match="there is no such file"):
        array(tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match="data=folder"):
        array(tmp_path)
    with pytest.raises(ValueError, match=r"data\.path=FILE"):
        array(None)


def fingerprint_or_error(path):
    try:
        return array(path).fingerprint
    except ValueError as error:
        return str(error)


def test_a_file_cut_or_changed_anywhere_is_refused_or_read_right(whole, tmp_path):
    path, _ = whole
    data = path.read_bytes()
    expected = array(path).fingerprint
    broken = tmp_path / "broken.npz"
    refused = 0
    for at in range(0, len(data), 211):
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        for content in (data[:at], bytes(flipped)):
            broken.write_bytes(content)
            found = fingerprint_or_error(broken)
            assert found == expected or str(broken) in found
            refused += found != expected
    assert refused > len(data) / 211


def test_pickled_code_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    path = saved(tmp_path, train_images=np.array([Harm(), Harm()], dtype=object))
    with pytest.raises(ValueError, match="Python objects"):
        array(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.skipif(not SHARED.exists(), reason="the real CIFAR-10 is not on this machine")
def test_the_real_cifar10(tmp_path):
    subprocess.run([sys.executable, str(SHARED), str(tmp_path / "cifar10.npz")], check=True)
    splits = array(tmp_path / "cifar10.npz")
    assert splits.train.tensor.shape == (50000, 3, 32, 32)
    assert splits.test.tensor.shape == (10000, 3, 32, 32)
    assert splits.train.labels.bincount().tolist() == [5000] * 10
    assert splits.train.labels[splits.held_out].bincount().tolist() == [500] * 10
