"""Which configurations of a space too large to list are looked at."""

import itertools
import math
from dataclasses import replace

import numpy as np
from guided_world import GIB, LARGE, needs, studied
from search_world import BASELINE, FakeSpace, rate_of

from autotune.search.candidates import composites
from autotune.search.guided import Mind
from autotune.search.in_memory import incumbents
from autotune.search.observations import observe
from autotune.search.situation import situation_of


def test_precision_compile_and_batch_move_together(tmp_path):
    s = situation_of(studied(tmp_path, 3, strategy="random"))
    mind = Mind(s, observe(s.ran, on_cpu=True))
    (row,) = mind.encoding.rows([s.proposals.baseline])
    moved = [mind.encoding.params(r) for r in composites(mind.encoding, row, mind.rng)]
    together = ("amp", "compile", "channels_last", "batch_per_gpu")
    start = mind.encoding.params(row)
    for p in moved:
        assert {k: v for k, v in p.items() if k not in together} == {
            k: v for k, v in start.items() if k not in together
        }
    wanted = set(itertools.product(*(mind.encoding.values[mind.encoding.names.index(n)] for n in together)))
    assert {tuple(p[n] for n in together) for p in moved} == wanted
    rows = {tuple(r) for r in mind.nearby()}
    assert {
        tuple(r) for r in composites(mind.encoding, mind.encoding.rows(mind.measured)[mind.order[0]], mind.rng)
    } <= rows


def test_what_the_job_pays_once_counts_before_candidates_are_picked(tmp_path):
    """A compiled step is a third faster, and the job too short for its compile: others are left to choose from."""

    def rate(params):
        return rate_of({k: params[k] for k in BASELINE if k in params}) * (1.5 if params["compile"] else 1.0)

    session = studied(tmp_path, 8, rate=rate, noise=0.01, strategy="random")
    s = situation_of(session)

    def compiled(compile_s):
        def cold(params):
            return replace(s.cold(params), compile_s=compile_s if params.get("compile") else 0.0)

        mind = Mind(replace(s, cold=cold), observe(s.ran, on_cpu=True))
        return np.mean([bool(p["compile"]) for p in mind.candidates()])

    assert compiled(0.0) > 0.9
    assert compiled(10 * (session.baseline.value or 0.0)) < 0.5


def test_a_precision_that_pays_only_with_another_batch_is_found(tmp_path):
    """The step waits for its launches: a better precision gains nothing at this batch, and a larger one needs it."""

    def rate(params):
        b = params["batch_per_gpu"]
        return b / math.hypot(0.005 * b * (0.4 if params["amp"] else 1.0), 0.3)

    assert rate({**BASELINE, "amp": True}) < 1.04 * rate(BASELINE)
    memory = {"limit_bytes": 12 * GIB, "needs": needs, "has_bytes": 12 * GIB}
    session = studied(tmp_path, 12, rate=rate, objective="images_per_s", **memory)
    best = incumbents(session)[-1].params
    assert (best["batch_per_gpu"], best["amp"]) == (64, True)


def test_single_changes_look_at_what_is_frozen(tmp_path):
    seed = {"workers": 1, "prefetch_factor": 4, "torch_threads": 2, "batch_per_gpu": 64}
    same = [{**seed, "batch_per_gpu": b} for b in (32, 64)] + [{**seed, "channels_last": True}]
    session = studied(tmp_path, 3, space=FakeSpace(LARGE, same), noise=0.0,
                      rate=lambda p: 200.0 + p["batch_per_gpu"] / 64 if p["workers"] else 100.0)  # fmt: skip
    s = situation_of(session)
    mind = Mind(s, observe(s.ran, on_cpu=True))
    assert mind.fixed["workers"] == 1
    rows = mind.nearby()
    column = mind.encoding.names.index("workers")
    best = mind.encoding.rows(mind.measured)[mind.order[0]]
    elsewhere = rows[rows[:, column] != best[column]]
    assert len(elsewhere), "or it could never be seen to matter again"
    assert (rows[:, column] == best[column]).mean() > 0.5
