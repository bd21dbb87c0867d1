"""What does a simulated machine answer to a search in this process? No subprocess, no waiting; nothing is measured.

A World is a scenario of worker/machines_draw.py with its space of knobs, its clock, and its true best, which a local
search on the truth without noise has found.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from world_space import Offer, WorldSpace, baseline_of, canonical, domain_of, expert_of

from autotune.contract import Outcome, Params, StepColumns, TrialDir, TrialResult, TrialSpec, Value
from autotune.search.plan import Watch
from autotune.search.price import COMPILE_WARM_FRAC, CompileKey, compile_key
from autotune.worker.machines import Measured, SimulatedMachine, draw, epoch_end, measure, truth

CACHE_FORMAT = 1
"""Raise it when a formula changes: what was found of the best before is then not read."""
N_STARTS = 24
LOOKS = 4
"""How often a running segment is shown to `watch`."""
EPOCHS, CLOSED_EPOCHS = 100, 10


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
        self.baseline: Params = baseline_of(self.machine)
        self.domain: dict[str, tuple[Value, ...]] = domain_of(self.machine)
        self.seeds: tuple[Params, ...] = (expert_of(self.machine, self.baseline, self.domain),)

    @property
    def space(self) -> WorldSpace:
        """For Plan.space."""
        return WorldSpace(self.machine, Offer(self.domain, self.baseline, self.seeds, {}))

    def clock(self) -> float:
        """Seconds on the clock of this world."""
        return self.now_s

    def canonical(self, params: Params) -> Params:
        """The one spelling: what is inert beside these values becomes None (space/config.py)."""
        return canonical(params, self.baseline, self.n_ranks)

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
