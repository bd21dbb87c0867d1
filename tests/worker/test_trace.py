"""A traced trial: what the trace holds, what the table says of it, and that neither is ever a measurement."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.contract import Outcome, RankRecord, RunInfo, TraceSummary, TrialDir, read_json, write_json
from autotune.report.trace import trace_lines
from autotune.run.trial import run_trial
from autotune.worker.trace import LOADER, STEP, summarise
from tests.cli import autotune
from tests.run.trials import spec


@pytest.mark.slow
def test_trace_of_a_real_trial(tiny: Path, tmp_path: Path) -> None:
    """By the command line, from a run folder as the search leaves it."""
    folder = TrialDir(tmp_path / "a run é" / "trials" / "0003")
    folder.path.mkdir(parents=True)
    asked = spec("gone.yaml", number=3, batch=16)
    write_json(folder.spec, asked)
    info = RunInfo(
        name="r",
        command="",
        started="",
        budget_s=60.0,
        objective="job_time",
        strategy="tpe",
        space="cpu",
        training="same",
        seed=0,
        backend="yolo",
        simulated=False,
        task="detect",
        device="cpu",
        train_args={"data": str(tiny)},
    )
    write_json(folder.path.parents[1] / "run.json", info)
    said = autotune("trial", folder.path, "--trace")
    again = TrialDir(folder.path / "again-1")
    assert said.code == 0, (said, again.log.read_text() if again.log.exists() else "")
    assert "aten::mkldnn_convolution" in said.out or "aten::_slow_conv2d_forward" in said.out
    assert str(again.trace) in said.out
    assert "not a measurement" in said.out

    result = json.loads(again.result.read_text())
    assert (result["role"], result["outcome"], result["images_per_s"]) == ("trace", "interrupted", None)
    with gzip.open(again.trace, "rt") as f:
        names = {event["name"] for event in json.load(f)["traceEvents"] if "name" in event}
    assert {"aten::conv2d", STEP} <= names
    assert any(name.startswith("Optimizer.step#") for name in names)

    summary = read_json(again.trace_summary, TraceSummary)
    record = read_json(again.rank(0), RankRecord)
    assert record.measured_from is None
    assert summary.n_steps == 5
    # Data wait and length of the window agree with the step clock's, which ran beside the profiler.
    waited_s, took_s = sum(record.steps.wait_s[-5:]), sum(record.steps.step_s[-5:])
    assert summary.wait_s == pytest.approx(waited_s, rel=0.2, abs=0.01)
    assert summary.window_s == pytest.approx(took_s, rel=0.1, abs=0.02)
    assert summary.wait_s <= summary.idle_s < summary.window_s
    assert sum(o.self_s for o in summary.operators) < summary.window_s * 1.1


def test_a_simulated_trial_is_not_traced(tmp_path: Path) -> None:
    write_json(TrialDir(tmp_path).spec, spec("demo", backend="synthetic"))
    said = autotune("trial", tmp_path, "--trace")
    assert said.code == 2
    assert "nothing to trace" in said.err


@pytest.mark.slow
def test_a_trace_that_fails_is_no_success(tiny: Path, tmp_path: Path) -> None:
    asked = replace(spec(tiny, optimizer="Nonesuch"), role="trace", trace_steps=5)
    result = run_trial(asked, TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome is Outcome.INVALID
    assert not TrialDir(tmp_path / "t").trace_summary.exists()


def event(name: str, ts: float, dur: float, *, cat: str = "cpu_op", tid: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": tid // 10, "tid": tid, "args": args}


STEPS = [event(STEP, 1000 * i, 1000, cat="user_annotation") for i in range(2)]


def test_self_time_idle_and_wait_on_a_cpu() -> None:
    events = [
        *STEPS,
        event(f"{LOADER}#_SingleProcessDataLoaderIter.__next__", 0, 300, cat="user_annotation"),
        event("aten::stack", 100, 50),  # collating, inside the loader
        event("aten::conv2d", 400, 500),
        event("aten::mkldnn_convolution", 450, 400),
        event("aten::add", 900, 100),
        event("aten::add", 950, 700, tid=2),  # another thread works while the main one does not
        event("aten::late", 1900, 400),  # ends after the window
        {"ph": "M", "name": "process_name", "pid": 0},
    ]
    summary = summarise(events, "cpu")
    assert (summary.device, summary.n_steps, summary.window_s) == ("cpu", 2, pytest.approx(0.002))
    assert summary.wait_s == pytest.approx(300e-6)
    assert summary.idle_s == pytest.approx((2000 - 50 - 500 - 100 - 100) * 1e-6)
    table = {o.name: (o.self_s, o.n_calls) for o in summary.operators}
    assert table["aten::conv2d"] == (pytest.approx(100e-6), 1)
    assert table["aten::mkldnn_convolution"] == (pytest.approx(400e-6), 1)
    assert table["aten::add"] == (pytest.approx(800e-6), 2)
    assert [o.name for o in summary.operators][:2] == ["aten::add", "aten::mkldnn_convolution"]


def test_kernels_go_to_the_operator_that_launched_them() -> None:
    """Handmade in the shape of Kineto's events: External id joins an operator and its kernels."""
    events = [
        *STEPS,
        event(STEP, 0, 1000, cat="gpu_user_annotation", tid=97),
        event("aten::conv2d", 10, 20, **{"External id": 7}),
        event("sm90_xmma_fprop", 100, 600, cat="kernel", tid=97, **{"External id": 7}),
        event("nchwToNhwc", 500, 400, cat="kernel", tid=98, **{"External id": 7}),  # another stream, overlapping
        event("Memcpy HtoD", 1500, 100, cat="gpu_memcpy", tid=97),
    ]
    summary = summarise(events, "cuda")
    assert {o.name: o.n_calls for o in summary.operators} == {"aten::conv2d": 2, "Memcpy HtoD": 1}
    assert summary.operators[0].self_s == pytest.approx(1000e-6)
    assert summary.idle_s == pytest.approx((2000 - 800 - 100) * 1e-6)


def test_without_a_step_there_is_no_summary() -> None:
    with pytest.raises(ValueError, match="no step"):
        summarise([event("aten::conv2d", 0, 1)], "cpu")


def test_the_table_says_what_its_columns_are(tmp_path: Path) -> None:
    folder = TrialDir(tmp_path)
    events = [*STEPS, event("aten::conv2d", 0, 1500)]
    write_json(folder.trace_summary, summarise(events, "cpu"))
    assert trace_lines(folder) == [
        "2 steps traced, 1.00 ms each under the profiler: not a measurement",
        "  waiting for data  0 %",
        "  idle              25 %   (the main thread is in no operator; waiting included)",
        "  operator       self cpu   share  calls/step",
        "  aten::conv2d    0.75 ms   100 %        0.50",
        f"trace: {tmp_path}/trace.json.gz   (open it in chrome://tracing or ui.perfetto.dev)",
    ]
