"""python tests/bench/search/fit_time.py [--trials 60] [--repeats 9]: how long does one fit of the surrogate take?

On random configurations of a simulated machine with some twenty knobs. Two numbers, medians: the fit, whose goal is
0.2 s at 60 trials (issue 7, item 1), and a whole proposal, which fits, forecasts and looks for candidates. A benchmark,
not a test: on a machine that does something else beside, it says nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parent))

from bench import SEGMENT
from studies import Contender, plan_of
from worlds import World

from autotune.search.effects import encode
from autotune.search.formula import Setting
from autotune.search.guided import propose
from autotune.search.in_memory import study_in_memory
from autotune.search.model import Surrogate
from autotune.search.observations import observe
from autotune.search.situation import situation_of
from autotune.space.knobs import COMMUNICATION


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median of some calls."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="a100x4_m")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    world = World(given.world, 1)
    who = Contender(strategy="random", vetoes=False)
    plan = plan_of(world, who, seed=1, n_trials=given.trials, on_cpu=False, segment=SEGMENT)
    situation = situation_of(study_in_memory(plan, world))
    seen = observe(situation.ran, on_cpu=False)
    exchanging = frozenset(COMMUNICATION) if world.n_ranks > 1 else frozenset[str]()
    encoding = encode(world.domain, world.baseline, exchanging)
    setting = Setting(n_ranks=world.n_ranks, limit_bytes=world.memory_limit_bytes)
    fit_s = seconds(lambda: Surrogate(encoding, setting, seen), given.repeats)
    whole_s = seconds(lambda: propose(situation), given.repeats)
    what = f"{len(seen)} observations, {len(world.domain)} knobs, {len(encoding.labels)} coefficients (simulated)"
    print(f"{given.world}: {what}: a fit takes {1000 * fit_s:.0f} ms, a whole proposal {1000 * whole_s:.0f} ms")


if __name__ == "__main__":
    main()
