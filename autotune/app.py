"""What happens between Enter and the last line? Wires the rooms together; every decision is made in one of them."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from autotune.contract import (
    Event,
    Gpu,
    Machine,
    Observer,
    PhaseStarted,
    RunDir,
    RunEnded,
    RunInfo,
    RunStarted,
    SegmentSettings,
    Summary,
    Value,
    to_dict,
    write_json,
)
from autotune.errors import EXIT_INTERRUPTED, EXIT_NO_TRIAL, EXIT_OK, InputError, NoTrialError

if TYPE_CHECKING:
    pass

DEMO_IMGSZ_CPU = 128
DEFAULT_MODEL = "yolo11n.yaml"
TRIAL_ARGS: dict[str, Any] = {
    # None of these touches a steady step (MEASURING 1); save_dir is relative to the trial's folder.
    "plots": False,
    "val": False,
    "save": False,
    "warmup_epochs": 0,
    "save_dir": "yolo",
    "exist_ok": True,
}
REPORT_S = 12.0
"""Kept back for exports (they import Ultralytics once to check best.yaml) and the report."""
DRY_RUN_TRIALS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for; the names are those of the flags."""

    pairs: Sequence[str] = ()
    """YOLO's own key=value, as typed."""
    user_args: Mapping[str, Any] | None = None
    """The same from Python, in place of `pairs`."""
    gpus: str | None = None
    budget: str = "30m"
    space: str | None = None
    objective: str = "job_time"
    strategy: str = "tpe"
    seed: int = 0
    name: str | None = None
    out: str = "results"
    training: str = "same"
    dry_run: bool = False
    command: str = ""
    began: float | None = None
    """time.monotonic() at Enter; None: now."""


@dataclass
class _Journal:
    """Fans events out to the observers; the controller journals its own, these are session's."""

    observers: list[Observer]
    path: Path
    began: float
    seen: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(to_dict(event), ensure_ascii=False) + "\n")
        for observer in self.observers:
            observer(event)

    def now_s(self) -> float:
        return time.monotonic() - self.began


def search(request: Request, observers: Sequence[Observer] = ()) -> tuple[Path, int]:
    """The whole job of `autotune search`.

    Returns:
        Run folder and exit code (0, 4 or 130).

    Raises:
        AutotuneError: wrong input; nothing was written then.
    """
    from autotune.folders import git_state, label, make_folder, point_latest, writable
    from autotune.machine.facts import read_machine, resolve_gpus
    from autotune.port import SpacePort
    from autotune.run.dataset import DatasetView, inspect_dataset
    from autotune.run.demo import demo_dataset
    from autotune.run.trial import run_trial
    from autotune.search.budget import Budget, parse_budget
    from autotune.search.controller import search as run_search
    from autotune.search.objective import check_objective
    from autotune.search.plan import Plan
    from autotune.search.samplers import check_strategy
    from autotune.space.knobs import Context
    from autotune.space.space import dump_space, load_space
    from autotune.space.yolo_args import job_args, parse_pairs, resolve_model, task_of

    began = time.monotonic() if request.began is None else request.began
    budget_s = parse_budget(request.budget)
    check_strategy(request.strategy)
    check_objective(request.objective)
    if request.training not in ("same", "bounded", "any"):
        raise InputError(f"--training {request.training} is not known", "use same, bounded or any")
    user = parse_pairs(request.pairs) if request.user_args is None else dict(request.user_args)
    job_args(user)  # refuses what cannot train, before anything is written
    machine = read_machine()
    if request.dry_run and not machine.gpus and request.gpus:
        machine = replace(machine, gpus=(Gpu(index=0, uuid="GPU-simulated", name="simulated GPU", mem_bytes=16 << 30),))
    device, gpus = resolve_gpus(request.gpus, user.get("device"), machine)
    space = load_space(request.space or ("cpu" if device == "cpu" else "default"))
    given_model = str(user.get("model") or DEFAULT_MODEL)
    model = resolve_model(given_model)
    task = task_of(user, model)
    out = writable(Path(request.out))
    demo = "data" not in user
    if demo and task != "detect":
        raise InputError(f"the demo set is for detection, this is a {task} job", "name a dataset: data=YOURS.yaml")
    job: dict[str, Any] = {**user, "task": task, "mode": "train", "model": model, "device": device}
    if demo and device == "cpu":
        job.setdefault("imgsz", DEMO_IMGSZ_CPU)
    headline = _headline(request, user, job, space.name, machine, device)
    if request.dry_run and demo:
        job["data"], info_data = "demo", None
    else:
        if demo:
            _early(observers, began)
        job["data"] = str(demo_dataset()) if demo else str(user["data"])
        info_data = inspect_dataset(job["data"], task)
        job["data"] = info_data.data
    ctx = Context(
        machine=machine,
        task=task,
        device="cpu" if device == "cpu" else "cuda",
        n_ranks=1,
        train_args=job_args(job),
        n_images=info_data.n_train if info_data else None,
        image_hw=info_data.median_shape if info_data else None,
        free_ram_bytes=psutil.virtual_memory().available,
        free_disk_bytes=shutil.disk_usage(out if out.exists() else Path.cwd()).free,
        env=dict(os.environ),
        effective={},
    )
    folder = make_folder(out, request.name or label(given_model, job["data"], machine, device))
    run_dir = RunDir(folder)
    info = RunInfo(
        name=folder.name,
        command=request.command,
        started=dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        budget_s=budget_s,
        objective=request.objective,
        strategy=request.strategy,
        space=space.name,
        training=request.training,
        seed=request.seed,
        backend="synthetic" if request.dry_run else "yolo",
        simulated=request.dry_run,
        task=task,
        device=device,
        gpus=gpus,
        train_args=job,
        user_args=user,
        versions=machine.versions,
        git=git_state(),
    )
    write_json(run_dir.info, info)
    write_json(run_dir.machine, machine)
    run_dir.space.write_text(dump_space(space), encoding="utf-8")
    journal = _Journal(list(observers), run_dir.events, began)
    journal(RunStarted(t_s=journal.now_s(), headline=headline, folder=str(folder), budget_s=budget_s))
    code, sentence = EXIT_OK, ""
    with contextlib.ExitStack() as stack:
        if info_data:
            stack.callback(shutil.rmtree, folder / ".data", ignore_errors=True)
            view = stack.enter_context(DatasetView(job["data"], task, folder / ".data"))
            data_for: Callable[[Value], str] = view.path
        else:

            def data_for(cache: Value) -> str:
                return "demo"

        plan = Plan(
            run_dir=run_dir,
            info=info,
            space=SpacePort(space, ctx, request.training),
            budget=Budget(budget_s, started=began),
            data_for=data_for,
            # CUDA_VISIBLE_DEVICES narrows a trial to its GPU, which is then number 0.
            trial_args={**TRIAL_ARGS, "device": "cpu" if device == "cpu" else "0"},
            segment=segment_settings(device, budget_s),
            n_images=ctx.n_images,
            report_s=2.0 if request.dry_run else REPORT_S,
            max_trials=DRY_RUN_TRIALS if request.dry_run else None,
        )
        try:
            summary = run_search(plan, run_trial, observers)
        except NoTrialError as e:
            journal(RunEnded(t_s=journal.now_s(), exit_code=EXIT_NO_TRIAL, sentence=f"error: {e.message}"))
            if run_dir.summary.exists():
                _write_report(folder)
            raise
    if summary.stopped_because == "interrupted":
        code = EXIT_INTERRUPTED
    sentence = summary.verdict.sentence
    journal(PhaseStarted(t_s=journal.now_s(), phase="report"))
    commands = finish(run_dir, summary)
    journal(RunEnded(t_s=journal.now_s(), exit_code=code, sentence=sentence, next_commands=commands))
    point_latest(out, folder)
    return folder, code


def finish(run_dir: RunDir, summary: Summary) -> tuple[str, ...]:
    """Export and report; returns the commands to use next."""
    folder = run_dir.path
    commands: list[str] = []
    if summary.best_number is not None:
        from autotune.report.export import export

        best = export(run_dir)
        commands = [
            f"yolo train cfg={shlex.quote(str(best / 'best.yaml'))}",
            f"bash {shlex.quote(str(best / 'launch.sh'))}",
        ]
    page = _write_report(folder)
    return (*commands, f"open {shlex.quote(str(page))}")


def _write_report(folder: Path) -> Path:
    from autotune.report.html import write_report

    return write_report(folder)


def segment_settings(device: str, budget_s: float) -> SegmentSettings:
    """Lengths of a segment: longer with a longer budget, within what SEARCH 3.1 says is worth it.

    A step of a small CPU takes 0.2-1 s where a GPU's takes 0.02-0.2 s, so the CPU's minimum counts fewer steps.
    """
    if device == "cpu":
        measure = min(max(budget_s / 75, 3.0), 15.0)
        return SegmentSettings(
            warmup_steps=4,
            warmup_s=1.5,
            warmup_cap_s=max(6.0, measure),
            measure_s=measure,
            measure_steps=8,
            measure_cap_s=max(20.0, 3 * measure),
            ci_target_frac=0.04,
        )
    measure = min(max(budget_s / 120, 4.0), 15.0)
    return SegmentSettings(measure_s=measure, measure_cap_s=40.0)


def _headline(
    request: Request, user: Mapping[str, Any], job: Mapping[str, Any], space: str, machine: Machine, device: str
) -> str:
    from autotune.machine.facts import describe

    where = "CPU, " + str(machine.n_cores) + " cores" if device == "cpu" else describe(machine)
    model = Path(str(user.get("model") or DEFAULT_MODEL)).name
    said_model = "" if "model" in user else " from scratch (no model= given)"
    data = Path(str(user["data"])).name if "data" in user else "the built-in demo set (no data= given)"
    simulated = "SIMULATED (--dry-run): " if request.dry_run else ""
    imgsz = job.get("imgsz", 640)
    return (
        f"{simulated}autotune search: {model}{said_model}, {data}, imgsz {imgsz}, on {where}; "
        f"space {space}, budget {request.budget}"
    )


def _early(observers: Sequence[Observer], began: float) -> None:
    """The demo set takes seconds the first time: say what is going on before it is drawn."""
    from autotune.run.demo import demo_exists

    if not demo_exists():
        for observer in observers:
            observer(PhaseStarted(t_s=time.monotonic() - began, phase="setup", note="drawing the demo set, once"))


def command_line(argv: Sequence[str]) -> str:
    """What was typed, quoted so that it can be pasted."""
    return shlex.join([Path(sys.executable).name, "-m", "autotune", *argv])
