"""What does a check look at, and what may it say?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from autotune.contract import Machine, Sizes
from autotune.machine.host import Host

Verdict = Literal["ok", "info", "warn", "fail", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """What the memory checks must know of the job; it takes a process of its own to find out (doctor.weigh)."""

    title: str
    """Model and image size."""
    n_ranks: int
    batch_per_gpu: int
    mem_bytes: int
    """Of one rank's device."""
    mem_of: str
    """Whose memory that is."""
    half: bool
    """Its activations have 16 bits."""
    sizes: Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is known of the job before anything of it runs; defaults: a doctor that was told no job."""

    gpus: tuple[str, ...] = ()
    """UUIDs that it trains on, a rank each; () is the CPU."""
    n_ranks: int = 1
    batch_per_gpu: int = 16
    workers: int = 8
    """Loader workers a rank, as asked for."""
    imgsz: int = 640
    task: str = "detect"
    cache: str | bool = False
    """YOLO's cache=."""
    half: bool = False
    """AMP is asked for."""
    compiles: bool = False
    """torch.compile is asked for, or in the search space."""
    n_images: int | None = None
    image_bytes: int | None = None
    """Of all the dataset's image files together."""
    image_hw: tuple[int, int] | None = None
    """Median height and width of the images as stored."""
    data: str | None = None
    """The folder with the images."""
    out: str = "."
    """Where run folders are made."""
    n_nodes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is examined."""

    machine: Machine
    host: Host = field(default_factory=Host)
    plan: Plan = field(default_factory=Plan)
    weighed: Weighed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check says."""

    verdict: Verdict
    """ok: read, and nothing to mend; info: worth knowing; warn: costs speed or trust; fail: the job cannot run so, or
    its figures would mean nothing; unknown: it could not be read, which is never ok."""
    says: str
    """The verdict in words."""
    evidence: tuple[str, ...] = ()
    """Sentences with the figures behind it."""
    remedy: str = ""
    """What to do; empty when there is nothing to mend."""


def ok(says: str, *evidence: str) -> Finding:
    """Nothing to mend."""
    return Finding(verdict="ok", says=says, evidence=evidence)


def unknown(says: str, remedy: str = "") -> Finding:
    """It cannot be read here."""
    return Finding(verdict="unknown", says=says, remedy=remedy)
