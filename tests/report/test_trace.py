"""The traces of baseline and best: what is drawn, and what is said when there is nothing to draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.contract import GpuMeanwhile, Meanwhile, RunDir, TrialResult, read_json, sample_columns, write_json
from autotune.report.cards import Card
from autotune.report.cards_tables import trials
from autotune.report.cards_trace import MOST_ROWS, trace
from autotune.report.html import write_report
from autotune.report.load import load_run
from autotune.report.words import joules, result_lines

from .conftest import make_run, result_of

BEST = 11
"""Of the run of 12 trials that conftest makes."""


def synthetic_samples(n_gpus: int = 0, n_rows: int = 80, *, slowed: tuple[int, ...] = (), blank: bool = False) -> str:
    """A row each quarter of a second, measured from second 5 to 15."""
    lines = [",".join(sample_columns(n_gpus))]
    for i in range(n_rows):
        host = [i / 4, int(20 <= i <= 60), 0.9, 1.5, 2 << 30, 0, 4e6, 0, 0, 0, 12.5, 0.5, 0.0, 0.0]
        gpu = [0.8, 20 << 30, 350.0, 1.2e9 if i in slowed else 1.7e9, 2.6e9, 0x40 if i in slowed else 0, 60, 87.5 * i]
        cells: list[Any] = [*host, *gpu * n_gpus]
        if blank:
            cells[2:] = [""] * len(cells[2:])
        lines.append(",".join(map(str, cells)))
    return "\n".join(lines) + "\n"


def with_samples(
    folder: Path, texts: dict[int, str], seen: dict[int, Meanwhile] | None = None, **options: Any
) -> RunDir:
    run = make_run(folder, 12, **options)
    for number, text in texts.items():
        run.trial(number).samples.write_text(text)
    for number, m in (seen or {}).items():
        write_json(run.trial(number).result, result_of(number, meanwhile=m))
    return run


def drawn(run: RunDir) -> tuple[Card, dict[str, Any]]:
    card = trace(load_run(run.path))
    assert card.figure is not None, card.reason
    return card, json.loads(card.figure.to_json())


def test_gpus_of_both_on_the_same_axes(tmp_path: Path) -> None:
    def of(frac: float, watts: float) -> Meanwhile:
        return Meanwhile(
            n_samples=40, gpus=(GpuMeanwhile(uuid="GPU-1", util_frac=frac, power_w=watts, slowed_frac=0.0),)
        )

    texts = {0: synthetic_samples(1), BEST: synthetic_samples(1)}
    card, figure = drawn(with_samples(tmp_path / "r", texts, {0: of(0.62, 310.0), BEST: of(0.97, 540.0)}, gpu=True))
    busy = "Your arguments keep the GPU busy for 62 % of the time at 310 W, the best keeps the GPU busy for 97 %"
    assert card.note == f"{busy} of the time at 540 W."
    assert [len(t["x"]) for t in figure["data"]] == [80] * 8, "use, clock, power and memory, of each"
    assert figure["data"][0]["y"][0] == 80.0
    layout = figure["layout"]
    assert layout["yaxis2"]["matches"] == "y"
    assert {a["text"] for a in layout["annotations"]} == {"your arguments", "best"}
    assert {(s["x0"], s["x1"]) for s in layout["shapes"]} == {(5.0, 15.0)}
    assert len(layout["shapes"]) == 8
    assert card.df["trial"].tolist() == ["your arguments"] * 80 + ["best"] * 80


def test_slowdowns_are_marked_and_told(tmp_path: Path) -> None:
    hot = "GPU GPU-1 was slowed down by heat in 5% of the samples"
    gpu = GpuMeanwhile(uuid="GPU-1", util_frac=0.9, slowed_frac=0.05)
    seen = {BEST: Meanwhile(n_samples=40, gpus=(gpu,), voided_by=hot)}
    run = with_samples(tmp_path / "r", {BEST: synthetic_samples(1, slowed=(30, 31))}, seen, gpu=True)
    card, figure = drawn(run)
    assert card.note == f"The best keeps the GPU busy for 90 % of the time. Not to be trusted: best: {hot}."
    (marks,) = (t for t in figure["data"] if t["mode"] == "markers")
    assert (marks["x"], marks["y"]) == ([7.5, 7.75], [1200.0, 1200.0])


def test_on_a_cpu_the_machine_is_drawn(tmp_path: Path) -> None:
    seen = {0: Meanwhile(n_samples=40, tree_cores=1.2, cpu_frac=0.7), BEST: Meanwhile(n_samples=40, tree_cores=1.9)}
    card, figure = drawn(with_samples(tmp_path / "r", {0: synthetic_samples(), BEST: synthetic_samples()}, seen))
    cores = "Your arguments keep 1.20 of 2 cores busy, the best keeps 1.90 of 2 cores busy"
    assert card.note == f"{cores}; the whole machine was 70 % busy."
    assert len(figure["data"]) == 2 * 7
    assert figure["data"][1]["y"][0] == 75.0, "1.5 of 2 cores"


def test_a_long_trial_is_thinned_but_no_slowdown_is_lost(tmp_path: Path) -> None:
    slowed = (1001, 1003, 1005)
    text = synthetic_samples(1, 5 * MOST_ROWS, slowed=slowed)
    card, figure = drawn(with_samples(tmp_path / "r", {0: text}, gpu=True))
    assert len(card.df) <= MOST_ROWS + len(slowed)
    assert len(next(t for t in figure["data"] if t["mode"] == "markers")["x"]) == 3


@pytest.mark.parametrize("text", ["", "not,ours\n1,2\n", ",".join(sample_columns(0)) + "\n", "\0\xff"])
def test_a_file_that_is_none_of_ours_is_a_figure_less(tmp_path: Path, text: str) -> None:
    card = trace(load_run(with_samples(tmp_path / "r", {0: text}).path))
    assert card.figure is None
    assert card.reason == "Neither your arguments nor the best left a samples.csv."


def test_it_says_why_it_is_not_drawn(tmp_path: Path) -> None:
    simulated = trace(load_run(make_run(tmp_path / "s", simulated=True).path))
    assert simulated.reason == "A simulation has no machine to look at."
    blank = trace(load_run(with_samples(tmp_path / "b", {0: synthetic_samples(blank=True)}).path))
    assert blank.reason == "Not one reading of its GPUs or of the machine could be taken."


def test_the_page_shows_it(tmp_path: Path) -> None:
    page = write_report(with_samples(tmp_path / "r", {0: synthetic_samples()}).path).read_text(encoding="utf-8")
    assert 'data-figure="plot-trace"' in page
    assert 'download="trace.csv"' in page


def test_energy_says_where_it_comes_from(tmp_path: Path) -> None:
    counted = result_of(3, energy_j_per_image=0.5213, meanwhile=Meanwhile(n_samples=9, energy_from="counter"))
    summed = result_of(3, energy_j_per_image=0.5213, meanwhile=Meanwhile(n_samples=9, energy_from="power"))
    assert (joules(result_of(3)), joules(counted)) == ("", "0.52 J/image")
    assert joules(summed) == "0.52 J/image (from power readings)"
    assert result_lines(summed)[0].endswith("0.52 J/image (from power readings)")
    run = make_run(tmp_path / "r", 3, results=[result_of(0), summed], finalists=False)
    assert read_json(run.trial(3).result, TrialResult) == summed
    assert "summed up from readings of power" in trials(load_run(run.path)).note
