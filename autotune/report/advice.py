"""What limits this trial, what would lift it, and how far? A plain verdict; the figures behind it are limits.py's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from autotune.contract import Machine, TrialResult
from autotune.report import words
from autotune.report.limits import (
    CORES_FRAC,
    READS_BYTES_PER_S,
    ROOM_FRAC,
    WAITS_FRAC,
    Limit,
    Rates,
    Seen,
    device_most,
    limit_of,
    loader_most,
    look,
    most_of,
)

SAYS: Final[dict[Limit, str]] = {
    "loader": "the loader is the limit",
    "compute": "the step itself is the limit",
    "cores": "loader and step share the cores, and those are the limit",
    "communication": "communication between the ranks is the limit",
    "straggler": "the slowest rank is the limit",
    "host": "the host is the limit: it does not launch work fast enough",
    "memory": "memory is the limit: it is full before the GPU is busy",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What would become of this job with more or better of one thing."""

    name: str
    most: float | None
    """Times as fast at most, 1.0 where it would not help; None: this trial cannot tell."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The verdict on one trial."""

    limit: Limit
    says: str
    """One sentence."""
    most: float | None
    """Times as fast at most, were this limit lifted altogether."""
    lifts: tuple[str, ...]
    """What to change: knobs first, and then the machine."""
    resources: tuple[Resource, ...]
    unknown: tuple[str, ...] = ()
    """What cannot be told from what was measured, and why."""

    @property
    def resources_say(self) -> str:
        """`more cores: at most 2.4x; a faster GPU: next to nothing`."""
        return "; ".join(f"{r.name}: {ceiling(r.most)}" for r in self.resources)


def ceiling(most: float | None) -> str:
    """A ceiling in words."""
    return "cannot be told" if most is None else "next to nothing" if most < 1.05 else f"at most {most:.1f}x"


def advise(
    result: TrialResult, machine: Machine, *, gpus: Sequence[str] = (), n_ranks: int = 1, rates: Rates | None = None
) -> Advice | None:
    """The verdict on one trial.

    Args:
        result: of a whole training step (no probe).
        machine: it ran on.
        gpus: UUIDs that it trained on; () is the CPU.
        n_ranks: it had.
        rates: of probes of the same configuration.

    Returns:
        None where the trial gave no throughput, or nobody recorded its waits.
    """
    if not result.images_per_s or result.wait_frac is None:
        return None
    seen = look(result, machine, gpus, n_ranks, rates or Rates())
    limit = limit_of(seen)
    return Advice(
        limit=limit,
        says=_sentence(seen, limit),
        most=most_of(seen, limit),
        lifts=_lifts(seen, limit),
        resources=_resources(seen, limit),
        unknown=_unknown(seen),
    )


def _sentence(s: Seen, limit: Limit) -> str:
    """`GPU 41 % busy, waiting for data 52 %: the loader is the limit; 8 workers give 610 img/s, ...`."""
    what = []
    if s.busy is not None:
        what.append(f"GPU{'s' * (s.n_ranks > 1)} {words.percent(s.busy)} busy")
    if s.cpu is not None and (not s.on_gpu or s.cpu >= CORES_FRAC):
        what.append(f"cores {words.percent(s.cpu)} busy")
    what.append(f"waiting for data {words.percent(s.wait)}")
    if s.straggler is not None and s.straggler >= 0.01:
        what.append(f"for the slowest rank {words.percent(s.straggler)}")
    if s.comm is not None:
        what.append(f"lost to the other ranks {words.percent(s.comm)}")
    if limit == "memory" and s.mem is not None:
        what.append(f"memory {words.percent(s.mem)} full")
    said = f"{', '.join(what)}: {SAYS[limit]}"
    loader = s.rates.data
    if loader is None and s.wait >= WAITS_FRAC and not s.takes_turns and s.on_gpu:
        loader = s.rate
    figures = []
    if loader is not None:
        by = "the loader" if s.n_workers is None else words.plural(s.n_workers, "worker")
        by = "the loader alone" if s.takes_turns else by
        figures.append(f"{by} give{'s' * (s.n_workers in (None, 0, 1))} {words.rate(loader)}")
    if s.rates.compute or (limit == "loader" and loader_most(s) is not None):
        figures.append(f"the step could do {words.rate(s.step_rate)}")
    return f"{said}; {', '.join(figures)}" if figures else said


def _resources(s: Seen, limit: Limit) -> tuple[Resource, ...]:
    """More or better of what, and how much it could give at most."""
    loading = loader_most(s)
    why = "no more than the step without its waits"
    if s.on_gpu:
        cores = Resource(name="more cores", most=loading, why=why)
    else:
        cores = Resource(name="twice the cores", most=2.0, why="they lift loader and step alike, on a CPU")
    device_why = "no more than the loader gives" if s.rates.data or s.wait >= WAITS_FRAC else "what is left of the step"
    found = [
        cores,
        Resource(name="a faster GPU" if s.on_gpu else "a GPU", most=device_most(s), why=device_why),
    ]
    if limit == "memory":
        found.append(
            Resource(name="a GPU with more memory", most=most_of(s, limit), why="a larger batch keeps it busy")
        )
    cached = "the images are in memory already"
    found.append(
        Resource(name="RAM for cache=ram", most=1.0, why=cached)
        if s.cached
        else Resource(name="RAM for cache=ram", most=loading, why=f"saves reading and decoding; {why}")
    )
    if s.cached or (s.disk is not None and s.disk < READS_BYTES_PER_S):
        found.append(Resource(name="a local NVMe", most=1.0, why=cached if s.cached else "the disk was not read"))
    else:
        found.append(Resource(name="a local NVMe", most=loading, why=why))
    return tuple(found)


def _lifts(s: Seen, limit: Limit) -> tuple[str, ...]:
    """What to change, the likeliest first."""
    n, room = s.n_workers, int(s.n_cores)
    larger = "a larger batch" if s.mem is None or s.mem < ROOM_FRAC else ""
    if limit == "loader":
        more = f"workers={room} (now {n}; {room} cores a rank)" if n is not None and n < room else ""
        idle = n is not None and n >= room and s.cpu is not None and s.cpu < CORES_FRAC
        slow = "a faster disk or a copy nearby: workers wait, cores do not work" if idle else ""
        cache = "" if s.cached else "cache=ram, or cache=disk: no decoding"
        return tuple(x for x in (more, slow, cache, "images stored no larger than imgsz", "more cores") if x)
    if limit == "cores":
        return ("fewer or cheaper augmentations", *(() if s.cached else ("cache=ram: no decoding",)), "more cores")
    if limit == "straggler":
        return ("GPUs of one model, equally cooled", "as many free cores for each rank", "nobody else on these GPUs")
    if limit == "communication":
        return tuple(x for x in (larger, "P2P or NVLink between the GPUs (autotune doctor)", "fewer ranks") if x)
    if limit == "host":
        return tuple(x for x in (larger, "compile=default or reduce-overhead", "a CPU with faster cores") if x)
    if limit == "memory":
        return ("amp", "a smaller imgsz", "a GPU with more memory")
    if s.on_gpu:
        return tuple(x for x in ("amp and compile, where they are off", larger, "a faster GPU, or more of them") if x)
    idle = s.cpu is not None and s.cpu < CORES_FRAC
    return (*(("torch_threads or workers: cores are idle",) if idle else ()), "more cores", "a GPU")


def _unknown(s: Seen) -> tuple[str, ...]:
    """What cannot be told, and what would tell it."""
    said = []
    if s.on_gpu and s.busy is None:
        said.append("whether the GPU works or waits for the host: nobody looked at it while the trial ran")
    if s.device is None:
        said.append("what a faster device would give: the parts of the step are unknown")
    if s.rates.data is None and s.wait < WAITS_FRAC:
        said.append("how much more the loader could deliver: it was not measured alone")
    if not s.on_gpu and s.rates.compute is None and not s.takes_turns:
        said.append("what the step could do without the loader on its cores: it was not measured alone")
    if s.n_ranks > 1 and s.comm is None:
        said.append("what communication costs: the step was not measured without it")
    return tuple(said)
