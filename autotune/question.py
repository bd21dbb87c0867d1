"""What is asked? A request from the command line or from Python becomes a checked question; nothing is written."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psutil

from autotune.contract import Machine, Observer, PhaseStarted, SegmentSettings
from autotune.errors import InputError
from autotune.folders import writable
from autotune.machine.facts import describe, read_machine, resolve_gpus, visible
from autotune.machine.host import Host
from autotune.machine.memory import MemoryLimit, memory_limit
from autotune.machine.mounts import mount_of
from autotune.machine.nccl import nccl_files, nccl_set
from autotune.recording import Recording
from autotune.run.dataset import DatasetInfo, inspect_dataset
from autotune.run.demo import demo_dataset, demo_exists
from autotune.run.energy import check_energy
from autotune.run.transport import ASSUMED
from autotune.search.budget import parse_budget
from autotune.search.objective import check_objective
from autotune.search.strategies import check_strategy
from autotune.simulation import simulated_gpus
from autotune.space.context import Context, workers_cap
from autotune.space.ranks import check_batch, count_ranks
from autotune.space.space import SearchSpace, load_space
from autotune.space.yolo_args import job_args, parse_pairs, resolve_model, task_of
from autotune.trackers import parse_track

DEMO_IMGSZ_CPU: Final = 128
DEFAULT_MODEL: Final = "yolo11n.yaml"
TRIAL_ARGS: Final[dict[str, Any]] = {
    # None of these touches a steady step (MEASURING 1); save_dir is relative to the trial's folder.
    "plots": False,
    "val": False,
    "save": False,
    "warmup_epochs": 0,
    "save_dir": "yolo",
    "exist_ok": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was typed; the names are those of the flags."""

    pairs: Sequence[str] = ()
    """YOLO's own key=value, as typed."""
    user_args: Mapping[str, Any] | None = None
    """The same from Python, in place of `pairs`."""
    gpus: str | None = None
    ranks: int | None = None
    """On the CPU."""
    force: bool = False
    """Measure on a GPU that somebody else uses, or on a machine that failed a check."""
    budget: str = "30m"
    space: str | None = None
    objective: str = "job_time"
    strategy: str = "structured"
    seed: int = 0
    name: str | None = None
    out: str = "results"
    training: str = "same"
    mem_limit: str | None = None
    """Of one rank, such as 3GiB."""
    verify_accuracy: str | None = None
    """Time for two real trainings after the search, such as 10m."""
    dry_run: bool = False
    assume_transport: str | None = None
    """socket, ib, shm or p2p: over this NCCL's traffic goes too, whatever its log says."""
    atlas: bool = True
    """Start from the winners of earlier runs, and be one of them."""
    resume: str | None = None
    """The folder of a run to go on with; all the rest but the budget is its own."""
    replay: str | None = None
    """A run folder or a table of measured configurations that answers in place of this machine."""
    track: str | None = None
    """Trackers that hear of the search: wandb, mlflow, or both with a comma."""
    given: frozenset[str] = frozenset()
    """Names of the flags that were typed: with `resume` they must agree."""
    command: str = ""
    began: float | None = None
    """time.monotonic() at Enter; None: now."""

    @property
    def measures(self) -> bool:
        """Trials train on this machine: it must be fit, and ours."""
        return not self.dry_run and self.replay is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request that can be answered."""

    request: Request
    began: float
    budget_s: float
    user: dict[str, Any]
    """The pairs."""
    job: dict[str, Any]
    """The user's job: the pairs, with the embedded default filled in and paths made absolute."""
    title: tuple[str, str]
    """Model and dataset, for the run folder's name."""
    task: str
    device: str
    gpus: tuple[str, ...]
    machine: Machine
    space: SearchSpace
    ctx: Context
    out: Path
    dataset: DatasetInfo | None
    """None for a dry run on the demo set, which needs no images."""
    headline: str
    segment: SegmentSettings
    memory: MemoryLimit
    verify_s: float | None = None
    """Of --verify-accuracy, on top of the budget."""
    notes: tuple[str, ...] = ()
    """What the user should see beside the result."""
    track: tuple[str, ...] = ()
    """Names of trackers."""
    nccl_set: dict[str, str] = field(default_factory=dict)
    """What the user has set of NCCL: variable -> `value (where)`; empty where NCCL has nothing to do."""
    recording: Recording | None = None
    """What answers in a replay."""


def understand(request: Request, observers: Sequence[Observer] = (), *, any_batch: bool = False) -> Question:
    """Check everything that can be wrong, before a folder or a process is made.

    Args:
        request: what was typed.
        any_batch: the batch is not the user's: it need not divide.
        observers: told when the demo set has to be drawn, which takes some seconds.

    Raises:
        AutotuneError: the first thing that is wrong.
    """
    began = time.monotonic() if request.began is None else request.began
    budget_s = parse_budget(request.budget)
    verify_s = parse_budget(request.verify_accuracy, "--verify-accuracy") if request.verify_accuracy else None
    check_strategy(request.strategy)
    check_objective(request.objective)
    if request.training not in ("same", "bounded", "any"):
        raise InputError(f"--training {request.training} is not known", "use same, bounded or any")
    assumed = _assumed(request.assume_transport)
    track = parse_track(request.track)
    user = parse_pairs(request.pairs) if request.user_args is None else dict(request.user_args)
    args = job_args(user)
    machine = read_machine()
    env: Mapping[str, str] = os.environ
    if request.dry_run and not machine.gpus and request.gpus:
        machine = replace(machine, gpus=simulated_gpus(request.gpus))
        env = {}  # CUDA_VISIBLE_DEVICES speaks of real GPUs
    device, gpus = resolve_gpus(request.gpus, user.get("device"), machine, env)
    energy_notes = check_energy(request.objective, gpus, simulated=request.dry_run)
    n_ranks = count_ranks(request.ranks, gpus, machine, simulated=request.dry_run)
    if not any_batch:
        check_batch(n_ranks, args, user)
    memory = memory_limit(machine, gpus, n_ranks, request.mem_limit)
    space = load_space(request.space or ("cpu" if device == "cpu" else "default"))
    model = resolve_model(str(user.get("model") or DEFAULT_MODEL))
    task = task_of(user, model)
    out = writable(Path(request.out))
    demo = user.get("data") is None
    if demo and task != "detect":
        raise InputError(f"the demo set is for detection, this is a {task} job", "name a dataset: data=YOURS.yaml")
    job: dict[str, Any] = {**user, "task": task, "mode": "train", "model": model, "device": device}
    if demo and device == "cpu":
        job.setdefault("imgsz", DEMO_IMGSZ_CPU)
    # Written down even where they are YOLO's defaults: the answer holds for this length, size and batch.
    job = {**{key: job_args(job)[key] for key in ("epochs", "imgsz", "batch")}, **job}
    dataset = None
    if not (demo and request.dry_run):
        if demo and not demo_exists():
            for observer in observers:
                observer(PhaseStarted(t_s=time.monotonic() - began, phase="setup", note="drawing the demo set, once"))
        dataset = inspect_dataset(str(demo_dataset()) if demo else str(user["data"]), task)
    job["data"] = dataset.data if dataset else "demo"
    machine = replace(machine, data=mount_of(Host(), str(dataset.root))) if dataset else machine
    if (weights := Path(str(job.get("pretrained")))).is_file():
        job["pretrained"] = str(weights.resolve())  # a trial, and launch.sh, start in another folder
    ctx = Context(
        machine=machine,
        task=task,
        device="cpu" if device == "cpu" else "cuda",
        n_ranks=n_ranks,
        n_visible_gpus=len(visible(machine, env)),
        train_args=job_args(job),
        n_images=dataset.n_train if dataset else None,
        image_hw=dataset.median_shape if dataset else None,
        free_ram_bytes=psutil.virtual_memory().available,
        free_disk_bytes=shutil.disk_usage(next(p for p in (out, *out.parents) if p.exists())).free,
        env=dict(os.environ),
        transports=assumed,
        nccl_files=nccl_files(os.environ),
        effective={},
    )
    if assumed and (ctx.n_ranks == 1 or ctx.device == "cpu"):
        why = "this job has one rank, nothing is transported" if ctx.n_ranks == 1 else "ranks on a CPU do not use NCCL"
        raise InputError(f"--assume-transport {request.assume_transport}: {why}", "leave it out, or give several GPUs")
    if ctx.device == "cuda" and ctx.train_args["workers"] > workers_cap(ctx):
        # Ultralytics would cut them in the user's shell, but not in a trial, which sees one GPU only.
        job["workers"] = workers_cap(ctx)
        ctx = replace(ctx, train_args=job_args(job))
    return Question(
        request=request,
        began=began,
        budget_s=budget_s,
        user=user,
        job=job,
        title=(model, "demo" if demo else str(job["data"])),
        task=task,
        device=device,
        gpus=gpus,
        machine=machine,
        space=space,
        ctx=ctx,
        out=out,
        dataset=dataset,
        headline=_headline(request, user, job, space.name, _where(machine, gpus, n_ranks)),
        segment=segment_settings(device, budget_s),
        notes=(*_mixed(machine, gpus), *energy_notes),
        memory=memory,
        verify_s=verify_s,
        track=track,
        nccl_set=nccl_set(os.environ) if ctx.device == "cuda" and ctx.n_ranks > 1 else {},
    )


def _assumed(name: str | None) -> frozenset[str] | None:
    """--assume-transport in the words of run/transport.py."""
    if name is None:
        return None
    if name not in ASSUMED:
        raise InputError(f"--assume-transport {name} is not known", f"use one of {', '.join(ASSUMED)}")
    return frozenset({ASSUMED[name]})


def segment_settings(device: str, budget_s: float) -> SegmentSettings:
    """Lengths of a segment: longer with a longer budget, within what SEARCH 3.1 says is worth it.

    A step of a small CPU takes 0.2-1 s where a GPU's takes 0.02-0.2 s, so the CPU's minimum counts fewer steps.
    """
    if device == "cpu":
        measure = min(max(budget_s / 90, 3.0), 15.0)
        return SegmentSettings(
            warmup_steps=4,
            warmup_s=1.5,
            warmup_cap_s=max(5.0, measure),
            measure_s=measure,
            measure_steps=6,
            measure_cap_s=max(20.0, 3 * measure),
            ci_target_frac=0.08,
        )
    measure = min(max(budget_s / 120, 4.0), 15.0)
    return SegmentSettings(measure_s=measure, measure_cap_s=40.0)


def _mixed(machine: Machine, gpus: Sequence[str]) -> tuple[str, ...]:
    """A warning when the ranks' GPUs are of several models."""
    names = {g.name for g in machine.gpus if g.uuid in gpus}
    if len(names) < 2:
        return ()
    return (f"the GPUs differ ({describe(machine, gpus)}): every step takes as long as the slowest of them",)


def _where(machine: Machine, gpus: Sequence[str], n_ranks: int) -> str:
    """What the training runs on."""
    ranks = f", {n_ranks} ranks" if n_ranks > 1 and not gpus else ""
    return f"{describe(machine, gpus)}{ranks}"


def _headline(request: Request, user: Mapping[str, Any], job: Mapping[str, Any], space: str, where: str) -> str:
    """One line that says what is searched, and what was filled in because nothing was given."""
    model = Path(str(user.get("model") or DEFAULT_MODEL)).name
    said_model = "" if user.get("model") else " from scratch (no model= given)"
    data = Path(str(user["data"])).name if user.get("data") else "the built-in demo set (no data= given)"
    simulated = "SIMULATED (--dry-run): " if request.dry_run else ""
    return (
        f"{simulated}autotune search: {model}{said_model}, {data}, imgsz {job.get('imgsz', 640)}, on {where}; "
        f"space {space}, budget {request.budget}"
    )


def command_line(argv: Sequence[str]) -> str:
    """What was typed, quoted so that it can be pasted."""
    return shlex.join([Path(sys.executable).name, "-m", "autotune", *argv])
