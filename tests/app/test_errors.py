"""The message for an exception: at most five lines with the cause and the fix, and the exit code."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from torch.utils.data import DataLoader, Dataset

from simclr_lightning.app.errors import LINES, UserError, describe, mistake
from simclr_lightning.data import ImageError
from simclr_lightning.optim import scaled_lr


def described(function: Callable[[], object]) -> tuple[str, int]:
    """Return the message and the exit code for the exception that the function raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any exception gets a message
        function()
    message, code = describe(caught.value)
    assert 1 <= len(message.splitlines()) <= LINES
    assert "Traceback" not in message
    return message, code


def test_user_errors_are_their_message_and_code() -> None:
    assert describe(UserError("no such run\ngive another")) == ("no such run\ngive another", 1)
    assert describe(mistake("seed=-1")) == ("seed=-1", 2)


def test_a_long_message_is_cut() -> None:
    assert describe(UserError("\n".join(map(str, range(40))))) == ("0\n1\n2\n3\n...", 1)


def test_a_value_error_of_the_library_is_a_message() -> None:
    want = "schedule.rule is 'cubic'; choose one of linear, sqrt, constant"
    assert described(lambda: scaled_lr(0.1, 256, "cubic")) == (want, 1)  # type: ignore[arg-type]
    node = {"_target_": "simclr_lightning.optim.Schedule", "rule": "cubic"}
    assert described(lambda: instantiate(node)) == (want, 1)  # unwrapped from Hydra's exception


def test_a_value_error_of_others_is_unexpected() -> None:
    message, code = described(lambda: torch.zeros(2, 3).view(5))
    assert (message.startswith("unexpected RuntimeError: shape"), code) == (True, 1)
    message, code = described(lambda: int("12.5"))
    assert (message.startswith("unexpected ValueError: invalid literal"), code) == (True, 1)
    assert "debug=true" in message


def test_hydras_own_errors_are_configuration_mistakes() -> None:
    assert describe(ConfigCompositionException("Could not override 'x'.\nmore")) == ("Could not override 'x'.", 2)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_names_the_batch(error: Exception) -> None:
    message, code = describe(error)
    assert "data.batch_size" in message
    assert code == 1


def test_a_real_allocation_that_fails() -> None:
    assert "data.batch_size" in described(lambda: torch.empty(1 << 60))[0]


def test_an_overflow_of_float32_names_the_learning_rate() -> None:
    message, code = described(lambda: torch.zeros(1).add_(torch.ones(1), alpha=1e300))
    assert "lower the learning rate" in message
    assert code == 1


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "gone.npz"
    assert described(missing.read_bytes) == (f"{missing}: No such file or directory", 1)
    assert described(tmp_path.read_bytes) == (f"{tmp_path}: Is a directory", 1)
    (tmp_path / "fresh").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    renamed = described(lambda: (tmp_path / "fresh").replace(tmp_path / "folder"))
    assert renamed == (f"{tmp_path / 'folder'}: Is a directory", 1)
    assert "write the path in full" in described(lambda: Path("~nobody-of-this-name/x").expanduser())[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is /dev/full, on Linux")
def test_a_full_disk() -> None:
    def fail() -> None:
        try:
            with Path("/dev/full").open("w", buffering=1) as file:
                file.write("x\n")
        except OSError as error:
            raise OSError(error.errno, os.strerror(errno.ENOSPC), "/dev/full") from None

    assert described(fail) == (
        "the disk is full while writing /dev/full: free some space and repeat the command "
        "(a run goes on: ckpt_path=last)",
        1,
    )


class Unreadable(Dataset[int]):
    """A data set with one image that cannot be read."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        raise ImageError("photos/cat.jpg: truncated; remove it, or data.dataset.on_corrupt=skip")


def test_an_error_in_a_loader_worker_keeps_its_message() -> None:
    found = described(lambda: list(DataLoader(Unreadable(), num_workers=1, multiprocessing_context="fork")))
    assert found == ("photos/cat.jpg: truncated; remove it, or data.dataset.on_corrupt=skip", 1)


def test_the_message_for_a_killed_loader_worker_names_its_keys() -> None:
    message, code = describe(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nmore"))
    assert "data.num_workers" in message
    assert "pid 7" in message
    assert code == 1


def test_errors_from_python_and_torch_inside_the_library_are_unexpected() -> None:
    inside: dict[str, Any] = {"__name__": "simclr_lightning.somewhere"}
    exec("def decode(): return b'\\xff'.decode()\ndef read(): return open('/no/such/file')", inside)
    assert described(inside["decode"])[0].startswith("unexpected UnicodeDecodeError: 'utf-8' codec")
    assert described(inside["read"]) == ("/no/such/file: No such file or directory", 1)


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError(), RecursionError("deep\n" * 9), AssertionError(), TypeError("\n\n"), OSError()],
    ids=repr,
)
def test_every_exception_of_python_has_a_message(error: Exception) -> None:
    message, code = describe(error)
    assert message.startswith("unexpected ")
    assert (len(message.splitlines()) <= LINES, code) == (True, 1)
