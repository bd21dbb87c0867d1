"""What is asked of a replay? The recording's own question again, with another strategy, seed, objective or budget."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from autotune import atlas
from autotune.contract import Params, RunInfo, Transport
from autotune.errors import InputError
from autotune.folders import writable
from autotune.machine.facts import describe
from autotune.machine.memory import memory_limit
from autotune.port import SpacePort
from autotune.question import Question, Request
from autotune.recording import Recording, read_recording
from autotune.search.budget import parse_budget
from autotune.search.objective import check_objective
from autotune.search.plan import Plan
from autotune.search.strategies import check_strategy
from autotune.space.config import Applied
from autotune.space.context import Context
from autotune.space.legal import same, spell
from autotune.space.space import Prepared
from autotune.space.yolo_args import job_args, parse_pairs

BACKEND: Final = "replay"
REPORT_S: Final = 2.0
OF_RECORDING: Final = ("gpus", "ranks", "space", "mem_limit", "assume_transport")
"""Flags that the recording answers."""
OF_MEASURING: Final = ("dry_run", "resume", "verify_accuracy", "track")
"""Flags that a replay has no use for."""


@dataclass
class RecordedSpace:
    """The space that was searched then: domain, baseline and seeds are the recorded ones (search.plan.SpacePort)."""

    port: SpacePort
    recording: Recording

    def prepare(
        self,
        effective: Mapping[str, Any],
        n_images: int | None,
        train_args: Mapping[str, Any] | None = None,
        transport: Transport | None = None,
    ) -> Prepared:
        """Domain and baseline, as recorded."""
        found, recording = self.port.prepare(effective, n_images, train_args, transport), self.recording
        seeds = found.seeds if recording.seeds is None else recording.seeds
        self.port.prepared = replace(found, domain=recording.domain, baseline=recording.baseline, seeds=seeds)
        return self.port.prepared

    def pin(self, resolved: Mapping[str, Any]) -> dict[str, Any]:
        """YOLO arguments that keep what `auto` became."""
        return self.port.pin(resolved)

    def canonical(self, params: Params) -> Params:
        """The one spelling of a configuration."""
        return self.port.canonical(params)

    def materialise(self, params: Params) -> Applied:
        """Settings of a configuration."""
        return self.port.materialise(params)


def context_of(recording: Recording) -> Context:
    """The job on the machine of the recording; of this one nothing is in it."""
    return Context(
        machine=recording.machine,
        task=recording.task,
        device="cpu" if recording.device == "cpu" else "cuda",
        n_ranks=recording.n_ranks,
        n_visible_gpus=max(recording.n_ranks, len(recording.gpus)),
        train_args=job_args(recording.job),
        n_images=recording.n_images,
    )


def space_of(recording: Recording) -> RecordedSpace:
    """What may be tried; earlier winners that seeded the recorded search seed this one."""
    space = atlas.with_seeds(recording.space, recording.atlas)
    return RecordedSpace(SpacePort(space, context_of(recording), recording.training), recording)


def replayed(plan: Plan, recording: Recording) -> Plan:
    """The plan of a replay: nothing but what was recorded."""
    return replace(
        plan, space=space_of(recording), only=recording.configs, report_s=REPORT_S, images_decoded_per_s=None
    )


def as_replayed(info: RunInfo, recording: Recording) -> RunInfo:
    """What run.json says: the question is the recording's, and nothing is measured."""
    return replace(
        info,
        backend=BACKEND,
        simulated=True,
        replayed=recording.name,
        training=recording.training,
        domain=recording.domain,
        mem_limit_bytes=recording.mem_limit_bytes,
        transport=recording.transport,
        assume_transport=recording.assume_transport,
        distributions={},
    )


def understand_replay(request: Request) -> Question:
    """The recording's question, asked again with this strategy, seed, objective and budget.

    Raises:
        InputError: no recording, or a flag or argument that it contradicts.
        FormatError: a recording that cannot be read.
    """
    assert request.replay is not None
    began = time.monotonic() if request.began is None else request.began
    budget_s = parse_budget(request.budget)
    check_strategy(request.strategy)
    check_objective(request.objective)
    for flag in OF_MEASURING:
        if getattr(request, flag):
            raise InputError(f"--{flag.replace('_', '-')} cannot be had with --replay", "leave one of the two out")
    recording = read_recording(request.replay)
    _refuse_other(request, recording)
    job, machine = dict(recording.job), recording.machine
    limit = recording.mem_limit_bytes
    where = describe(machine, recording.gpus) + (f", {recording.n_ranks} ranks" if recording.n_ranks > 1 else "")
    return Question(
        request=replace(request, atlas=False),
        began=began,
        budget_s=budget_s,
        user=dict(recording.user_args),
        job=job,
        title=(str(job.get("model")), str(job.get("data"))),
        task=recording.task,
        device=recording.device,
        gpus=recording.gpus,
        machine=machine,
        space=recording.space,
        ctx=context_of(recording),
        out=writable(Path(request.out)),
        dataset=None,
        headline=(
            f"REPLAYED (--replay {recording.name}), nothing is measured: autotune search: {job.get('model')}, "
            f"{job.get('data')}, on {where}; space {recording.space.name}, budget {request.budget}"
        ),
        segment=recording.segment,
        notes=_notes(recording),
        memory=memory_limit(machine, recording.gpus, recording.n_ranks, f"{limit}B" if limit else None),
        recording=recording,
    )


def _notes(recording: Recording) -> tuple[str, ...]:
    """How far its numbers may be believed."""
    most = max(map(len, recording.cells.values()))
    return (
        f"every number is of {recording.name}, recorded before: nothing was measured anew",
        f"a configuration was recorded {most} times at most and answers with these runs in turn: where the comparison "
        "takes more of it, its interval is too narrow",
    )


def _refuse_other(request: Request, recording: Recording) -> None:
    """Another job, machine or space than the recorded one has no answers."""
    for flag in OF_RECORDING:
        if getattr(request, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')} is the recording's with --replay", "leave it out")
    if "training" in request.given and request.training != recording.training:
        raise InputError(f"--training differs: the recording has {recording.training}, now {request.training}")
    today = parse_pairs(request.pairs) if request.user_args is None else dict(request.user_args)
    whole = job_args(recording.job)
    for key, now in today.items():
        then = [whole.get(key), *([recording.user_args[key]] if key in recording.user_args else [])]
        if not _among(now, then):
            raise InputError(
                f"{key} differs: the recording has {key}={spell(then[0])}, now {key}={spell(now)}",
                "a replay answers for the job that was recorded: leave it out",
            )
    runs = (run.result for cell in recording.cells.values() for run in cell)
    if request.objective == "energy" and not any(r.energy_j_per_image for r in runs):
        raise InputError("--objective energy: the recording counted no energy", "use images_per_s or job_time")


def _among(now: Any, then: Sequence[Any]) -> bool:
    """Equal to one of these, a path to the same file too."""
    if any(same(now, v) or json.dumps(now) == json.dumps(v) for v in then):
        return True
    return isinstance(now, str) and str(Path(now).expanduser().resolve()) in map(str, then)
