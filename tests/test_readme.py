"""Every command of the README runs (searches with --dry-run added), and its tables are current."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune import simulation
from autotune.report import export
from autotune.search import ablation, contest
from autotune.search.verdict import MIN_BLOCKS
from autotune.space.knobs import KNOBS
from tests.cli import autotune

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"python -m autotune ([^`\n]+)", README)))
ELSEWHERE = {
    # Trains for real: tests/test_real_search.py runs it.
    "train results/latest epochs=300",
    # Real receipts are measured again: tests/test_recheck.py has one (and a simulated one, which is refused).
    "recheck results/latest/best",
    # Needs both trackers' packages in a session of their own: tests/test_trackers.py runs it.
    "search --track wandb,mlflow --budget 30m data=YOUR.yaml",
    # There is nothing to trace in a simulated trial: tests/worker/test_trace.py traces a real one.
    "trial results/latest/trials/0003 --trace",
    # Trains for real: tests/doctor/test_prices.py runs it.
    "doctor --measure --budget 5m data=YOUR.yaml",
    # Follows a real training to its end: tests/test_watching.py has one.
    "watch runs/detect/train --run results/latest",
    # Trains for real: tests/test_batch.py runs it.
    "batch --ranks 2 --mem-limit 3GiB --budget 5m device=cpu",
    # Needs two machines: tests/run/test_nodes.py has two launchers, tests/run/test_train.py the command.
    "train results/latest --nnodes 2 --node-rank 0 --rdzv-endpoint HOST:29500",
}


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """Simulated searches of two trials and no more blocks than needed: what is asked here is whether commands run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "TRIALS", 2)
        patch.setattr(contest, "MAX_BLOCKS", MIN_BLOCKS)
        patch.setattr(ablation, "MAX_BLOCKS", 1)
        patch.setattr(export, "check_with_yolo", lambda _: None)  # two seconds each: tests/report/test_export.py
        yield


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    assert autotune("search", "--dry-run", "--budget", "10m", "--out", folder / "results").code == 0
    return folder


def test_the_commands_were_found() -> None:
    verbs = {c.split()[0] for c in COMMANDS}
    assert verbs == {"search", "train", "report", "export", "trial", "spaces", "batch", "doctor", "recheck", "watch"}
    assert set(COMMANDS) >= ELSEWHERE


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ELSEWHERE])
def test_command_runs(command: str, results: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(results)
    words = [w.replace("YOUR.yaml", str(tiny)) for w in shlex.split(command)]
    if words[0] == "search":
        # The budget only bounds the search; two simulated trials take seconds.
        words += [] if {"--dry-run", "--replay"} & set(words) else ["--dry-run"]
        words += [] if "--resume" in words else ["--out", "searched"]
    said = autotune(*words)
    assert said.code == 0, said


def test_two_commands() -> None:
    assert "pip install -e . && python -m autotune search --budget 5m\n" in README
    assert "pip install -e '.[test]' && pytest\n" in README


def test_knob_table_is_current() -> None:
    for knob in KNOBS.values():
        row = f"| `{knob.name}` | {knob.site} | {knob.training} | {knob.doc} |"
        assert row in README, row


def test_nothing_was_left_to_fill_in() -> None:
    assert re.findall(r"@[A-Z]+@|TODO", README) == []
