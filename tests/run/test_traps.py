"""Every row of MEASURING.md's table of traps has a rule in the code, and a test that fails without the rule."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import pytest

from autotune.contract import TrialDir
from autotune.question import TRIAL_ARGS
from autotune.run.dataset import DatasetView
from autotune.run.demo import demo_dataset
from autotune.run.trial import run_trial
from tests.run.trials import spec
from tests.worker.trainers import train

TRAPS = {
    "epochs<=10 closes mosaic at once": (
        "worker/test_epochs.py::test_trials_keep_what_decides_the_data_pipeline",
        "worker/test_epochs.py::test_epochs_roll_over_and_the_pipeline_stays",
        "worker/test_epochs.py::test_a_job_that_never_opens_its_mosaic_is_measured_without",
        "worker/test_probes.py::test_a_job_that_never_opens_its_mosaic_is_probed_without",
    ),
    "optimizer=auto flips with batch, epochs and dataset size": (
        "run/test_traps.py::test_auto_is_resolved_for_the_real_job_and_pinned_in_other_trials",
        "space/test_training.py::test_pin_optimizer",
    ),
    "warm-up ramps accumulate": (
        "worker/test_epochs.py::test_accumulate_does_not_ramp",
        "worker/test_segment.py::test_window_is_whole_accumulate_cycles",
        "worker/test_segment.py::test_halves_hold_equally_many_optimizer_steps",
    ),
    "the prefetch queue makes the first batches free": (
        "worker/test_segment.py::test_a_full_queue_does_not_flatter_a_slow_loader",
        "worker/test_segment.py::test_throughput_counts_production_not_consumption",
        "worker/test_segment.py::test_the_window_holds_the_loaders_queue_once",
        "run/test_statistics.py::test_a_queue_that_drains_on_one_rank_does_not_count",
    ),
    "cache=disk leaves .npy that any later run reads": (
        "run/test_traps.py::test_decoded_images_reach_no_other_trial_and_not_the_user",
        "run/test_dataset.py::test_yolo_sees_the_same_through_the_farm_and_touches_nothing",
    ),
    "fraction rewrites label caches": (
        "worker/test_epochs.py::test_trials_keep_what_decides_the_data_pipeline",
        "run/test_dataset.py::test_yolo_sees_the_same_through_the_farm_and_touches_nothing",
    ),
    "out of memory halves the batch silently": (
        "run/test_trial.py::test_out_of_memory_raises_instead_of_halving_the_batch",
    ),
    "compile, amp, cache, workers fall back silently": (
        "run/test_trial.py::test_every_cpu_knob_is_in_effect_in_the_window",
        "run/test_trial.py::test_a_setting_that_did_not_take_effect_is_a_mismatch",
    ),
    "the mosaic buffer": (
        "worker/test_epochs.py::test_the_first_epoch_of_a_small_set_is_warm_up",
        "worker/test_epochs.py::test_workers_fill_their_buffers_slower",
        "worker/test_readback.py::test_buffer_steps",
        "worker/test_readback.py::test_after_so_many_steps_the_decodes_are_those_of_the_long_run",
        "run/test_outcome.py::test_a_window_in_a_buffer_that_still_fills_is_unstable",
        "worker/test_segment.py::test_first_epoch_belongs_to_the_warm_up_when_the_buffer_is_large",
    ),
    "the first epoch reads a cold disk": (
        "run/test_page_cache.py::test_a_cold_dataset_is_warm_afterwards",
        "run/test_page_cache.py::test_every_train_image_and_label_is_read",
        "run/test_page_cache.py::test_what_does_not_fit_is_left_alone",
        "run/test_page_cache.py::test_the_cold_read_asks_the_disk",
    ),
    "compile costs minutes once": (
        "search/test_objective.py::test_a_slow_first_step_is_the_compile_when_compile_is_on",
        "search/test_objective.py::test_what_was_found_warm_costs_its_cold_price",
        "worker/test_segment.py::test_a_recompile_in_the_window_voids_it",
    ),
    "mosaic closing, validation, checkpoints, epoch ends": (
        "search/test_objective.py::test_terms_without_compile",
        "worker/test_epochs.py::test_the_end_of_an_epoch_is_rest_and_not_the_loaders_fault",
    ),
    "clocks, heat, neighbours": (
        "search/test_controller.py::test_sentinel_every_eight_trials",
        "search/test_controller.py::test_finalist_blocks_are_interleaved_fresh_runs",
        "worker/test_segment.py::test_a_drift_extends_the_window_once",
        "run/test_meanwhile.py::test_what_lowers_the_clock_makes_the_window_void",
        "run/test_trial.py::test_a_gpu_that_was_slowed_down_in_the_window_makes_it_unstable",
    ),
    "exit codes lie": ("run/test_outcome.py::test_a_good_record_makes_every_log_benign",),
    "trackers, settings, runs/": ("run/test_traps.py::test_a_trial_lives_in_a_world_of_its_own",),
}
"""Trap -> the tests that fail without its rule.

Parts of MEASURING 1's table that have no code yet, and so no test here: running out of memory later than the segment
(the certificate of MEASURING 6); the seconds of validation, checkpoints and epoch ends (MEASURING 4). Of MEASURING 3
the share of windows dropped is missing."""


@pytest.mark.parametrize("trap", TRAPS)
def test_the_tests_of_a_trap_exist(trap: str) -> None:
    tests = Path(__file__).parents[1]
    for name in TRAPS[trap]:
        file, function = name.split("::")
        tree = ast.parse((tests / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(p.relative_to(folder)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_decoded_images_reach_no_other_trial_and_not_the_user(tmp_path: Path) -> None:
    user = demo_dataset(tmp_path / "user", n_train=16, n_val=4)
    before = fingerprint(tmp_path / "user")
    found = {}
    with DatasetView(str(user), "detect", tmp_path / "view") as view:
        for cache in ("disk", False, "ram"):
            _, trainer = train(tmp_path / str(cache), Path(view.path(cache)), 4, cache=cache)
            found[cache] = sum(p.exists() for p in trainer.train_loader.dataset.npy_files)
    assert found == {"disk": 16, False: 0, "ram": 0}
    assert fingerprint(tmp_path / "user") == before, (
        "decoded images, label caches or repaired JPEGs in the user's folder"
    )


def test_auto_is_resolved_for_the_real_job_and_pinned_in_other_trials(tiny: Path, tmp_path: Path) -> None:
    # 64 images, 100 epochs: 100 updates at any batch up to nbs, AdamW; in 20,000 epochs it is MuSGD.
    short, _ = train(tmp_path / "short", tiny, 2, epochs=100, nbs=64)
    long, _ = train(tmp_path / "long", tiny, 2, epochs=20_000, nbs=64)
    assert short.resolved["optimizer"] == "AdamW"
    assert long.resolved["optimizer"] == "MuSGD"
    pinned, _ = train(tmp_path / "pinned", tiny, 2, **{"epochs": 100, "nbs": 64, **long.resolved})
    assert pinned.effective["optimizer"] == "MuSGD"
    assert pinned.resolved == long.resolved


@pytest.mark.slow
def test_a_trial_lives_in_a_world_of_its_own(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "user"
    home.mkdir()
    settings = home / "settings.json"
    settings.write_text(json.dumps({"wandb": True, "comet": True, "sync": True, "runs_dir": str(home / "runs")}))
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(home))
    monkeypatch.setenv("ULTRALYTICS_API_KEY", "secret")
    monkeypatch.chdir(home)
    before = fingerprint(home)
    trial = TrialDir(tmp_path / "run" / "trials" / "0001")
    with DatasetView(str(tiny), "detect", tmp_path / "view") as view:
        user_data = fingerprint(tiny.parent)
        result = run_trial(spec(view.path(False), **TRIAL_ARGS), trial, started_s=0.0)
    assert result.images_per_s, result.error
    assert set(result.parts_s) == {"wait", "prepare", "forward", "backward", "optimizer", "rest"}
    assert result.parts_s["rest"] <= 0.1 * sum(result.parts_s.values())
    assert fingerprint(home) == before, "settings.json, runs/ or weights in the user's folders"
    assert fingerprint(tiny.parent) == user_data
    private = json.loads(next((tmp_path / "run").rglob("settings.json")).read_text(encoding="utf-8"))
    assert not any(
        private.get(tracker) for tracker in ("wandb", "comet", "mlflow", "clearml", "raytune", "sync", "dvc")
    )
    assert not (trial.path / "yolo").exists()
    assert not (trial.path / "tmp").exists()
