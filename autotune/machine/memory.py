"""How much memory may one rank use, how much does it use now, and how is a size written?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from autotune.contract import Machine
from autotune.errors import InputError

RESERVE_BYTES: Final = 1 << 30
"""Of each GPU, for what torch's allocator does not count: the CUDA context (300-700 MiB, KNOBS 6), NCCL's buffers
(4 MiB a channel and peer, KNOBS 1.5) and freed blocks that no longer fit together. An assumption, not measured here."""
_UNITS: Final = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS_2: Final = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SHAPE: Final = re.compile(rf"([0-9]+(?:\.[0-9]+)?) ?({'|'.join(_UNITS | _UNITS_2)})")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """What one rank may use: device memory on CUDA, resident memory with its loader workers on CPU."""

    per_rank_bytes: int | None = None
    """None: nobody knows."""
    says: str = ""
    """Where it comes from."""
    enforced: bool = False
    """The user set it: a trial over it is ended. What the hardware has, the hardware enforces."""

    @property
    def of_trial(self) -> int | None:
        """TrialSpec.mem_limit_bytes."""
        return self.per_rank_bytes if self.enforced else None


def parse_size(text: str) -> int:
    """`3GiB`, `512MiB`, `3GB`, `1.5GiB` -> bytes; the unit is needed, and its spelling counts.

    Raises:
        InputError: not of that form, or less than a byte.
    """
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"--mem-limit {text!r} is not a size", "write it like 3GiB, 512MiB or 3GB")
    n_bytes = round(float(match[1]) * (_UNITS | _UNITS_2)[match[2]])
    if n_bytes < 1:
        raise InputError(f"--mem-limit {text!r} leaves no memory", "write it like 3GiB, 512MiB or 3GB")
    return n_bytes


def spell_size(n_bytes: float) -> str:
    """Bytes -> `3.1 GiB`, `512 MiB`."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 0.995 * 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def memory_limit(machine: Machine, gpus: Sequence[str], n_ranks: int, asked: str | None) -> MemoryLimit:
    """What one rank may use here.

    Args:
        machine: its GPUs and its memory.
        gpus: UUIDs that the ranks run on, one a rank; empty is the CPU.
        n_ranks: that share the machine's memory on CPU.
        asked: --mem-limit, a rank; None: what there is.

    Raises:
        InputError: `asked` is no size, or more than there is.
    """
    if gpus:
        smallest = min(g.mem_bytes for g in machine.gpus if g.uuid in gpus)
        there = max(smallest - RESERVE_BYTES, smallest // 2)
        says = f"{spell_size(smallest)} of GPU memory less {spell_size(smallest - there)} for context, NCCL and gaps"
    else:
        there = machine.ram_bytes // n_ranks
        ranks = f" shared by {n_ranks} ranks" if n_ranks > 1 else ""
        says = f"{spell_size(machine.ram_bytes)} of memory{ranks}"
    if asked is None:
        return MemoryLimit(per_rank_bytes=there, says=says)
    wanted = parse_size(asked)
    if wanted > there:
        raise InputError(
            f"--mem-limit {asked} is more than a rank can have here: {spell_size(there)} ({says})",
            "give less, or leave it out",
        )
    return MemoryLimit(per_rank_bytes=wanted, says=f"--mem-limit {asked}", enforced=True)


def rank_memory_bytes(pid: int) -> int:
    """Peak bytes of a rank on CPU so far, by the formula of worker/memory.py, seen from outside; 0 once it has gone.

    Its peak resident set (VmHWM) without its file pages, and the proportional set size of its loader workers now.
    """
    status = Path(f"/proc/{pid}/status")
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    own = _kib(status, "VmHWM:") - _kib(status, "RssFile:")
    return 1024 * (own + sum(_kib(Path(f"/proc/{p.pid}/smaps_rollup"), "Pss:") for p in children))


def _kib(path: Path, key: str) -> int:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1])
    except OSError:
        return 0  # it has gone, or a container hides the file
    return 0
