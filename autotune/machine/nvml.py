"""What do the GPUs do just now? NVIDIA's library in our words; nothing here raises or opens a CUDA context."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

FREE_MARGIN_BYTES = 300 << 20
FREE_POLL_S = 0.1
FREE_LIMIT_S = 10.0
SLOWED_BY = {0x40: "heat", 0x20: "heat", 0x80: "the power supply", 0x8: "its own protection (hardware slowdown)"}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons -> what lowers the clock; the power cap of every full load is none."""


@contextmanager
def session(nvml: Any) -> Iterator[Any]:
    """NVML between init and shutdown; None when there is none.

    Args:
        nvml: the pynvml module, or a fake of it; None: pynvml.
    """
    try:
        lib = _open(nvml)
    except Exception as e:
        # no driver, no library, or no permission: to us all the same
        log.debug("no NVML: %s", e)
        yield None
        return
    try:
        yield lib
    finally:
        try:
            lib.nvmlShutdown()
        except Exception as e:
            log.debug("NVML did not shut down: %s", e)


def refusal(nvml: Any = None) -> Exception | None:
    """Why NVML does not start; None: it does."""
    try:
        _open(nvml).nvmlShutdown()
    except Exception as e:
        return e
    return None


def _open(nvml: Any) -> Any:
    if nvml is None:
        import pynvml

        nvml = pynvml
    nvml.nvmlInit()
    return nvml


def ask(lib: Any, name: str, *args: Any) -> Any:
    """What one of NVML's functions answers; None where it does not: not supported, not permitted, not known, lost.

    Args:
        lib: from session.
        name: of the function.
        args: handle and the rest; a handle of None is a GPU that did not answer before.
    """
    if lib is None or None in args:
        return None
    try:
        return getattr(lib, name)(*args)
    except (lib.NVMLError, AttributeError) as e:  # an older pynvml does not have the function
        log.debug("%s: %s", name, e)
        return None


def read_driver(nvml: Any = None) -> str | None:
    """Version of the NVIDIA driver, None without NVML."""
    with session(nvml) as lib:
        version = ask(lib, "nvmlSystemGetDriverVersion")
    return None if version is None else text(version)


def used_memory(gpus: Sequence[str], nvml: Any = None) -> dict[str, int]:
    """Bytes in use on these GPUs, by whoever; a GPU that does not answer is left out.

    Args:
        gpus: entries of CUDA_VISIBLE_DEVICES: index in PCI order, or UUID.
        nvml: as in session.
    """
    used: dict[str, int] = {}
    if not gpus:
        return used
    with session(nvml) as lib:
        for gpu in gpus if lib else ():
            try:
                used[gpu] = int(lib.nvmlDeviceGetMemoryInfo(handle_of(lib, gpu)).used)
            except lib.NVMLError as e:
                log.debug("GPU %s does not answer: %s", gpu, e)
    return used


def wait_until_free(
    before: Mapping[str, int],
    nvml: Any = None,
    *,
    limit_s: float = FREE_LIMIT_S,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until a dead trial's memory is back: the driver frees it a moment after its processes are gone.

    Args:
        before: what used_memory gave before the trial.
        nvml: as in session.
        limit_s: the longest wait.
        sleep: a test's own clock.

    Returns:
        False when more than FREE_MARGIN_BYTES above `before` is still in use on a GPU after limit_s.
    """
    for _ in range(max(1, round(limit_s / FREE_POLL_S))):
        now = used_memory(tuple(before), nvml)
        if all(now.get(gpu, 0) <= used + FREE_MARGIN_BYTES for gpu, used in before.items()):
            return True
        sleep(FREE_POLL_S)
    log.warning("GPU memory in use %.0f s after the end of a trial: %s, before it %s", limit_s, now, dict(before))
    return False


def users(gpus: Sequence[str], nvml: Any = None) -> dict[str, tuple[int, ...]]:
    """UUID -> processes that compute on that GPU now, where any do; host PIDs, and none in some containers."""
    found = {}
    with session(nvml) as lib:
        for gpu in gpus if lib is not None else ():
            try:
                pids = sorted({p.pid for p in lib.nvmlDeviceGetComputeRunningProcesses(handle_of(lib, gpu))})
            except lib.NVMLError as e:
                log.debug("NVML does not say who uses %s: %s", gpu, e)
                continue
            if pids:
                found[gpu] = tuple(pids)
    return found


def handle_of(lib: Any, gpu: str) -> Any:
    """Of an entry of CUDA_VISIBLE_DEVICES: index in PCI order, or UUID; raises NVMLError."""
    return lib.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdigit() else lib.nvmlDeviceGetHandleByUUID(gpu)


def text(value: str | bytes) -> str:
    """Older releases of the library return bytes."""
    return value.decode() if isinstance(value, bytes) else value
