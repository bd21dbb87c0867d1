"""python tests/bench/warm_start.py OUT.json [--seeds 3]: does a search that starts from the atlas need fewer trials?

SIMULATED: a formula answers in place of trainings, on a clock that nobody waits for; the search, the space `default`,
its legality and the atlas are the real ones. Leave one out: a search in each cell (GPU, model, image size) starts from
the winners that the cold searches of all other cells found, and is compared with the cold search of that cell and seed.
`elsewhere` leaves all cells of that GPU out. `again` is the second search of the same cell, with another seed of the
sampler. Counted are the search trials until one
is, by the formula without its noise, within 2 % of the best that the space has; MOST + 1 where none was.

The formula's constants are round numbers of the right size, not measurements: what it says of the warm start holds for
cells that share their shape as these do, and for no other.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "search"))

from cells import machine, save
from search_world import FakeClock, FakeTrainer, make_info

from autotune import atlas
from autotune.contract import Gpu, Machine, Params, RunDir, TrialResult, read_json, write_json
from autotune.machine.memory import MemoryLimit
from autotune.port import SpacePort
from autotune.search.budget import Budget
from autotune.search.controller import search
from autotune.search.plan import Plan
from autotune.space.context import Context
from autotune.space.space import load_space, prepare
from autotune.space.yolo_args import job_args

MOST = 30
"""Trials of a search."""
NEAR = 0.98
KINDS = ("cold", "warm", "elsewhere", "again")
GIB = 2**30
NOISE = 0.015


@dataclass(frozen=True)
class Card:
    name: str
    speed: float
    mem_bytes: int
    n_cores: int
    launch_s: float
    bf16: float
    """Times the time of a step."""


CARDS = (
    Card("H100 80GB", 1.0, 80 * GIB, 16, 0.012, 0.97),
    Card("A100 40GB", 0.55, 40 * GIB, 8, 0.014, 0.97),
    Card("T4", 0.09, 15 * GIB, 4, 0.016, 1.6),
)
MODELS = {"yolo11n": 1.0, "yolo11m": 6.0, "yolov8s": 2.6}
"""Relative cost of an image."""


@dataclass(frozen=True)
class Bench:
    card: Card
    model: str
    imgsz: int

    @property
    def name(self) -> str:
        return f"{self.card.name} {self.model} {self.imgsz}"

    def machine(self) -> Machine:
        gpu = Gpu(index=0, uuid="GPU-0", name=self.card.name, mem_bytes=self.card.mem_bytes, capability=(8, 0))
        return Machine(
            hostname=self.card.name, cpu="Example", n_cores=self.card.n_cores, n_cores_host=self.card.n_cores,
            ram_bytes=256 * GIB, shm_bytes=64 * GIB, gpus=(gpu,), fingerprint=self.card.name,
        )  # fmt: skip

    def context(self) -> Context:
        args = job_args({"model": f"{self.model}.yaml", "imgsz": self.imgsz, "batch": 16, "device": "0", "workers": 2})
        return Context(
            machine=self.machine(), task="detect", device="cuda", train_args=args, n_images=20_000,
            image_hw=(480, 640), free_ram_bytes=200 * GIB, free_disk_bytes=500 * GIB, has_compiler=True,
        )  # fmt: skip

    def needs_bytes(self, params: Params) -> int:
        area = (self.imgsz / 640) ** 2
        return int(2e9 + int(params["batch_per_gpu"] or 16) * 0.25e9 * MODELS[self.model] ** 0.6 * area)

    def rate(self, params: Params) -> float:
        """Images/s without noise: the slower of device and loader, softly."""
        get = {"batch_per_gpu": 16, "workers": 2, "amp": True, "deterministic": True, **params}.get
        batch, area, card = int(get("batch_per_gpu")), (self.imgsz / 640) ** 2, self.card
        device = batch * 0.0004 * MODELS[self.model] * area / card.speed
        device = (device**4 + card.launch_s**4) ** 0.25
        device *= card.bf16 if get("amp") == "bf16" else 1.0
        device *= 0.86 if get("compile") else 1.0
        device *= 0.96 if get("cudnn_benchmark") else 1.0
        device *= 1.05 if get("deterministic") else 1.0
        image_s = {"ram": 0.0002, "disk": 0.0008}.get(str(get("cache")), 0.0035) + 0.004 * area
        workers, n = int(get("workers")), card.n_cores
        loader = batch * image_s / (min(workers, n - 1) * (1 - 0.02 * max(0, workers - n + 1)))
        return batch / (device**6 + loader**6) ** (1 / 6)

    def best(self) -> float:
        """Of all configurations of the space that fit into memory."""
        domain = prepare(load_space("default"), self.context(), "same").domain
        every = (dict(zip(domain, values, strict=True)) for values in itertools.product(*domain.values()))
        return max(self.rate(p) for p in every if self.needs_bytes(p) <= self.card.mem_bytes)


def run(bench: Bench, seed: int, folder: Path) -> tuple[int, RunDir, int]:
    """One search that may use the atlas: trials until one is near the best, its folder, and how many seeds it had."""
    clock, ctx, run_dir = FakeClock(), bench.context(), RunDir(folder)
    args = {"model": f"{bench.model}.yaml", "data": "coco.yaml", "batch": 16, "imgsz": bench.imgsz, "cache": False}
    info = make_info(
        name=folder.name, budget_s=4 * 3600.0, objective="images_per_s", space="default", seed=seed, simulated=False,
        device="0", gpus=("GPU-0",), train_args=args, n_images=20_000, started=f"2026-11-23T14:{seed:02d}:00+00:00",
    )  # fmt: skip
    space = load_space("default")
    seeds = atlas.seeds_for(atlas.cell_of(info, bench.machine(), (480, 640)), space, ctx, "same")
    folder.mkdir(parents=True)
    plan = Plan(
        run_dir=run_dir, info=info, space=SpacePort(atlas.with_seeds(space, seeds), ctx, "same"),
        budget=Budget(info.budget_s, clock), data_for=lambda _: "coco.yaml", n_images=20_000, max_trials=MOST,
        memory=MemoryLimit(per_rank_bytes=bench.card.mem_bytes),
    )  # fmt: skip
    write_json(run_dir.machine, bench.machine())
    trainer = FakeTrainer(
        clock, noise=NOISE, seed=seed, rate=bench.rate, needs=bench.needs_bytes, has_bytes=bench.card.mem_bytes
    )
    search(plan, trainer)
    results = [read_json(d.result, TrialResult) for _, d in run_dir.numbered()]
    tried = [r for r in results if r.role == "trial"]
    enough = NEAR * bench.best()
    near = (i for i, r in enumerate(tried, 1) if r.outcome.measured and bench.rate(r.params) >= enough)
    return next(near, MOST + 1), run_dir, len(seeds)


def atlas_of(folder: Path, runs: list[RunDir]) -> None:
    """From now on the atlas holds these."""
    os.environ["AUTOTUNE_DATA"] = str(folder)
    for run_dir in runs:
        atlas.remember(run_dir, (480, 640))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    jobs = [("yolo11n", 320), *((model, 640) for model in MODELS)]
    benches = [Bench(card, model, imgsz) for card in CARDS for model, imgsz in jobs]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-warm-") as tmp:
        for seed in range(asked.seeds):
            home = Path(tmp) / str(seed)
            atlas_of(home / "empty", [])
            cold = {b.name: run(b, seed, home / "cold" / b.name) for b in benches}
            for b in benches:
                atlas_of(home / "others" / b.name, [found[1] for name, found in cold.items() if name != b.name])
                warm = run(b, seed, home / "warm" / b.name)
                theirs = [cold[o.name][1] for o in benches if o.card != b.card]
                atlas_of(home / "elsewhere" / b.name, theirs)
                elsewhere = run(b, seed, home / "warm elsewhere" / b.name)
                atlas_of(home / "own" / b.name, [cold[b.name][1]])
                again = run(b, seed + 100, home / "again" / b.name)
                rows.append({"cell": b.name, "seed": seed, "cold": cold[b.name][0], "warm": warm[0],
                             "n_seeds": warm[2], "elsewhere": elsewhere[0], "again": again[0]})  # fmt: skip
                print(rows[-1], flush=True)
                medians = {kind: median(row[kind] for row in rows) for kind in KINDS}
                worse = {kind: sum(row[kind] > row["cold"] + 1 for row in rows) for kind in KINDS[1:]}
                save(asked.out, {"simulated": True, "machine": machine(), "most_trials": MOST, "noise": NOISE,
                                 "median_trials": medians, "worse_by_more_than_1": worse, "rows": rows})  # fmt: skip
    print(f"medians {medians}; worse than cold by more than one trial, of {len(rows)}: {worse}")


if __name__ == "__main__":
    main()
