"""python tests/bench/sampler.py [--seconds 60] [--workers 8] [--gpus 0]: what does the sampling thread cost?

Run by hand. A rank and its loader workers, real processes that compute a little, are sampled as a trial is. The figure
is the thread's own CPU time over the time that passed, as a share of one core. GPUs are synthetic: with them it is
what Python costs, not what the driver does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from autotune.machine.fake_nvml import FakeNvml
from autotune.machine.fake_worlds import healthy_world
from autotune.machine.gpu_activity import looking_at
from autotune.run.sample import EVERY_S, Sampler

WORK = "import time\nwhile True: sum(range(2000)); time.sleep(0.05)"
RANK = f"""
import subprocess, sys, threading, time
for _ in range(60): threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
workers = [subprocess.Popen([sys.executable, "-c", {WORK!r}]) for _ in range(int(sys.argv[1]))]
try:
    sys.stdin.read()
finally:
    for w in workers: w.kill()
"""


def measure(seconds: float, n_workers: int, n_gpus: int) -> tuple[float, float, int]:
    """CPU seconds of the thread, seconds that passed, rows."""
    used_s: list[float] = []

    class Timed(Sampler):
        """Notes what its thread has used when it ends."""

        def _run(self) -> None:
            super()._run()
            used_s.append(time.thread_time())

    rank = subprocess.Popen([sys.executable, "-c", RANK, str(n_workers)], stdin=subprocess.PIPE, start_new_session=True)
    world = healthy_world(n_gpus, busy=True)  # made once: a world that moves would cost more than its readings
    uuids = tuple(f"GPU-{i}" for i in range(n_gpus))
    try:
        with tempfile.TemporaryDirectory() as tmp, looking_at(uuids, FakeNvml(world)) as gpus:
            sampler = Timed(gpus, Path(tmp) / "samples.csv")
            began = time.monotonic()
            sampler.starting(lambda: rank)()
            time.sleep(seconds)
            sampler.end()
            took_s = time.monotonic() - began
            assert threading.active_count() == 1
            n_rows = len(sampler.samples.rows)
    finally:
        assert rank.stdin is not None
        rank.stdin.close()
        rank.wait()
    return used_s[0], took_s, n_rows


def main() -> None:
    """Print the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--gpus", type=int, default=0)
    given = parser.parse_args()
    used_s, took_s, n_rows = measure(given.seconds, given.workers, given.gpus)
    print(f"{given.workers} workers, {given.gpus} synthetic GPUs, a row every {EVERY_S} s for {took_s:.1f} s:")
    print(f"{used_s:.3f} s of CPU, {used_s / took_s:.2%} of a core, {1e6 * used_s / n_rows:.0f} us a row")


if __name__ == "__main__":
    main()
