"""python -m autotune.worker.preload FD TAG BACKEND: how does a trial start without importing torch again?

A fork server. It imports what the backend needs, does nothing else, and forks a trial for each message on socket FD: a
JSON object {directory, cwd, env} with two descriptors, the trial's own channel and its log. The trial is forked twice,
so that it becomes a child of the controller (a subreaper), names its pid on the channel, and begins once it reads GO
there; an end of file instead means that nobody waits for it any more.

The environment of a trial is this process's own, which is why the controller asks only for trials whose import-time
environment equals it; `env` holds the few variables that are read late.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Final, NoReturn

from autotune.contract import PARENT
from autotune.worker.__main__ import __file__ as main_file
from autotune.worker.__main__ import main
from autotune.worker.backends import BACKENDS
from autotune.worker.parent import die_with_parent

READY: Final = b"ready"
GO: Final = b"go"
ADOPTION_S: Final = 3.0
"""Until the kernel has made the trial a child of the controller; it takes microseconds."""
LATE: Final = {
    "yolo": (
        "torch._dynamo",
        "torch._inductor",  # both for use_deterministic_algorithms, which even `False` pulls in (ULTRALYTICS 4)
        "torchvision",
        "matplotlib.font_manager",
        "requests",
        "ultralytics.models.yolo.detect",
        "ultralytics.models.yolo.segment",
        "ultralytics.models.yolo.pose",
        "ultralytics.models.yolo.obb",
        "ultralytics.models.yolo.classify",
    )
}
"""What a backend's trials import after their own module, while the trainer is built."""


def serve(control: socket.socket, tag: str) -> None:
    """Fork a trial for each message, until the controller closes its end."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 65536, 2)
        if not message:
            return
        fault = unfit()
        if fault:
            raise RuntimeError(fault)
        middle = os.fork()
        if middle == 0:
            try:
                if os.fork() == 0:
                    control.close()
                    _trial(json.loads(message), *descriptors, tag=tag)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.waitpid(middle, 0)
        for fd in descriptors:
            os.close(fd)


def unfit() -> str | None:
    """Why a fork of this process would not be a sound trial; None when it would be.

    Threads do not survive a fork and what they held stays locked (an OpenMP pool hangs the child's first parallel
    region); a CUDA driver that was initialised before a fork is of no use after it.
    """
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        return f"{threads} threads run in the preloaded parent"
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
        return "the preloaded parent has child processes"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised in the preloaded parent"
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(fd.readlink())
            if target.startswith("/dev/nvidia"):
                return f"{target} is open in the preloaded parent"
    return None


def _rehearse() -> str | None:
    """Fork once for nothing: ends the threads that OpenBLAS starts at numpy's import (pthread_atfork), and lets torch
    say in the child whether it could use CUDA there. Then the same answer as `unfit`.
    """
    child = os.fork()
    if child == 0:
        torch = sys.modules.get("torch")
        os._exit(int(torch is not None and torch.cuda._is_in_bad_fork()))
    _, status = os.waitpid(child, 0)
    return "CUDA was asked for devices in the preloaded parent" if status else unfit()


def mark(name: str, old: str, new: str) -> None:
    """Change a variable where /proc/PID/environ shows it, for this process and all that it forks.

    That file shows the memory in which execve laid the environment down, and a fork inherits it: without this a warm
    trial and its loader workers would carry the parent's tag and not their own.

    Raises:
        RuntimeError: the variable is not there as `old`, or the lengths differ.
    """
    begin = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[47])  # env_start, proc(5) field 50
    key = f"{name}=".encode()
    before = b"\0" + Path("/proc/self/environ").read_bytes()
    at = before.find(b"\0" + key + old.encode() + b"\0")
    if at < 0 or len(old) != len(new):
        raise RuntimeError(f"{name} cannot be marked")
    ctypes.memmove(begin + at + len(key), new.encode(), len(new))
    if key + new.encode() not in Path("/proc/self/environ").read_bytes().split(b"\0"):
        raise RuntimeError(f"{name} was not marked")


def _trial(request: dict[str, Any], channel_fd: int, log: int, *, tag: str) -> NoReturn:
    """Become what `python -m autotune.worker DIRECTORY` would be after its imports."""
    began = time.perf_counter()
    os.setsid()
    while os.getppid() != int(os.environ[PARENT]):
        if time.perf_counter() - began > ADOPTION_S:
            raise RuntimeError("the trial was not adopted by the controller")
        time.sleep(0.001)
    die_with_parent()
    for name, value in request["env"].items():
        if os.environ[name] == tag:  # the trial's own tag takes the place of this parent's
            mark(name, tag, value)
        os.environ[name] = value
    tempfile.tempdir = None  # the parent's TMPDIR, remembered
    os.chdir(request["cwd"])
    sys.argv[:] = [main_file, request["directory"]]
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    with socket.socket(fileno=channel_fd) as channel:
        channel.send(str(os.getpid()).encode())
        if channel.recv(len(GO)) != GO:
            os._exit(1)
    main(sys.argv, began=began)
    raise AssertionError("main leaves the process")


def run(argv: list[str]) -> None:
    """Import, check that nothing stands against a fork, say so, serve."""
    descriptor, tag, backend = int(argv[1]), argv[2], argv[3]
    die_with_parent()
    for module in (BACKENDS[backend], *LATE.get(backend, ())):
        importlib.import_module(module)
    fault = _rehearse()
    with socket.socket(fileno=descriptor) as control:
        if fault:
            sys.stderr.write(f"{fault}\n")
            return
        # No gc.freeze(): a trial that collects less garbage than a cold one would step faster.
        control.send(READY)
        serve(control, tag)


if __name__ == "__main__":
    run(sys.argv)
