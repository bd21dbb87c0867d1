"""The card of what came after the run: left out while nothing has."""

from __future__ import annotations

import json
from pathlib import Path

from autotune.contract import Comparison, to_dict, write_json
from autotune.report.cards_promise import promise_kept
from autotune.report.html import write_report
from autotune.report.load import load_run
from autotune.report.promises import Kept
from autotune.report.rechecks import Block, Recheck

from .conftest import make_run


def test_left_out_while_nothing_came(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3)
    assert promise_kept(load_run(run.path)) is None
    assert "Was the promise kept?" not in write_report(run.path).read_text(encoding="utf-8")


def test_full_trainings_and_rechecks_in_order(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3)
    kept = Kept(started="2026-11-24T10:00:00+00:00", status="kept", sentence="promise kept: 12.0 s <b>")
    missed = Kept(started="2026-11-26T10:00:00+00:00", status="not_kept", sentence="promise not kept: ...")
    run.promises.write_text("".join(json.dumps(to_dict(k)) + "\n" for k in (kept, missed)))
    found = Recheck(
        run="r",
        started="2026-11-25T10:00:00+00:00",
        hostname="box",
        objective="job_time",
        params={},
        status="does_not_hold",
        sentence="does not hold: 1.1x",
        changes=("torch 2.14.0, now 2.15.0",),
        then=Comparison(speedup=1.5, ci95_lo=1.4, ci95_hi=1.6, n_blocks=3, sigma_run_frac=0.01, df=4),
        rates_then=Block(baseline=1.0, best=1.5),
    )
    folder = run.rechecks / "2026-11-25_1000_box"
    folder.mkdir(parents=True)
    write_json(folder / "recheck.json", found)
    (run.rechecks / "torn").mkdir()
    (run.rechecks / "torn" / "recheck.json").write_text("{")
    card = promise_kept(load_run(run.path))
    assert card is not None
    assert card.df["answer"].tolist() == ["kept", "does not hold", "not kept"]
    assert card.df["what"].tolist() == ["full training", "recheck on box", "full training"]
    assert card.note == "2 full trainings: promise kept in 1. 1 recheck: the winner holds in 0."
    page = write_report(run.path).read_text(encoding="utf-8")
    assert '<section class="card" id="promise_kept">' in page
    assert "torch 2.14.0, now 2.15.0" in page
    assert "12.0 s &lt;b&gt;" in page
