"""`autotune recheck`: what it refuses, what it says, and real runs that hold, do not hold, and do not run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune import recheck as room
from autotune.contract import (
    Comparison,
    Outcome,
    RunDir,
    TrialDir,
    TrialResult,
    TrialSpec,
    Winner,
    read_json,
    to_dict,
)
from autotune.report.rechecks import Recheck, all_rechecks
from autotune.run.launch import RUN_TAG
from autotune.run.supervise import find_tagged
from tests.cli import Said, autotune
from tests.receipts import best_in, receipt_for
from tests.run.trials import SHORT

INJECT = Path(__file__).parent / "bench" / "inject"


Fake = Callable[..., None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """FakeTrial in place of real ones: rates of baseline and winner, a block each; an Outcome is a failure."""

    def install(baseline: list[Any], best: list[Any], took_s: float = 0.1) -> None:
        left = {False: list(baseline), True: list(best)}

        def run_trial(spec: TrialSpec, directory: TrialDir, *, started_s: float, watch: None = None) -> TrialResult:
            assert spec.role == "finalist"
            what = left[bool(spec.env)].pop(0)
            if what is KeyboardInterrupt:
                raise KeyboardInterrupt
            failed = isinstance(what, Outcome)
            return TrialResult(
                number=spec.number,
                role=spec.role,
                outcome=what if failed else Outcome.OK,
                params=spec.params,
                started_s=started_s,
                took_s=took_s,
                images_per_s=None if failed else what,
                error=f"{what} happened" if failed else None,
                hint="smaller images" if failed else None,
            )

        monkeypatch.setattr(room, "run_trial", run_trial)

    return install


def answer_of(best: Path) -> Recheck:
    found = all_rechecks(RunDir(best.parent).rechecks)
    assert len(found) == 1
    return found[0]


WINNER_ENV = {"OMP_NUM_THREADS": "1"}
"""Marks the winner for the fake."""
RATES = [100.0, 103.0, 98.0, 101.0, 99.0, 102.0, 97.0, 100.0]


def check_holds(best: Path, said: Said) -> Recheck:
    assert said.code == 0, said
    assert said.out.splitlines()[-1].startswith("holds: ")
    found = answer_of(best)
    assert found.status == "holds"
    assert len(found.blocks) >= 3
    return found


def test_holds(tmp_path: Path, tiny: Path, fake: Fake) -> None:
    best = best_in(tmp_path, receipt_for(tiny, speedup=1.5), env=WINNER_ENV)
    fake(RATES, [1.48 * r for r in reversed(RATES)])
    found = check_holds(best, said := autotune("recheck", best))
    assert "machine and versions are those of the receipt" in said.out
    assert found.changes == ()
    assert found.now is not None
    assert (found.now.n_blocks, len(found.blocks)) == (room.MAX_BLOCKS, room.MAX_BLOCKS)
    assert {p.name for p in best.iterdir()} == {"winner.json", "receipt.json"}, "nothing is written into best/"
    folder = next(RunDir(tmp_path).rechecks.iterdir())
    assert {p.name for p in folder.iterdir()} == {"recheck.json", "machine.json", ".lock"}
    assert re.search(r"^ +then +100.* 1\.50x", said.out, re.MULTILINE)
    assert re.search(r"^ +now +100.* 1\.4\dx", said.out, re.MULTILINE)


def test_a_slower_winner_does_not_hold(tmp_path: Path, tiny: Path, fake: Fake) -> None:
    then = receipt_for(tiny, speedup=1.5)
    assert then.machine is not None
    other = replace(then.machine, versions={**then.machine.versions, "torch": "2.1.0"}, fingerprint="00000000")
    best = best_in(tmp_path, replace(then, machine=other), env=WINNER_ENV)
    fake(RATES, list(reversed(RATES)))
    said = autotune("recheck", best)
    assert said.code == 5, said
    assert said.out.splitlines()[-1].startswith("does not hold: ")
    assert "smaller than promised" in said.out
    assert "changed since the receipt: torch 2.1.0, now 2." in said.out


def test_both_slower_is_a_note_and_holds(tmp_path: Path, tiny: Path, fake: Fake) -> None:
    best = best_in(tmp_path, receipt_for(tiny), env=WINNER_ENV)
    fake([r / 2 for r in RATES], [r / 2 for r in reversed(RATES)])
    said = autotune("recheck", best)
    check_holds(best, said)
    assert "note: both run at another speed than in the receipt, yours 0.50x, the winner 0.50x" in said.out


def test_a_winner_that_does_not_run_does_not_hold(tmp_path: Path, tiny: Path, fake: Fake) -> None:
    best = best_in(tmp_path, receipt_for(tiny), env=WINNER_ENV)
    fake(RATES, [Outcome.OOM])
    said = autotune("recheck", best)
    assert said.code == 5
    sentence = "does not hold: the winner did not run here (oom: oom happened); hint: smaller images"
    assert said.out.splitlines()[-1] == sentence


def test_a_baseline_that_does_not_run_says_nothing_of_the_winner(tmp_path: Path, tiny: Path, fake: Fake) -> None:
    best = best_in(tmp_path, receipt_for(tiny), env=WINNER_ENV)
    fake([Outcome.CRASH], RATES)
    said = autotune("recheck", best)
    assert said.code == 4
    assert "cannot tell: your own configuration did not run here (crash: crash happened)" in said.out


def test_a_budget_for_less_than_three_blocks(tmp_path: Path, tiny: Path, fake: Fake) -> None:
    best = best_in(tmp_path, receipt_for(tiny), env=WINNER_ENV)
    fake([], [])  # nothing is started: the receipt's own runs say what it would take
    said = autotune("recheck", best, "--budget", "20s")
    assert said.code == 4
    assert re.search(r"cannot tell: 0 of 3 blocks were run, they take about 2\d s here: give --budget 1m", said.out)


def test_interrupted_keeps_what_there_is(tmp_path: Path, tiny: Path, fake: Fake) -> None:
    best = best_in(tmp_path, receipt_for(tiny), env=WINNER_ENV)
    fake([*RATES[:1], KeyboardInterrupt], [*RATES[:1], KeyboardInterrupt])
    said = autotune("recheck", best)
    assert said.code == 130
    found = answer_of(best)
    assert (found.interrupted, found.status) == (True, "unknown")
    assert found.blocks[0].speedup == 1.0


def test_for_machines(tmp_path: Path, tiny: Path, fake: Fake) -> None:
    best = best_in(tmp_path, receipt_for(tiny), env=WINNER_ENV)
    fake(RATES, list(reversed(RATES)))
    said = autotune("recheck", best, "--json")
    assert said.code == 0
    assert json.loads(said.out) == to_dict(answer_of(best))


def test_an_edited_yaml_is_said(tmp_path: Path, tiny: Path, fake: Fake) -> None:
    best = best_in(tmp_path, receipt_for(tiny), env=WINNER_ENV)
    args = read_json(best / "winner.json", Winner).train_args
    text = "mode: train\n" + "".join(f"{k}: {json.dumps(v)}\n" for k, v in args.items())
    (best / "best.yaml").write_text(text)
    fake(2 * RATES, 2 * RATES)
    assert "was edited" not in autotune("recheck", best).out
    (best / "best.yaml").write_text(text.replace("batch: 8", "batch: 4").replace("workers: 0\n", ""))
    assert "best.yaml was edited (batch 8 -> 4, workers 0 -> 8)" in autotune("recheck", best).out


def test_another_dataset_and_another_place_for_it(tmp_path: Path, tiny: Path, fake: Fake) -> None:
    best = best_in(tmp_path, receipt_for("/not/here.yaml", n_images=1000), env=WINNER_ENV)
    refused = autotune("recheck", best)
    assert (refused.code, "/not/here.yaml" in refused.err) == (2, True)
    fake(RATES, list(reversed(RATES)))
    said = autotune("recheck", best, f"data={tiny}")
    assert said.code == 0
    assert "training images 1000, now 64" in said.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["imgsz=32"], ["imgsz=", "another job"]),
        (["device=0"], ["device=0"]),
        (["--gpus", "9"], ["--gpus 9"]),
        (["--budget", "soon"], ["soon"]),
        (["datta=x"], ["datta", "data"]),
        (["model=nowhere.pt"], ["nowhere.pt"]),
        (["--trial", "3"], ["--trial"]),
    ],
)
def test_refuses(args: list[str], said: list[str], tmp_path: Path, tiny: Path) -> None:
    best = best_in(tmp_path, receipt_for(tiny))
    refused = autotune("recheck", best, *args)
    assert refused.code == 2, refused
    assert refused.out == ""
    assert refused.err.startswith("error: ")
    for word in said:
        assert word in refused.err
    assert [p.name for p in tmp_path.iterdir()] == [best.name]


def test_refuses_what_proves_nothing(tmp_path: Path, tiny: Path) -> None:
    simulated = best_in(tmp_path / "a", receipt_for(tiny), simulated=True)
    unconfirmed = best_in(tmp_path / "b", receipt_for(tiny, ratio=None))
    ranks = best_in(tmp_path / "c", receipt_for(tiny), n_ranks=500)
    energy = best_in(tmp_path / "e", receipt_for(tiny, objective="energy"))
    torn = best_in(tmp_path / "f", receipt_for(tiny))
    (torn / "receipt.json").write_text('{"format": "one"}', encoding="utf-8")
    alone = best_in(tmp_path / "d", receipt_for(tiny))
    (alone / "receipt.json").unlink()
    for best, word in (
        (simulated, "--dry-run"),
        (unconfirmed, "claims no speed-up"),
        (ranks, "500 ranks"),
        (energy, "only their drivers count energy"),
        (torn, "cannot read a Receipt"),
        (alone, "no receipt.json"),
        (tmp_path, "no winner.json"),
    ):
        said = autotune("recheck", best)
        assert (said.code, said.out) == (2, ""), said
        assert word in said.err
        assert "hint: " in said.err


# Real runs of the tiny model from here on.


@pytest.mark.slow
def test_real_runs_hold(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal configurations against a receipt that says that they are, with the noise of a busy machine."""
    monkeypatch.setattr(room, "MAX_BLOCKS", 3)
    noisy = Comparison(speedup=1.0, ci95_lo=0.8, ci95_hi=1.25, n_blocks=3, sigma_run_frac=0.1, df=8)
    best = best_in(tmp_path, receipt_for(tiny, ratio=noisy))
    before = sorted(p.name for p in tiny.parent.rglob("*"))
    found = check_holds(best, autotune("recheck", best, "--budget", "2m"))
    folder = next(RunDir(tmp_path).rechecks.iterdir())
    specs = [read_json(d.spec, TrialSpec) for _, d in RunDir(folder).numbered()]
    assert [s.segment for s in specs] == [SHORT] * 6
    assert found.now is not None
    assert find_tagged(str(folder), RUN_TAG) == []
    assert not (folder / ".data").exists()
    assert sorted(p.name for p in tiny.parent.rglob("*")) == before


@pytest.mark.slow
def test_an_injected_slow_setting_is_found(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times slower, in the winner's processes alone; the receipt is as noisy as above."""
    monkeypatch.setattr(room, "MAX_BLOCKS", 3)
    noisy = Comparison(speedup=1.0, ci95_lo=0.8, ci95_hi=1.25, n_blocks=3, sigma_run_frac=0.1, df=8)
    env = {"SLOWDOWN_FRAC": "3", "PYTHONPATH": os.pathsep.join((str(INJECT), str(INJECT.parents[2])))}
    best = best_in(tmp_path, receipt_for(tiny, ratio=noisy), env=env)
    said = autotune("recheck", best, "--budget", "3m")
    assert said.code == 5, said
    assert "smaller than promised" in said.out.splitlines()[-1]
    assert max(b.speedup or 9.0 for b in answer_of(best).blocks) < 0.6


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running(tmp_path: Path, tiny: Path) -> None:
    best = best_in(tmp_path, receipt_for(tiny))
    argv = [sys.executable, "-m", "autotune", "recheck", str(best), "--budget", "3m"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 90
    steps = "rechecks/*/trials/0000/steps0.txt"
    while not list(tmp_path.glob(steps)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "interrupted; cannot tell" in out
    assert find_tagged(str(next(RunDir(tmp_path).rechecks.iterdir())), RUN_TAG) == []
    assert answer_of(best).interrupted
