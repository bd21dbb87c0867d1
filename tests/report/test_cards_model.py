"""Predicted against measured: are the two in one unit, and is it said when the model was wrong?"""

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.contract import Guess, Outcome, TrialResult
from autotune.report.cards_model import TITLE, predictions
from autotune.report.figures import FIGURES
from autotune.report.load import RunData, load_run

from .conftest import GIB, make_run, result_of

NONE_SAID = "No trial was predicted: the strategy has no model, or only its seeds were tried."


def results_of(n: int = 8, **fields: Any) -> list[TrialResult]:
    """A baseline and n trials, at 100, 101, ... images/s, whose jobs take 1000, 1001, ... minutes."""
    return [
        result_of(i, images_per_s=100.0 + i, job_s=60_000.0 + 60 * i, energy_j_per_image=2.0 + i, **fields)
        for i in range(n + 1)
    ]


def run_of(folder: Path, guesses: dict[int, Guess], results: list[TrialResult] | None = None, **info: Any) -> RunData:
    made = make_run(folder, results=results or results_of(), guesses=guesses, info=info, finalists=False)
    return load_run(made.path)


def around(value: float, frac: float = 0.1, mem_bytes: float | None = None) -> Guess:
    return Guess(value=value, lo=value * (1 - frac), hi=value * (1 + frac), mem_bytes=mem_bytes)


def test_job_time_as_the_page_shows_it(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", {1: around(66_066.0), 2: around(60_120.0, 0.01), 3: around(50_000.0, 0.01)})
    df = predictions(run).set_index("number")
    assert df.index.tolist() == [1, 2, 3]
    assert df["predicted"].tolist() == pytest.approx([66_066 / 3600, 60_120 / 3600, 50_000 / 3600]), "hours"
    assert df["measured"].tolist() == pytest.approx([60_060 / 3600, 60_120 / 3600, 60_180 / 3600])
    assert df["error_frac"].tolist() == pytest.approx([60_060 / 66_066 - 1, 0.0, 60_180 / 50_000 - 1])
    assert df["inside"].tolist() == [True, True, False]
    assert (df["lo"] < df["predicted"]).all()
    assert (df["predicted"] < df["hi"]).all()


def test_images_per_s_is_the_other_way_round(tmp_path: Path) -> None:
    """That objective is seconds per image: what is less is more on the page, and the ends change places."""
    guesses = {1: around(1 / 110, 0.2), 2: around(1 / 102, 0.01), 3: around(1 / 200, 0.1)}
    df = predictions(run_of(tmp_path / "r", guesses, objective="images_per_s")).set_index("number")
    assert df["predicted"].tolist() == pytest.approx([110, 102, 200])
    assert df["measured"].tolist() == pytest.approx([101, 102, 103])
    assert df["inside"].tolist() == [True, True, False]
    assert df.loc[1, ["lo", "hi"]].tolist() == pytest.approx([110 / 1.2, 110 / 0.8])
    assert df["error_frac"].tolist() == pytest.approx([101 / 110 - 1, 0.0, 103 / 200 - 1])


def test_energy(tmp_path: Path) -> None:
    card = FIGURES["model"](run_of(tmp_path / "r", {1: around(3.0), 2: around(8.0)}, objective="energy"))
    assert card.df["measured"].tolist() == [3.0, 4.0]
    assert card.df["inside"].tolist() == [True, False]
    assert json.loads(card.figure.to_json())["layout"]["xaxis"]["title"]["text"] == "predicted energy per image (J)"  # type: ignore[union-attr]


def test_only_what_was_measured_and_predicted(tmp_path: Path) -> None:
    results = results_of()
    results[2] = result_of(2, Outcome.OOM)
    results[3] = result_of(3, Outcome.PRUNED, images_per_s=50.0, job_s=None)
    guesses = {n: around(60_000.0) for n in (1, 2, 3, 77)}
    assert predictions(run_of(tmp_path / "r", guesses, results))["number"].tolist() == [1]


@pytest.mark.parametrize("guesses", [{}, {2: around(1.0)}], ids=["no model", "only of what failed"])
def test_without_a_prediction_there_is_no_card(tmp_path: Path, guesses: dict[int, Guess]) -> None:
    results = results_of()
    results[2] = result_of(2, Outcome.CRASH)
    card = FIGURES["model"](run_of(tmp_path / "r", guesses, results))
    assert (card.drawn, card.reason, card.title) == (False, NONE_SAID, TITLE)


def test_the_note_says_how_far_off_it_was(tmp_path: Path) -> None:
    exact = {n: around(60_000.0 + 60 * n, mem_bytes=None) for n in range(1, 9)}
    card = FIGURES["model"](run_of(tmp_path / "a", exact))
    assert (
        card.note
        == "Before each trial ran, the model was off by 0.0% (median of 8); 8 of 8 lay within its 95 % interval."
    )
    few = FIGURES["model"](run_of(tmp_path / "b", {1: around(66_066.0)}))
    assert "off by 9.1% (median of 1); too few to judge its intervals." in few.note
    narrow = {n: around(66_000.0, 0.001) for n in range(1, 9)}
    assert FIGURES["model"](run_of(tmp_path / "c", narrow)).note.endswith(
        "; 0 of 8 lay within its 95 % interval. Its intervals were too narrow."
    )


def test_memory_is_judged_where_it_is_known(tmp_path: Path) -> None:
    results = [r if r.number != 3 else result_of(3, job_s=60_180.0, peak_mem_bytes=()) for r in results_of(3)]
    results[1] = result_of(1, job_s=60_060.0, peak_mem_bytes=(3 * GIB, 2 * GIB))
    results[2] = result_of(2, job_s=60_120.0, peak_mem_bytes=(3 * GIB,))
    guesses = {1: around(6e4, mem_bytes=2.0 * GIB), 2: around(6e4), 3: around(6e4, mem_bytes=2.0 * GIB)}
    card = FIGURES["model"](run_of(tmp_path / "r", guesses, results))
    assert card.df["mem_bytes"].tolist()[:2] == [3 * GIB, 3 * GIB]
    assert card.note.endswith("Peak memory: 50.0% off (median of 1).")


def test_each_trial_is_a_point_with_its_interval(tmp_path: Path) -> None:
    card = FIGURES["model"](run_of(tmp_path / "r", {n: around(60_000.0) for n in (1, 2, 5)}))
    line, points = json.loads(card.figure.to_json())["data"]  # type: ignore[union-attr]
    assert line["x"] == line["y"], "as predicted"
    assert points["y"] == pytest.approx(card.df["measured"].tolist())
    assert points["error_x"]["array"] == pytest.approx((card.df["hi"] - card.df["predicted"]).tolist())
    assert points["error_x"]["arrayminus"] == pytest.approx((card.df["predicted"] - card.df["lo"]).tolist())
    assert line["x"][0] <= min(points["y"])
    assert line["x"][1] >= max(points["y"])


def test_a_journal_of_before_there_were_guesses(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", results=results_of(), finalists=False)
    old = {"t_s": 1.0, "number": 1, "role": "trial", "changes": {}, "price_s": 3.0, "kind": "trial_started"}
    folder.events.write_text(json.dumps(old) + "\n" + folder.events.read_text())
    assert FIGURES["model"](load_run(folder.path)).reason == NONE_SAID
