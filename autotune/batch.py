"""Which batch fits this machine, and which is fastest? `autotune batch`: AutoBatch, on one rank or on several.

Ultralytics' own raises on several GPUs, profiles random images, and aims at a share of the memory, not at speed
(ULTRALYTICS 1.10). This one runs real trials of the user's job, on as many ranks as the training will have.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from autotune.contract import Deadlines, RunDir, TrialResult, TrialSpec, write_json
from autotune.errors import InputError, on_disk
from autotune.folders import label, make_folder
from autotune.interrupts import uninterrupted
from autotune.machine.facts import describe
from autotune.machine.memory import spell_size
from autotune.question import TRIAL_ARGS, Question, Request, understand
from autotune.run.dataset import DatasetView
from autotune.run.leftover import kill_leftovers, sweep_files
from autotune.run.lock import lock_devices, lock_run, refuse_if_used
from autotune.run.trial import run_trial
from autotune.search.budget import Budget
from autotune.search.ladder import INTERRUPTED, Ladder, Rung, climb
from autotune.search.memory import BATCH, HEADROOM_FRAC, MemoryModel

ROW: Final = "{:>13} {:>7}   {:<16} {:>11} {:>11}"
NOT_CERTIFIED: Final = f"not certified: what grows over epochs; the head-room of {HEADROOM_FRAC:.0%} is for that"

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRung:
    """One trial, as batch.json keeps it."""

    number: int
    batch_per_gpu: int
    outcome: str
    images_per_s: float | None
    ci95_lo: float | None
    ci95_hi: float | None
    peak_mem_bytes: tuple[int, ...]
    predicted_bytes: float | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer:
    """batch.json: batches are of one rank, None where no trial left the head-room free."""

    n_ranks: int
    limit_bytes: int
    headroom_frac: float
    largest_safe: int | None
    fastest: int | None
    unproven: int | None
    """A larger batch that is predicted to be safe and was not run."""
    stopped_because: str
    rungs: tuple[BatchRung, ...]


def find_batch(request: Request, n_ranks: int | None, say: Say = lambda line: None) -> tuple[Path, BatchAnswer]:
    """The whole job of `autotune batch`.

    Args:
        request: what was typed.
        n_ranks: --ranks: processes on the CPU; None: one, or one a GPU.
        say: given each line for the user as it is known.

    Returns:
        Folder and answer; the last line said is the one to paste.

    Raises:
        AutotuneError: wrong input, and then nothing was written; or no batch could be run.
    """
    question = _ask(request, n_ranks)
    ranks, limit = question.ctx.n_ranks, question.memory.per_rank_bytes
    assert limit is not None
    budget = Budget(question.budget_s, started=question.began)
    with on_disk("the run folder"), contextlib.ExitStack() as stack:
        sign = stack.enter_context(lock_devices(question.gpus))
        refuse_if_used(question.gpus, force=request.force)
        name = request.name or label(*question.title, question.machine, question.gpus, ranks)
        folder = make_folder(question.out, f"{name}-batch")
        stack.enter_context(lock_run(folder))
        sign(folder)
        run_dir = RunDir(folder)
        stack.callback(_clear_up, run_dir)
        write_json(run_dir.machine, question.machine)
        stack.callback(shutil.rmtree, folder / ".data", ignore_errors=True)
        data = stack.enter_context(DatasetView(question.job["data"], question.task, folder / ".data"))
        say(_headline(question))
        say(ROW.format(f"batch a {_unit(question)}", "total", "images/s", "peak memory", "predicted"))
        ladder = climb(
            _Trials(question, run_dir, data.path(question.job.get("cache", False)), budget),
            MemoryModel(limit, on_cpu=question.device == "cpu"),
            limit_bytes=limit,
            most=max(1, (question.ctx.n_images or 1) // ranks),
            left_s=budget.left_s,
            seen=lambda rung: say(_row(rung, ranks)),
        )
        answer = _answer(ladder, ranks)
        write_json(folder / "batch.json", answer)
        for line in (f"kept in {folder}", *_conclusion(ladder, question)):
            say(line)
        return folder, answer


def _ask(request: Request, n_ranks: int | None) -> Question:
    """The checked question, for so many ranks."""
    question = understand(replace(request, ranks=n_ranks), any_batch=True)
    if "batch" in question.user:
        raise InputError(f"batch={question.user['batch']} is given, but it is what is to be found", "leave out batch=")
    return question


class _Trials:
    """Short real trials of the user's job that differ in their batch alone; `optimizer=auto` is left to each, as it
    will be left to the training.
    """

    def __init__(self, question: Question, run_dir: RunDir, data: str, budget: Budget) -> None:
        self._question, self._run_dir, self._data, self._budget = question, run_dir, data, budget
        self._n = 0

    def __call__(self, batch: int, limit_s: float) -> TrialResult:
        """Run one."""
        question, number = self._question, self._n
        self._n += 1
        ranks = question.ctx.n_ranks
        device = "cpu" if question.device == "cpu" else ",".join(map(str, range(ranks)))
        args = {**question.job, "batch": batch * ranks, "data": self._data, **TRIAL_ARGS, "device": device}
        spec = TrialSpec(
            number=number,
            role="baseline",  # started as the user's job will be
            backend="yolo",
            task=question.task,
            params={BATCH: batch},
            changes={BATCH: batch},
            train_args=args,
            gpus=question.gpus,
            n_ranks=ranks,
            segment=question.segment,
            deadlines=Deadlines(total_s=limit_s),
            certify=True,
            mem_limit_bytes=question.memory.of_trial,
        )
        return run_trial(spec, self._run_dir.trial(number), started_s=self._budget.elapsed_s())


def _clear_up(run_dir: RunDir) -> None:
    with uninterrupted():
        kill_leftovers(run_dir.path)
        sweep_files(run_dir)


def _answer(ladder: Ladder, n_ranks: int) -> BatchAnswer:
    largest, fastest = ladder.largest(), ladder.fastest()
    return BatchAnswer(
        n_ranks=n_ranks,
        limit_bytes=ladder.limit_bytes,
        headroom_frac=HEADROOM_FRAC,
        largest_safe=largest.batch if largest else None,
        fastest=fastest.batch if fastest else None,
        unproven=ladder.unproven,
        stopped_because=ladder.stopped_because,
        rungs=tuple(
            BatchRung(
                number=r.result.number,
                batch_per_gpu=r.batch,
                outcome=r.result.outcome.value,
                images_per_s=r.result.images_per_s,
                ci95_lo=r.result.ci95_lo,
                ci95_hi=r.result.ci95_hi,
                peak_mem_bytes=r.result.peak_mem_bytes,
                predicted_bytes=r.predicted.mem_bytes if r.predicted else None,
                error=r.result.error,
            )
            for r in ladder.rungs
        ),
    )


def _headline(question: Question) -> str:
    """What is measured, and against which limit."""
    ranks, job, memory = question.ctx.n_ranks, question.job, question.memory
    where = f"{ranks} rank{'s' * (ranks > 1)} on {describe(question.machine, question.gpus)}"
    limit = f"{spell_size(memory.per_rank_bytes or 0)} a rank ({memory.says}), {HEADROOM_FRAC:.0%} of it kept free"
    return f"autotune batch: {Path(str(job['model'])).name}, imgsz {job['imgsz']}, {where}; limit {limit}"


def _unit(question: Question) -> str:
    return "GPU" if question.gpus else "rank"


def _row(rung: Rung, n_ranks: int) -> str:
    """One line of the table; a failure says why in place of its figures."""
    rate = f"{rung.rate:.1f} +-{rung.half_width:.1f}" if rung.rate else str(rung.result.outcome)
    peak = "-" if rung.peak_bytes is None else spell_size(rung.peak_bytes)
    predicted = "-" if rung.predicted is None else spell_size(rung.predicted.mem_bytes)
    row = ROW.format(rung.batch, rung.batch * n_ranks, rate, peak, predicted)
    return row if rung.rate else f"{row}   {rung.result.error or ''}"


def _conclusion(ladder: Ladder, question: Question) -> list[str]:
    """The answer in words; its last line is YOLO's argument."""
    ranks, limit = question.ctx.n_ranks, ladder.limit_bytes
    largest, fastest = ladder.largest(), ladder.fastest()
    lines = [f"stopped: {ladder.stopped_because}"]
    if largest is None or fastest is None or largest.peak_bytes is None:
        if ladder.stopped_because == INTERRUPTED:
            return [*lines, "no batch was proven to be safe by then"]
        return [
            *lines,
            f"no batch leaves {HEADROOM_FRAC:.0%} of {spell_size(limit)} free: a smaller imgsz or model does",
        ]
    free = 1 - largest.peak_bytes / limit
    lines.append(
        f"largest safe: {largest.batch} a rank, {largest.batch * ranks} in total; with the most crowded images, EMA "
        f"and a validation of twice the batch it ran in {spell_size(largest.peak_bytes)} a rank, {free:.0%} of the "
        "limit free"
    )
    if ladder.unproven:
        lines.append(f"{ladder.unproven} a rank is predicted to be safe, but was not run: give a longer --budget")
    lines.append(
        f"fastest: {fastest.batch} a rank, {fastest.rate:.1f} +-{fastest.half_width:.1f} images/s"
        + ("" if fastest is largest else f"; {largest.batch} a rank: {largest.rate:.1f} +-{largest.half_width:.1f}")
    )
    nbs, total = int(question.ctx.train_args["nbs"]), fastest.batch * ranks
    if total > nbs:
        lines.append(f"an optimizer step then sees {total} images in place of {nbs} (nbs): check the accuracy")
    unit = _unit(question)
    over = f"total over {ranks} {unit}s ({fastest.batch} each)" if ranks > 1 else f"one {unit}"
    return [*lines, NOT_CERTIFIED, f"batch={total}  # {over}"]
