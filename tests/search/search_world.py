"""A machine, a space and a trainer that answer from a formula, on a clock that nobody has to wait for."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from autotune.contract import Outcome, RunDir, RunInfo, StepColumns, TrialResult
from autotune.search.budget import Budget
from autotune.search.plan import Plan

LAUNCH_S, SEGMENT_S, N_IMAGES, EPOCHS = 6.0, 8.0, 1280, 100


class FakeClock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@dataclass(frozen=True)
class FakePrepared:
    domain: dict
    frozen: dict
    baseline: dict
    seeds: tuple


@dataclass(frozen=True)
class FakeApplied:
    train_args: dict
    env: dict = field(default_factory=dict)
    patches: dict = field(default_factory=dict)


DOMAIN = {
    "batch_per_gpu": (16, 32, 64),
    "torch_threads": (1, 2),
    "channels_last": (False, True),
    "workers": (0, 1, 2),
    "prefetch_factor": (2, 4),
    "cache": (False, "ram"),
}
BASELINE = {
    "batch_per_gpu": 16,
    "torch_threads": 1,
    "channels_last": False,
    "workers": 0,
    "prefetch_factor": None,
    "cache": False,
    "amp": False,
    "compile": False,
}


class FakeSpace:
    """Prefetch is inert without workers; torch_threads and channels_last are patches, the rest are YOLO's."""

    def __init__(self, domain=None, seeds=(), train_args=None):
        self.domain = dict(DOMAIN if domain is None else domain)
        self.seeds, self.train_args = tuple(seeds), dict(train_args or {})
        self.calls = []

    def prepare(self, effective, n_images, train_args=None, transport=None):
        self.calls.append((dict(effective), n_images, train_args))
        if train_args is not None:
            self.train_args = dict(train_args)
        self.baseline = {**BASELINE, "batch_per_gpu": self.train_args["batch"]}
        self.baseline |= {k: v for k, v in effective.items() if k in BASELINE}
        domain = dict(self.domain)
        if effective and "batch_per_gpu" in domain:
            domain["batch_per_gpu"] = tuple(b for b in domain["batch_per_gpu"] if b <= 4 * self.train_args["batch"])
        return FakePrepared(domain, {"amp": "CPU: no autocast here"}, dict(self.baseline), self.seeds)

    def pin(self, resolved):
        return {"optimizer": resolved["optimizer"]}

    def canonical(self, params):
        return params if params.get("workers", 0) else {**params, "prefetch_factor": None}

    def materialise(self, params):
        changed = {k: v for k, v in params.items() if v != self.baseline[k] and v is not None}
        patches = {k: v for k, v in changed.items() if k in ("torch_threads", "channels_last", "prefetch_factor")}
        args = {"batch" if k == "batch_per_gpu" else k: v for k, v in changed.items() if k not in patches}
        return FakeApplied({**self.train_args, **args}, {}, patches)


def rate_of(params):
    """True images/s: best is batch 64, 2 threads, no channels_last."""
    rate = 100.0
    rate *= {1: 0.5, 2: 0.6, 4: 0.7, 8: 0.9, 16: 1.0, 32: 1.1, 64: 1.2, 128: 1.21}[params["batch_per_gpu"]]
    rate *= {1: 1.0, 2: 1.5}[params.get("torch_threads", 1)]
    rate *= 0.7 if params.get("channels_last") else 1.0
    return rate * {0: 1.0, 1: 1.02, 2: 0.98}[params.get("workers", 0)]


class FakeTrainer:
    """run_trial of a formula; `fails(spec)` -> Outcome, an exception to raise, or None; `needs(params)` -> bytes."""

    def __init__(self, clock, *, noise=0.01, seed=0, fails=lambda spec: None, rate=rate_of, needs=None, has_bytes=0):
        self.clock, self.noise, self.fails, self.rate = clock, noise, fails, rate
        self.needs, self.has_bytes = needs, has_bytes
        self.rng = random.Random(seed)
        self.specs = []

    def __call__(self, spec, directory, *, started_s, watch=None):
        self.specs.append(spec)
        begin = self.clock.now
        outcome = self.fails(spec)
        peak_bytes = self.needs(spec.params) if self.needs else None
        if peak_bytes and peak_bytes > self.has_bytes:
            outcome = Outcome.OOM
        rate = self.rate(spec.params) * self.rng.lognormvariate(0.0, self.noise)
        if isinstance(outcome, BaseException):
            self.clock.advance(2.0)
            raise outcome
        effective = {**spec.params, "optimizer": "AdamW"}
        if spec.params.get("prefetch_factor") is None:
            effective["prefetch_factor"] = None
        common = {
            "number": spec.number,
            "role": spec.role,
            "params": spec.params,
            "probe": spec.probe,
            "started_s": started_s,
            "effective": effective,
            "resolved": {"optimizer": "AdamW", "lr0": 0.01},
            "job": {"n_images": N_IMAGES, "epochs": EPOCHS, "n_closed_epochs": 10},
        }
        if outcome is Outcome.MISMATCH:
            common["effective"] = {**effective, "workers": 1}
        if outcome is not None and outcome is not Outcome.UNSTABLE:
            took_s = spec.deadlines.total_s if outcome is Outcome.TIMEOUT else LAUNCH_S
            self.clock.advance(took_s)
            return TrialResult(outcome=outcome, took_s=took_s, error=f"it was {outcome}", hint="a hint", **common)
        phases = {"import": 4.0, "build": 2.0, "cache": 0.0, "first_step": 0.5, "warmup": 2.0}
        if spec.params.get("cache") == "ram":
            phases["cache"] = 3.0
        self.clock.advance(LAUNCH_S + phases["cache"])
        step_s = spec.params["batch_per_gpu"] / rate
        n_steps, reason = 0, None
        while n_steps < 40 and reason is None:
            n_steps += 10
            self.clock.advance(SEGMENT_S / 4)
            if watch is not None:
                steps = StepColumns(step_s=[step_s] * n_steps, images=[spec.params["batch_per_gpu"]] * n_steps)
                reason = watch(FakeLive("measure", steps, n_steps, self.clock.now - begin))
        return TrialResult(
            outcome=outcome or (Outcome.PRUNED if reason else Outcome.OK),
            error=reason,
            took_s=self.clock.now - begin,
            images_per_s=rate,
            ci95_lo=rate * 0.99,
            ci95_hi=rate * 1.01,
            step_p50_s=step_s,
            n_steps=n_steps,
            peak_mem_bytes=(peak_bytes,) if peak_bytes else (),
            phases_s={**phases, "measure": SEGMENT_S},
            **common,
        )


@dataclass(frozen=True)
class FakeLive:
    phase: str
    steps: StepColumns
    n_steps: int
    elapsed_s: float


def make_info(**fields):
    train_args = fields.pop("train_args", {"model": "yolo11n.yaml", "data": "mine.yaml", "batch": 16, "cache": False})
    defaults = {
        "name": "test",
        "command": "autotune search",
        "started": "2026-11-23T14:05:00+00:00",
        "budget_s": 300.0,
        "objective": "job_time",
        "strategy": "tpe",
        "space": "cpu",
        "training": "same",
        "seed": 0,
        "backend": "fake",
        "simulated": True,
        "task": "detect",
        "device": "cpu",
    }
    return RunInfo(**{**defaults, **fields}, train_args=train_args)


def make_plan(folder: Path, clock, *, space=None, budget_s=300.0, info=None, **fields):
    info = info or make_info(budget_s=budget_s)
    space = space or FakeSpace()
    space.train_args = dict(info.train_args)
    folder.mkdir(parents=True, exist_ok=True)
    return Plan(
        run_dir=RunDir(folder),
        info=info,
        space=space,
        budget=Budget(budget_s, clock),
        data_for=lambda cache: f"farm/{cache}.yaml",
        trial_args={"plots": False},
        **fields,
    )
