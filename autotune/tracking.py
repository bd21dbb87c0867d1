"""python -m autotune.tracking wandb|mlflow RUN: events on stdin become runs of a tracker (started by trackers.py).

One run a trial, all of a search in one group: W&B's group, or an MLflow parent run, has the run folder's name. Where
they go to is the tracker's own business: WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI and their like hold.
Stdin is a socket: one event a line comes in; an empty line goes out for each that was dealt with, or why it failed.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from autotune.contract import Params, RunDir, RunInfo, read_json

METRICS: Final = (
    *("images_per_s", "ci95_lo", "ci95_hi", "job_s", "step_p50_s", "step_p90_s", "wait_frac", "straggler_frac"),
    *("energy_j", "energy_j_per_image", "n_steps", "took_s"),
)
"""Of a TrialResult; with them go peak_mem_bytes of the largest rank and the phases."""
PROJECT: Final = "autotune"
"""W&B project and MLflow experiment, where the environment names none."""
REASON_CHARS: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """One run, as a tracker shows it."""

    name: str
    role: str
    ended_well: bool
    config: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the search began, and images/s so far."""


Log = Callable[[Tracked], None]
"""Writes a whole run; the one of role `summary` is the last."""


def wandb_log(run: RunDir, info: RunInfo) -> Log:
    """Runs of W&B, in the group of the search; offline ones lie in RUN/wandb."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    settings = wandb.Settings(console="off", x_disable_stats=True, disable_git=True, disable_code=True)

    def write(tracked: Tracked) -> None:
        made = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=info.name,
            name=tracked.name,
            job_type=tracked.role,
            tags=[tracked.role, *(v for k, v in tracked.tags.items() if k == "outcome")],
            config=tracked.config,
            dir=os.environ.get("WANDB_DIR", str(run.path)),
            settings=settings,
        )
        for t_s, images_per_s in tracked.history:
            made.log({"t_s": t_s, "live_images_per_s": images_per_s})
        made.summary.update({**tracked.metrics, **tracked.tags})
        made.finish(exit_code=int(not tracked.ended_well))
        wandb.teardown()  # its service uses 0.2 % of a core while it waits: too much beside a measurement

    return write


def mlflow_log(_run: RunDir, info: RunInfo) -> Log:
    """Runs of MLflow, nested in one of the search, which carries the summary."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known else client.create_experiment(name)
    parent = client.create_run(experiment, run_name=info.name).info.run_id
    began_s = time.time()

    def write(tracked: Tracked) -> None:
        tags = {**tracked.tags, "role": tracked.role, "group": info.name}
        if tracked.role == "summary":
            made = parent
        else:
            nested = {"mlflow.parentRunId": parent}
            made = client.create_run(experiment, run_name=tracked.name, tags=nested).info.run_id
        at = [(t_s, "live_images_per_s", value, step) for step, (t_s, value) in enumerate(tracked.history)]
        now = [(time.time() - began_s, key, value, 0) for key, value in tracked.metrics.items()]
        client.log_batch(
            made,
            metrics=[Metric(key, value, int(1000 * (began_s + t_s)), step) for t_s, key, value, step in (*at, *now)],
            params=[Param(key, str(value)) for key, value in tracked.config.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        client.set_terminated(made, "FINISHED" if tracked.ended_well else "FAILED")

    return write


LOGS: Final[dict[str, Callable[[RunDir, RunInfo], Log]]] = {"wandb": wandb_log, "mlflow": mlflow_log}


class Collector:
    """Makes a run of the events of a trial, and writes it when the trial has ended: nothing before that."""

    def __init__(self, run: RunDir, info: RunInfo, write: Log) -> None:
        self._run, self._info, self._write = run, info, write
        self._history: list[tuple[float, float]] = []
        self._running: int | None = None
        self._outcomes: list[str] = []

    def __call__(self, event: dict[str, Any]) -> None:
        """Take an event in."""
        match event["kind"]:
            case "trial_started":
                self._running, self._history = event["number"], []
            case "trial_progress":
                self._history.append((event["t_s"], event["images_per_s"]))
            # A resumed search shows the trials of its earlier parts again; those were not started now.
            case "trial_ended" if event["result"]["number"] == self._running:
                self._running = None
                self._write(self._trial(event["result"], event["changes"]))
            case "run_ended":
                self._write(self._summary(event))

    def _trial(self, result: dict[str, Any], changes: Params) -> Tracked:
        self._outcomes.append(result["outcome"])
        seconds = {f"phase_{phase}_s": s for phase, s in result["phases_s"].items()}
        peak = {"peak_mem_bytes": max(result["peak_mem_bytes"], default=None)}
        what = f"probe {result['probe']}" if result["probe"] else result["role"]
        return Tracked(
            name=f"{result['number']:04d} {what}",
            role=result["role"],
            ended_well=result["outcome"] in ("ok", "unstable", "pruned"),
            config={**self._search(), "number": result["number"], **result["params"], "changes": json.dumps(changes)},
            metrics=_known({**{name: result[name] for name in METRICS}, **peak, **seconds}),
            tags={k: str(result[k]) for k in ("outcome", "error", "hint") if result[k]},
            history=self._history,
        )

    def _summary(self, event: dict[str, Any]) -> Tracked:
        counts = {f"n_{outcome}": float(self._outcomes.count(outcome)) for outcome in self._outcomes}
        report = {"report": str(self._run.report)} if self._run.report.exists() else {}
        return Tracked(
            name="summary",
            role="summary",
            ended_well=event["exit_code"] == 0,
            config=self._search(),
            metrics=counts,
            tags={"verdict": event["sentence"], **report},
        )

    def _search(self) -> dict[str, Any]:
        """What all runs of the search have in common."""
        names = ("objective", "strategy", "space", "training", "device", "n_ranks", "simulated", "replayed", "command")
        return {name: getattr(self._info, name) for name in names}


def _known(metrics: dict[str, float | None]) -> dict[str, float]:
    return {name: float(x) for name, x in metrics.items() if x is not None and math.isfinite(x)}


def serve(lines: Iterable[bytes], answer: Callable[[bytes], object], make: Callable[[], Collector]) -> None:
    """Deal with events until there are no more; a failure is the last answer."""
    try:
        collect = make()
        for line in lines:
            collect(json.loads(line))
            answer(b"\n")
    except Exception as e:
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:REASON_CHARS]
        answer(reason.encode() + b"\n")
        raise


def main(name: str, folder: str) -> None:
    """Speak with the controller until it closes the socket."""
    run = RunDir(Path(folder))

    def make() -> Collector:
        info = read_json(run.info, RunInfo)
        return Collector(run, info, LOGS[name](run, info))

    with socket.socket(fileno=0) as controller, controller.makefile("rb") as lines:
        serve(lines, controller.sendall, make)


if __name__ == "__main__":
    main(*sys.argv[1:])
