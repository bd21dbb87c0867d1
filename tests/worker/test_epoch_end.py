"""A real end of an epoch, on real Ultralytics trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.contract import Deadlines, Outcome, RankRecord, TrialDir, TrialResult, read_json
from autotune.run.trial import run_trial
from autotune.worker.epoch_end import TimedLoader, extrapolated_s
from tests.run.trials import spec

TINY = str(Path(__file__).parents[1] / "models" / "tiny-detect.yaml")
JOB = {"model": TINY, "batch": 16, "nbs": 16, "val": True, "save": True, "epochs": 20, "close_mosaic": 10}


def probe(data: Path, folder: Path, n_ranks: int = 1, **args: Any) -> TrialResult:
    given = {**JOB, **args}
    asked = spec(data, **given)
    deadlines = Deadlines(total_s=120.0)
    asked = replace(asked, role="probe", probe="epoch_end", n_ranks=n_ranks, deadlines=deadlines)
    return run_trial(asked, TrialDir(folder), started_s=0.0)


@pytest.mark.slow
def test_the_loops_own_end_of_an_epoch_is_timed(tiny: Path, tmp_path: Path) -> None:
    result = probe(tiny, tmp_path / "t")
    log = (tmp_path / "t" / "log.txt").read_text(encoding="utf-8")
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), f"{result.error}\n{log[-2000:]}"
    end = result.epoch_end
    assert end is not None
    # Three validations of all 8 images: of the first epoch, of the last, and of the best checkpoint.
    assert sum(line.split()[:2] == ["all", "8"] for line in log.splitlines()) == 3
    assert (end.val_n_batches, end.val_n_timed, end.val_every_epoch, end.save_every_epoch) == (1, 1, True, True)
    for part in (end.val_s, end.save_s, end.rest_s, end.reset_s, end.final_s):
        assert part is not None
        assert part > 0
    assert end.final_s > end.val_s
    assert "best.pt, 0" in log, "a checkpoint was written, and stripped in the end"
    assert not list(tmp_path.rglob("*.pt")), "and nothing of it is left"
    assert log.count("Closing dataloader mosaic") == 1
    assert result.effective["mosaic_open"] is False, "the segment is one without mosaic"
    record = read_json(tmp_path / "t" / "rank0.json", RankRecord)
    assert record.steps.step_s[1] < end.final_s
    assert len(record.steps.prepare_s) == len(record.steps.step_s), "the first epoch's steps are not in the columns"
    assert result.parts_s["wait"] > 0
    assert result.job["epochs"] == 20
    assert result.phases_s["first_step"] < result.phases_s["build"] + result.phases_s["import"]


@pytest.mark.slow
def test_what_the_user_switched_off_is_done_once_at_the_end(tiny: Path, tmp_path: Path) -> None:
    result = probe(tiny, tmp_path / "t", val=False, save=False, plots=True, close_mosaic=0)
    log = (tmp_path / "t" / "log.txt").read_text(encoding="utf-8")
    end = result.epoch_end
    assert end is not None, result.error
    # As `yolo train val=False save=False` does: the last epoch is validated and saved all the same.
    assert sum(line.split()[:2] == ["all", "8"] for line in log.splitlines()) == 2
    assert (end.val_every_epoch, end.save_every_epoch, end.reset_s) == (False, False, None)
    assert end.val_s
    assert end.save_s
    assert "Closing dataloader mosaic" not in log
    assert result.effective["mosaic_open"] is True
    without = probe(tiny, tmp_path / "u", val=False, save=False, plots=False, close_mosaic=0).epoch_end
    assert without is not None
    assert end.final_s > without.final_s, "plots are made only where the user has them"


@pytest.mark.slow
def test_a_job_that_never_opens_its_mosaic_closes_none_again(tiny: Path, tmp_path: Path) -> None:
    result = probe(tiny, tmp_path / "t", epochs=5)
    log = (tmp_path / "t" / "log.txt").read_text(encoding="utf-8")
    assert result.epoch_end is not None, result.error
    assert log.count("Closing dataloader mosaic") == 1
    assert log.index("Closing dataloader mosaic") < log.index("1/5")
    assert result.epoch_end.reset_s is None, "its restart is part of the start"


@pytest.mark.slow
def test_two_ranks_end_an_epoch_together(tiny: Path, tmp_path: Path) -> None:
    result = probe(tiny, tmp_path / "t", n_ranks=2)
    log = (tmp_path / "t" / "log.txt").read_text(encoding="utf-8")
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), f"{result.error}\n{log[-3000:]}"
    records = [read_json(tmp_path / "t" / f"rank{r}.json", RankRecord) for r in (0, 1)]
    assert [r.status for r in records] == ["done", "done"]
    assert len(records[0].steps.end_s) == len(records[1].steps.end_s)
    assert records[0].effective["params"] == records[1].effective["params"]
    assert result.epoch_end is not None
    assert result.epoch_end.val_s
    assert result.epoch_end.final_s
    assert result.effective["mosaic_open"] is False
    assert sum(line.split()[:2] == ["all", "8"] for line in log.splitlines()) == 3


def test_a_validation_that_was_cut_short_is_extrapolated() -> None:
    # Four batches lay ready; from then on each takes 2 s; after ten of twenty the metrics took 1 s.
    ends_s = [0.5, 1.0, 1.5, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]
    assert extrapolated_s(ends_s, 20, 15.0) == pytest.approx(14.0 + 10 * 2.0 + 2 * 1.0)
    assert extrapolated_s(ends_s, 10, 15.0) == 15.0, "nothing is missing"
    assert extrapolated_s([3.0], 4, 4.0) == pytest.approx(3.0 + 3 * 3.0 + 4 * 1.0)


def test_a_validation_ends_when_its_time_is_over() -> None:
    told: list[int] = []
    loader = TimedLoader([1, 2, 3], 0.0, lambda: told.append(1))
    assert list(loader) == [1]
    assert loader.whole(1.0)[0] == 1
    loader.cap_s = 60.0
    assert list(loader) == [1, 2, 3], "each pass is a new one"
    assert loader.whole(1.0) == (3, 1.0)
    assert loader.count(2) == 1, "all else is the loader's"
