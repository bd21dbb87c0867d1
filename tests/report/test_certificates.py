"""The card of the certificates: each with its verdict and evidence, red where one fails."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.contract import (
    Accuracy,
    MemoryCertificate,
    Numerics,
    RunInfo,
    Summary,
    TrialSpec,
    Verdict,
    read_json,
    write_json,
)
from autotune.report.certificates import readme_lines
from autotune.report.figures import FIGURES
from autotune.report.html import render
from autotune.report.load import RunData, load_run
from autotune.report.yolo_yaml import job_args

from .conftest import make_run
from .test_semantics import info

GIB = 2**30
FITS = MemoryCertificate(
    holds=True,
    sentence="the worst that the job asks for took 6.0 GiB a rank at most: 2.0 GiB (25%) of 8.0 GiB stay free",
    number=12,
    peak_bytes=(5 * GIB, 6 * GIB),
    limit_bytes=8 * GIB,
    evidence={"imgsz": 96, "n_objects": 300, "n_optimizer_steps": 2, "n_val_images": 32, "crowded_bytes": 4 * GIB},
)
ROUNDS = Numerics(within=True, sentence="over the last 25 of 50 steps the loss is within", changes={}, numbers=(1, 2))
ACCURATE = Accuracy(
    sentence="at the same epoch apart by 0.02; one seed each",
    seconds_each=300.0,
    metric="metrics/mAP50-95(B)",
    baseline_s=(100.0, 200.0, 300.0),
    baseline_value=(0.1, 0.2, 0.3),
    winner_s=(50.0, 100.0),
    winner_value=(0.12, 0.22),
)


def card_of(tmp_path: Path, *, args: dict[str, Any] | None = None, simulated: bool = False, **found: Any) -> Any:
    folder = make_run(tmp_path / "r", 6, simulated=simulated)
    summary = replace(read_json(folder.summary, Summary), **found)
    write_json(folder.summary, summary)
    spec = folder.trial(summary.best_number or 0).spec
    asked = read_json(spec, TrialSpec)
    write_json(spec, replace(asked, train_args={**asked.train_args, **(args or {})}))
    run = load_run(folder.path)
    return FIGURES["certificates"](run), run


def cells(card: Any) -> dict[str, tuple[str, str, str]]:
    return {row[0].text: (row[1].text, row[1].css, row[2].text) for row in card.table.rows}


def test_all_that_was_checked_stands_there_with_its_evidence(tmp_path: Path) -> None:
    card, _ = card_of(tmp_path, memory=FITS, numerics=ROUNDS, accuracy=ACCURATE)
    rows = cells(card)
    assert list(rows) == ["memory", "numerics", "semantics", "accuracy"]
    assert [verdict for verdict, _, _ in rows.values()] == ["holds", "holds", "holds", "measured"]
    memory = rows["memory"][2]
    assert memory.startswith(FITS.sentence)
    assert "head-room: rank 0 3.00 GiB (38 %), rank 1 2.00 GiB (25 %)" in memory
    assert "objects in it 300, largest side in training 96, optimizer steps with EMA 2, images validated" in memory
    assert "after the most crowded ones 4.00 GiB" in memory
    assert rows["semantics"][2].startswith("the same training as yours")
    assert card.note == "holds: memory, numerics, semantics; measured: accuracy."
    assert [list(trace.x) for trace in card.figure.data] == [[100.0, 200.0, 300.0], [50.0, 100.0]]
    assert [list(trace.y) for trace in card.figure.data] == [[0.1, 0.2, 0.3], [0.12, 0.22]]


@pytest.mark.parametrize(
    ("found", "args", "name"),
    [
        ({"memory": replace(FITS, holds=False, sentence="it ran out of memory")}, {}, "memory"),
        ({"numerics": replace(ROUNDS, within=False, sentence="the loss becomes NaN")}, {}, "numerics"),
        ({}, {"batch": 128}, "semantics"),
    ],
)
def test_what_fails_is_red(tmp_path: Path, found: dict[str, Any], args: dict[str, Any], name: str) -> None:
    card, run = card_of(tmp_path, args=args, **found)
    verdict, css, _ = cells(card)[name]
    assert (verdict, css) == ("FAILS", "strong bad")
    assert card.note.startswith(f"FAILS: {name}")
    assert '<td class="strong bad">FAILS</td>' in render(run)


def test_what_was_not_checked_is_neither(tmp_path: Path) -> None:
    card, _ = card_of(tmp_path, memory=MemoryCertificate(holds=None, sentence="not checked for lack of time"))
    assert cells(card)["memory"] == ("not known", "", "not checked for lack of time")
    assert card.figure is None


def test_a_simulated_run_says_so(tmp_path: Path) -> None:
    card, _ = card_of(tmp_path, simulated=True, memory=FITS)
    assert "simulated" in card.title


def test_the_baseline_needs_none(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "r", 1).path)
    assert isinstance(run, RunData)
    assert isinstance(run.info, RunInfo)
    assert not FIGURES["certificates"](run).drawn


def test_lines_for_the_readme() -> None:
    summary = Summary(
        stopped_because="",
        elapsed_s=1.0,
        ledger_s={},
        best_number=1,
        verdict=Verdict(status="gain", sentence="faster"),
        memory=replace(FITS, holds=False),
        numerics=replace(ROUNDS, sentence="two\nlines"),
    )
    memory, numerics = readme_lines(summary, info(), None)
    assert memory.startswith("- memory: **FAILS**. the worst that the job asks for")
    assert numerics == "- numerics: **holds**. two lines."
    assert readme_lines(summary, info(), job_args(info()))[-1].startswith("- semantics: **holds**. the same training")
