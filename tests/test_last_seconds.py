"""Ctrl-C after the last trial: whatever is being done then is finished, and the run has its answer."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune import simulation
from autotune.contract import Summary, read_json
from autotune.run.dataset import DatasetView
from autotune.run.preloaded import Preloaded
from autotune.search.study import Study
from tests.cli import Said, autotune

MOMENTS = [(Study, "importance"), (Preloaded, "__exit__"), (DatasetView, "close")]


def interrupted(monkeypatch: pytest.MonkeyPatch, at: tuple[type, str], times: int) -> None:
    """Have this method interrupt the search before it does its work."""
    owner, name = at
    method: Callable[..., Any] = getattr(owner, name)

    def first_the_signal(*args: Any, **kwargs: Any) -> Any:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, first_the_signal)


def search(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Said]:
    monkeypatch.setattr(simulation, "TRIALS", 0)
    said = autotune("search", "--dry-run", "--budget", "2m", "--out", tmp_path / "out", f"data={tiny}")
    return (tmp_path / "out" / "latest").resolve(), said


@pytest.mark.parametrize("at", MOMENTS, ids=lambda at: f"{at[0].__name__}.{at[1]}")
def test_one_is_noted(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, at: tuple[type, str]) -> None:
    interrupted(monkeypatch, at, 1)
    folder, said = search(tmp_path, tiny, monkeypatch)
    assert said.code == 130, said
    assert read_json(folder / "summary.json", Summary).stopped_because != "interrupted", "the trials were complete"
    assert (folder / "best" / "best.yaml").exists()
    assert "run_ended" in (folder / "events.jsonl").read_text().splitlines()[-1]
    assert "SIMULATED" in (folder / "report.html").read_text(encoding="utf-8")
    assert not (folder / ".data").exists()


def test_two_leave(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, (Study, "importance"), 2)
    folder, said = search(tmp_path, tiny, monkeypatch)
    assert said.code == 130, said
    assert not (folder / "report.html").exists()
    assert not (folder / ".data").exists()
