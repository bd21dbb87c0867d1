"""`autotune doctor`: is this machine fit for this job, and what would help? The job is weighed, the checks judge."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from autotune.contract import Machine, Observer, Outcome, RankRecord, Sizes, TrialDir, TrialSpec, read_json
from autotune.doctor.diagnosis import as_json, as_lines
from autotune.doctor.fitness import plan_of
from autotune.errors import EXIT_ENVIRONMENT, EXIT_OK, InputError, MachineError
from autotune.machine.checks import CHECKS, WEIGHED, examine
from autotune.machine.checks.data import READS
from autotune.machine.checks.finding import Finding, Plan, Subject, Weighed
from autotune.machine.environment import without_home
from autotune.machine.facts import describe, read_machine, resolve_gpus, visible
from autotune.machine.host import Host
from autotune.machine.memory import parse_size
from autotune.question import Question, Request, understand
from autotune.run.dataset import DatasetView
from autotune.run.lock import lock_devices
from autotune.run.trial import run_trial

N_IMAGES: Final = 16
"""Of the user's dataset, for the one batch that is looked at; a mosaic is made of four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What the doctor was shown, and what it says."""

    machine: Machine
    plan: Plan
    job: str
    """What it was examined for, in words."""
    findings: dict[str, Finding]

    @property
    def lines(self) -> list[str]:
        """For the screen."""
        return as_lines(self.machine, self.plan, self.job, self.findings)

    @property
    def json(self) -> dict[str, Any]:
        """For machines."""
        return as_json(self.machine, self.findings)

    @property
    def failed(self) -> bool:
        """One check says that it cannot work."""
        return any(f.verdict == "fail" for f in self.findings.values())


def run_verb(request: Request, *, as_json: bool, say: Callable[[str], None], **asked: Any) -> int:
    """`autotune doctor`: returns the exit code.

    Args:
        request: as in `doctor`.
        as_json: for machines.
        say: gets the answer.
        asked: the other arguments of `doctor`.
    """
    found = doctor(request, **asked)
    text = json.dumps(found.json, indent=1, ensure_ascii=False) if as_json else "\n".join(found.lines)
    say(without_home(text, os.environ))  # it is pasted into issues
    return EXIT_ENVIRONMENT if found.failed else EXIT_OK


def doctor(
    request: Request,
    *,
    ranks: int | None = None,
    gpu_mem: str | None = None,
    nnodes: int = 1,
    host: Host | None = None,
    observers: Sequence[Observer] = (),
) -> Examination:
    """Examine this machine; with a job also whether it fits it, or one that is described.

    Args:
        request: the job, as `search` would get it; nothing is searched. Without key=value: the machine alone.
        ranks: how many ranks it would have; None: one a GPU of the request.
        gpu_mem: memory of each of its GPUs, such as `24GiB`; None: of this machine's, or its RAM where it has none.
        nnodes: machines that train together.
        host: a fake in tests; None: this machine.
        observers: told when the demo set has to be drawn.

    Raises:
        AutotuneError: wrong input, or the job cannot be built here.
    """
    host = host or Host()
    mem_bytes = None if gpu_mem is None else parse_size(gpu_mem, "--gpu-mem")
    for flag, given in (("--ranks", ranks), ("--nnodes", nnodes)):
        if given is not None and given < 1:
            raise InputError(f"{flag} {given} would train nothing", "give 1 or more")
    if not request.pairs and ranks is None and gpu_mem is None:
        machine = read_machine(host)
        every = "all" if visible(machine, host.env) else None
        _, gpus = resolve_gpus(request.gpus or every, None, machine, host.env)
        plan = Plan(gpus=gpus, n_ranks=max(1, len(gpus)), n_nodes=nnodes)
        job = "YOLO's own defaults; data= and model= name a job of yours"
        findings = examine(Subject(machine=machine, host=host, plan=plan))
        return Examination(machine=machine, plan=plan, job=job, findings=findings)
    question = understand(request, observers)
    n = ranks or max(1, len(question.gpus))
    batch = int(question.ctx.train_args["batch"])
    if batch % n:
        near = batch // n * n or n
        raise InputError(f"batch={batch} does not divide by {n} ranks", f"YOLO's batch is the total: batch={near} does")
    args = question.ctx.train_args
    subject = Subject(machine=question.machine, host=host, plan=replace(plan_of(question, n), n_nodes=nnodes))
    with lock_devices(question.gpus) as sign, tempfile.TemporaryDirectory(prefix="autotune-doctor-") as tmp:
        sign(Path(tmp))
        findings = examine(subject, {**CHECKS, **READS})  # before the weighing, which is at work itself
        sizes = weigh(question, Path(tmp))
    have, mem_of = _memory(question, n) if mem_bytes is None else (mem_bytes, "--gpu-mem")
    weighed = Weighed(
        title=f"{Path(question.job['model']).name} at imgsz {args['imgsz']}",
        n_ranks=n,
        batch_per_gpu=batch // n,
        mem_bytes=have,
        mem_of=mem_of,
        half=(question.ctx.device == "cuda" or mem_bytes is not None) and args.get("amp", True) not in (False, "fp32"),
        sizes=sizes,
    )
    findings |= examine(replace(subject, weighed=weighed), WEIGHED)
    job = f"{weighed.title}, batch {batch}, on {describe(question.machine, question.gpus)}, {n} rank{'s' * (n > 1)}"
    return Examination(machine=question.machine, plan=subject.plan, job=job, findings=findings)


def weigh(question: Question, folder: Path) -> Sizes:
    """Measure what one rank of the job keeps in memory, in a process of its own, on the CPU.

    Raises:
        InputError: Ultralytics refuses the job.
        MachineError: it cannot be built here.
    """
    directory = TrialDir(folder / "trials" / "0000")
    view = DatasetView(question.job["data"], question.task, folder / "data", most=N_IMAGES)
    args: dict[str, Any] = {
        **question.job,
        "data": view.path(False),
        "device": "cpu",
        "cache": False,
        "compile": False,
        "amp": False,
        "multi_scale": 0.0,
        "plots": False,
        "save_dir": "yolo",
        "exist_ok": True,
    }
    spec = TrialSpec(
        number=0,
        role="probe",
        probe="sizes",
        backend="yolo",
        task=question.task,
        params={},
        changes={},
        train_args=args,
        n_images=question.ctx.n_images,
    )
    result = run_trial(spec, directory, started_s=0.0)
    if result.outcome is not Outcome.OK:
        refused = InputError if result.outcome is Outcome.INVALID else MachineError
        raise refused(f"this job cannot be built: {result.error}", (result.hint or "").partition("the trial's log")[0])
    sizes = read_json(directory.rank(0), RankRecord).sizes
    assert sizes is not None, "a probe that ended well has weighed"
    return sizes


def _memory(question: Question, n_ranks: int) -> tuple[int, str]:
    """Bytes of one rank's device, and whose they are."""
    chosen = [g for g in question.machine.gpus if g.uuid in question.gpus]
    if chosen:
        least = min(chosen, key=lambda g: g.mem_bytes)
        return least.mem_bytes, least.name
    share = f", shared by {n_ranks} ranks" if n_ranks > 1 else ""
    return question.machine.ram_bytes // n_ranks, f"this machine's RAM{share}; --gpu-mem 24GiB asks about a GPU"
