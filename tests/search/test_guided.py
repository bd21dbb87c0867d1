"""What the structured surrogate proposes: new, likely to fit, soon the best, in domains of any shape."""

import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from guided_world import GIB, LARGE, LISTED, Trainer, WideSpace, at, needs, studied, trials
from scipy.stats import norm
from search_world import DOMAIN, FakeClock, FakeSpace, FakeTrainer, make_info, make_plan, rate_of

from autotune.contract import Guess, Outcome, TrialStarted, from_dict
from autotune.search import guided
from autotune.search.controller import look_around, search
from autotune.search.formula import A
from autotune.search.guided import Mind, propose
from autotune.search.in_memory import incumbents
from autotune.search.left_out import never_tried
from autotune.search.observations import observe
from autotune.search.proposals import key_of
from autotune.search.resume import open_study
from autotune.search.session import Session
from autotune.search.situation import Proposal, situation_of
from autotune.search.strategies import STRATEGIES, Strategy


@pytest.mark.parametrize("domain", [LARGE, LISTED], ids=["large", "listed"])
@pytest.mark.parametrize("n_trials", [1, 5, 14])
def test_proposes_what_nobody_knows_and_what_fits(tmp_path, monkeypatch, domain, n_trials):
    monkeypatch.setattr(guided, "HEDGE_FROM", 1000)
    memory = {"limit_bytes": 5 * GIB, "needs": needs, "has_bytes": 5 * GIB}
    session = studied(tmp_path, n_trials, strategy="random", domain=domain, **memory)
    s = situation_of(session)
    proposal, mind = propose(s), Mind(s, observe(s.ran, on_cpu=True))
    assert proposal.params is not None
    assert key_of(proposal.params) not in s.proposals.known
    assert key_of(proposal.params) == key_of(s.proposals.complete(proposal.params)), "in its one spelling"
    assert mind.fits(mind.model.forecast([proposal.params]))[0] >= guided.FITS
    candidates = mind.candidates()
    assert candidates
    assert not {key_of(p) for p in candidates} & set(s.proposals.known)
    assert len({key_of(p) for p in candidates}) == len(candidates)


def test_what_is_not_likely_enough_to_fit_is_not_proposed_however_fast_it_is(tmp_path, monkeypatch):
    s = situation_of(studied(tmp_path, 3, strategy="random", domain=LISTED))
    mind = Mind(s, observe(s.ran, on_cpu=True))
    best = propose(s)
    cut = mind.model.forecast([best.params]).log_image_s[0] + 1e-9
    tight = guided.FITS - 0.01
    monkeypatch.setattr(Mind, "fits", lambda self, f: np.where(f.log_image_s <= cut, tight, 1.0))
    other = propose(s)
    assert mind.model.forecast([other.params]).log_image_s[0] > cut
    assert other.gain_frac < best.gain_frac
    monkeypatch.setattr(Mind, "fits", lambda self, f: np.full(len(f.sd), tight))
    assert propose(s).params is None


def test_memory_is_not_run_out_of_in_a_whole_study(tmp_path):
    """The fastest is the largest that fits."""

    def bigger_is_faster(params):
        return rate_of(params) * params["batch_per_gpu"] ** 0.3

    memory = {"limit_bytes": 5 * GIB, "needs": needs, "has_bytes": 5 * GIB}
    session = studied(tmp_path, 25, objective="images_per_s", rate=bigger_is_faster, **memory)
    outcomes = [r.result.outcome for r in trials(session)]
    assert len(outcomes) >= 10
    assert outcomes.count(Outcome.OOM) <= 1
    assert needs(incumbents(session)[-1].params) > 0.5 * 5 * GIB, "and yet it uses what there is"
    assert needs(session.proposal.too_large.params) > 5 * GIB, "a larger batch, which the user will ask for"
    *_, told = never_tried(session)  # the others: the space's seeds and the sampler's turns
    assert told == session.proposal.too_large
    assert told.predicted_oom
    assert int(re.search(r"a probability of (\d+)%", told.reason)[1]) >= 10


def test_what_fits_or_promises_nothing_is_not_called_too_large(tmp_path):
    session = studied(tmp_path, 12, objective="images_per_s", rate=rate_of)
    assert session.proposal.too_large is None, "no limit"

    def smaller_is_faster(params):
        return rate_of(params) / params["batch_per_gpu"]

    memory = {"limit_bytes": 5 * GIB, "needs": needs, "has_bytes": 5 * GIB}
    assert studied(tmp_path, 12, objective="images_per_s", rate=smaller_is_faster, **memory).proposal.too_large is None


@pytest.mark.parametrize("refused", ["batch_per_gpu", "torch_threads"])
def test_proposes_nothing_that_is_refused(tmp_path, refused):
    session = studied(tmp_path, 4, strategy="random")
    best = propose(situation_of(session)).params
    s = replace(situation_of(session), why_not=lambda p: "no" if p[refused] == best[refused] else None)
    proposal = propose(s)
    assert proposal.params[refused] != best[refused]
    everything = propose(replace(s, why_not=lambda p: "no"))
    assert (everything.params, everything.gain_frac) == (None, None), "no opinion, and the sampler's turn"
    assert everything.guess is not None


def test_the_gain_is_of_what_may_be_tried(tmp_path):
    """What is refused stays unknown: its gain would be promised for ever, and the search would never end."""
    domain = {"torch_threads": (1, 2), "batch_per_gpu": (16, 32, 64)}
    s = situation_of(studied(tmp_path, 1, strategy="random", domain=domain))
    free = propose(s)
    rest = propose(replace(s, why_not=lambda p: "no" if p["torch_threads"] == free.params["torch_threads"] else None))
    mind = Mind(s, observe(s.ran, on_cpu=True))
    left = [p for p in mind.candidates() if p["torch_threads"] != free.params["torch_threads"]]
    assert rest.gain_frac < free.gain_frac
    assert rest.gain_frac <= mind.improvement(left).max()


def test_the_same_situation_is_the_same_proposal(tmp_path):
    s = situation_of(studied(tmp_path, 6, strategy="random"))
    one, two = propose(s), propose(s)
    assert (one.params, one.gain_frac, one.misfit_frac) == (two.params, two.gain_frac, two.misfit_frac)


def test_nothing_measured_is_the_samplers_turn(tmp_path):
    s = situation_of(studied(tmp_path, 2, strategy="random"))
    lost = [replace(r, result=replace(r.result, outcome=Outcome.CRASH, images_per_s=None)) for r in s.ran]
    nothing = propose(replace(s, ran=lost))
    assert (nothing.asked, nothing.gain_frac, nothing.guess) == (None, None, None)


@pytest.mark.parametrize("seed", range(4))
def test_finds_the_best_in_few_trials(tmp_path, seed):
    session = studied(tmp_path, 14, domain=DOMAIN, seed=seed)
    best = max(rate_of(dict(zip(DOMAIN, v, strict=True))) for v in itertools.product(*DOMAIN.values()))
    found = rate_of(incumbents(session)[-1].params)
    assert found >= 0.97 * best


def test_every_so_often_the_sampler_has_its_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(guided, "HEDGE_FROM", 4)
    session = studied(tmp_path, 13, strategy="random")
    turns = {}
    for misfit in (1e9, 1e-9):
        monkeypatch.setattr(guided, "HEDGES", ((misfit, 2), (0.0, 3)))
        turns[misfit] = [n for n in range(1, 14) if propose(at(session, n)).params is None]
    assert turns[1e9] == [6, 9, 12]
    assert turns[1e-9] == [4, 6, 8, 10, 12], "a formula that is far off has every second one only"


def test_what_speaks_against_the_model_is_said(tmp_path, monkeypatch):
    situation = at(studied(tmp_path, 6), 6)
    assert propose(situation).doubts == (), "nothing does"
    mind = Mind(situation, observe(situation.ran, on_cpu=situation.on_cpu))
    mind.model.misfit_frac, mind.model.trust = 0.16, 0.0
    monkeypatch.setattr(guided, "Mind", lambda *args: mind)
    far, wrong = propose(situation).doubts
    assert far.endswith("is 16% off on this machine: from trial 8 on every 4th is the sampler's")
    assert "the trials spoke against it" in wrong
    clock, told = FakeClock(), Proposal(doubts=(far, wrong))
    monkeypatch.setitem(STRATEGIES, "structured", Strategy("random", lambda s: told))
    info = make_info(strategy="structured")
    summary = search(make_plan(tmp_path / "run", clock, info=info, max_trials=2), FakeTrainer(clock))
    assert [note for note in summary.notes if note in (far, wrong)] == [far, wrong]


def test_the_sampler_does_not_choose_what_cannot_matter(tmp_path, monkeypatch):
    """Nobody waits for the loader: at the sampler's turn it stays as the best has it, until somebody waits again."""
    monkeypatch.setattr(guided, "HEDGE_FROM", 0)
    monkeypatch.setattr(guided, "HEDGES", ((0.0, 1),))
    start = {name: values[0] for name, values in LARGE.items()} | {"workers": 1, "torch_threads": 2, "cache": "ram"}
    seeds = [{**start, "batch_per_gpu": b, "amp": amp} for b, amp in ((64, True), (64, False), (32, True))]

    def loaders(waits):
        space = FakeSpace(LARGE, seeds)
        session = studied(tmp_path, 11, space=space, waits=waits, noise=0.0, objective="images_per_s")
        late = [r.result.params for r in trials(session)[len(seeds) :]]
        assert len(late) == 8
        return {tuple(p[n] for n in ("workers", "cache", "prefetch_factor")) for p in late}, session

    used, session = loaders(lambda params: 0.001)
    assert used == {(1, "ram", 2)}
    proposal = propose(situation_of(session))
    assert proposal.params is None
    assert proposal.asked == proposal.fixed == {"workers": 1, "cache": "ram", "prefetch_factor": 2}
    assert list(proposal.inert) == list(session.proposal.inert) == ["loader"], "the summary's notes say it"
    used, session = loaders(lambda params: 0.2)
    assert len(used) > 2
    assert propose(situation_of(session)).asked is None


@pytest.mark.parametrize("objective", ["job_time", "images_per_s", "energy"])
def test_guesses_in_the_unit_of_the_objective(tmp_path, objective):
    seen = []
    session = studied(tmp_path, 12, domain=DOMAIN, objective=objective, seen=seen, noise=0.01)
    guesses = {e.number: e.guess for e in seen if isinstance(e, TrialStarted) and e.role == "trial" and e.guess}
    told = [(guesses[r.number], r.value) for r in trials(session) if r.number in guesses and r.value]
    assert len(told) >= 6
    assert all(g.lo < g.value < g.hi for g, _ in told)
    errors = [abs(math.log(value / g.value)) for g, value in told]
    assert np.median(errors) < 0.3
    assert np.median(errors[-4:]) < 0.1
    inside = [g.lo <= value <= g.hi for g, value in told]
    assert np.mean(inside) >= 0.6


@pytest.mark.parametrize("objective", ["images_per_s", "energy"])
def test_finds_the_best_of_other_objectives(tmp_path, objective):
    def watts(params):
        return 100.0 if params["channels_last"] else 300.0

    domain = {"torch_threads": (1, 2), "channels_last": (False, True), "batch_per_gpu": (16, 32, 64)}
    session = studied(tmp_path, 9, domain=domain, objective=objective, watts=watts)
    best = incumbents(session)[-1].params
    assert best["torch_threads"] == 2
    assert best["channels_last"] is (objective == "energy")


def test_a_compile_is_paid_once_by_the_job(tmp_path):
    """One that the job's steps do not pay back promises nothing, whatever its steps gain."""
    domain = {"torch_threads": (1, 2), "batch_per_gpu": (16, 32), "compile": (False, "default")}
    s = situation_of(studied(tmp_path, 2, strategy="random", domain=domain, rate=lambda p: 100.0))
    compiled = {**s.proposals.baseline, "compile": "default"}
    gains = []
    for compile_s in (0.0, 1e6):
        given = replace(s, cold=lambda p, c=compile_s: replace(s.cold(p), compile_s=c if p["compile"] else 0.0))
        mind = Mind(given, observe(given.ran, on_cpu=True))
        gains.append(float(mind.improvement([compiled])[0]))
        assert mind.guess(compiled).value >= compile_s
    assert gains[0] > 1e-3
    assert gains[1] < 1e-9


def test_a_loader_that_nobody_waits_for_promises_little_however_little_is_known_of_it(tmp_path):
    """Fewer workers may make a step slower, by nobody knows how much. A Gaussian of that has a good half, too."""
    domain = {"workers": (8, 1, 2, 4), "batch_per_gpu": (16, 32, 64), "amp": (True, False)}
    given = [{"workers": 8, "batch_per_gpu": b, "amp": a} for b in (16, 32, 64) for a in (True, False)]
    session = studied(tmp_path, 6, domain=domain, space=WideSpace(domain, given), noise=0.0,
                      rate=lambda p: 100.0 * (p["batch_per_gpu"] / 16) ** 0.2)  # fmt: skip
    s = replace(situation_of(session), on_cpu=False)
    mind = Mind(s, observe(s.ran, on_cpu=False))
    best = mind.measured[mind.order[0]]
    assert best["workers"] == 8
    loaders = [{**best, "workers": w} for w in (1, 2)]
    forecast, here = mind.model.forecast(loaders), mind.model.forecast([best]).log_image_s[0]
    z = (here - forecast.log_image_s) / forecast.sd
    gaussian = forecast.sd * (z * norm.cdf(z) + norm.pdf(z))
    assert (mind.improvement(loaders) < 0.5 * gaussian).all()


def test_what_is_unknown_of_all_promises_nothing_of_a_small_change(tmp_path):
    """Each sample of the model compares with its own opinion of the best."""
    s = situation_of(studied(tmp_path, 2, strategy="random", domain=LARGE))
    mind = Mind(s, observe(s.ran, on_cpu=True))
    best = mind.measured[mind.order[0]]
    mind.thetas = mind.thetas + np.eye(mind.thetas.shape[1])[A] * np.linspace(-1, 1, len(mind.thetas))[:, None]
    shifted = mind.improvement([{**best, "prefetch_factor": v} for v in (4, 8, 16)])
    assert shifted.max() < 0.05, "all are faster or slower together"


def test_the_model_is_told_what_the_job_is(tmp_path):
    s = situation_of(studied(tmp_path, 2, strategy="random", domain=LARGE))
    told = replace(s.baseline.result, job={**s.baseline.result.job, "gradient_bytes": 12345})
    s = replace(s, baseline=replace(s.baseline, result=told), on_cpu=True)
    mind = Mind(s, observe(s.ran, on_cpu=True))
    assert mind.model.setting.gradient_bytes == 12345
    assert ("cache", "kept") in {(n, r) for n, _, r in mind.encoding.labels}, "the images are the job's own memory"
    beside = Mind(replace(s, on_cpu=False), observe(s.ran, on_cpu=False))
    assert "kept" not in {r for _, _, r in beside.encoding.labels}


SHAPES = {
    "no batch": {"workers": (0, 1, 2), "prefetch_factor": (2, 4, 8, 16), "cache": (False, "ram", "disk")},
    "one knob": {"torch_threads": (1, 2)},
    "one knob of one value beside": {"torch_threads": (1, 2), "amp": (False,)},
    "strings": {"rain": ("drizzle", "shower", "fog"), "colour": ("red", "green"), "odd": ("1", "True", "None")},
    "None and its likes": {"odd": (None, 0, False, "", "None"), "torch_threads": (1, 2), "workers": (0, 1, None)},
    "thirty knobs": {"batch_per_gpu": (16, 32, 64), **{f"knob_{i:02d}": (None, i, "on", True) for i in range(29)}},
}  # fmt: skip


def rate_of_any(params):
    known = {name: value for name, value in params.items() if value is not None}
    rate = rate_of({"batch_per_gpu": 16, "torch_threads": 1, "workers": 0, **known})
    return rate * (1.2 if params.get("colour") == "green" else 1.0) * (1.1 if params.get("knob_03") == "on" else 1.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_domains_of_any_shape(tmp_path, shape):
    domain, seen = SHAPES[shape], []
    space = WideSpace(domain)
    session = studied(tmp_path, 10, space=space, rate=rate_of_any, seen=seen, objective="images_per_s")
    keys = [key_of(r.result.params) for r in trials(session)]
    n_all = len(session.proposals.every() or range(10**6))
    assert len(set(keys)) == len(keys)
    assert len(keys) == min(10, n_all - 1), session.stopped_because
    for r in trials(session):
        assert all(any(repr(r.result.params[k]) == repr(v) for v in (*vs, None)) for k, vs in domain.items())
    guesses = [e.guess for e in seen if isinstance(e, TrialStarted) and e.guess]
    assert guesses
    assert all(0 < g.lo < g.value < g.hi < math.inf for g in guesses)


def test_nothing_to_choose_is_no_proposal(tmp_path):
    s = situation_of(studied(tmp_path, 2, strategy="random", domain={"torch_threads": (1, 2)}))
    s.proposals.narrow({})
    assert propose(s).asked is None


@pytest.mark.parametrize("strategy", ["structured", "random"])
def test_the_journal_keeps_what_was_expected(tmp_path, strategy):
    clock, seeds = FakeClock(), ({name: values[-1] for name, values in DOMAIN.items()},)
    info = make_info(strategy=strategy, budget_s=300.0)
    plan = make_plan(tmp_path / "run", clock, info=info, space=FakeSpace(DOMAIN, seeds), budget_s=300.0, max_trials=4)
    study, _ = open_study(plan)
    try:
        look_around(Session(plan, Trainer(clock), (), study))
    finally:
        study.close()
    events = [json.loads(line) for line in plan.run_dir.events.read_text(encoding="utf-8").splitlines()]
    started = [e for e in events if e["kind"] == "trial_started"]
    guessed = {e["number"]: from_dict(Guess, e["guess"]) for e in started if e["guess"]}
    tried = {e["number"] for e in started if e["role"] == "trial"}
    assert len(tried) == 4
    assert set(guessed) == (tried if strategy == "structured" else set()), "only of search trials, by who has a model"
    assert all(0 < g.lo < g.value < g.hi for g in guessed.values())
