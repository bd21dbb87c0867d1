"""May a search begin on this machine? Checked before a folder is made; what it is warned of goes with the run."""

from __future__ import annotations

from autotune.errors import MachineError
from autotune.machine.checks import examine
from autotune.machine.checks.finding import Plan, Subject
from autotune.machine.host import Host
from autotune.question import Question


def plan_of(question: Question, n_ranks: int | None = None) -> Plan:
    """What the checks must know of a job.

    Args:
        question: the job.
        n_ranks: instead of those that it has.
    """
    args, dataset = question.ctx.train_args, question.dataset
    n = n_ranks or question.ctx.n_ranks
    return Plan(
        gpus=question.gpus,
        n_ranks=n,
        batch_per_gpu=max(1, -(-int(args["batch"]) // n)),
        workers=int(args["workers"]),
        imgsz=int(args["imgsz"]),
        task=question.task,
        cache=args["cache"] or False,
        half=bool(question.gpus) and args["amp"] not in (False, "fp32"),
        compiles=bool(args["compile"]) or "compile" in question.space.knobs,
        n_images=dataset.n_train if dataset else None,
        image_bytes=round(dataset.mean_image_bytes * (dataset.n_train + dataset.n_val)) if dataset else None,
        image_hw=dataset.median_shape if dataset else None,
        data=str(dataset.root) if dataset else None,
        out=str(question.out),
    )


def refuse_if_unfit(question: Question, host: Host | None = None) -> tuple[str, ...]:
    """Examine the machine for a search that is about to begin; where nothing is measured it is not.

    Args:
        question: the search.
        host: a fake in tests; None: this machine.

    Returns:
        What it is warned of, a line each; with --force also what it fails.

    Raises:
        MachineError: a check fails, unless --force.
    """
    if not question.request.measures:
        return ()
    findings = examine(Subject(machine=question.machine, host=host or Host(), plan=plan_of(question)))
    failed = {name: f for name, f in findings.items() if f.verdict == "fail"}
    if failed and not question.request.force:
        said = "; ".join(f"{name}: {f.says}" for name, f in failed.items())
        remedy = "; ".join(f.remedy for f in failed.values() if f.remedy)
        raise MachineError(
            f"this machine cannot run the search: {said}",
            f"{remedy} (`autotune doctor` says more; --force measures anyway)",
        )
    warned = failed | {name: f for name, f in findings.items() if f.verdict == "warn"}
    return tuple(f"{name}: {f.says}" + (f" (remedy: {f.remedy})" if f.remedy else "") for name, f in warned.items())
