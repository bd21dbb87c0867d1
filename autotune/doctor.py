"""`autotune doctor`: is this machine fit for this job, and what would help? The job is weighed, the checks judge."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from autotune.contract import Observer, Outcome, RankRecord, Sizes, TrialDir, TrialSpec, read_json
from autotune.errors import InputError, MachineError
from autotune.machine.checks import examine
from autotune.machine.finding import Finding, Subject, Weighed
from autotune.machine.memory import parse_size
from autotune.question import Question, Request, understand
from autotune.run.dataset import DatasetView
from autotune.run.lock import lock_devices
from autotune.run.trial import run_trial

N_IMAGES: Final = 16
"""Of the user's dataset, for the one batch that is looked at; a mosaic is made of four."""


def doctor(
    request: Request, *, ranks: int | None = None, gpu_mem: str | None = None, observers: Sequence[Observer] = ()
) -> dict[str, Finding]:
    """Examine a job on this machine, or on one that is described.

    Args:
        request: the job, as `search` would get it; nothing is searched.
        ranks: how many ranks it would have; None: one a GPU of the request.
        gpu_mem: memory of each of its GPUs, such as `24GiB`; None: of this machine's, or its RAM where it has none.
        observers: told when the demo set has to be drawn.

    Returns:
        Name of a check -> what it found.

    Raises:
        AutotuneError: wrong input, or the job cannot be built here.
    """
    mem_bytes = None if gpu_mem is None else parse_size(gpu_mem, "--gpu-mem")
    if ranks is not None and ranks < 1:
        raise InputError(f"--ranks {ranks} would train nothing", "give 1 or more")
    question = understand(request, observers)
    n = ranks or max(1, len(question.gpus))
    batch = int(question.ctx.train_args["batch"])
    if batch % n:
        near = batch // n * n or n
        raise InputError(f"batch={batch} does not divide by {n} ranks", f"YOLO's batch is the total: batch={near} does")
    with lock_devices(question.gpus) as sign, tempfile.TemporaryDirectory(prefix="autotune-doctor-") as tmp:
        sign(Path(tmp))
        sizes = weigh(question, Path(tmp))
    have, mem_of = _memory(question, n) if mem_bytes is None else (mem_bytes, "--gpu-mem")
    args = question.ctx.train_args
    weighed = Weighed(
        title=f"{Path(question.job['model']).name} at imgsz {args['imgsz']}",
        n_ranks=n,
        batch_per_gpu=batch // n,
        mem_bytes=have,
        mem_of=mem_of,
        half=(question.ctx.device == "cuda" or mem_bytes is not None) and args.get("amp", True) not in (False, "fp32"),
        sizes=sizes,
    )
    return examine(Subject(machine=question.machine, weighed=weighed))


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


def as_lines(findings: Mapping[str, Finding]) -> list[str]:
    """For the screen."""
    lines = []
    for name, finding in findings.items():
        lines.append(f"{finding.verdict:4}  {name}: {finding.says}")
        lines += [f"      {sentence}" for sentence in finding.evidence]
        lines += [f"      remedy: {finding.remedy}"] if finding.remedy else []
    return lines


def as_json(findings: Mapping[str, Finding]) -> dict[str, Any]:
    """For machines (PRODUCT B6)."""
    return {
        "checks": [
            {"name": name, "verdict": f.verdict, "evidence": "; ".join((f.says, *f.evidence)), "remedy": f.remedy}
            for name, f in findings.items()
        ]
    }
