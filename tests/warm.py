"""Start processes of the program as forks of a server that has imported torch, Lightning and Hydra.

The imports cost 4 s of CPU a process, most of the time of a small run. `Popen` is subprocess's, but a command line
``python -m simclr_lightning.cli ...`` (or torchrun, or ``python -c CODE``) becomes a fork, and so do the processes that
the fork starts. Process ids, parents, sessions, signals, streams, exit codes, /proc/PID/cmdline, environment, sys.path
and the interpreter's exit functions are those of a process of its own. Only the start of Python is left out, and
coverage.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

MODULES = ("simclr_lightning.cli", "torch.distributed.run")
PRELOADED = (  # what a run imports
    *("simclr_lightning.cli.train", "simclr_lightning.app.training.process", "simclr_lightning.app.training.finish"),
    *("simclr_lightning.pictures.images", "simclr_lightning.pictures.maps", "simclr_lightning.export.own"),
    *("torch.distributed.launcher.api", "hydra.grammar.gen.OverrideParser", "sklearn.manifold", "sklearn.linear_model"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "safetensors.torch", "rich.progress", "rich.table"),
)
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
TITLE = 4096  # bytes for a forked process's command line
IS_SERVER = __name__ == "__main__"  # of the server and its forks
OriginalPopen = subprocess.Popen


def program(line: Any) -> list[str] | None:
    """Return what follows the options of ``python``, ``-m MODULE ...`` or ``-c CODE ...``, if a fork can be that."""
    words = [] if isinstance(line, str | bytes | os.PathLike) else [os.fspath(word) for word in line]
    if words[:1] != [sys.executable]:
        return None
    words = words[2:] if words[1:2] == ["-u"] else words[1:]
    return words if words[:1] == ["-c"] or (words[:1] == ["-m"] and words[1] in MODULES) else None


class Popen(OriginalPopen):  # type: ignore[type-arg]
    """Start a fork of the server, or in a process that is such a fork, a fork of this process."""

    def _execute_child(self, *given: Any) -> None:
        names = inspect.signature(OriginalPopen._execute_child).bind(self, *given).arguments
        words = program(names["args"])
        if words is None:
            super()._execute_child(*given)
            return
        # Where a stream is inherited, it is this process's.
        streams = (names["p2cread"], names["c2pwrite"], names["errwrite"])
        fds = [number if fd == -1 else fd for number, fd in enumerate(streams)]
        environment = dict(os.environ if names["env"] is None else names["env"])
        folder = os.path.abspath(names["cwd"] or ".")  # noqa: PTH100 - of a str or a Path
        request = {"words": words, "folder": folder, "environment": environment, "session": names["start_new_session"]}
        if IS_SERVER:
            self.pid = os.fork()
            if self.pid == 0:
                become(request, fds, names["preexec_fn"])
        else:
            self.pid = ask(request, fds)
        self._child_created = True
        self._close_pipe_fds(*(names[key] for key in ("p2cread", "p2cwrite", "c2pread", "c2pwrite")),
                             names["errread"], names["errwrite"])  # fmt: skip


def become(request: dict[str, Any], fds: list[int], preexec: Any = None) -> NoReturn:
    """Turn this fork into the process that was asked for, and end it."""
    code = 1
    try:
        if request["session"]:
            os.setsid()
        copies = [os.dup(fd) for fd in fds]
        for number, fd in enumerate(copies):
            os.dup2(fd, number)
        os.closerange(3, 65536)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        if preexec:
            preexec()
        code = run(request["words"])
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code & 255)


def run(words: list[str]) -> int:
    """Run ``-m MODULE ...`` or ``-c CODE ...`` as Python does, to the end of the exit functions; return the code."""
    set_title([sys.executable, *words])
    atexit._clear()
    for signum, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(signum, handler)
    buffering = {"write_through": True} if os.environ.get("PYTHONUNBUFFERED") else {}
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        errors = "backslashreplace" if number == 2 else "strict"
        stream = open(number, "rw"[number > 0], closefd=False, encoding="utf-8", errors=errors)  # noqa: SIM115
        stream.reconfigure(line_buffering=number == 2 or os.isatty(number), **buffering)
        setattr(sys, name, stream)
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = ["", *filter(None, own), *(path for path in sys.path if path not in ("", *own))]
    kind, what, *rest = words
    sys.argv = [kind, *rest]
    code = 0
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), vars(sys.modules["__main__"]))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    return code


def set_title(line: list[str]) -> None:
    """Write the command line over that of the server, where /proc/PID/cmdline reads it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end
    text = "\0".join(line).encode()[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


@cache
def server() -> tuple[socket.socket, object]:
    """Start the server of this process, which ends with it; return the connection and the server's process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    line = [sys.executable, __file__, str(theirs.fileno()), " " * TITLE]
    process = OriginalPopen(line, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
    theirs.close()
    return ours, process


def ask(request: dict[str, Any], fds: list[int]) -> int:
    """Let the server fork, and return the id of the fork, which is a child of this process."""
    prctl = ctypes.CDLL(None).prctl
    prctl(SUBREAPER, 1)  # the forks of the server's that lose their parent become this process's children
    try:
        text, (requests, _) = json.dumps(request).encode(), server()
        socket.send_fds(requests, [len(text).to_bytes(4, "big")], fds)
        requests.sendall(text)
        return int.from_bytes(requests.recv(4), "big")
    finally:
        prctl(SUBREAPER, 0)


def serve(requests: socket.socket) -> None:
    """Fork a process for every request. A fork in between ends at once, so that the process gets another parent."""
    while True:
        head, fds, _, _ = socket.recv_fds(requests, 4, 3)
        if not head:
            return
        text = requests.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            if pid := os.fork():
                os.write(writing, pid.to_bytes(4, "big"))
                os._exit(0)
            become(json.loads(text), fds)
        os.waitpid(between, 0)
        requests.sendall(os.read(reading, 4))
        for fd in (*fds, reading, writing):
            os.close(fd)


if IS_SERVER:
    subprocess.Popen = Popen  # type: ignore[misc]
    for module in PRELOADED:
        __import__(module)
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))
