"""Which GPUs does a check judge, and what do they say?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from autotune.contract import Gpu, GpuLink
from autotune.machine.checks.finding import Finding, Subject, unknown
from autotune.machine.nvml import ask, session


def judged(subject: Subject) -> tuple[Gpu, ...]:
    """The GPUs of the job; all that are here when no job was told."""
    plan, here = subject.plan, subject.machine.gpus
    if not plan.gpus and plan.data is None:
        return here
    return tuple(g for g in here if g.uuid in plan.gpus)


def links(subject: Subject) -> tuple[GpuLink, ...]:
    """Between the GPUs of the job."""
    uuids = {g.uuid for g in judged(subject)}
    return tuple(k for k in subject.machine.gpu_links if {k.a, k.b} <= uuids)


def answers(subject: Subject, name: str, *args: Any) -> dict[Gpu, Any]:
    """What each of them answers to one of NVML's functions just now; None where it does not.

    Args:
        subject: of a check.
        name: of the function.
        args: after the handle.
    """
    with session(subject.host.nvml) as lib:
        return {g: ask(lib, name, ask(lib, "nvmlDeviceGetHandleByUUID", g.uuid), *args) for g in judged(subject)}


def silent(said: Mapping[Gpu, Any]) -> tuple[Gpu, ...]:
    """Those that did not answer."""
    return tuple(g for g, answer in said.items() if answer is None)


def named(gpus: Iterable[Gpu]) -> str:
    """`GPU 0`, `GPU 0 and 2`, `GPU 0, 1 and 2`."""
    numbers = [str(g.index) for g in gpus]
    return "GPU " + " and ".join(filter(None, (", ".join(numbers[:-1]), numbers[-1])))


def each(gpus: Iterable[Gpu], told: Callable[[Gpu], str]) -> tuple[str, ...]:
    """A sentence a GPU, or one for those of which the same is to be told: `GPU 0 and 1: 700 W of 700 W`."""
    groups: dict[str, list[Gpu]] = {}
    for gpu in gpus:
        groups.setdefault(told(gpu), []).append(gpu)
    return tuple(f"{named(of)}: {text}" for text, of in groups.items())


def mute(gpus: Iterable[Gpu], what: str) -> Finding:
    """They do not tell it."""
    those = tuple(gpus)
    return unknown(f"{named(those)} {'does' if len(those) == 1 else 'do'} not tell {what}")
