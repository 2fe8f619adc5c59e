"""The public sets from small files in their official formats; nothing is downloaded."""

import gzip
import hashlib
import pickle
import re
import socket
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from simclr_lightning.data import cifar10, cifar100, described, fashion_mnist, imagenet, public, stl10

RNG = np.random.default_rng(0)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MINI = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenette-mini"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("the network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def bytes_(*shape):
    return RNG.integers(0, 256, size=shape, dtype=np.uint8)


def with_checksums(monkeypatch, source, folder):
    """Let torchvision's own check pass for the small files, by their own checksums."""

    def md5(name):
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for attribute in ("train_list", "test_list"):
        checked = [[name, md5(name)] for name, _ in getattr(source, attribute)]
        monkeypatch.setattr(source, attribute, checked)
    if hasattr(source, "meta"):
        monkeypatch.setattr(source, "meta", dict(source.meta, md5=md5(source.meta["filename"])))


def write_cifar(root, source, label_key, classes):
    """Returns {file: (pixels (40, 3, 32, 32), labels)}; every batch has 40 images."""
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    written = {}
    for name, _ in source.train_list + source.test_list:
        pixels, labels = bytes_(40, 3, 32, 32), (np.arange(40) % classes).tolist()
        (folder / name).write_bytes(pickle.dumps({"data": pixels.reshape(40, 3072), label_key: labels}))
        written[name] = (pixels, labels)
    names = [f"class {number}" for number in range(classes)]
    (folder / source.meta["filename"]).write_bytes(pickle.dumps({source.meta["key"]: names}))
    return written


@pytest.mark.parametrize(
    ("make", "source", "label_key", "classes"),
    [(cifar10, datasets.CIFAR10, "labels", 10), (cifar100, datasets.CIFAR100, "fine_labels", 20)],
)
def test_cifar(tmp_path, monkeypatch, make, source, label_key, classes):
    written = write_cifar(tmp_path, source, label_key, classes)
    with_checksums(monkeypatch, source, tmp_path / source.base_folder)
    splits = make(tmp_path)
    for images, listed in ((splits.train, source.train_list), (splits.test, source.test_list)):
        expected = np.concatenate([written[name][0] for name, _ in listed])
        assert np.array_equal(images.tensor.numpy(), expected)
        assert images.tensor.is_contiguous()
        assert images.labels.tolist() == [label for name, _ in listed for label in written[name][1]]
    assert splits.class_names == tuple(f"class {number}" for number in range(classes))
    assert len(splits.held_out) == len(splits.train) / 10
    assert splits.train.names[7] == "train/000007"
    assert make(tmp_path).fingerprint == splits.fingerprint
    assert not torch.equal(make(tmp_path, seed=1).held_out, splits.held_out)


def test_a_damaged_cifar_file_is_not_used(tmp_path, monkeypatch):
    write_cifar(tmp_path, datasets.CIFAR10, "labels", 10)
    with_checksums(monkeypatch, datasets.CIFAR10, tmp_path / datasets.CIFAR10.base_folder)
    path = tmp_path / datasets.CIFAR10.base_folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="data=cifar10"):
        cifar10(tmp_path)


def write_stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    pixels = {"train": bytes_(20, 3, 96, 96), "unlabeled": bytes_(9, 3, 96, 96), "test": bytes_(6, 3, 96, 96)}
    for name, images in pixels.items():
        # Stored column by column.
        (folder / f"{name}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
    labels = {"train": np.arange(20) % 10, "test": np.arange(6)}
    for name, numbers in labels.items():
        (folder / f"{name}_y.bin").write_bytes((numbers + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join(f"class {number}" for number in range(10)))
    return pixels, labels


def test_stl10(tmp_path, monkeypatch):
    pixels, labels = write_stl10(tmp_path)
    with_checksums(monkeypatch, datasets.STL10, tmp_path / "stl10_binary")
    splits = stl10(tmp_path)
    expected = np.concatenate((pixels["train"], pixels["unlabeled"]))
    assert np.array_equal(splits.train.tensor.numpy(), expected)
    assert splits.train.labels.tolist() == [*labels["train"], *[-1] * 9]
    assert np.array_equal(splits.test.tensor.numpy(), pixels["test"])
    assert splits.test.labels.tolist() == labels["test"].tolist()
    assert len(splits.held_out) == 2
    assert (splits.train.labels[splits.held_out] >= 0).all()
    assert splits.class_names[3] == "class 3"
    assert described(splits)[0].startswith("train: 29 images, 20 of them labeled, in 10 classes; 2 held out")


def idx(array, **changed):
    head = {"kind": 0x800 + array.ndim, "shape": array.shape} | changed
    return struct.pack(f">{1 + array.ndim}I", head["kind"], *head["shape"]) + array.tobytes()


def write_fashion(folder, *, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "train-images-idx3-ubyte": bytes_(40, 28, 28),
        "train-labels-idx1-ubyte": (np.arange(40) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte": bytes_(12, 28, 28),
        "t10k-labels-idx1-ubyte": (np.arange(12) % 10).astype(np.uint8),
    }
    for name, array in arrays.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return [*arrays.values()]


@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist(tmp_path, place, zipped):
    train, train_labels, test, test_labels = write_fashion(tmp_path / place, zipped=zipped)
    splits = fashion_mnist(tmp_path)
    for images, pixels, labels in ((splits.train, train, train_labels), (splits.test, test, test_labels)):
        assert images.tensor.shape == (len(pixels), 3, 28, 28)
        assert images.tensor.is_contiguous()
        for channel in range(3):
            assert np.array_equal(images.tensor[:, channel].numpy(), pixels)
        assert images.labels.tolist() == labels.tolist()
    assert splits.class_names[9] == "Ankle boot"
    assert len(splits.held_out) == 4


def test_fashion_mnist_agrees_with_torchvision(tmp_path):
    write_fashion(tmp_path / "FashionMNIST" / "raw", zipped=False)
    splits, theirs = fashion_mnist(tmp_path), datasets.FashionMNIST(str(tmp_path), train=False)
    assert torch.equal(splits.test.tensor[:, 0], theirs.data)
    assert torch.equal(splits.test.labels, theirs.targets)


def test_fashion_mnist_is_fetched_by_torchvision_when_it_is_absent(tmp_path, monkeypatch):
    def fetch(url, download_root, filename, md5):
        assert url.endswith(filename)
        Path(download_root, "fetched").touch()
        write_fashion(Path(download_root), zipped=False)

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fetch)
    assert len(fashion_mnist(tmp_path / "new").train) == 40
    assert (tmp_path / "new" / "FashionMNIST" / "raw" / "fetched").exists()


@pytest.mark.parametrize("damage", ["cut", "kind", "shape", "gzip", "labels", "empty"])
def test_a_damaged_fashion_mnist_file_is_named(tmp_path, damage):
    arrays = write_fashion(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte.gz"
    whole = idx(arrays[0])
    if damage == "gzip":
        images.write_bytes(images.read_bytes()[:-200])
    elif damage == "labels":
        labels.write_bytes(gzip.compress(idx(arrays[1][:-1])))
    else:
        content = {
            "cut": whole[:-1],
            "kind": idx(arrays[0], kind=0xD03),
            "shape": idx(arrays[0], shape=(41, 28, 28)),
            "empty": b"",
        }[damage]
        images.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=re.escape(str(labels if damage == "labels" else images))) as caught:
        fashion_mnist(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "archive"),
    [
        (cifar10, "cifar-10-python.tar.gz"),
        (cifar100, "cifar-100-python.tar.gz"),
        (stl10, "stl10_binary.tar.gz"),
        (fashion_mnist, "train-images-idx3-ubyte.gz"),
    ],
)
def test_without_a_network_the_message_says_what_to_place_where(tmp_path, make, archive, monkeypatch):
    for path, place in ((tmp_path / "here", tmp_path / "here"), (None, tmp_path / "data")):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=f"data={make.__name__}: not in {place}") as caught:
            make(path)
        message = str(caught.value)
        assert archive in message
        assert "data.path" in message
        assert "unreachable" in message
        assert len(message.splitlines()) <= 3


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    for make in (cifar10, stl10, fashion_mnist):
        with pytest.raises(ValueError, match=r"data\.path"):
            make(tmp_path / "file")


def test_a_silent_server_is_given_up_and_the_default_restored(tmp_path, monkeypatch):
    seen = []

    def silent(*args, **kwargs):
        seen.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr("urllib.request.urlopen", silent)
    with pytest.raises(ValueError, match="timed out"):
        cifar10(tmp_path)
    assert set(seen) == {public.SILENCE}
    assert socket.getdefaulttimeout() is None


def write_imagenet(root, parts=("train", "val"), classes=("n01440764", "n02102040")):
    for part in parts:
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(10 if part == "train" else 2):
                Image.fromarray(bytes_(20, 30, 3)).save(folder / f"{name}_{number}.JPEG")
    return root


def test_imagenet(tmp_path):
    splits = imagenet(write_imagenet(tmp_path))
    assert splits.class_names == ("n01440764", "n02102040")
    assert splits.train.labels.tolist() == [0] * 10 + [1] * 10
    assert splits.test.labels.tolist() == [0, 0, 1, 1]
    assert splits.test.names[0] == "val/n01440764/n01440764_0.JPEG"
    assert len(splits.held_out) == 2
    assert splits.train.load(0).shape == (3, 20, 30)


def test_imagenet_skips_what_cannot_be_read_when_told_to(tmp_path):
    write_imagenet(tmp_path)
    (tmp_path / "train" / "n01440764" / "n01440764_3.JPEG").write_bytes(b"")
    with pytest.raises(ValueError, match=r"n01440764_3\.JPEG"):
        imagenet(tmp_path)
    splits = imagenet(tmp_path, on_corrupt="skip", max_skipped=1)
    assert len(splits.train) == 19
    assert len(splits.skipped) == 1


def test_imagenet_laid_out_otherwise(tmp_path):
    write_imagenet(tmp_path / "a", parts=("train",))
    with pytest.raises(ValueError, match="there is no val/ in it"):
        imagenet(tmp_path / "a")
    (tmp_path / "a" / "val").mkdir()
    Image.fromarray(bytes_(4, 4, 3)).save(tmp_path / "a" / "val" / "1.JPEG")
    with pytest.raises(ValueError, match="val/ has no class folders; sort its images"):
        imagenet(tmp_path / "a")
    with pytest.raises(ValueError, match="there is no such folder"):
        imagenet(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data\.path=DIR"):
        imagenet(None)


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist():
    splits = fashion_mnist(DEBIAN)
    assert splits.train.tensor.shape == (60000, 3, 28, 28)
    assert splits.train.labels.bincount().tolist() == [6000] * 10
    assert splits.train.labels[splits.held_out].bincount().tolist() == [600] * 10


@pytest.mark.skipif(not MINI.exists(), reason="the real photographs are not on this machine")
def test_imagenets_layout_on_real_photographs():
    assert len(imagenet(MINI).train) == 2000
