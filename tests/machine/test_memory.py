"""Sizes as written, the limit of a rank, and its memory seen from outside."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.contract import Gpu, Machine
from autotune.errors import InputError
from autotune.machine.memory import RESERVE_BYTES, memory_limit, parse_size, rank_memory_bytes, spell_size

GIB = 2**30


def machine(*gpu_bytes: int) -> Machine:
    gpus = tuple(Gpu(index=i, uuid=f"GPU-{i}", name="fake", mem_bytes=n) for i, n in enumerate(gpu_bytes))
    return Machine(hostname="h", cpu="c", n_cores=4, n_cores_host=4, ram_bytes=24 * GIB, shm_bytes=None, gpus=gpus)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("3GiB", 3 * GIB),
        ("512MiB", 512 * 2**20),
        ("3GB", 3 * 10**9),
        ("1.5GiB", 3 * GIB // 2),
        (" 2 TiB ", 2 * 2**40),
        ("700KB", 700_000),
        ("17B", 17),
    ],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text",
    ["", "3", "3G", "GiB", "3gib", "3Gib", "-1GiB", "3 G iB", "1e3MB", "3GiB/s", "\uff13GiB", "0GiB", "inf", "nanGB"],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="--mem-limit") as e:
        parse_size(text)
    assert e.value.hint


@given(st.integers(1, 2**50))
def test_bytes_come_back_as_they_were(n_bytes: int) -> None:
    assert parse_size(f"{n_bytes}B") == n_bytes


def test_limits() -> None:
    cpu = memory_limit(machine(), (), 2, None)
    assert (cpu.per_rank_bytes, cpu.of_trial) == (12 * GIB, None)
    assert "2 ranks" in cpu.says
    asked = memory_limit(machine(), (), 2, "3GiB")
    assert (asked.per_rank_bytes, asked.of_trial) == (3 * GIB, 3 * GIB)
    gpu = memory_limit(machine(80 * GIB, 40 * GIB), ("GPU-0", "GPU-1"), 2, None)
    assert gpu.per_rank_bytes == 40 * GIB - RESERVE_BYTES, "the smallest one's: every rank has the same batch"
    assert memory_limit(machine(80 * GIB, 40 * GIB), ("GPU-0",), 1, None).per_rank_bytes == 80 * GIB - RESERVE_BYTES
    with pytest.raises(InputError, match=r"more than a rank can have here: 12\.0 GiB"):
        memory_limit(machine(), (), 2, "12.1GiB")


def test_sizes_are_short() -> None:
    assert [spell_size(n) for n in (5 * 10**8, GIB, 3.14 * GIB)] == ["477 MiB", "1.0 GiB", "3.1 GiB"]


def test_from_outside_as_from_inside() -> None:
    """The supervisor's reading of a rank is that of the rank's own record."""
    import torch

    from autotune.worker.memory import peak_memory_bytes

    mine, seen = peak_memory_bytes(torch.device("cpu")), rank_memory_bytes(os.getpid())
    assert seen == pytest.approx(mine, rel=0.02)
    hog = bytearray(b"x") * (300 * 2**20)
    assert rank_memory_bytes(os.getpid()) > len(hog)
    assert rank_memory_bytes(2**22 + 1) == 0, "nobody"
