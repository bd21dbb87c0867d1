"""A search that a recording answers: by the same controller, from recorded configurations only, labelled everywhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import autotune as package
from autotune import simulation
from autotune.atlas import data_home
from autotune.contract import RunDir, RunInfo, Summary, TrialResult, read_json
from autotune.errors import InputError
from autotune.recording import read_recording
from autotune.report import export
from autotune.search import ablation, contest
from autotune.search.proposals import NOT_RECORDED, key_of
from autotune.search.verdict import MIN_BLOCKS
from tests.cli import Said, autotune
from tests.recorded_table import BASELINE, NO_MEMORY, write_table

GONE = {"torch_threads": 2, "batch_per_gpu": 32, "workers": 0}


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """No more blocks than needed: what is asked here is not how sure the claim is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "TRIALS", 6)
        patch.setattr(contest, "MAX_BLOCKS", MIN_BLOCKS)
        patch.setattr(ablation, "MAX_BLOCKS", 1)
        patch.setattr(export, "check_with_yolo", lambda _: None)
        yield


def results_of(run: Path) -> list[TrialResult]:
    return [read_json(d.result, TrialResult) for _, d in RunDir(run).numbered()]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Said]:
    """A table in which a seed was not measured, searched to its end: run folder, table, what was said."""
    out = tmp_path_factory.mktemp("replays")
    table = write_table(out / "table", without=(GONE,))
    said = autotune("search", "--replay", table, "--strategy", "random", "--budget", "30m", "--out", out / "é results")
    assert said.code == 0, said
    return (out / "é results" / "latest").resolve(), table, said


def test_only_recorded_configurations_are_tried_and_all_of_them(replayed: tuple[Path, Path, Said]) -> None:
    run, table, _ = replayed
    recording = read_recording(str(table))
    tried = [r for r in results_of(run) if r.role == "trial"]
    keys = {key_of(r.params) for r in tried}
    assert len(keys) == len(tried)
    summary = read_json(run / "summary.json", Summary)
    vetoed = {key_of(n.params) for n in summary.not_tried if n.predicted_oom}
    assert keys | vetoed == set(recording.cells) - {key_of(BASELINE)}
    assert vetoed <= {key_of({**NO_MEMORY, "torch_threads": 1})}, "as much memory as what ran out of it"
    left = "only configurations that would run out of memory are left"
    assert summary.stopped_because == (left if vetoed else "every configuration was measured")
    assert [n.params for n in summary.not_tried if n.reason == NOT_RECORDED] == [GONE], "a seed of the table"
    assert [r.outcome.value for r in tried if r.params == NO_MEMORY] == ["oom"]
    assert summary.verdict.status == "gain"
    best = next(f for f in summary.verdict.finalists if f.name == "best")
    assert best.params["torch_threads"] == 2


def test_the_recorded_seconds_are_charged(replayed: tuple[Path, Path, Said]) -> None:
    run, _, _ = replayed
    summary, results = read_json(run / "summary.json", Summary), results_of(run)
    spent_s = sum(r.took_s for r in results)
    assert spent_s > 120
    assert summary.elapsed_s == pytest.approx(spent_s, abs=25.0)
    assert sum(summary.ledger_s.values()) == pytest.approx(summary.elapsed_s, abs=1.0)


def test_the_label_is_everywhere(replayed: tuple[Path, Path, Said]) -> None:
    run, _, said = replayed
    assert said.out.splitlines()[0].startswith("REPLAYED (--replay formula), nothing is measured")
    assert sum("x faster than your settings" in text and "REPLAYED: " in text for text in said.out.splitlines()) == 1
    assert "replay_" in run.name
    info, summary = read_json(run / "run.json", RunInfo), read_json(run / "summary.json", Summary)
    assert (info.simulated, info.replayed, info.backend, info.label) == (True, "formula", "replay", "REPLAYED")
    assert summary.verdict.sentence.startswith("REPLAYED: ")
    assert "interleaved blocks of recorded runs" in summary.verdict.sentence
    assert "fresh" not in summary.verdict.sentence
    assert any("nothing was measured anew" in note for note in summary.notes)
    assert any("its interval is too narrow" in note for note in summary.notes), "four runs of the baseline, no more"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "REPLAYED from formula: nothing was measured anew" in page
    assert "<title>REPLAYED: " in page
    assert "Two recorded runs of one configuration" in page
    assert " fresh runs of one configuration" not in page
    assert "SIMULATED" not in page
    assert "(simulated)" not in page
    events = [json.loads(text) for text in (run / "events.jsonl").read_text().splitlines()]
    assert events[0]["headline"].startswith("REPLAYED")
    assert events[-1]["sentence"].startswith("REPLAYED: ")


def test_nothing_is_handed_over(replayed: tuple[Path, Path, Said]) -> None:
    run, _, said = replayed
    assert not (run / "best").exists()
    assert "yolo train" not in said.out
    for words in (("export", run), ("train", run), ("recheck", run), ("trial", run / "trials" / "0001")):
        refused = autotune(*words)
        assert refused.code == 2, (words, refused)
        assert refused.err.startswith("error: ")
    refused = autotune("search", "--resume", run, "--budget", "1m")
    assert (refused.code, "is a replay of formula" in refused.err) == (2, True)
    assert autotune("report", run).code == 0


def test_a_run_that_measured_nothing_is_no_recording(replayed: tuple[Path, Path, Said], tmp_path: Path) -> None:
    for name in ("run.json", "machine.json", "space.yaml"):
        (tmp_path / name).write_bytes((replayed[0] / name).read_bytes())
    said = autotune("search", "--replay", tmp_path, "--out", tmp_path / "out")
    assert (said.code, "its baseline was not measured" in said.err) == (2, True)
    assert len(said.err.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["epochs=60"], "epochs differs: the recording has epochs=50, now epochs=60"),
        (["data=mine.yaml"], "data differs"),
        (["--gpus", "1"], "--gpus is the recording's"),
        (["--space", "quick"], "--space is the recording's"),
        (["--mem-limit", "3GiB"], "--mem-limit is the recording's"),
        (["--training", "any"], "--training differs"),
        (["--dry-run"], "--dry-run cannot be had with --replay"),
        (["--verify-accuracy", "1m"], "--verify-accuracy cannot be had"),
        (["--objective", "energy"], "counted no energy"),
        (["--strategy", "nonsense"], "unknown strategy"),
    ],
)
def test_another_question_is_refused(tmp_path: Path, words: list[str], says: str) -> None:
    table = write_table(tmp_path / "t")
    said = autotune("search", "--replay", table, "--out", tmp_path / "out", *words)
    assert (said.code, (tmp_path / "out").exists()) == (2, False)
    assert said.err.startswith("error: ")
    assert says in said.err


@pytest.mark.slow
def test_a_run_replays_its_own_sequence(tmp_path: Path) -> None:
    words = ("--budget", "10m", "--seed", "3", "--out", tmp_path)
    assert autotune("search", "--dry-run", "--name", "first", "epochs=50", *words).code == 0
    run = (tmp_path / "latest").resolve()
    # What it was asked may be said again.
    said = autotune("search", "--replay", run, "--name", "again", "epochs=50", *words)
    assert said.code == 0, said
    again = (tmp_path / "latest").resolve()
    assert again != run
    before, after = results_of(run), results_of(again)
    n = next(i for i, r in enumerate(before) if r.role == "finalist") - 2  # and its best's two probes
    assert n > 8
    assert [(r.number, r.role, r.probe, r.params) for r in after[:n]] == [
        (r.number, r.role, r.probe, r.params) for r in before[:n]
    ]
    for old, new in zip(before[:n], after[:n], strict=True):
        if new.outcome.value == "pruned":  # a dry run's formula has no time to race in
            assert new.took_s < old.took_s
        else:
            assert dataclasses.replace(new, started_s=0.0) == dataclasses.replace(old, started_s=0.0)
    info = read_json(again / "run.json", RunInfo)
    assert info.replayed == f"{run.name} (simulated)"
    assert {r.probe for r in after} == {r.probe for r in before}
    assert [r.error for r in after if r.role != "trial" and r.error] == []


@pytest.mark.slow
def test_from_python(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t")
    run = package.tune(replay=table, strategy="simple", budget="20m", out=tmp_path / "out", epochs=50)
    assert run.info.replayed == "formula"
    assert run.summary is not None
    assert run.summary.verdict.sentence.startswith("REPLAYED: ")
    assert not (data_home() / "atlas").exists(), "no later search starts from it"
    with pytest.raises(InputError, match="imgsz differs"):
        package.tune(replay=table, out=tmp_path / "out", imgsz=640)
