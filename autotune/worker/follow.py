"""How does one process measure another configuration after the first? It forgets, checks that it did, and goes on."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any, Final

import psutil

from autotune.contract import TrialDir

WORKERS_END_S: Final = 10.0
"""Loader workers leave within milliseconds of being told; one that does not would take time from the follower."""


class Settings:
    """What torch, cv2 and the environment are set to before the first trainer is built, which changes them.

    Not random states (each trainer seeds its own), nor the flags `allow_tf32`: reading those raises once the newer
    fp32_precision is set, and the patch that sets that one undoes it. Without torch in the process only the
    environment is kept.
    """

    def take(self) -> None:
        """As it is now."""
        self._environ = dict(os.environ)
        self._torch: Any = sys.modules.get("torch")
        self._cv2: Any = sys.modules.get("cv2")
        if self._torch is not None:
            self._kept = _torch_settings(self._torch)
        if self._cv2 is not None:
            self._cv2_threads = self._cv2.getNumThreads()

    def restore(self) -> None:
        """As it was."""
        os.environ.clear()
        os.environ.update(self._environ)
        gc.unfreeze()
        if self._cv2 is not None:
            self._cv2.setNumThreads(self._cv2_threads)
        if self._torch is not None:
            _set_torch(self._torch, self._kept)
            assert _torch_settings(self._torch) == self._kept


def _torch_settings(torch: Any) -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "matmul": torch.get_float32_matmul_precision(),
        "dtype": torch.get_default_dtype(),
    }


def _set_torch(torch: Any, kept: dict[str, Any]) -> None:
    torch.set_num_threads(kept["threads"])
    torch.set_deterministic_debug_mode(kept["deterministic"])
    torch.utils.deterministic.fill_uninitialized_memory = kept["fill"]
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = kept["cudnn"]
    torch.set_float32_matmul_precision(kept["matmul"])
    torch.set_default_dtype(kept["dtype"])


def watched(backend: Any) -> list[weakref.ref[Any]]:
    """What must be gone before another trial begins: the backend and its trainer."""
    return [weakref.ref(o) for o in (backend, getattr(backend, "trainer", None)) if o is not None]


def forget(gone: list[weakref.ref[Any]]) -> bool:
    """Give the last trial's memory back; call it when its backend is closed and nobody refers to it.

    Args:
        gone: what `watched` said of it.

    Returns:
        False where the peak of the resident set cannot be reset, and so a follower's own is not known.

    Raises:
        RuntimeError: a trainer, or a loader worker, is still there.
    """
    gc.unfreeze()
    gc.collect()
    left = [type(o).__name__ for o in (ref() for ref in gone) if o is not None]
    if left:
        raise RuntimeError(f"{', '.join(left)} of the last trial is still in memory")
    deadline = time.monotonic() + WORKERS_END_S
    while psutil.Process().children(recursive=True):
        if time.monotonic() > deadline:
            raise RuntimeError("loader workers of the last trial are still running")
        time.sleep(0.01)
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError, AttributeError):  # another C library, or another allocator
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM is VmRSS again, proc(5)
    except OSError:
        return False
    return True


def enter(directory: TrialDir) -> None:
    """Be in another trial's folder: log, working folder, TMPDIR, as its own process would."""
    sys.stdout.flush()
    sys.stderr.flush()
    with directory.log.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(directory.path.resolve())
    os.environ["TMPDIR"] = str(directory.tmp)
    tempfile.tempdir = None  # the last trial's, remembered
