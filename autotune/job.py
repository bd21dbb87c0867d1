"""A question that has its folder and its clock: what is the search given of it, and what does run.json say?"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import psutil

from autotune import atlas
from autotune.contract import RunDir, RunInfo, Value
from autotune.folders import git_state
from autotune.machine.distributions import distributions
from autotune.machine.nccl import kept_note
from autotune.port import SpacePort
from autotune.question import TRIAL_ARGS, Question
from autotune.replay_question import as_replayed, replayed
from autotune.run.dataset import decode_rate
from autotune.run.page_cache import warm_page_cache
from autotune.run.transport import logging_env
from autotune.search.budget import Budget
from autotune.search.past import Past
from autotune.search.plan import Plan
from autotune.simulation import simulated

READING_FRAC: Final = 0.05
"""Of the budget, at most, for reading the dataset once before the first trial."""
REPORT_S: Final = 8.0
"""Kept back for exports (they import Ultralytics once to check best.yaml) and the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A question that has its folder and its clock."""

    question: Question
    run_dir: RunDir
    info: RunInfo
    budget: Budget
    past: Past | None = None


def info_of(question: Question, name: str, warnings: tuple[str, ...] = ()) -> RunInfo:
    """What run.json says of a search that begins now; `name` is its folder's, `warnings` the checks'."""
    request = question.request
    info = RunInfo(
        name=name,
        command=request.command,
        started=dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        budget_s=question.budget_s,
        objective=request.objective,
        strategy=request.strategy,
        space=question.space.name,
        training=request.training,
        seed=request.seed,
        backend="synthetic" if request.dry_run else "yolo",
        simulated=request.dry_run,
        task=question.task,
        device=question.device,
        gpus=question.gpus,
        n_ranks=question.ctx.n_ranks,
        mem_limit_bytes=question.memory.of_trial,
        train_args=question.job,
        n_images=question.ctx.n_images,
        user_args=question.user,
        assume_transport=request.assume_transport,
        nccl_set=question.nccl_set,
        versions=question.machine.versions,
        distributions=distributions(),
        data_folders=question.dataset.folders if question.dataset else (),
        datasets_dir=question.dataset.datasets_dir if question.dataset else None,
        git=git_state(),
        warnings=warnings,
    )
    if question.recording:
        return as_replayed(info, question.recording)
    if not request.atlas:
        return info
    here = atlas.cell_of(info, question.machine, question.ctx.image_hw)
    return replace(info, atlas=atlas.seeds_for(here, question.space, question.ctx, request.training))


def plan_of(job: Job, data_for: Callable[[Value], str]) -> Plan:
    """What the search is given; the dataset is read once for it, on the clock.

    Args:
        job: the question with its folder and clock.
        data_for: value of the cache knob -> data file of the trials.
    """
    question = job.question
    plan = Plan(
        run_dir=job.run_dir,
        info=job.info,
        space=SpacePort(atlas.with_seeds(question.space, job.info.atlas), question.ctx, question.request.training),
        budget=job.budget,
        data_for=data_for,
        # CUDA_VISIBLE_DEVICES narrows a trial to its GPUs, which are then numbers 0 to n-1.
        trial_args={**TRIAL_ARGS, "device": ",".join(map(str, range(len(question.gpus)))) or "cpu"},
        baseline_env=logging_env(question.ctx.n_ranks, question.ctx.device, question.nccl_set),
        segment=question.segment,
        n_images=question.ctx.n_images,
        images_decoded_per_s=_decode_rate(question),
        report_s=REPORT_S,
        notes=(*question.notes, *atlas.note(job.info.atlas), *kept_note(question.nccl_set), *_page_cache_notes(job)),
        memory=question.memory,
        past=job.past,
    )
    if question.recording:
        return replayed(plan, question.recording)
    return simulated(plan) if question.request.dry_run else plan


def _page_cache_notes(job: Job) -> tuple[str, ...]:
    """Read the dataset once, so that the first trial meets the page cache that all others meet; what that gave."""
    question = job.question
    if not question.dataset or question.request.dry_run:
        return ()
    with job.budget.spend("setup"):
        read = warm_page_cache(
            question.job["data"],
            question.task,
            free_ram_bytes=psutil.virtual_memory().available,
            limit_s=READING_FRAC * job.budget.total_s,
        )
    return (read.note,)


def _decode_rate(question: Question) -> float | None:
    """What a cache fill will cost: from 200 of the user's images, when the space has a cache to fill."""
    if not question.dataset or "cache" not in question.space.knobs:
        return None
    return decode_rate(question.job["data"], question.task, int(question.job["imgsz"]))
