"""A small table of configurations as tests/bench/search/record.py writes it; its numbers are a formula's."""

from __future__ import annotations

import itertools
import json
import lzma
from pathlib import Path
from typing import Any

from autotune.contract import Machine, Outcome, Params, SegmentSettings, TrialResult, to_dict

DOMAIN: dict[str, list[Any]] = {"torch_threads": [1, 2], "batch_per_gpu": [8, 16, 32], "workers": [0, 1, 2]}
BASELINE: Params = {"torch_threads": 1, "batch_per_gpu": 16, "workers": 0}
NO_MEMORY: Params = {"torch_threads": 2, "batch_per_gpu": 32, "workers": 2}
N_STEPS = 30
START_S, CACHE_S = 4.0, 0.0


def rate_of(params: Params) -> float:
    rate = 100.0 * {1: 1.0, 2: 1.6}[params["torch_threads"]]
    return rate * {8: 0.8, 16: 1.0, 32: 1.1}[params["batch_per_gpu"]] * {0: 1.0, 1: 1.05, 2: 0.6}[params["workers"]]


def line(n: int, block: int, role: str, params: Params, fingerprint: str = "fake") -> dict[str, Any]:
    rate = rate_of(params) * (1 + 0.01 * (n % 3 - 1))
    step_s = params["batch_per_gpu"] / rate
    phases = {"import": 1.0, "build": 3.0, "cache": CACHE_S, "first_step": step_s, "warmup": 1.0}
    effective = {**params, "optimizer": "AdamW", "amp": False, "compile": False, "cache": False}
    common: dict[str, Any] = {
        **{"number": n, "role": "trial", "params": params, "started_s": 0.0, "effective": effective},
        **{"resolved": {"optimizer": "AdamW", "lr0": 0.001, "momentum": 0.9}, "warm": True},
        "job": {"n_images": 640, "n_batches": 640 // params["batch_per_gpu"], "epochs": 50, "batch": 16},
    }
    steps: dict[str, list[Any]] = {}
    measured_from = None
    if params == NO_MEMORY:
        result = TrialResult(outcome=Outcome.OOM, took_s=START_S, error="out of memory", **common)
    else:
        window_s = N_STEPS * step_s
        measured_from = 3
        steps = {
            "end_s": [round(START_S + step_s * (i + 1), 5) for i in range(N_STEPS + 3)],
            "wait_s": [0.0] * (N_STEPS + 3),
            "step_s": [round(step_s, 5)] * (N_STEPS + 3),
            "images": [params["batch_per_gpu"]] * (N_STEPS + 3),
        }
        result = TrialResult(
            outcome=Outcome.OK, took_s=START_S + 1.0 + window_s, images_per_s=rate, ci95_lo=0.99 * rate,
            ci95_hi=1.01 * rate, step_p50_s=step_s, wait_frac=0.0, n_steps=N_STEPS, peak_mem_bytes=(10**9,),
            phases_s={**phases, "measure": window_s}, **common,
        )  # fmt: skip
    got = to_dict(result)
    del got["log_tail"]
    return {
        **{"n": n, "block": block, "role": role, "result": got, "steps": steps, "measured_from": measured_from},
        **{"fingerprint": fingerprint, "at": "2026-11-30T00:00:00+00:00"},
    }


def write_table(folder: Path, *, without: tuple[Params, ...] = (), n_blocks: int = 2) -> Path:
    """table.json and two parts; `without`: configurations that nobody measured."""
    folder.mkdir(parents=True)
    machine = Machine(
        hostname="fake", cpu="a formula", n_cores=2, n_cores_host=2, ram_bytes=16 << 30, shm_bytes=8 << 30,
        fingerprint="fake", versions={"python": "3"},
    )  # fmt: skip
    table = {
        **{"format": 1, "name": "formula", "simulated": True, "machine": to_dict(machine), "fingerprint": "fake"},
        "job": {"model": "yolo11n.yaml", "data": "small", "epochs": 50, "imgsz": 64, "batch": 16, "device": "cpu"},
        **{"space": "cpu", "domain": DOMAIN, "baseline": BASELINE, "n_images": 640, "device": "cpu", "n_ranks": 1},
        "seeds": [{"torch_threads": 2, "batch_per_gpu": 32, "workers": 0}],
        "segment": to_dict(SegmentSettings(warmup_steps=3, warmup_s=0.5, measure_s=1.6, measure_steps=5)),
    }
    (folder / "table.json").write_text(json.dumps(table))
    cells = [dict(zip(DOMAIN, values, strict=True)) for values in itertools.product(*DOMAIN.values())]
    n = itertools.count()
    for block in range(n_blocks):
        lines = [line(next(n), block, "sentinel", BASELINE)]
        lines += [line(next(n), block, "cell", params) for params in cells if params not in without]
        with lzma.open(folder / f"part-{block:03d}.jsonl.xz", "wt") as f:
            f.writelines(json.dumps(row) + "\n" for row in lines)
    return folder
