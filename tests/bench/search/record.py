"""python tests/bench/search/record.py JOB OUT: every configuration of cpu.yaml, measured again and again; what is true?

Run by hand, for hours; ended and started again it goes on where it was. JOB is a row of JOBS below. A block measures
every configuration once, in shuffled order, with the baseline (a sentinel) after every EVERY of them; each run is a
fresh process. OUT holds table.json (job, space, machine) and parts of PART runs, each run with its raw steps and the
fingerprint of the machine it ran on. Another machine is another table: it is refused here.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import fcntl
import itertools
import json
import lzma
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from cells import TINY, dataset

from autotune.contract import Deadlines, Params, RankRecord, SegmentSettings, TrialDir, TrialSpec, read_json, to_dict
from autotune.port import SpacePort
from autotune.question import TRIAL_ARGS, Request, understand
from autotune.run.dataset import DatasetView
from autotune.run.preloaded import Preloaded
from autotune.run.trial import run_trial
from autotune.search.proposals import changes_of, key_of

JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    # The step decides: yolo11n on 640x480 images.
    "compute": ("small", {"model": "yolo11n.yaml", "imgsz": 64, "batch": 16, "epochs": 100}),
    # The loader decides: a model of nothing on 1920x1080 images.
    "loader": ("hd", {"model": str(TINY), "imgsz": 64, "batch": 16, "epochs": 100}),
}
# Steps are slow for the first two seconds (0.35 s, then 0.27 s); what counts as steady is left to the figures later.
SEGMENT = SegmentSettings(
    warmup_steps=3,
    warmup_s=2.2,
    warmup_cap_s=2.4,
    measure_s=2.4,
    measure_steps=5,
    measure_cap_s=5.0,
    ci_target_frac=0.08,
)
EVERY = 8
PART = 65
SAVE_EVERY = 5
COLUMNS = ("end_s", "wait_s", "step_s", "images")


class Recorder:
    """A table being made.

    Args:
        job: key of JOBS.
        out: its folder.
        lock: a file that is locked while a run measures, so that other work on the machine waits.
        preloaded: forks the runs.
    """

    def __init__(self, job: str, out: Path, lock: Path | None, preloaded: Preloaded) -> None:
        kind, args = JOBS[job]
        pairs = [f"{k}={v}" for k, v in {**args, "data": dataset(kind)}.items()]
        self.question = understand(Request(pairs=pairs, space="cpu", budget="5m", atlas=False))
        self.port = SpacePort(self.question.space, self.question.ctx, "same")
        self.out, self.lock, self.job = out, lock, job
        self.preloaded = preloaded
        self.tmp = tempfile.TemporaryDirectory(prefix="table-")
        self.view = DatasetView(self.question.job["data"], "detect", Path(self.tmp.name) / "view")
        self.lines: list[dict[str, Any]] = []
        for part in sorted(out.glob("part-*.jsonl.xz")):
            with lzma.open(part, "rt") as f:
                self.lines += map(json.loads, f)
        self.n_saved = len(self.lines)
        self.number = 0

    def run(self, params: Params, *, plain: bool = False) -> tuple[dict[str, Any], RankRecord | None]:
        """One fresh process; `plain`: the user's own arguments, before anything is known."""
        if plain:
            args, env, patches = dict(self.question.job), {}, {}
        else:
            applied = self.port.materialise(params)
            args, env, patches = {**applied.train_args, **self.port.pin(self.resolved)}, applied.env, applied.patches
        args = {**args, "data": self.view.path(args.get("cache", False)), **TRIAL_ARGS, "device": "cpu"}
        spec = TrialSpec(
            number=self.number, role="trial", backend="yolo", task="detect", params=params,
            changes={} if plain else changes_of(params, self.baseline), train_args=args, env=env, patches=patches,
            segment=SEGMENT, deadlines=Deadlines(total_s=120.0),
        )  # fmt: skip
        folder = TrialDir(Path(self.tmp.name) / f"{self.number}")
        self.number += 1
        with alone(self.lock):
            result = run_trial(spec, folder, started_s=0.0, preloaded=self.preloaded)
        ranks = [read_json(path, RankRecord) for path in folder.path.glob("rank0.json")]
        return to_dict(replace(result, log_tail=())), ranks[0] if ranks else None

    def prepare(self) -> None:
        """The baseline says what the domain is; table.json keeps that for all later parts."""
        fingerprint = self.question.machine.fingerprint
        path = self.out / "table.json"
        if path.exists():
            table = json.loads(path.read_text())
            if table["fingerprint"] != fingerprint:
                sys.exit(f"{self.out} is of another machine: give a new folder")
            self.resolved = table["resolved"]
            prepared = self.port.prepare(table["effective"], table["n_images"])
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            predicted = self.port.prepare({}, self.question.ctx.n_images)
            self.baseline = dict(predicted.baseline)
            result, _ = self.run(self.baseline, plain=True)
            self.resolved = result["resolved"]
            prepared = self.port.prepare(result["effective"], result["job"]["n_images"])
            table = {
                "format": 1, "name": self.out.name, "job": {**self.question.job, "data": JOBS[self.job][0]},
                "machine": to_dict(self.question.machine), "fingerprint": fingerprint, "space": "cpu",
                "domain": {k: list(v) for k, v in prepared.domain.items()}, "baseline": prepared.baseline,
                "seeds": list(prepared.seeds), "n_images": result["job"]["n_images"], "device": "cpu", "n_ranks": 1,
                "resolved": result["resolved"], "effective": result["effective"], "segment": to_dict(SEGMENT),
                "frozen": prepared.frozen,
            }  # fmt: skip
            path.write_text(json.dumps(table, indent=1) + "\n")
        self.baseline = dict(prepared.baseline)
        combinations = itertools.product(*prepared.domain.values())
        every = (
            self.port.canonical({**self.baseline, **dict(zip(prepared.domain, c, strict=True))}) for c in combinations
        )
        self.cells = list({key_of(params): params for params in every}.values())

    def plan(self, n_blocks: int) -> list[tuple[int, str, Params]]:
        """(block, role, configuration) of every run, in order."""
        out: list[tuple[int, str, Params]] = []
        for block in range(n_blocks):
            cells = list(self.cells)
            random.Random(f"{self.job}/{block}").shuffle(cells)
            for i, params in enumerate(cells):
                if i % EVERY == 0:
                    out.append((block, "sentinel", self.baseline))
                out.append((block, "cell", params))
        return out

    def record(self, n_blocks: int) -> None:
        """Go on where the last part ended."""
        plan = self.plan(n_blocks)
        print(f"{self.out}: {len(self.cells)} configurations, {self.n_saved} of {len(plan)} runs are there", flush=True)
        for n, (block, role, params) in enumerate(plan):
            if n < self.n_saved:
                continue
            result, rank = self.run(params)
            steps = rank.steps if rank else None
            columns = {c: [round(v, 5) for v in getattr(steps, c)] for c in COLUMNS} if steps else {}
            self.lines.append(
                {
                    "n": n, "block": block, "role": role, "result": result, "steps": columns,
                    "measured_from": rank.measured_from if rank else None,
                    "fingerprint": self.question.machine.fingerprint,
                    "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                }
            )  # fmt: skip
            changes = changes_of(params, self.baseline)
            print(n, role, result["outcome"], result["images_per_s"], f"{result['took_s']:.1f} s", changes, flush=True)
            if len(self.lines) % SAVE_EVERY == 0 or n + 1 == len(plan):
                self.save()

    def save(self) -> None:
        """The part that is being filled, anew; whole or not at all."""
        k = self.n_saved // PART
        for i in range(k, -(-len(self.lines) // PART)):
            part = self.out / f"part-{i:03d}.jsonl.xz"
            tmp = part.with_name(f".{part.name}.tmp")
            with lzma.open(tmp, "wt", preset=9) as f:
                f.writelines(json.dumps(line) + "\n" for line in self.lines[i * PART : (i + 1) * PART])
            tmp.replace(part)
        self.n_saved = len(self.lines)


@contextlib.contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """Wait until nobody holds the lock, and hold it: other work on the machine, which shares it, goes first."""
    if lock is None:
        yield
        return
    with lock.open("w") as f:
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--lock", type=Path)
    given = parser.parse_args()
    with Preloaded() as preloaded:
        recorder = Recorder(given.job, given.out, given.lock, preloaded)
        try:
            recorder.prepare()
            recorder.record(given.blocks)
        finally:
            if len(recorder.lines) > recorder.n_saved:
                recorder.save()
            recorder.view.close()
            recorder.tmp.cleanup()


if __name__ == "__main__":
    main()
