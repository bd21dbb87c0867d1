"""The first card of the report and the table of the export's README."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import Gpu, Machine, TrialResult
from autotune.report.before_after_table import Row, as_markdown, before_after_rows, before_after_table
from autotune.report.figures import FIGURES
from autotune.report.load import RunData, load_run

from .conftest import BASE, GIB, add_finalists, default_results, make_run, params_of, probe_of

N_IMAGES = 1000


def rows_of(run: RunData, number: int | None = None) -> dict[str, Row]:
    return {r.name: r for r in before_after_rows(run.info, run.machine, run.summary, run.results, number)}


def with_images(results: list[TrialResult], **job) -> list[TrialResult]:
    return [replace(r, job={"n_images": N_IMAGES, **job}) for r in results]


def test_it_is_the_first_card(tmp_path: Path) -> None:
    assert next(iter(FIGURES)) == "before_after_table"
    card = before_after_table(load_run(make_run(tmp_path / "r").path))
    assert card.table is not None
    assert [c.text for c in card.table.rows[-1]] == [
        "speed-up of the whole job",
        "1.00x",
        "1.89x",
        "1.89x (1.80 to 1.98)",
    ]


def test_epochs_are_of_the_finalist_runs_with_the_verdicts_spread(tmp_path: Path) -> None:
    run = load_run(
        make_run(tmp_path / "r", results=with_images(default_results(12, {})), info={"n_images": N_IMAGES}).path
    )
    row = rows_of(run)["epoch"]
    assert run.summary is not None
    finalists = {f.name: f for f in run.summary.verdict.finalists}

    def epoch_s(name: str) -> float:
        rates = [run.result(n).images_per_s for n in finalists[name].numbers]
        return N_IMAGES / math.prod(rates) ** (1 / len(rates))

    assert (row.yours, row.tuned) == pytest.approx((epoch_s("baseline"), epoch_s("best")))
    assert row.ratio == pytest.approx(epoch_s("baseline") / epoch_s("best"))
    half = 2.776445 * 0.033 * math.sqrt(2 / 3)  # t(0.975, 4 degrees of freedom), three runs each
    assert (math.log(row.ci95_lo / row.ratio), math.log(row.ci95_hi / row.ratio)) == pytest.approx(
        (-half, half), rel=1e-4
    )
    # Where images/s is the objective, the interval is the verdict's own.
    same = replace(run, info=replace(run.info, objective="images_per_s"))
    assert (rows_of(same)["epoch"].ratio, rows_of(same)["epoch"].ci95_lo) == (
        finalists["best"].speedup,
        finalists["best"].ci95_lo,
    )


def test_the_spread_of_joules_is_no_interval_of_an_epoch(tmp_path: Path) -> None:
    results = with_images(default_results(12, {}))
    run = load_run(make_run(tmp_path / "r", results=results, info={"n_images": N_IMAGES, "objective": "energy"}).path)
    row, joules = rows_of(run)["epoch"], rows_of(run)["speedup"]
    assert row.ratio is not None
    assert (row.ci95_lo, row.ci95_hi) == (None, None)
    assert joules.label == "times fewer joules per image"
    assert joules.ci95_lo is not None


def test_an_epoch_without_its_last_incomplete_batch(tmp_path: Path) -> None:
    results = with_images(default_results(3, {}), n_batches=10, batch=64)
    run = load_run(make_run(tmp_path / "r", results=results, finalists=False).path)
    assert rows_of(run)["epoch"].yours == pytest.approx(640 / run.baseline.images_per_s)


def test_one_and_several_ranks(tmp_path: Path) -> None:
    results = with_images(default_results(6, {}))
    results.append(probe_of(len(results), "one_rank", 25.0, dict(BASE)))
    info = {"n_ranks": 2, "n_images": N_IMAGES}
    run = load_run(make_run(tmp_path / "r", results=results, info=info).path)
    rows = rows_of(run)
    assert list(rows) == ["epoch_one", "epoch", "memory", "speedup"]
    assert rows["epoch_one"].yours == pytest.approx(N_IMAGES / 25)
    assert rows["epoch_one"].cells[2:] == ("not measured", "not measured")
    assert rows["epoch"].cells[0] == "one epoch on 2 CPU ranks"
    with_gpus = replace(run, info=replace(run.info, device="0,1", gpus=("a", "b")))
    assert rows_of(with_gpus)["epoch"].cells[0] == "one epoch on 2 GPUs"
    assert list(rows_of(replace(run, info=replace(run.info, n_ranks=1)))) == ["epoch", "memory", "speedup"]
    none = load_run(make_run(tmp_path / "none", info=info).path)
    assert rows_of(none)["epoch_one"].cells[1:] == ("not measured",) * 3


def test_memory_is_a_share_of_what_a_rank_may_use(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "r").path)
    row = rows_of(run)["memory"]
    assert row.yours == pytest.approx(1.5 / 16)
    assert row.ratio == pytest.approx(2.0)
    assert row.ci95_lo is None
    assert rows_of(replace(run, info=replace(run.info, mem_limit_bytes=3 * GIB)))["memory"].yours == pytest.approx(0.5)
    assert rows_of(replace(run, info=replace(run.info, n_ranks=2)))["memory"].yours == pytest.approx(1.5 / 8)
    gpus = tuple(Gpu(index=i, uuid=f"g{i}", name="x", mem_bytes=b * GIB) for i, b in enumerate((24, 6, 1)))
    machine: Machine = replace(run.machine, gpus=gpus)
    on_gpus = replace(run, machine=machine, info=replace(run.info, device="0,1", gpus=("g0", "g1"), n_ranks=2))
    assert rows_of(on_gpus)["memory"].yours == pytest.approx(1.5 / 6)
    unknown = replace(run, results=tuple(replace(r, peak_mem_bytes=()) for r in run.results))
    assert rows_of(unknown)["memory"].cells[1:] == ("not measured",) * 3


def test_nothing_is_claimed_without_finalist_runs(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "r", finalists=False).path)
    rows = rows_of(run)
    assert all(r.ratio is None and r.cells[3] == "not confirmed" for r in rows.values())
    assert rows["speedup"].cells == ("speed-up of the whole job", "1.00x", "not confirmed", "not confirmed")
    assert "not confirmed by finalist runs" in before_after_table(run).note
    # The verdict is about the best alone: another trial's ratio is nobody's.
    whole = load_run(make_run(tmp_path / "w").path)
    other = next(r.number for r in whole.results if r.role == "trial" and r.number != whole.summary.best_number)
    assert rows_of(whole, other)["speedup"].ratio is None
    assert rows_of(whole, whole.summary.best_number)["speedup"].ratio is not None


def test_an_unconfirmed_verdict_with_finalists_claims_nothing(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "r").path)
    verdict = replace(run.summary.verdict, status="unconfirmed")
    rows = rows_of(replace(run, summary=replace(run.summary, verdict=verdict)))
    assert {r.cells[3] for r in rows.values()} == {"not confirmed"}


def test_nothing_better_and_nothing_at_all(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "r", finalists=False).path)
    same = replace(run, summary=replace(run.summary, best_number=0))
    assert {r.cells[3] for r in rows_of(same).values()} == {"the same"}
    assert "Nothing faster than your settings was measured" in before_after_table(same).note
    none = load_run(make_run(tmp_path / "none", results=[], summary=False).path)
    assert before_after_table(none).reason
    interrupted = load_run(make_run(tmp_path / "i", 3, summary=False).path)
    assert [r.cells[2] for r in rows_of(interrupted).values()] == ["not measured"] * 3


def test_markdown_says_simulated(tmp_path: Path) -> None:
    results = default_results(4, {})
    add_finalists(results, params_of(1))
    run = load_run(make_run(tmp_path / "r", results=results, simulated=True).path)
    text = as_markdown(list(rows_of(run).values()), run.info.simulated)
    lines = text.splitlines()
    assert lines[0] == "| SIMULATED | your settings | tuned | ratio (95 % CI) |"
    assert {line.count("|") for line in lines[:5]} == {5}
    assert "SIMULATED" not in as_markdown(list(rows_of(run).values()), simulated=False)
    assert "simulated" in before_after_table(run).title
