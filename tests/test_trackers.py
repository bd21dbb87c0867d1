"""--track: what W&B and MLflow are left with, in their offline modes, and what a search loses when one fails."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune import trackers
from autotune.contract import (
    Event,
    Outcome,
    RunDir,
    RunEnded,
    RunInfo,
    RunStarted,
    Summary,
    TrialEnded,
    TrialProgress,
    TrialResult,
    TrialStarted,
    read_json,
    to_dict,
    write_json,
)
from autotune.errors import InputError
from autotune.trackers import Tracker, parse_track
from autotune.tracking import Collector, Tracked, serve
from tests.cli import autotune

SENTENCE = "SIMULATED: 2.00x faster than your settings"


def result(number: int, outcome: Outcome = Outcome.OK, **fields: Any) -> TrialResult:
    common = {"role": "trial", "params": {"batch_per_gpu": 8, "amp": None}, "started_s": 1.0, "took_s": 9.0}
    return TrialResult(number=number, outcome=outcome, **{**common, **fields})


def events(folder: Path) -> list[Event]:
    """A search of three: the user's own settings, one that runs out of memory, one that is twice as fast."""
    base = {"t_s": 12.0, "changes": {}}
    return [
        RunStarted(t_s=0.5, headline="a search", folder=str(folder), budget_s=600.0),
        *_trial(result(0, role="baseline", images_per_s=50.0, ci95_lo=49.0, ci95_hi=51.0, job_s=100.0, wait_frac=0.2)),
        *_trial(result(1, Outcome.OOM, error="out of memory")),
        *_trial(result(2, images_per_s=100.0, job_s=50.0, peak_mem_bytes=(5, 7), phases_s={"import": 2.0})),
        # As a resumed search shows a trial of its earlier part: nobody started it now.
        TrialEnded(**base, result=result(9)),
        RunEnded(t_s=30.0, exit_code=0, sentence=SENTENCE),
    ]


def _trial(of: TrialResult) -> list[Event]:
    at = {"number": of.number}
    return [
        TrialStarted(t_s=1.0, role=of.role, changes={}, price_s=None, **at),
        *(
            TrialProgress(t_s=20.0 * of.number + t, phase="measuring", n_steps=3, images_per_s=60.0 + t, **at)
            for t in (1, 2, 7, 8, 13)
        ),
        TrialEnded(t_s=14.0, changes={"batch_per_gpu": 8}, result=of),
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run folder with a report."""
    folder = RunDir(tmp_path / "a search é")
    folder.path.mkdir()
    info = {
        "name": "a search é",
        "command": "autotune search",
        "started": "2026-11-23T20:00:00+00:00",
        "task": "detect",
    }
    what = {"objective": "job_time", "strategy": "tpe", "space": "cpu", "training": "same", "device": "cpu"}
    write_json(folder.info, RunInfo(**info, **what, budget_s=600.0, seed=0, backend="synthetic", simulated=True))
    folder.report.write_text("<html>")
    return folder


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """No tracker may ask the network; returns MLflow's address."""
    address = f"sqlite:///{tmp_path}/mlflow.db"
    for name, value in {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": address}.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_DIR", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "PYTHONWARNINGS"):
        monkeypatch.delenv(name, raising=False)
    return address


def tell(name: str, run: RunDir) -> Tracker:
    """Drive one tracker through the whole search."""
    with Tracker(name, run.path) as tracker:
        for event in events(run.path):
            tracker(event)
        return tracker


def wandb_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Offline runs of W&B by name: group, job_type, config, summary, number of history rows, exit code."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in folder.glob("offline-run-*/run-*.wandb"):
        one: dict[str, Any] = {"summary": {}, "history": []}
        for payload in _leveldb(path.read_bytes()):
            record = Record.FromString(payload)
            if record.HasField("run"):
                run = record.run
                one |= {"name": run.display_name, "group": run.run_group, "tags": list(run.tags)}
                one["config"] = {c.key: json.loads(c.value_json) for c in run.config.update}
            one["summary"] |= {i.key: json.loads(i.value_json) for i in record.summary.update if i.key}
            if record.HasField("history"):
                row = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
                one["history"].append((row["t_s"], row["live_images_per_s"]))
            if record.HasField("exit"):
                one["exit_code"] = record.exit.exit_code
        found[one["name"]] = one
    return found


def _leveldb(data: bytes) -> Iterator[bytes]:
    """Records of a log in LevelDB's format (doc/log_format.md there), with W&B's own header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # FULL, LAST
            yield whole
            whole = b""


def test_wandb_has_a_run_a_trial_in_one_group(run: RunDir, offline: str) -> None:
    tell("wandb", run)
    runs = wandb_runs(run.path / "wandb")
    said = (run.path / "tracker_wandb.txt").read_text()
    assert set(runs) == {"0000 baseline", "0001 trial", "0002 trial", "summary"}, said
    assert {r["group"] for r in runs.values()} == {"a search é"}
    baseline, oom, best, last = (runs[name] for name in sorted(runs))
    assert baseline["config"] | {"batch_per_gpu": 8, "objective": "job_time", "simulated": True} == baseline["config"]
    given = {"images_per_s": 50.0, "ci95_lo": 49.0, "ci95_hi": 51.0, "job_s": 100.0, "wait_frac": 0.2, "outcome": "ok"}
    assert baseline["summary"] | given == baseline["summary"]
    assert baseline["history"] == [(7.0, 67.0), (13.0, 73.0)]
    assert "oom" in oom["tags"]
    assert (oom["exit_code"], oom["summary"]["error"]) == (1, "out of memory")
    assert best["summary"] | {"peak_mem_bytes": 7.0, "phase_import_s": 2.0} == best["summary"]
    assert last["summary"] | {"verdict": SENTENCE, "report": str(run.report), "n_oom": 1.0} == last["summary"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # of SQLAlchemy, in MLflow
def test_mlflow_has_a_run_a_trial_nested_in_one(run: RunDir, offline: str) -> None:
    tell("mlflow", run)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(offline)
    experiment = client.get_experiment_by_name("autotune")
    assert experiment is not None, (run.path / "tracker_mlflow.txt").read_text()
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"a search é", "0000 baseline", "0001 trial", "0002 trial"}
    parent = runs.pop("a search é")
    assert {r.data.tags["mlflow.parentRunId"] for r in runs.values()} == {parent.info.run_id}
    assert (parent.data.tags["verdict"], parent.data.tags["report"]) == (SENTENCE, str(run.report))
    assert parent.data.metrics == {"n_ok": 2.0, "n_oom": 1.0}
    baseline, oom, best = (runs[name] for name in sorted(runs))
    assert baseline.data.params | {"batch_per_gpu": "8", "objective": "job_time"} == baseline.data.params
    given = {"images_per_s": 50.0, "ci95_lo": 49.0, "ci95_hi": 51.0, "job_s": 100.0, "wait_frac": 0.2}
    assert baseline.data.metrics | given == baseline.data.metrics
    assert [m.value for m in client.get_metric_history(baseline.info.run_id, "live_images_per_s")] == [67.0, 73.0]
    assert (oom.info.status, oom.data.tags["outcome"], oom.data.tags["error"]) == ("FAILED", "oom", "out of memory")
    assert (best.info.status, best.data.metrics["peak_mem_bytes"]) == ("FINISHED", 7.0)


def test_only_what_was_started_now_is_written(run: RunDir) -> None:
    written: list[Tracked] = []
    collect = Collector(run, read_json(run.info, RunInfo), written.append)
    for event in events(run.path):
        collect(to_dict(event))
    assert [w.name for w in written] == ["0000 baseline", "0001 trial", "0002 trial", "summary"]


def test_the_reason_of_a_failure_is_the_last_answer() -> None:
    answers: list[bytes] = []

    def collect(event: dict[str, Any]) -> None:
        if event["kind"] == "bad":
            raise RuntimeError("no\nnetwork")

    with pytest.raises(RuntimeError):
        serve([b'{"kind": "good"}', b'{"kind": "bad"}', b'{"kind": "good"}'], answers.append, lambda: collect)
    assert answers == [b"\n", b"RuntimeError: no network\n"]


@pytest.mark.parametrize(
    ("flag", "message", "hint"),
    [
        ("comet", "--track comet is not known", "wandb or mlflow"),
        ("wandb,mlflow", "--track mlflow: mlflow is not installed", "pip install 'yolo-autotune[mlflow]'"),
    ],
)
def test_a_tracker_that_is_not_there(
    flag: str, message: str, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        trackers, "find_spec", lambda name: None if name == "mlflow" else sys.modules[__name__].__spec__
    )
    with pytest.raises(InputError, match=message) as error:
        parse_track(flag)
    assert hint in error.value.hint
    said = autotune("search", "--dry-run", "--out", tmp_path / "out", "--track", flag)
    assert (said.code, said.err.startswith(f"error: {message}")) == (2, True)
    assert not (tmp_path / "out").exists()


def test_names_are_each_heard_once() -> None:
    assert parse_track(" wandb, mlflow,wandb,") == ("wandb", "mlflow")
    assert parse_track(None) == ()


def test_one_that_fails_is_switched_off(
    run: RunDir, offline: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    tracker = tell("wandb", run)
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == [
        "wandb is switched off, the search goes on without it"
    ]
    assert tracker._process is None


def test_one_that_hangs_is_not_waited_for(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {"LEAST_PATIENCE_S": 0.3, "PATIENCE_FRAC": 0.0, "LAST_PATIENCE_S": 0.3}.items():
        monkeypatch.setattr(trackers, name, value)
    with Tracker("wandb", run.path) as tracker:
        assert tracker._process is not None
        process = tracker._process
        os.kill(process.pid, signal.SIGSTOP)
        for event in events(run.path):
            tracker(event)
        assert process.returncode == -signal.SIGKILL
    slow, off = (r.getMessage() for r in caplog.records)
    assert slow == "wandb is slow: from trial 0 on its runs are written after the report"
    assert off.startswith("wandb is switched off")


@pytest.mark.slow
def test_one_that_is_slow_is_given_the_rest_at_the_end(
    run: RunDir, offline: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "LEAST_PATIENCE_S", 0.001)
    monkeypatch.setattr(trackers, "PATIENCE_FRAC", 0.0)
    tell("wandb", run)
    assert [r.args for r in caplog.records] == [("wandb", 0)], "its imports take longer than a millisecond"
    assert set(wandb_runs(run.path / "wandb")) == {"0000 baseline", "0001 trial", "0002 trial", "summary"}


@pytest.mark.slow
def test_a_search_outlives_a_tracker_that_fails(
    tmp_path: Path, offline: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    said = autotune("search", "--dry-run", "--budget", "30m", "--out", tmp_path, "--track", "wandb,mlflow")
    assert said.code == 0, said
    assert [r.args[0] for r in caplog.records if "switched off" in r.getMessage()] == ["mlflow"]
    folder = (tmp_path / "latest").resolve()
    summary = read_json(folder / "summary.json", Summary)
    runs = wandb_runs(folder / "wandb")
    assert {r["group"] for r in runs.values()} == {folder.name}
    assert len(runs) == 1 + len(list((folder / "trials").glob("*/result.json")))
    assert runs["summary"]["summary"]["verdict"] == summary.verdict.sentence
