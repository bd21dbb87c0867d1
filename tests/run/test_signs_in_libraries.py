"""No GPU here: are the phrases of the handmade fixtures at least in the libraries that would print them?"""

from __future__ import annotations

import importlib.util
import mmap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from autotune.run.signs import SIGNS

PHRASES = {
    "va_exhaustion": {"virtual-address-space (VSZ) exhaustion": "libc10_cuda"},
    "nccl_oom": {"Failed to CUDA calloc": "libnccl", "Cuda failure %d '%s'": "libnccl"},
    "gpu_oom": {
        "CUDA out of memory. Tried to allocate ": "libc10_cuda",
        "would exceed allowed memory": "libc10_cuda",
    },
    "gpu_oom_disguised": {
        "CUBLAS_STATUS_ALLOC_FAILED": "libtorch_cuda",
        "unable to find an engine to execute this computation": "libtorch_cuda",
        "CUDA ran out of memory outside PyTorch's allocator": "libtorch_cuda",
    },
    "shm": {
        "Unexpected bus error encountered in worker": "libtorch_python",
        "Error: failed to extend %s to": "libnccl",
    },
    "collective_timeout": {
        "Watchdog caught collective operation timeout": "libtorch_cuda",
        "Operation timed out after ": "libtorch_cuda",
        "watchdog got stuck for": "libtorch_cuda",
    },
    "ddp_misuse": {"is bound to device ": "libtorch_cuda"},
    "bad_setting": {
        "No algorithm/protocol available for function": "libnccl",
        "Disable NVLS (NCCL_NVLS_ENABLE=0)": "libnccl",
        "not compatible with NCCL_NVLS_ENABLE": "libnccl",
    },
    "driver": {
        "no kernel image is available": "libcudart",
        "driver version is insufficient": "libcudart",
    },
    "hardware": {
        "illegal memory access": "libcudart",
        "uncorrectable ECC error": "libcudart",
        "unspecified launch failure": "libcudart",
    },
}
"""Sign -> phrase of one of its patterns -> library that holds it."""
SINCE = {"virtual-address-space (VSZ) exhaustion": "2.15"}
"""Phrase -> first torch whose library has it: 2.14.1 was looked at and has not."""


def libraries(name: str) -> Iterator[Path]:
    home = Path(str(importlib.util.find_spec("torch").origin)).parents[1]  # type: ignore[union-attr]
    for folder in (home / "torch" / "lib", *home.glob("nvidia/*/lib")):
        yield from folder.glob(f"{name}.so*")


@pytest.mark.slow
@pytest.mark.parametrize("name", PHRASES)
def test_the_phrases_are_in_the_libraries(name: str) -> None:
    assert name in SIGNS
    for phrase, library in PHRASES[name].items():
        there = any(_holds(path, phrase.encode()) for path in libraries(library))
        expected = Version(version("torch")).release >= Version(SINCE.get(phrase, "0")).release
        assert there is expected, f"{phrase!r} is {'' if there else 'not '}in {library} of torch {version('torch')}"


def _holds(path: Path, phrase: bytes) -> bool:
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(phrase) >= 0
