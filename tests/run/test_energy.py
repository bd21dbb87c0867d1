"""Energy of the measured window, on counters that are fakes: there is no GPU here."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import Outcome, RankRecord, SegmentSettings, StepColumns, TrialDir, TrialResult, read_json
from autotune.errors import InputError
from autotune.machine.fake_worlds import healthy, not_supported_everywhere
from autotune.run import energy, trial
from autotune.run.energy import Meter, check_energy, simulated_energy, with_energy
from tests.run.trials import spec


class FakeGpu:
    """300 W from second 10 to 20 (the window), 500 W before (a compile), 50 W after; the clock is its own."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def joules(self) -> float:
        t = self.now_s
        return 500 * min(t, 10.0) + 300 * max(0.0, min(t, 20.0) - 10.0) + 50 * max(0.0, t - 20.0)

    def looked_at(self, every_s: float, until_s: float = 25.0) -> Meter:
        meter = Meter(self.joules, lambda: self.now_s)
        while self.now_s < until_s:
            meter.look()
            self.now_s += every_s
        return meter


def record(**fields: object) -> RankRecord:
    """The process began at second 3 of the clock; five steps of 2 s are measured, from second 10 to 20."""
    ends = [5.0, 7.0, 9.0, 11.0, 13.0, 15.0, 17.0]
    steps = StepColumns(end_s=ends, wait_s=[0.0] * 7, step_s=[2.0] * 7, images=[8] * 7, ready=[0] * 7)
    return RankRecord(**{"rank": 0, "status": "done", "steps": steps, "measured_from": 2, "began_s": 3.0, **fields})


def result(**fields: object) -> TrialResult:
    common = {"number": 0, "role": "trial", "outcome": Outcome.OK, "params": {}, "started_s": 0.0, "took_s": 9.0}
    return TrialResult(**{**common, "images_per_s": 4.0, **fields})


@pytest.mark.parametrize("every_s", [0.25, 0.7, 1.9])
def test_only_the_window_counts(every_s: float) -> None:
    power_w = FakeGpu().looked_at(every_s).power_w(record())
    assert power_w == pytest.approx(300.0)
    measured = with_energy(result(), record(), power_w)
    assert measured.energy_j == pytest.approx(300.0 * 10.0)
    assert measured.energy_j_per_image == pytest.approx(300.0 / 4.0)


def test_what_was_not_seen_is_not_measured() -> None:
    assert FakeGpu().looked_at(0.25, until_s=14.0).power_w(record()) is None, "looks at less than half of the window"
    assert FakeGpu().looked_at(11.0).power_w(record()) is None
    assert FakeGpu().looked_at(0.25).power_w(record(measured_from=None)) is None
    assert FakeGpu().looked_at(0.25).power_w(record(began_s=None)) is None
    assert Meter(lambda: None).looks == []
    for unknown in (with_energy(result(), record(), None), with_energy(result(), None, 300.0)):
        assert (unknown.energy_j, unknown.energy_j_per_image) == (None, None)


def test_a_trial_has_the_energy_of_its_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_of = []

    @contextmanager
    def fake_counter(gpus):
        asked_of.append(gpus)
        yield lambda: 200.0 * time.monotonic()

    monkeypatch.setattr(trial, "energy_counter", fake_counter)
    segment = SegmentSettings(warmup_steps=2, warmup_s=0.1, warmup_cap_s=0.5, measure_s=1.5, measure_cap_s=3.0)
    asked = spec("none", backend="synthetic", segment=segment, synthetic={"step_s": 0.02})
    directory = TrialDir(tmp_path / "t")
    measured = trial.run_trial(replace(asked, gpus=("GPU-0",)), directory, started_s=0.0)
    left = read_json(directory.rank(0), RankRecord)
    assert asked_of == [("GPU-0",)]
    assert left.measured_from is not None
    window_s = left.steps.end_s[-1] - left.steps.end_s[left.measured_from - 1]
    assert measured.energy_j == pytest.approx(200.0 * window_s, rel=1e-3)
    assert measured.energy_j_per_image == pytest.approx(200.0 / measured.images_per_s, rel=1e-3)


def test_energy_is_refused_where_nobody_counts_it() -> None:
    check_energy("energy", ("GPU-0",), simulated=False, nvml=healthy(1))
    check_energy("job_time", (), simulated=False)
    with pytest.raises(InputError, match="does not count its energy"):
        check_energy("energy", ("GPU-0",), simulated=False, nvml=not_supported_everywhere(1))
    for simulated in (False, True):
        with pytest.raises(InputError, match="needs a GPU"):
            check_energy("energy", (), simulated=simulated)


def test_a_dry_run_has_a_formula_for_it() -> None:
    waiting_w, computing_w = energy.SIMULATED_W
    half = simulated_energy(result(wait_frac=0.5, phases_s={"measure": 10.0}), 2)
    assert half.energy_j == pytest.approx(10.0 * 2 * (waiting_w + computing_w / 2))
    assert simulated_energy(result(wait_frac=0.5), 0).energy_j is None
