"""Are the committed tables of real trainings whole, and hard enough to tell a strategy from luck?"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.contract import SegmentSettings
from autotune.recording import Recording, read_recording

sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / "search"))
from difficulty import FRACS, MOST, random_curve
from estimated import Estimate, estimate
from recorded import RecordedWorld
from studies import Contender, study

DATA = Path(__file__).parents[1] / "data"
TABLES = sorted(path.parent.name for path in DATA.glob("*/table.json"))


@pytest.fixture(scope="module", params=TABLES)
def table(request: pytest.FixtureRequest) -> tuple[str, Recording, Estimate]:
    recording = read_recording(str(DATA / request.param))
    return request.param, recording, estimate(recording)


def lines_of(name: str) -> list[dict[str, Any]]:
    parts = sorted((DATA / name).glob("part-*.jsonl.xz"))
    return [json.loads(line) for part in parts for line in lzma.open(part, "rt")]


def test_there_are_tables() -> None:
    assert "cpu2-compute" in TABLES


def test_every_configuration_was_measured_twice_with_its_steps(table: tuple[str, Recording, Estimate]) -> None:
    name, recording, found = table
    lines, said = lines_of(name), json.loads((DATA / name / "table.json").read_text())
    assert [line["n"] for line in lines] == list(range(len(lines)))
    assert {line["fingerprint"] for line in lines} == {said["fingerprint"]}
    assert len(recording.cells) >= 150
    measured = {key: [r for r in runs if r.result.outcome.measured] for key, runs in recording.cells.items()}
    assert min(map(len, measured.values())) >= 2
    assert set(found.images_per_s) == set(recording.cells)
    assert not recording.simulated
    assert sum(line["role"] == "sentinel" for line in lines) >= len(lines) / 10
    for line in lines:
        window = line["steps"]["end_s"][line["measured_from"] - 1 :]
        used = sum(line["steps"]["images"][line["measured_from"] :]) / (window[-1] - window[0])
        rate, waits = line["result"]["images_per_s"], line["result"]["params"]["workers"] == 0
        assert rate <= used * 1.001, "the raw window gives the rate"
        assert rate >= used * (0.999 if waits else 0.9), "and less only where a prefetch queue drained"


def test_it_is_hard_enough(table: tuple[str, Recording, Estimate]) -> None:
    _, _, found = table
    rates, top = list(found.images_per_s.values()), max(found.images_per_s.values())
    n_good = sum(rate >= (1 - FRACS[2]) * top for rate in rates)
    assert FRACS[2] == 0.02
    assert random_curve(len(rates), n_good, 12) <= MOST


def test_the_default_strategy_comes_near(table: tuple[str, Recording, Estimate]) -> None:
    _, recording, found = table
    world = RecordedWorld(recording, 0, found)
    row = study(world, Contender(strategy="structured"), seed=0, n_trials=30, on_cpu=True, segment=SegmentSettings())
    assert row["share"][-1] > 0.95
    assert "proof" not in row, "fresh runs would be those that the search has seen"
    assert row["share"][0] < 0.9, "the user's own settings are not"
