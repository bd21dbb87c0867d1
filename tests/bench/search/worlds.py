"""What does a simulated machine answer to a search in this process? No subprocess, no waiting; nothing is measured.

A World is a scenario of worker/machines_draw.py with its space of knobs, its clock, and its true best, which a local
search on the truth without noise has found.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.contract import Outcome, Params, StepColumns, TrialDir, TrialResult, TrialSpec, Value
from autotune.search.price import COMPILE_WARM_FRAC, CompileKey, compile_key
from autotune.search.plan import Watch
from autotune.space.context import CUDAGRAPH_MODES, STOCK_PREFETCH
from autotune.worker.machines import Measured, SimulatedMachine, draw, epoch_end, inert, measure, truth

CACHE_FORMAT = 1
"""Raise it when a formula changes: what was found of the best before is then not read."""
N_STARTS = 24
LOOKS = 4
"""How often a running segment is shown to `watch`."""
EPOCHS, CLOSED_EPOCHS = 100, 10
USERS_BATCH = 16
"""Total over all ranks, YOLO's default."""
BATCHES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
WORKERS = (0, 1, 2, 4, 6, 8, 12, 16, 24, 32)
GPU: dict[str, tuple[Value, ...]] = {
    "cache": (False, "ram", "disk"),
    "prefetch_factor": (None, 2, 4, 8),
    "amp": (True, "bf16", False),
    "compile": (False, "default", "reduce-overhead", "max-autotune"),
    "channels_last": (True, False),
    "cudnn_benchmark": (False, True),
    "deterministic": (True, False),
    "pin_memory": (True, False),
    "alloc_conf": (None, "expandable_segments:True"),
    "log_every": (1, 10, 50),
}
DDP: dict[str, tuple[Value, ...]] = {
    "bucket_cap_mb": (None, 1, 4, 16, 64, 128),
    "gradient_as_bucket_view": (False, True),
    "static_graph": (None, False, True),
    "find_unused_parameters": (None, True, False),
    "no_sync": (None, False, True),
    "ddp_wrap": (None, "ddp_of_compiled", "compiled_ddp"),
    "blocking_wait": (True, False),
}
PCIE: dict[str, tuple[Value, ...]] = {
    "nccl_ctas": (None, "1-4", "1-8", "1-16", "8-32"),
    "nccl_buffsize": (None, 1048576, 2097152, 8388608),
    "nccl_algo": (None, "allreduce:ring", "allreduce:tree"),
}
TRANSPORT: dict[str, dict[str, tuple[Value, ...]]] = {
    "r3090x2_s": {**PCIE, "nccl_p2p_level": (None, "PHB", "SYS")},
    "a100x8tcp_l": {**PCIE, "nccl_socket": ("1x1", "2x4", "4x4", "8x8")},
    "h100x16_x": {**PCIE, "nccl_ib_qps": (None, 2, 4)},
}
"""What acts only where the traffic does not go over NVLink."""
FOLKLORE: Params = {
    "cache": "ram", "amp": True, "compile": "default", "channels_last": True, "cudnn_benchmark": True,
    "deterministic": False, "log_every": 50, "gradient_as_bucket_view": True, "find_unused_parameters": False,
    "nccl_socket": "4x4", "blocking_wait": False,
}  # fmt: skip
"""What an expert would try first, beside the largest batch that is likely to fit and all cores."""


@dataclass(frozen=True)
class Glimpse:
    """A running trial, as plan.Live."""

    phase: str
    steps: StepColumns
    n_steps: int
    elapsed_s: float


class World:
    """A simulated job on a simulated machine; calls answer as plan.RunTrial does, and move its clock.

    Args:
        scenario: a name of FAMILIES.
        seed: which machine of that kind.
        study_seed: of the noise of its measurements.
        cache: folder in which its best is kept, once it is known.
    """

    def __init__(self, scenario: str, seed: int, *, study_seed: int = 0, cache: Path | None = None) -> None:
        self.scenario, self.seed, self.study_seed, self.cache = scenario, seed, study_seed, cache
        self.machine: SimulatedMachine = draw(scenario, seed)
        self.n_ranks = self.machine.n_gpus
        self.memory_limit_bytes = self.machine.mem_limit_bytes
        self.now_s = 0.0
        self._compiled: set[CompileKey] = set()
        self._filled = False
        self.baseline: Params = self._baseline()
        self.domain: dict[str, tuple[Value, ...]] = self._domain()
        self.seeds: tuple[Params, ...] = (self._folklore(),)

    def clock(self) -> float:
        """Seconds on the clock of this world."""
        return self.now_s

    def canonical(self, params: Params) -> Params:
        """The one spelling: what is inert beside these values becomes None (space/config.py)."""
        out = dict(params)
        stock = {**self.baseline, **{k: v for k, v in params.items() if v is not None}}
        for name, value in STOCK.items():
            if name in out and out[name] is None:
                out[name] = value
        if not stock.get("workers") and "prefetch_factor" in out:
            out["prefetch_factor"] = None
        for name in inert(stock, self.n_ranks) & out.keys():
            out[name] = None
        if "no_sync" in out and round(64 / (int(stock["batch_per_gpu"] or 1) * self.n_ranks)) <= 1:
            out["no_sync"] = None
        if out.get("compile") in CUDAGRAPH_MODES and "expandable_segments:True" in str(out.get("alloc_conf")):
            out["alloc_conf"] = None
        return out

    def true_rate(self, params: Params) -> float:
        """Images/s of all ranks without noise; 0 where memory is short."""
        return truth(self.machine, params, self.n_ranks).images_per_s

    def random(self, rng: random.Random) -> Params:
        """A configuration drawn evenly from the domain, canonical."""
        return self.canonical({name: rng.choice(values) for name, values in self.domain.items()})

    def best(self) -> tuple[Params, float]:
        """The fastest configuration that fits, and its rate: local search from N_STARTS (SEARCH 2.1)."""
        path = self.cache and self.cache / f"{self.scenario}-{self.seed}-{CACHE_FORMAT}.json"
        if path and path.exists():
            said = json.loads(path.read_text(encoding="utf-8"))
            return said["params"], said["images_per_s"]
        rng = random.Random(f"best/{self.scenario}/{self.seed}")
        starts = [self.baseline, *self.seeds, *(self.random(rng) for _ in range(N_STARTS - 2))]
        peaks = sorted((self._climbed(start) for start in starts), key=lambda found: -found[1])
        found = max((self._climbed(p, pairs=True) for p in _distinct(peaks)[:3]), key=lambda found: found[1])
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            told = {"simulated": True, "params": found[0], "images_per_s": found[1]}
            tmp = path.with_suffix(f".{random.getrandbits(32):x}.tmp")
            tmp.write_text(json.dumps(told), encoding="utf-8")
            tmp.replace(path)
        return found

    def __call__(
        self, spec: TrialSpec, directory: TrialDir, *, started_s: float, watch: Watch | None = None
    ) -> TrialResult:
        """Run one trial; the folder stays empty."""
        del directory
        began_s, n_ranks = self.now_s, spec.n_ranks
        seen = measure(
            self.machine, spec.params, n_ranks, seed=self.study_seed, number=spec.number, t_s=began_s,
            segment_s=spec.segment.measure_s, probe=spec.probe,
        )  # fmt: skip
        phases = self._start(spec, seen)
        common: dict[str, Any] = {
            "number": spec.number, "role": spec.role, "params": spec.params, "probe": spec.probe,
            "started_s": started_s, "phases_s": phases, "resolved": {"optimizer": "SGD", "lr0": 0.01},
            "effective": {**spec.params, "optimizer": "SGD", "simulated": True}, "job": self._job(seen, n_ranks),
        }  # fmt: skip
        limit = min(spec.mem_limit_bytes or self.memory_limit_bytes, self.memory_limit_bytes)
        if seen.outcome == "oom" or seen.truth.peak_mem_bytes > limit:
            where = "memory" if self.machine.on_cpu else "GPU memory"
            return self._lost(spec, common, Outcome.OOM, sum(phases.values()), f"out of {where} (simulated)")
        if seen.outcome == "timeout":
            took_s = sum(phases.values()) + spec.deadlines.stall_s
            return self._lost(spec, common, Outcome.TIMEOUT, took_s, "the ranks waited for each other (simulated)")
        if spec.probe == "certificate":
            phases["first_step"] += seen.truth.step_s
            self.now_s += sum(phases.values())
            found = {"n_images": seen.truth.batch, "simulated": True}
            peaks = (seen.peak_mem_bytes,) * n_ranks
            took_s = self.now_s - began_s
            return TrialResult(outcome=Outcome.OK, took_s=took_s, peak_mem_bytes=peaks, certificate=found, **common)
        if spec.probe == "losses":
            phases["measure"] = spec.loss_steps * seen.truth.step_s * seen.slowdown
            self.now_s += sum(phases.values())
            return TrialResult(outcome=Outcome.OK, took_s=self.now_s - began_s, **common, **_losses(spec))
        step_s = seen.truth.step_s * seen.slowdown
        if spec.probe == "epoch_end":
            end = epoch_end(self.machine, spec.params, spec.train_args, closes=CLOSED_EPOCHS > 0)
            phases["epoch_end"] = sum(s or 0.0 for s in (end.val_s, end.save_s, end.rest_s, end.reset_s, end.final_s))
            common["epoch_end"] = end
        settings = spec.segment
        warmup_s = max(settings.warmup_s, settings.warmup_steps * step_s)
        phases["warmup"] = min(warmup_s, settings.warmup_cap_s)
        window_s = min(max(settings.measure_s, settings.measure_steps * step_s), settings.measure_cap_s)
        n_steps = max(2, round(window_s / step_s))
        if sum(phases.values()) + n_steps * step_s > spec.deadlines.total_s:
            self.now_s = began_s
            return self._lost(spec, common, Outcome.TIMEOUT, spec.deadlines.total_s, "no time is left (simulated)")
        self.now_s += sum(phases.values())
        steps, done, reason = StepColumns(), 0, None
        rng = random.Random(f"{self.study_seed}/{spec.number}")
        for look in range(1, LOOKS + 1):
            n = n_steps * look // LOOKS - done
            done += n
            self.now_s += n * step_s
            if watch is not None:
                steps.step_s.extend(step_s * rng.gauss(1.0, self.machine.step_sigma) for _ in range(n))
                steps.images.extend([seen.truth.batch * n_ranks] * n)
                reason = watch(Glimpse("measure", steps, done, self.now_s - began_s))
                if reason:
                    break
        phases["measure"] = done * step_s
        rate, half = seen.images_per_s, seen.half_width_frac
        return TrialResult(
            outcome=Outcome.PRUNED if reason else Outcome.UNSTABLE if half > 0.10 else Outcome.OK,
            error=reason or ("the window was noisy (simulated)" if half > 0.10 else None),
            took_s=self.now_s - began_s,
            images_per_s=rate, ci95_lo=rate * (1 - half), ci95_hi=rate * (1 + half),
            step_p50_s=step_s, step_p90_s=step_s * (1 + 1.28 * self.machine.step_sigma),
            step_p99_s=step_s * (1 + 2.33 * self.machine.step_sigma),
            wait_frac=seen.wait_frac, parts_s=seen.parts_s, n_steps=done, steady=True,
            straggler_frac=seen.truth.straggler_s / seen.truth.step_s if n_ranks > 1 and not spec.probe else None,
            peak_mem_bytes=(seen.peak_mem_bytes,) * n_ranks,
            **common,
        )  # fmt: skip

    def _start(self, spec: TrialSpec, seen: Measured) -> dict[str, float]:
        """Phases until the first step has ended; a graph that was compiled before, and a cache on disk, are warm."""
        rng = random.Random(f"start/{self.study_seed}/{spec.number}")
        kept, mode, m = spec.params.get("cache") or False, spec.params.get("compile"), self.machine
        cache_s = 0.0 if kept == "disk" and self._filled else seen.truth.cache_s
        self._filled = self._filled or kept == "disk"
        compile_s = 0.0
        if mode and spec.probe != "data":
            key = compile_key(spec.params)
            compile_s = seen.truth.compile_s * (COMPILE_WARM_FRAC if key in self._compiled else 1.0)
            self._compiled.add(key)
        slower = [max(0.5, rng.gauss(1.0, 0.05)) for _ in range(3)]
        return {
            "import": m.import_s * slower[0],
            "build": m.build_s * slower[1],
            "cache": cache_s * slower[2],
            "first_step": compile_s * slower[2] + 3 * seen.truth.step_s,
        }

    def _job(self, seen: Measured, n_ranks: int) -> dict[str, Any]:
        total, n_images = seen.truth.batch * n_ranks, self.machine.n_images
        return {
            "n_images": n_images, "n_batches": -(-n_images // total), "epochs": EPOCHS, "batch": total,
            "n_closed_epochs": CLOSED_EPOCHS, "accumulate": seen.truth.accumulate,
            "gradient_bytes": self.machine.gradient_bytes,
        }  # fmt: skip

    def _lost(
        self, spec: TrialSpec, common: dict[str, Any], outcome: Outcome, took_s: float, error: str
    ) -> TrialResult:
        took_s = min(took_s, spec.deadlines.total_s)
        self.now_s += took_s
        return TrialResult(outcome=outcome, took_s=took_s, error=error, hint="simulated", **common)

    def _cap(self) -> int:
        """Loader workers of a rank at most: the cores of a node over its GPUs (space/context.py)."""
        m = self.machine
        return int(m.cores // max(1, min(m.n_gpus, m.gpus_per_node)))

    def _baseline(self) -> Params:
        m = self.machine
        base: Params = {"batch_per_gpu": max(1, USERS_BATCH // self.n_ranks)}
        if m.on_cpu:
            return {**base, "torch_threads": 1, "channels_last": False, "workers": 0, "cache": False}
        base |= {"workers": min(8, self._cap()), **{k: v[0] for k, v in GPU.items()}, "prefetch_factor": STOCK_PREFETCH}
        if self.n_ranks > 1:
            base |= {k: v[0] for k, v in DDP.items()} | {k: v[0] for k, v in TRANSPORT.get(self.scenario, {}).items()}
        self.baseline = base
        while not self.true_rate(base) and int(base["batch_per_gpu"] or 1) > 1:  # as the search does with such a job
            base = {**base, "batch_per_gpu": int(base["batch_per_gpu"] or 1) // 2}
        return self.canonical(base)

    def _domain(self) -> dict[str, tuple[Value, ...]]:
        m = self.machine
        if m.on_cpu:
            return {
                "batch_per_gpu": (4, 8, 16, 24, 32, 48, 64), "torch_threads": (1, 2), "channels_last": (False, True),
                "workers": (0, 1, 2), "cache": (False, "ram", "disk"), "prefetch_factor": (None, 2, 4, 8),
                "log_every": (1, 10, 50), "gc_freeze": (False, True),
            }  # fmt: skip
        own = {*WORKERS, self._cap()}
        domain: dict[str, tuple[Value, ...]] = {
            "batch_per_gpu": BATCHES if m.image_bytes < 2 * 2**30 else tuple(range(1, 13)),
            "workers": tuple(sorted(w for w in own if w <= self._cap())),
            **GPU,
        }
        if "t4" in self.scenario:  # no bf16 there
            domain["amp"] = (True, False)
        if self.n_ranks * m.n_images * m.ram_image_bytes > m.ram_bytes * max(1, self.n_ranks // m.gpus_per_node):
            domain["cache"] = (False, "disk")
        if self.n_ranks > 1:
            domain |= {**DDP, **TRANSPORT.get(self.scenario, {})}
        return domain

    def _folklore(self) -> Params:
        """The expert's start: folklore, the largest batch that is believed to fit, and all the cores there are."""
        m = self.machine
        params = {**self.baseline, **{k: v for k, v in FOLKLORE.items() if v in self.domain.get(k, ())}}
        batches = [int(b or 0) for b in self.domain["batch_per_gpu"]]
        half = 1.0 if m.on_cpu else 0.62
        fits = [b for b in batches if m.base_bytes + half * m.image_bytes * b < 0.7 * m.mem_limit_bytes]
        params["batch_per_gpu"] = max(fits, default=batches[0])
        if m.on_cpu:
            params |= {"torch_threads": int(m.cores), "workers": 1, "cache": False}
        else:
            params["workers"] = max(1, self._cap() - 1)
        below = [w for w in self.domain["workers"] if int(w or 0) <= int(params["workers"] or 0)]
        params["workers"] = below[-1]
        return self.canonical(params)

    def _climbed(self, start: Params, *, pairs: bool = False) -> tuple[Params, float]:
        """The local best from here: one knob at a time, and then, with `pairs`, two."""
        here = self.canonical(start)
        rate = self.true_rate(here)
        better = True
        while better:
            better = False
            for there in self._neighbours(here, 1):
                if (r := self.true_rate(there)) > rate * (1 + 1e-9):
                    here, rate, better = there, r, True
            if better or not pairs:
                continue
            for there in self._neighbours(here, 2):
                if self.true_rate(there) <= rate * (1 + 1e-9):
                    continue
                spelled = self.canonical(there)
                if (r := self.true_rate(spelled)) > rate * (1 + 1e-9):
                    here, rate, better = spelled, r, True
                    break
        return here, rate

    def _neighbours(self, here: Params, n: int) -> Iterator[Params]:
        """Configurations that differ in n knobs; one whose value has been taken meanwhile is as good."""
        names = list(self.domain)
        for i, a in enumerate(names):
            for value in self.domain[a]:
                if value == here.get(a):
                    continue
                one = {**here, a: value}
                if n == 1:
                    yield self.canonical(one)
                    continue
                for b in names[i + 1 :]:
                    yield from ({**one, b: other} for other in self.domain[b] if other != here.get(b))


STOCK: Params = {
    "prefetch_factor": STOCK_PREFETCH,
    "static_graph": False,
    "find_unused_parameters": True,
    "no_sync": False,
    "ddp_wrap": "ddp_of_compiled",
}
"""Knobs with a condition -> what they are where they act."""


def _distinct(found: list[tuple[Params, float]]) -> list[Params]:
    seen: dict[str, Params] = {}
    for params, _ in found:
        seen.setdefault(json.dumps(params, sort_keys=True), params)
    return list(seen.values())


def _losses(spec: TrialSpec) -> dict[str, Any]:
    """Losses that only the seed moves: rounding is harmless here."""
    rng = random.Random(f"losses/{spec.seed}")
    n = spec.loss_steps
    losses = tuple(4.0 / (1 + 0.01 * i) * (1 + 0.02 * rng.gauss(0, 1)) for i in range(n))
    return {"losses": losses, "batch_ids": tuple(f"{spec.seed}-{i}" for i in range(n)), "n_steps": n}
