"""What is left of a search that was killed? Its processes, found by the run's tag, and half-written files."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Final

import psutil

from autotune.contract import RunDir
from autotune.run.cleanup import remove_private_folders, remove_shared_memory
from autotune.run.launch import RUN_TAG
from autotune.run.supervise import find_tagged

KILL_S: Final = 15.0
"""A process in an uninterruptible wait may take this long to go."""


def kill_leftovers(folder: Path) -> int:
    """SIGKILL every process that carries the tag of this run folder, until none is left.

    Returns:
        How many there were.
    """
    deadline = time.monotonic() + KILL_S
    seen: set[int] = set()
    while True:
        alive = [p for p in find_tagged(str(folder.resolve()), RUN_TAG) if _runs(p)]
        for process in alive:
            seen.add(process.pid)
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()
        if not alive or time.monotonic() > deadline:
            return len(seen)
        time.sleep(0.05)


def sweep_files(run_dir: RunDir) -> None:
    """Remove what a kill -9 left: temporary names, private folders and shared memory of trials that did not end.

    Call it when no process of the run lives.
    """
    for pattern in (".*.tmp", "trials/*/.*.tmp", "trials/.preload-*", ".best.*"):
        for path in run_dir.path.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
    for _, directory in run_dir.numbered():
        remove_private_folders(directory)
        with contextlib.suppress(OSError):
            with contextlib.suppress(ValueError):  # torn: then nobody can say what is new
                remove_shared_memory(json.loads(directory.shm_before.read_bytes()))
            directory.shm_before.unlink()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
