"""python tests/bench/search/bench.py run|table OUT.jsonl ...: which strategy finds the fastest settings soonest?

`run` does every study of worlds x strategies x seeds that OUT lacks, a row each when it is finished, so that it can be
ended and started again; --shard 0/2 and 1/2 share the work, each with an OUT of its own. `table` makes the tables and
the figure from any number of OUTs. All worlds but the recorded ones are simulated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parent))

from contenders import CONTENDERS
from estimated import Estimate, estimate
from studies import World, study
from tables import figure, tables

from autotune.contract import SegmentSettings
from autotune.errors import NoTrialError
from autotune.recording import Recording, read_recording

SEGMENT = SegmentSettings(warmup_s=5.0, measure_s=15.0, measure_cap_s=40.0)
RECORDED = Path(__file__).parents[2] / "data"
CACHE = Path.home() / ".cache" / "autotune" / "bench"


@cache
def _recorded(path: str) -> tuple[Recording, Estimate]:
    recording = read_recording(path)
    return recording, estimate(recording)


def _is_recorded(name: str) -> bool:
    return (RECORDED / name / "table.json").exists()


def world_of(name: str, seed: int) -> World:
    """A recorded table below tests/data, or a simulated machine: each seed another one."""
    if _is_recorded(name):
        from recorded import RecordedWorld

        recording, truth = _recorded(str(RECORDED / name))
        return RecordedWorld(recording, seed, truth)
    from worlds import World as Simulated

    return Simulated(name, seed, study_seed=seed, cache=CACHE)


def _rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def run(out: Path, worlds: list[str], names: list[str], seeds: range, n_trials: int, shard: tuple[int, int]) -> None:
    """Every study that is missing."""
    done = set()
    if out.exists():
        done = {(r["world"], r["strategy"], r["seed"], r["n_trials"]) for r in _rows(out)}
    todo = [(s, w, n) for s in seeds for w in worlds for n in names]
    todo = [t for t in todo if zlib.crc32(repr(t).encode()) % shard[1] == shard[0]]
    for i, (seed, world, name) in enumerate(todo):
        if (world, name, seed, n_trials) in done:
            continue
        began = time.perf_counter()
        answer = world_of(world, seed)
        on_cpu = "torch_threads" in answer.domain
        row: dict[str, Any] = {"world": world, "strategy": name, "seed": seed, "n_trials": n_trials}
        try:
            who, prove = CONTENDERS[name], not _is_recorded(world)
            row |= study(answer, who, seed=seed, n_trials=n_trials, on_cpu=on_cpu, segment=SEGMENT, prove=prove)
        except NoTrialError as e:  # the user's own settings hang on this machine: nobody's study
            print(f"{i + 1}/{len(todo)} {world} {name} {seed}: {e}", flush=True)
            continue
        with out.open("a") as f:
            f.write(json.dumps(row) + "\n")
        took_s = time.perf_counter() - began
        print(f"{i + 1}/{len(todo)} {world} {name} {seed}: {row['share'][-1]:.3f}, {took_s:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("run")
    one.add_argument("out", type=Path)
    one.add_argument("--worlds", required=True)
    one.add_argument("--strategies", default=",".join(n for n in CONTENDERS if n != "gp"))
    one.add_argument("--seeds", default="0-29", help="first-last")
    one.add_argument("--trials", type=int, default=40)
    one.add_argument("--shard", default="0/1")
    two = verbs.add_parser("table")
    two.add_argument("outs", type=Path, nargs="+")
    two.add_argument("--figure", type=Path)
    given = parser.parse_args()
    if given.verb == "run":
        first, last = map(int, given.seeds.split("-"))
        k, n = map(int, given.shard.split("/"))
        names = given.strategies.split(",")
        run(given.out, given.worlds.split(","), names, range(first, last + 1), given.trials, (k, n))
        return
    order = list(CONTENDERS)  # not that of the shards: the same line has the same colour in every figure
    rows = sorted((row for path in given.outs for row in _rows(path)), key=lambda row: order.index(row["strategy"]))
    print(tables(rows))
    if given.figure:
        given.figure.write_text(figure(rows))


if __name__ == "__main__":
    main()
