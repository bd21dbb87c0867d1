"""Real trials: fresh processes, real Ultralytics training steps on the CPU."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from autotune.contract import Deadlines, Outcome, RankRecord, TrialDir, TrialResult, read_json
from autotune.machine.fake_worlds import healthy, throttling
from autotune.run.dataset import DatasetView
from autotune.run.demo import demo_dataset
from autotune.run.preloaded import Preloaded
from autotune.run.statistics import quantile
from autotune.run.trial import log_tail, run_trial
from autotune.run.watch import Live
from tests.run.trials import SHORT, spec


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(p.relative_to(folder)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_baseline_says_what_ran(tiny: Path, tmp_path: Path) -> None:
    before = fingerprint(tiny.parent)
    with DatasetView(str(tiny), "detect", tmp_path / "view") as view:
        result = run_trial(spec(view.path(False)), TrialDir(tmp_path / "t"), started_s=1.0)
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), result.error
    assert result.images_per_s
    assert result.images_per_s > 0
    assert result.effective["batch_per_gpu"] == 8
    assert result.effective["workers"] == 0, "Ultralytics runs its loader in process on a CPU"
    assert result.effective["amp"] is False
    assert result.effective["compile"] is False
    assert result.effective["cache"] is False
    assert result.effective["mosaic_open"] is True
    assert result.resolved["optimizer"] == "AdamW"
    assert result.resolved["momentum"] == 0.9
    assert result.job["n_images"] == 64
    assert result.job["accumulate"] == 8
    assert {"import", "build", "first_step", "warmup", "measure"} <= set(result.phases_s)
    assert all(v >= 0 for v in result.phases_s.values())
    assert result.peak_mem_bytes[0] > 100e6
    assert fingerprint(tiny.parent) == before, "a trial may not touch the user's dataset"
    assert read_json(tmp_path / "t" / "result.json", TrialResult) == result
    record = read_json(tmp_path / "t" / "rank0.json", RankRecord)
    assert record.measured_from is not None
    # The window is whole accumulate cycles, and the rate is its images over its time.
    n = len(record.steps.end_s) - record.measured_from
    assert n % 8 == 0
    seconds = record.steps.end_s[-1] - record.steps.end_s[record.measured_from - 1]
    assert result.images_per_s == pytest.approx(sum(record.steps.images[record.measured_from :]) / seconds)


def test_every_cpu_knob_is_in_effect_in_the_window(tiny: Path, tmp_path: Path) -> None:
    changes = {
        "batch_per_gpu": 16,
        "torch_threads": 2,
        "channels_last": True,
        "workers": 1,
        "prefetch_factor": 2,
        "cache": "ram",
        "deterministic": False,
        "cudnn_benchmark": True,
        "omp_num_threads": 2,
        "nccl_socket": "2x4",
    }
    asked = spec(
        tiny,
        changes=changes,
        patches={
            "torch_threads": 2,
            "channels_last": True,
            "workers": 1,
            "prefetch_factor": 2,
            "cudnn_benchmark": True,
        },
        env={"OMP_NUM_THREADS": "2", "NCCL_SOCKET_NTHREADS": "2", "NCCL_NSOCKS_PERTHREAD": "4"},
        batch=16,
        cache="ram",
        deterministic=False,
    )
    result = run_trial(asked, TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), result.error
    assert {k: result.effective[k] for k in changes} == changes
    assert result.phases_s["cache"] > 0


@pytest.mark.slow
def test_a_setting_that_did_not_take_effect_is_a_mismatch(tiny: Path, tmp_path: Path) -> None:
    # workers=4 as a YOLO argument: the trainer sets it to 0 on a CPU without a word.
    result = run_trial(spec(tiny, changes={"workers": 4}, workers=4), TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome is Outcome.MISMATCH
    assert result.error == "asked workers=4, got 0"


def test_yolo_refusing_its_arguments_is_invalid(tiny: Path, tmp_path: Path) -> None:
    result = run_trial(spec(tiny, optimizer="Nonesuch"), TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome is Outcome.INVALID
    assert "Nonesuch" in (result.error or "")
    assert result.log_tail == (), "one line says it; the traceback stays in log.txt"


def test_out_of_memory_raises_instead_of_halving_the_batch(tiny: Path, tmp_path: Path) -> None:
    # The same RuntimeError that torch raises, from inside the forward pass of the real trainer.
    sitecustomize = tmp_path / "site"
    sitecustomize.mkdir()
    (sitecustomize / "sitecustomize.py").write_text(
        "import sys, importlib.abc\n"
        "class F(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'autotune.worker.memory':\n"
        "            from ultralytics.models.yolo.detect import DetectionTrainer as T\n"
        "            stock = T.preprocess_batch\n"
        "            def oom(self, batch):\n"
        "                raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB.')\n"
        "            T.preprocess_batch = oom\n"
        "        return None\n"
        "sys.meta_path.insert(0, F())\n"
    )
    asked = spec(tiny, env={"PYTHONPATH": f"{sitecustomize}:{Path(__file__).parents[2]}"})
    result = run_trial(asked, TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome is Outcome.OOM, result.error
    assert "out of memory" in (result.error or "")
    assert result.resolved["optimizer"] == "AdamW", "the resolved optimizer is kept even when the first step fails"


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
@pytest.mark.slow
def test_other_tasks_train(task: str, tiny_home: Path, tmp_path: Path) -> None:
    data = demo_dataset(tiny_home, n_train=16, n_val=4, task=task)  # type: ignore[arg-type]
    suffix = {"segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}[task]
    with DatasetView(str(data), task, tmp_path / "view") as view:
        asked = spec(view.path(False), task=task, model=f"yolo11n{suffix}.yaml", batch=4, imgsz=64)
        result = run_trial(asked, TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), (result.error, result.log_tail)
    assert result.images_per_s
    assert result.effective["batch_per_gpu"] == 4


@pytest.mark.slow
def test_watch_can_stop_a_segment(tiny: Path, tmp_path: Path) -> None:
    seen: list[Live] = []

    def watch(live: Live) -> str | None:
        seen.append(live)
        return "412 img/s after 40 steps, needs 980" if live.n_steps >= 2 else None

    long = spec(tiny).segment.__class__(measure_s=60.0, measure_cap_s=90.0)
    asked = spec(tiny, segment=long)
    result = run_trial(asked, TrialDir(tmp_path / "t"), started_s=0.0, watch=watch)
    assert result.outcome is Outcome.PRUNED
    assert result.error == "412 img/s after 40 steps, needs 980"
    assert seen[-1].n_steps >= 2
    assert result.took_s < 60


@pytest.mark.slow
def test_deadline_kills_the_whole_tree(tiny: Path, tmp_path: Path) -> None:
    asked = spec(tiny, patches={"workers": 1}, batch=4)
    asked = replace(asked, segment=replace(asked.segment, measure_s=100.0, measure_cap_s=200.0))
    asked = replace(asked, deadlines=Deadlines(total_s=6.0))
    result = run_trial(asked, TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome is Outcome.TIMEOUT
    assert "deadline" in (result.error or "")
    assert result.took_s < 30
    # Loader workers are forks: they carry the trial's folder in their command line too.
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]
    assert left == []


@pytest.mark.slow
def test_what_a_parent_took_is_not_given_to_the_cold_trial_again(tmp_path: Path) -> None:
    class Slow(Preloaded):
        def start(self, *_: object) -> None:  # type: ignore[override]
            time.sleep(3.0)

    asked = spec("demo", backend="synthetic", synthetic={"fault": "import_hang"})
    asked = replace(asked, deadlines=Deadlines(total_s=4.0, grace_s=0.5))
    result = run_trial(asked, TrialDir(tmp_path / "t"), started_s=0.0, preloaded=Slow())
    assert result.outcome is Outcome.TIMEOUT, result.error
    assert result.took_s < 4.0


@pytest.mark.parametrize("hot", [True, False])
def test_a_gpu_that_was_slowed_down_in_the_window_makes_it_unstable(tmp_path: Path, hot: bool) -> None:
    asked = spec("demo", backend="synthetic", synthetic={"step_s": 0.01}, segment=replace(SHORT, measure_s=1.0))
    nvml = throttling(1, since_s=0.0) if hot else healthy(1, busy=True)
    result = run_trial(replace(asked, gpus=("GPU-0",)), TrialDir(tmp_path / "t"), started_s=0.0, nvml=nvml)
    assert result.images_per_s is not None, "the number stays, as that of any unstable trial"
    assert result.meanwhile is not None
    said = "GPU GPU-0 was slowed down by heat in 100% of the samples"
    assert result.meanwhile.voided_by == (said if hot else None)
    if hot:
        assert (result.outcome, result.error) == (Outcome.UNSTABLE, f"{said} while it was measured")
    else:
        assert "GPU" not in (result.error or "")


def test_what_an_earlier_run_of_the_trial_wrote_says_nothing_about_it(tmp_path: Path) -> None:
    """A void window is measured again in the same folder, and its log goes on where the first one's ended."""
    directory = TrialDir(tmp_path / "0000")
    directory.path.mkdir()
    directory.log.write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n")
    asked = spec("none", backend="synthetic", batch=8, synthetic={"fault": "sigkill_self"})
    result = run_trial(asked, directory, started_s=0.0, sampled=False)
    assert result.outcome is not Outcome.OOM, result.error
    assert not result.outcome.measured
    assert "CUDA out of memory" in directory.log.read_text(), "but it is kept"


def test_log_tail_is_what_a_terminal_shows(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"one\n\x1b[34m\x1b[1mtrain: \x1b[0mtwo\n\r\x1b[K 10%\r\x1b[K 50%\r\x1b[K 100%\nlast\r\n\n")
    assert log_tail(log) == ("one", "train: two", " 100%", "last")
    assert log_tail(log, 1) == ("last",)
    assert log_tail(tmp_path / "none") == ()


def test_quantile_interpolates() -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert quantile([5.0], 0.99) == 5.0
