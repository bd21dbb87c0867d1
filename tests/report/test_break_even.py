from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import JOB_TERMS, RunDir, Summary, Verdict, read_json, write_json
from autotune.report.break_even import Costs, break_even_epochs, costs_of, last_lines, sentence, sentences
from autotune.report.cards_job import job_time
from autotune.report.load import load_run

from .conftest import BASE, make_run, result_of

EPOCHS = 100


def trial(number, once_s, epoch_s, term="compile_s", **fields):
    """A job of 20 s of start, something more once, and so many seconds an epoch."""
    terms = dict.fromkeys(JOB_TERMS, 0.0) | {"start_s": 20.0, "mosaic_epochs_s": EPOCHS * epoch_s, term: once_s}
    job = {"n_images": 1000, "epochs": EPOCHS, "n_closed_epochs": 10}
    return result_of(number, **{"job_terms": terms, "job_s": sum(terms.values()), "job": job, **fields})


def run_of(folder: Path, results, best: int, **more) -> RunDir:
    run = make_run(folder, results=results, simulated=False, **more)
    summary = read_json(run.summary, Summary)
    verdict = Verdict(status="unconfirmed", sentence="unconfirmed")
    write_json(run.summary, replace(summary, best_number=best, verdict=verdict))
    return run


def test_the_formula():
    slow, compiled = Costs(once_s=20.0, epoch_s=12.0), Costs(once_s=60.0, epoch_s=10.0)
    assert break_even_epochs(slow, compiled) == pytest.approx(20.0)
    assert break_even_epochs(compiled, slow) is None, "its epochs are longer"
    assert break_even_epochs(slow, Costs(once_s=20.0, epoch_s=10.0)) is None, "nothing to pay back"
    assert break_even_epochs(slow, Costs(once_s=60.0, epoch_s=11.9)) is None, "the gain may be noise"


def test_at_that_number_of_epochs_both_jobs_take_as_long():
    a, b = trial(0, 3.0, 12.0), trial(1, 50.0, 9.5, params={**BASE, "compile": "default"})
    costs = [costs_of([r], EPOCHS) for r in (a, b)]
    n = break_even_epochs(*costs)
    assert costs[0].once_s + n * costs[0].epoch_s == pytest.approx(costs[1].once_s + n * costs[1].epoch_s)
    assert [c.once_s + EPOCHS * c.epoch_s for c in costs] == pytest.approx([a.job_s, b.job_s])


def test_words():
    assert sentence("compile", 6.2, 100) == "compile pays after 7 epochs; your job has 100"
    assert sentence("cache=ram", 0.4, 100) == "cache=ram pays after 1 epoch; your job has 100"
    assert sentence("compile", 6.2, 2) == "compile would pay after 7 epochs; your job has 2"


def test_the_winner_is_compared_with_itself_without_its_compile(tmp_path):
    plain, compiled = {**BASE, "torch_threads": 2}, {**BASE, "torch_threads": 2, "compile": "default"}
    own = {**BASE, "compile": False}
    results = [
        trial(0, 0.0, 12.0, params=own),
        trial(1, 0.0, 8.0, params={**plain, "compile": False}),
        trial(2, 40.0, 6.0, params=compiled),
        trial(3, 40.0, 1.0, params={**compiled, "workers": 2}, role="probe", probe="compute"),
    ]
    run = run_of(tmp_path, results, best=2)
    assert sentences(load_run(run.path)) == (
        "the best found pays after 7 epochs; your job has 100",
        "compile pays after 20 epochs; your job has 100",
    )
    assert last_lines(run.path) == sentences(load_run(run.path))
    assert "Compile pays after 20 epochs; your job has 100." in job_time(load_run(run.path)).note


def test_what_did_not_win_because_the_job_is_short_is_said(tmp_path):
    results = [
        trial(0, 0.0, 12.0, params=BASE),
        trial(1, 1600.0, 8.0, "cache_build_s", params={**BASE, "cache": "ram"}),
    ]
    run = run_of(tmp_path, results, best=0)
    assert last_lines(run.path) == ("cache=ram would pay after 400 epochs; your job has 100",)


def test_nothing_to_say(tmp_path):
    run = run_of(tmp_path / "a", [trial(0, 0.0, 12.0, params=BASE), trial(1, 0.0, 8.0)], best=1)
    assert last_lines(run.path) == ()
    assert last_lines(tmp_path / "nowhere") == ()


def test_the_card_marks_what_is_estimated(tmp_path):
    known = {"closed_epochs_s": 50.0, "val_s": 30.0, "epoch_end_s": 2.0}
    own, best = trial(0, 0.0, 12.0, params=BASE), trial(1, 0.0, 8.0)
    own = replace(own, job_terms={**own.job_terms, **known})
    best = replace(best, job_terms={**best.job_terms, **known}, job_estimated=("val_s", "closed_epochs_s"))
    card = job_time(load_run(run_of(tmp_path, [own, best], best=1).path))
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in card.table.rows}
    assert rows["validation"] == ["30 s", "about 30 s"]
    assert rows["last epochs without mosaic"] == ["50 s", "about 50 s"]
    assert "about: estimated from a measurement with your settings" in card.note


def test_the_card_says_where_the_steps_without_mosaic_were_not_measured(tmp_path):
    own = trial(0, 0.0, 12.0, params=BASE)
    own = replace(own, job_terms={**own.job_terms, "closed_epochs_s": 50.0, "epoch_end_s": None, "val_s": None})
    card = job_time(load_run(run_of(tmp_path, [own], best=0).path))
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in card.table.rows}
    assert "last epochs without mosaic (at the same rate)" in rows
    assert rows["validation"][0] == "not measured"
    assert "about" not in card.note
