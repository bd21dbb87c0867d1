"""The rows of a trial: on synthetic GPUs, and of a real process tree."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import (
    GPU_COLUMNS,
    HOST_COLUMNS,
    RankRecord,
    SegmentSettings,
    TrialDir,
    TrialResult,
    read_json,
    sample_columns,
)
from autotune.machine.fake_nvml import FakeNvml, FakeProcess
from autotune.machine.fake_worlds import healthy, healthy_world, lost_in_mid_run, not_supported_everywhere
from autotune.machine.gpu_activity import looking_at
from autotune.run.sample import Sampler, write_samples
from autotune.run.trial import run_trial
from tests.run.sampled import RANK, STRANGER, FakeClock, handmade_process, sampled, sampler
from tests.run.trials import spec

REAL = SegmentSettings(warmup_steps=2, warmup_s=0.1, warmup_cap_s=0.3, measure_s=1.0, measure_cap_s=2.0)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def test_a_row_is_in_the_file_as_soon_as_it_is_seen(tmp_path: Path) -> None:
    clock = FakeClock()
    with sampler(tmp_path, healthy(2, clock.of_world, busy=True), clock, ("GPU-1", "GPU-0")) as made:
        sampled(made, clock, until_s=1.0)
        rows = rows_of(tmp_path / "samples.csv")  # a kill -9 now would leave these
    assert tuple(rows[0]) == sample_columns(2) == (*HOST_COLUMNS, *list(rows[0])[len(HOST_COLUMNS) :])
    assert [float(r["t_s"]) for r in rows] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert {r["measuring"] for r in rows} == {""}, "nobody knows the window yet"
    assert [r["gpu1_energy_j"] for r in rows] == ["0.0", "150.0", "300.0", "450.0", "600.0"], "since the first row"
    assert (rows[0]["gpu0_power_w"], rows[0]["gpu0_sm_hz"], rows[0]["gpu0_temp_c"]) == ("600.0", "1755000000.0", "62.0")
    assert {r["cpu_frac"] for r in rows} == {""}, "this /proc has no stat"


def test_the_window_is_marked_when_it_is_known(tmp_path: Path) -> None:
    clock = FakeClock()
    with sampler(tmp_path, healthy(1, clock.of_world), clock) as made:
        sampled(made, clock, until_s=2.0)
    before = rows_of(made.path)
    write_samples(made.path, made.samples, (0.5, 1.0))
    after = rows_of(made.path)
    assert [r["t_s"] for r in after if r["measuring"] == "1"] == ["0.5", "0.75", "1.0"]
    assert {r["measuring"] for r in after} == {"0", "1"}
    assert [{**r, "measuring": ""} for r in after] == before


def test_gpus_that_say_nothing_leave_empty_fields(tmp_path: Path) -> None:
    clock = FakeClock()
    with sampler(tmp_path, not_supported_everywhere(), clock) as made:
        sampled(made, clock, until_s=0.5)
    said = {name: rows_of(made.path)[-1][f"gpu0_{name}"] for name in GPU_COLUMNS}
    assert {name for name, text in said.items() if text} == {"mem_bytes"}


def test_a_gpu_that_is_lost_is_silent_from_then_on(tmp_path: Path) -> None:
    clock = FakeClock()
    with sampler(tmp_path, lost_in_mid_run(2, clock.of_world, since_s=1.0), clock, ("GPU-0", "GPU-1")) as made:
        sampled(made, clock, until_s=1.5)
    rows = rows_of(made.path)
    assert [r["gpu1_power_w"] for r in rows] == ["600.0"] * 4 + [""] * 3
    assert [r["gpu0_power_w"] for r in rows] == ["600.0"] * 7


def nvml_with(clock: FakeClock, *pids: tuple[int, float]) -> FakeNvml:
    """A synthetic GPU on which each of these processes computes from a second on."""

    def world(t: float):
        running = tuple(FakeProcess(pid=pid) for pid, since_s in pids if t >= since_s)
        return healthy_world(1, t, busy=True).changed(0, compute=running)

    return FakeNvml(world, clock.of_world)


def strangers_of(folder: Path, *pids: tuple[int, float]) -> list[tuple[float, str]]:
    clock = FakeClock()
    with sampler(folder, nvml_with(clock, *pids), clock) as made:
        sampled(made, clock, until_s=6.0)
    return made.samples.strangers


def test_a_stranger_who_comes_later_is_told(tmp_path: Path) -> None:
    who = "process 77 (other job) computed on GPU GPU-0"
    assert strangers_of(tmp_path, (RANK, 1.0), (STRANGER, 3.0)) == [(4.0, who), (6.0, who)]


def test_who_was_there_before_is_no_stranger(tmp_path: Path) -> None:
    assert strangers_of(tmp_path, (RANK, 1.0), (STRANGER, 0.0)) == []


def test_the_hosts_numbers_of_our_own_processes_are_no_strangers(tmp_path: Path) -> None:
    """In a container NVML shows rank 10 as some 4711, and there may be a process 77 of ours."""
    assert strangers_of(tmp_path, (4711, 1.0), (STRANGER, 3.0)) == []


def test_a_rank_that_was_born_a_moment_ago_is_no_stranger(tmp_path: Path) -> None:
    clock = FakeClock()
    with sampler(tmp_path, nvml_with(clock, (RANK, 1.0), (11, 2.0)), clock) as made:
        sampled(made, clock, until_s=1.9)
        handmade_process(tmp_path, 11, ppid=RANK, session=RANK)
        sampled(made, clock, until_s=5.0)
    assert made.samples.strangers == []


def test_a_real_trial_leaves_its_samples(tmp_path: Path) -> None:
    directory = TrialDir(tmp_path / "t")
    asked = spec("none", backend="synthetic", segment=REAL, synthetic={"step_s": 0.02})
    clock_nvml = healthy(1, busy=True)
    measured = run_trial(replace(asked, gpus=("GPU-0",)), directory, started_s=0.0, nvml=clock_nvml)
    rows = rows_of(directory.samples)
    inside = [r for r in rows if r["measuring"] == "1"]
    record = read_json(directory.rank(0), RankRecord)
    assert record.measured_from is not None
    window_s = record.steps.end_s[-1] - record.steps.end_s[record.measured_from - 1]
    assert 2 <= len(inside) <= window_s / 0.25 + 2
    assert float(inside[-1]["t_s"]) - float(inside[0]["t_s"]) <= window_s
    assert all(float(r["tree_rss_bytes"]) > 5e6 for r in inside)
    busy = [float(r["cpu_frac"]) for r in rows if r["cpu_frac"]]
    assert 0 < max(busy) <= 1.001, "of a quarter of a second that a trial sleeps through, 0 is true"
    assert measured.meanwhile is not None
    assert measured.meanwhile.n_samples == len(inside)
    assert measured.meanwhile.gpus[0].util_frac == pytest.approx(0.97)
    assert measured.meanwhile.voided_by is None
    assert read_json(directory.result, TrialResult) == measured
    assert clock_nvml.open == 0


def test_a_simulation_is_not_looked_at(tmp_path: Path) -> None:
    directory = TrialDir(tmp_path / "t")
    measured = run_trial(spec("none", backend="synthetic"), directory, started_s=0.0, sampled=False)
    assert measured.meanwhile is None
    assert not directory.samples.exists()


def test_simulated_seconds_have_no_window(tmp_path: Path) -> None:
    measured = run_trial(spec("none", backend="synthetic"), TrialDir(tmp_path / "t"), started_s=0.0)
    assert measured.outcome.measured
    assert measured.meanwhile is None


def test_a_disk_that_is_full_costs_only_the_file(tmp_path: Path) -> None:
    clock = FakeClock()
    handmade_process(tmp_path, RANK, session=RANK)
    with looking_at((), None) as gpus:
        made = Sampler(gpus, tmp_path / "gone" / "samples.csv", root=tmp_path, clock=clock)
        made.begin(RANK)
        sampled(made, clock, until_s=0.5)
        made.end()
    assert len(made.samples.rows) == 3
    write_samples(made.path, made.samples, (0.0, 1.0))
    assert not made.path.exists()
