"""May that run go on, and which question does it ask? A run folder becomes the request that made it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.contract import Machine, RunDir, RunInfo, read_json
from autotune.errors import InputError, MachineError
from autotune.folders import run_folder, safe_name
from autotune.machine.facts import differences
from autotune.machine.memory import parse_size, spell_size
from autotune.question import Question, Request
from autotune.run.leftover import kill_leftovers, sweep_files
from autotune.run.transport import kinds
from autotune.search.past import Past, mend_journal, read_past
from autotune.space.config import canonical
from autotune.space.legal import same, spell
from autotune.space.space import dump_space, load_space, prepare
from autotune.space.yolo_args import parse_pairs, yolo_defaults

_HINT = "a search with other settings is a new search: leave out --resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """The run to go on with."""

    run_dir: RunDir
    info: RunInfo
    machine: Machine


def earlier(path: str) -> Earlier:
    """The run of this folder; results/latest is followed to it.

    Raises:
        InputError: not a run folder, or that of a replay.
        FormatError: run.json or machine.json cannot be read.
    """
    run_dir = run_folder(path)
    info = read_json(run_dir.info, RunInfo)
    if info.replayed:
        raise InputError(
            f"{path} is a replay of {info.replayed}: it is not gone on with", "replay again: it takes seconds"
        )
    return Earlier(run_dir=run_dir, info=info, machine=read_json(run_dir.machine, Machine))


def clear_up(run: Earlier) -> Past:
    """Kill what the dead search left running, remove what it left half-written, and read what it left whole."""
    kill_leftovers(run.run_dir.path)
    sweep_files(run.run_dir)
    mend_journal(run.run_dir.events)
    return read_past(run.run_dir)


def as_asked(request: Request, run: Earlier) -> Request:
    """The request that made the run, with today's budget; what was typed today and agrees changes nothing.

    Raises:
        InputError: a flag of today that says something else.
    """
    info, given = run.info, request.given
    was: dict[str, Any] = {
        "objective": info.objective,
        "strategy": info.strategy,
        "training": info.training,
        "seed": info.seed,
        "dry_run": info.simulated,
        "assume_transport": info.assume_transport,
        "out": run.run_dir.path.parent,
    }
    for name, value in was.items():
        now = Path(request.out).expanduser().resolve() if name == "out" else getattr(request, name)
        if name in given and now != value:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} differs: {run.run_dir.path.name} has {value}, now {now}", _HINT)
    limit = info.mem_limit_bytes
    if request.mem_limit and parse_size(request.mem_limit) != limit:
        had = spell_size(limit) if limit else "none"
        raise InputError(f"--mem-limit differs: {run.run_dir.path.name} has {had}, now {request.mem_limit}", _HINT)
    if request.name and safe_name(request.name) not in info.name:
        raise InputError(f"--name differs: this run is {info.name}", _HINT)
    if request.space and dump_space(load_space(request.space)) != dump_space(load_space(str(run.run_dir.space))):
        raise InputError(f"the space differs: --space {request.space} is not the {info.space} of this run", _HINT)
    user = {
        key: info.train_args[key] if key in ("model", "data", "pretrained") else v for key, v in info.user_args.items()
    }
    today = parse_pairs(request.pairs) if request.user_args is None else dict(request.user_args)
    gpus = request.gpus
    if gpus is None and "device" not in today:
        if info.simulated and info.device != "cpu":
            gpus = info.device if info.n_ranks > 1 else "1"  # GPUs that need not be there
            user.pop("device", None)
        else:
            user["device"] = info.device
    return replace(
        request,
        pairs=(),
        user_args={**user, **today},
        gpus=gpus,
        ranks=request.ranks or (info.n_ranks if info.device == "cpu" else None),
        space=str(run.run_dir.space),
        mem_limit=f"{limit}B" if limit else None,
        **{**was, "out": str(was["out"])},
    )


def check(question: Question, run: Earlier, past: Past) -> None:
    """Refuse to mix what cannot be compared.

    Raises:
        MachineError: this is not the machine of the run, or these are not its GPUs.
        InputError: the job, the dataset, the space or what is set of NCCL is another one.
    """
    info, name = run.info, run.run_dir.path.name
    if question.machine.fingerprint != run.machine.fingerprint:
        what = differences(run.machine, question.machine) or "it is another one"
        raise MachineError(
            f"the machine differs from that of {name}: {what}", "its numbers cannot be compared with new ones"
        )
    if question.ctx.n_ranks != info.n_ranks:
        raise InputError(f"the ranks differ: {name} has {info.n_ranks}, now {question.ctx.n_ranks}", _HINT)
    was = {**info.train_args, "batch": info.user_args.get("batch", yolo_defaults()["batch"])}
    for key in sorted(was.keys() | question.job.keys()):
        then, now = was.get(key), question.job.get(key)
        if json.dumps(then) != json.dumps(now):
            raise InputError(f"{key} differs: {name} has {key}={spell(then)}, now {key}={spell(now)}", _HINT)
    if not info.simulated and set(question.gpus) != set(info.gpus):
        # The same indices are others under another CUDA_VISIBLE_DEVICES, and the fingerprint knows only their model.
        then, now = (", ".join(gpus) or "the CPU" for gpus in (info.gpus, question.gpus))
        raise MachineError(
            f"the GPUs differ: {name} has {then}, now {now}", "show it the same ones: --gpus and CUDA_VISIBLE_DEVICES"
        )
    for variable in sorted(info.nccl_set.keys() | question.nccl_set.keys()):
        then, now = (found.get(variable, "not set") for found in (info.nccl_set, question.nccl_set))
        if then != now:
            raise InputError(
                f"NCCL's settings differ: {name} has {variable} {then}, now {now}",
                "they are part of the baseline: set them as they were, or leave out --resume",
            )
    baseline = past.baseline
    if baseline is None:
        return
    n_then, n_now = info.n_images, question.ctx.n_images
    if n_then is not None and n_now is not None and n_then != n_now:
        raise InputError(f"the dataset differs: {n_then} training images when {name} began, {n_now} now", _HINT)
    _check_domain(question, run, past)


def _check_domain(question: Question, run: Earlier, past: Past) -> None:
    """Optuna cannot change the choices of a running study, and a value that is gone could not be measured again."""
    info, baseline = run.info, past.baseline
    assert baseline is not None
    halved = past.baseline_args.keys() & {"batch"}
    ctx = replace(
        question.ctx,
        effective=dict(baseline.effective),
        n_images=baseline.job.get("n_images", question.ctx.n_images),
        train_args={**question.ctx.train_args, **{k: past.baseline_args[k] for k in halved}},
        transports=kinds(info.transport, question.ctx.transports or ()),
    )
    prepared = prepare(question.space, ctx, info.training)
    for knob, values in info.domain.items():
        gone = [v for v in values if not any(same(v, have) for have in prepared.domain.get(knob, ()))]
        if gone:
            why = next((r for k, r in prepared.frozen.items() if k.split("=")[0] == knob), "not possible here")
            raise InputError(f"the space differs: {knob}={spell(gone[0])} cannot be had now: {why}", _HINT)
    if info.baseline_params and canonical(prepared.baseline, ctx) != info.baseline_params:
        raise InputError("the space differs: your settings give another baseline in it now", _HINT)


def continued(info: RunInfo, question: Question, past: Past, warnings: tuple[str, ...]) -> RunInfo:
    """run.json of the run from now on: the same question, more time; what the machine was warned of then and now."""
    return replace(
        info,
        budget_s=past.elapsed_s + question.budget_s,
        resumed=(*info.resumed, question.request.command),
        train_args=question.job,
        gpus=question.gpus,
        warnings=tuple(dict.fromkeys((*info.warnings, *warnings))),
    )
