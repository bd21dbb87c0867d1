"""Does the benchmark of tests/bench/search run, and do its tables say what its studies did?"""

import json
import sys
from pathlib import Path

import pytest

from autotune.search.samplers import SAMPLERS
from autotune.search.strategies import STRATEGIES

BENCH = Path(__file__).parents[1] / "bench" / "search"
WORLDS, NAMES, N_TRIALS = ["t4_n", "cpu_2core"], ["structured", "batch_walk"], 8


@pytest.fixture(scope="module")
def bench():
    """Its module; what its contenders add to our tables is taken out again, or other tests would find them there."""
    ours = dict(STRATEGIES), dict(SAMPLERS)
    sys.path.insert(0, str(BENCH))
    import bench

    yield bench
    sys.path.remove(str(BENCH))
    for table, rows in zip((STRATEGIES, SAMPLERS), ours, strict=True):
        table.clear()
        table.update(rows)


@pytest.fixture(scope="module")
def rows(bench, tmp_path_factory):
    """Two worlds, two strategies, one seed, in two shards and then once more."""
    folder = tmp_path_factory.mktemp("bench")
    outs = [folder / "0.jsonl", folder / "1.jsonl"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "CACHE", folder / "cache")
        for again in range(2):
            for i, out in enumerate(outs):
                if again:
                    patch.setattr(bench, "study", None)  # what is there is not run again
                bench.run(out, WORLDS, NAMES, range(1), N_TRIALS, (i, 2))
    return [json.loads(line) for out in outs if out.exists() for line in out.read_text().splitlines()]


def test_a_row_for_each_study(rows):
    assert sorted((r["world"], r["strategy"]) for r in rows) == sorted((w, s) for w in WORLDS for s in NAMES)
    for r in rows:
        assert len(r["share"]) == len(r["at_s"]) == N_TRIALS + 1, "the baseline first"
        assert all(0 < share <= 1.0001 for share in r["share"]), "of the true best"
        assert r["at_s"] == sorted(r["at_s"])
        assert r["share"][-1] >= r["share"][0]
        assert r["n_oom"] <= N_TRIALS
        assert r["controller_s"] > 0
        assert r["stopped"] == f"{N_TRIALS} trials, as many as were asked for"


def test_a_row_says_what_is_handed_out(rows):
    """By the finalist stage, whose runs are no trials of the search."""
    for r in rows:
        proof = r["proof"]
        assert 0 < proof["share"] <= 1.0001
        if proof["status"] == "gain":
            assert proof["n_runs"] >= 6, "three blocks of two at least"
            assert proof["took_s"] > 0
            speedup, lo, hi = proof["claim"]
            assert 1 < lo < speedup < hi
    gains = [r["proof"] for r in rows if r["proof"]["status"] == "gain"]
    assert gains, "structured finds one on these machines"
    assert all(abs(p["claim"][0] / p["speedup"] - 1) < 0.2 for p in gains), "a claim is of the truth, give or take"


def test_the_model_beats_a_walk(rows):
    last = {(r["world"], r["strategy"]): r["share"][-1] for r in rows}
    for world in WORLDS:
        assert last[world, "structured"] > 0.8
        assert last[world, "structured"] >= last[world, "batch_walk"] - 0.05


def test_tables_and_figure_tell_of_every_strategy(bench, rows):
    table = bench.tables(rows)
    assert all(f"### {world}\n" in table for world in (*WORLDS, "all"))
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1, "a whole table"
    for name in NAMES:
        cells = [line.split(" | ")[1] for line in lines if line.startswith(f"| {name} |")]
        assert cells == ["1", "1", "2"], "studies in each world, and in all"
    figure = bench.figure(rows)
    assert figure.startswith("<svg ")
    assert all(f">{name}</text>" in figure for name in NAMES)
    assert figure.count("<polyline ") == 2 * len(NAMES)
    assert "nan" not in table + figure


def test_what_the_tables_count():
    sys.path.insert(0, str(BENCH))
    import tables

    row = {"share": [0.5, 0.97, 0.985, 0.985], "at_s": [10.0, 20.0, 30.0, 40.0], "controller_s": 4.0, "n_oom": 0}
    assert [tables.after(row, n) for n in (0, 1, 2, 99)] == [0.5, 0.97, 0.985, 0.985]
    assert tables.within([row], 0.05, 1) == 1.0
    assert tables.within([row], 0.02, 1) == 0.0
    assert tables.times(row) == [11.0, 22.0, 33.0, 44.0], "the controller's share is on the clock"
    assert tables.seconds_to(row, 0.02) == 33.0
    assert tables.seconds_to(row, 0.01) == float("inf")
    assert [tables.share_at(row, s) for s in (5.0, 22.0, 100.0)] == [0.0, 0.97, 0.985]
    proof = {"status": "gain", "share": 0.97, "speedup": 1.5, "claim": [1.4, 1.3, 1.6], "n_runs": 20, "took_s": 1.0}
    missed, none = proof | {"speedup": 1.7, "share": 0.995}, proof | {"status": "no_gain", "claim": None}
    assert [tables.holds(p) for p in (proof, missed)] == [True, False]
    assert tables._proofs([proof, missed, none, none]) == ["100 / 25 / 25", "20", "50 %, 50.0 %"]
    assert tables._proofs([]) == ["-", "-", "-"]
