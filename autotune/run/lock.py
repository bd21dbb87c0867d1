"""Is somebody else at work here? One search, or one trial by hand, on a GPU or on the CPU, and one in a run folder.

flock, not the mere existence of a file: the kernel lets go when the process ends, however it ends, so a stale lock
cannot be. Who holds it stands in the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TextIO

from autotune.errors import MachineError
from autotune.machine.nvml import users

LOCKS: Final = Path("/tmp/autotune-locks")
RUN_LOCK: Final = ".lock"
Sign = Callable[[Path], None]


def lock_home() -> Path:
    """One folder for the whole machine: $AUTOTUNE_LOCKS, else /tmp/autotune-locks.

    Not $TMPDIR, $XDG_RUNTIME_DIR or a home: shells of one user disagree about the first two, machines share the third,
    and two users can share a GPU. Containers that share a GPU and no /tmp can be given one folder.
    """
    return Path(os.environ.get("AUTOTUNE_LOCKS") or LOCKS)


def refuse_if_used(gpus: Sequence[str], *, force: bool) -> None:
    """A GPU on which somebody else computes gives numbers that are neither his nor ours.

    Raises:
        MachineError: one of these is in use, unless `force`.
    """
    busy = users(gpus)
    if force or not busy:
        return
    gpu, pids = next(iter(busy.items()))
    who = f"process{'es' * (len(pids) > 1)} {', '.join(map(str, pids))}"
    raise MachineError(f"GPU {gpu} is in use by {who}", "wait for it, choose other --gpus, or measure anyway: --force")


@contextlib.contextmanager
def lock_devices(gpus: Sequence[str]) -> Iterator[Sign]:
    """Hold every one of these GPUs, or the CPU when there is none.

    Args:
        gpus: UUIDs.

    Yields:
        To be called with the folder of the results once it is known, for whoever is refused.

    Raises:
        MachineError: one of them is held; the line names who does, and nothing is held then.
    """
    home = lock_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):  # made by another user, who has done this
            home.chmod(0o777)
    except OSError as e:
        raise MachineError(f"cannot make {home} for locks: {e.strerror}", "name another folder: AUTOTUNE_LOCKS") from e
    with contextlib.ExitStack() as stack:
        signs = [
            stack.enter_context(_hold(home / f"{device}.lock", "the CPU" if device == "cpu" else f"GPU {device}"))
            for device in sorted(set(gpus)) or ["cpu"]
        ]

        def sign(folder: Path) -> None:
            for one in signs:
                one(folder)

        yield sign


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold a run folder.

    Raises:
        MachineError: a living search writes into it.
    """
    with _hold(folder / RUN_LOCK, str(folder)) as sign:
        sign(folder)
        yield


@contextlib.contextmanager
def _hold(path: Path, what: str) -> Iterator[Sign]:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as e:
        raise MachineError(f"cannot open the lock {path}: {e.strerror}", "is the folder yours?") from e
    with os.fdopen(fd, "r+", encoding="utf-8") as file:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            hint = "wait for its end, stop it, or use another GPU"
            raise MachineError(f"{what} is in use by {_holder(file)}", hint) from e
        with contextlib.suppress(PermissionError):
            os.fchmod(fd, 0o666)  # whatever the umask: the next one may be another user

        def sign(folder: Path | None) -> None:
            file.seek(0)
            file.truncate()
            json.dump({"pid": os.getpid(), "folder": folder and str(folder)}, file)
            file.flush()

        sign(None)
        yield sign


def _holder(file: TextIO) -> str:
    try:
        said = json.load(file)
        return f"pid {int(said['pid'])}" + (f", which writes {said['folder']}" if said["folder"] else "")
    except (ValueError, KeyError, TypeError):
        return "another autotune, which is just starting"
