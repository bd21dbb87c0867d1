"""On a CUDA GPU: every GPU knob in effect, a real out-of-memory, a short search. Run with `pytest -m gpu`."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import Deadlines, Outcome, SegmentSettings, Summary, TraceSummary, TrialDir, read_json
from autotune.machine.gpus import read_gpus
from autotune.run.demo import demo_dataset
from autotune.run.trial import run_trial
from autotune.run.watch import Live
from tests.run.trials import spec

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu() -> str:
    gpus = read_gpus()
    assert gpus, "pytest -m gpu needs a GPU that NVML sees"
    return gpus[0].uuid


def test_every_gpu_knob_is_in_effect(gpu: str, tiny: Path, tmp_path: Path) -> None:
    changes = {
        "batch_per_gpu": 16,
        "amp": "bf16",
        "channels_last": False,
        "workers": 2,
        "prefetch_factor": 2,
        "deterministic": False,
        "cudnn_benchmark": True,
        "omp_num_threads": 2,
        "alloc_conf": "expandable_segments:True",
    }
    asked = spec(
        tiny,
        changes=changes,
        patches={"prefetch_factor": 2, "cudnn_benchmark": True},
        env={"OMP_NUM_THREADS": "2", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
        device="0",
        batch=16,
        amp="bf16",
        channels_last=False,
        workers=2,
        deterministic=False,
    )
    result = run_trial(replace(asked, gpus=(gpu,)), TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), (result.error, result.log_tail)
    assert {k: result.effective[k] for k in changes} == changes
    assert result.effective["device"].startswith("cuda")
    assert result.peak_mem_bytes[0] > 0
    assert set(result.parts_s) == {"wait", "prepare", "forward", "backward", "optimizer", "rest"}
    assert min(result.parts_s[part] for part in ("forward", "backward", "optimizer")) > 0


def test_the_parts_make_up_the_step(gpu: str, tmp_path: Path) -> None:
    # Steps and epochs long enough that Python between the parts, and the end of an epoch, are few per cent.
    data = demo_dataset(tmp_path / "set", n_train=256, n_val=4)
    segment = SegmentSettings(warmup_steps=8, warmup_s=1.0, measure_s=3.0, measure_steps=16)
    asked = spec(data, device="0", imgsz=640, batch=16, nbs=16, workers=2, segment=segment)
    result = run_trial(replace(asked, gpus=(gpu,)), TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.images_per_s, (result.error, result.log_tail)
    assert result.parts_s["rest"] <= 0.05 * sum(result.parts_s.values()), result.parts_s


def test_the_step_alone(gpu: str, tiny: Path, tmp_path: Path) -> None:
    asked = replace(spec(tiny, device="0", workers=2, nbs=8), gpus=(gpu,), role="probe", probe="compute")
    result = run_trial(asked, TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), (result.error, result.log_tail)
    assert result.images_per_s
    assert result.wait_frac is not None
    assert result.wait_frac < 0.1
    assert result.effective["device"].startswith("cuda")


def test_a_trace_holds_kernels(gpu: str, tiny: Path, tmp_path: Path) -> None:
    directory = TrialDir(tmp_path / "t")
    run_trial(replace(spec(tiny, device="0"), gpus=(gpu,), role="trace", trace_steps=4), directory, started_s=0.0)
    table = read_json(directory.trace_summary, TraceSummary)
    assert (table.device, table.n_steps) == ("cuda", 4)
    assert 0 <= table.idle_s < table.window_s, "some kernel ran"
    assert sum(operator.self_s for operator in table.operators) > 0


def test_a_real_out_of_memory_is_an_outcome(gpu: str, tiny: Path, tmp_path: Path) -> None:
    # 64 images of 4096 pixels through yolo11x: activations far above any card's memory (KNOBS 3: 0.9 GiB at 640 px).
    asked = spec(tiny, device="0", batch=64, imgsz=4096, model="yolo11x.yaml", workers=2)
    result = run_trial(
        replace(asked, gpus=(gpu,), deadlines=Deadlines(total_s=300.0)), TrialDir(tmp_path / "t"), started_s=0.0
    )
    assert result.outcome is Outcome.OOM, (result.error, result.log_tail)


def test_compile_is_in_effect(gpu: str, tiny: Path, tmp_path: Path) -> None:
    asked = spec(tiny, changes={"compile": "default"}, device="0", compile="default", imgsz=128)
    asked = replace(asked, gpus=(gpu,), deadlines=Deadlines(first_step_s=400.0))
    result = run_trial(asked, TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), (result.error, result.log_tail)
    assert result.effective["compile"] == "default"


def test_a_short_search_ends_inside_its_budget(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "autotune", "search", "--gpus", "1", "--budget", "4m", "--out", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = read_json(tmp_path / "latest" / "summary.json", Summary)
    assert summary.elapsed_s <= 250
    assert summary.best_number is not None


def test_the_energy_counter_counts_what_the_power_reading_says(gpu: str, tiny: Path, tmp_path: Path) -> None:
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(gpu)
    read: list[tuple[float, float]] = []

    def watch(live: Live) -> None:
        if live.phase == "measuring":
            read.append((time.monotonic(), pynvml.nvmlDeviceGetPowerUsage(handle) / 1000))

    segment = SegmentSettings(warmup_steps=8, warmup_s=3.0, measure_s=20.0, measure_steps=20)
    asked = spec(tiny, device="0", imgsz=320, batch=16, workers=2, segment=segment)
    result = run_trial(replace(asked, gpus=(gpu,)), TrialDir(tmp_path / "t"), started_s=0.0, watch=watch)
    assert result.energy_j is not None, (result.error, result.log_tail)
    assert result.meanwhile is not None
    assert result.meanwhile.energy_from == "counter"
    assert result.meanwhile.voided_by is None
    assert result.meanwhile.gpus[0].util_frac is not None
    assert result.energy_j_per_image is not None
    assert result.images_per_s is not None
    joules = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(read))
    power_w = joules / (read[-1][0] - read[0][0])
    assert result.energy_j_per_image * result.images_per_s == pytest.approx(power_w, rel=0.05)
