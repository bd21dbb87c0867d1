"""Energy of a job and of an image, on synthetic GPUs: there is none here."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import Outcome, RankRecord, SegmentSettings, TrialDir, TrialResult, read_json
from autotune.errors import InputError
from autotune.machine.fake_nvml import FakeNvml, FakeWorld
from autotune.machine.fake_worlds import healthy, healthy_world, not_supported_everywhere
from autotune.run import energy, trial
from autotune.run.energy import check_energy, simulated_energy, with_energy
from tests.run.sampled import record
from tests.run.trials import spec


def result(**fields: object) -> TrialResult:
    common = {"number": 0, "role": "trial", "outcome": Outcome.OK, "params": {}, "started_s": 0.0, "took_s": 9.0}
    return TrialResult(**{**common, "images_per_s": 4.0, **fields})


def test_energy_of_the_window_and_of_an_image() -> None:
    measured = with_energy(result(), record(), 300.0)
    assert measured.energy_j == pytest.approx(300.0 * 10.0)
    assert measured.energy_j_per_image == pytest.approx(300.0 / 4.0)
    for unknown in (with_energy(result(), record(), None), with_energy(result(), None, 300.0)):
        assert (unknown.energy_j, unknown.energy_j_per_image) == (None, None)


@pytest.mark.parametrize("counts", [True, False])
def test_a_trial_has_the_energy_of_its_window(tmp_path: Path, counts: bool) -> None:
    def world(t: float) -> FakeWorld:
        return healthy_world(1, t).changed(0, power_w=200.0, energy_j=200.0 * t if counts else None)

    segment = SegmentSettings(warmup_steps=2, warmup_s=0.1, warmup_cap_s=0.2, measure_s=0.8, measure_cap_s=1.5)
    asked = spec("none", backend="synthetic", segment=segment, synthetic={"step_s": 0.02})
    directory = TrialDir(tmp_path / "t")
    nvml = FakeNvml(world, time.monotonic)
    measured = trial.run_trial(replace(asked, gpus=("GPU-0",)), directory, started_s=0.0, nvml=nvml)
    left = read_json(directory.rank(0), RankRecord)
    assert left.measured_from is not None
    assert measured.meanwhile is not None
    assert measured.meanwhile.energy_from == ("counter" if counts else "power")
    window_s = left.steps.end_s[-1] - left.steps.end_s[left.measured_from - 1]
    assert measured.energy_j == pytest.approx(200.0 * window_s, rel=0.02)
    assert measured.energy_j_per_image == pytest.approx(200.0 / measured.images_per_s, rel=0.02)


def test_energy_is_refused_where_nobody_tells_it() -> None:
    assert check_energy("energy", ("GPU-0",), simulated=False, nvml=healthy(1)) == ()
    assert check_energy("job_time", (), simulated=False) == ()
    with pytest.raises(InputError, match="tells neither its energy nor its power"):
        check_energy("energy", ("GPU-0",), simulated=False, nvml=not_supported_everywhere())
    for simulated in (False, True):
        with pytest.raises(InputError, match="needs a GPU"):
            check_energy("energy", (), simulated=simulated)


def test_energy_of_a_gpu_that_only_tells_its_power_is_said_to_be_summed_up() -> None:
    old = FakeNvml(healthy_world(2).changed(1, energy_j=None))
    assert check_energy("energy", ("GPU-0",), simulated=False, nvml=old) == ()
    (note,) = check_energy("energy", ("GPU-0", "GPU-1"), simulated=False, nvml=old)
    assert "does not count its energy" in note


def test_a_dry_run_has_a_formula_for_it() -> None:
    waiting_w, computing_w = energy.SIMULATED_W
    half = simulated_energy(result(wait_frac=0.5, phases_s={"measure": 10.0}), 2)
    assert half.energy_j == pytest.approx(10.0 * 2 * (waiting_w + computing_w / 2))
    assert simulated_energy(result(wait_frac=0.5), 0).energy_j is None
