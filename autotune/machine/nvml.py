"""Which GPUs are there? NVIDIA's library, its words turned into ours; nothing here raises or opens a CUDA context."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autotune.contract import Gpu

log = logging.getLogger(__name__)


@contextmanager
def _session(nvml: Any) -> Iterator[Any]:
    """NVML (or its fake) between init and shutdown; None when there is none."""
    try:
        if nvml is None:
            import pynvml

            nvml = pynvml
        nvml.nvmlInit()
    except Exception as e:
        # no driver, no library, or no permission: to us all the same
        log.debug("no NVML: %s", e)
        yield None
        return
    try:
        yield nvml
    finally:
        try:
            nvml.nvmlShutdown()
        except Exception as e:
            log.debug("NVML did not shut down: %s", e)


def read_gpus(nvml: Any = None) -> tuple[Gpu, ...]:
    """All GPUs in NVML's order, which is that of the PCI bus; () without NVML.

    Args:
        nvml: the pynvml module, or a fake of it.
    """
    gpus = []
    with _session(nvml) as lib:
        if lib is None:
            return ()
        try:
            n_gpus = lib.nvmlDeviceGetCount()
        except lib.NVMLError as e:
            log.debug("NVML does not count: %s", e)
            return ()
        for index in range(n_gpus):
            try:
                handle = lib.nvmlDeviceGetHandleByIndex(index)
                gpus.append(
                    Gpu(
                        index=index,
                        uuid=_text(lib.nvmlDeviceGetUUID(handle)),
                        name=_text(lib.nvmlDeviceGetName(handle)),
                        mem_bytes=int(lib.nvmlDeviceGetMemoryInfo(handle).total),
                    )
                )
            except lib.NVMLError as e:  # a GPU that fell off the bus is not there
                log.debug("GPU %s does not answer: %s", index, e)
    return tuple(gpus)


def read_driver(nvml: Any = None) -> str | None:
    """Version of the NVIDIA driver, None without NVML."""
    with _session(nvml) as lib:
        if lib is None:
            return None
        try:
            return _text(lib.nvmlSystemGetDriverVersion())
        except lib.NVMLError:
            return None


def _text(value: str | bytes) -> str:
    """Older releases of the library return bytes."""
    return value.decode() if isinstance(value, bytes) else value
