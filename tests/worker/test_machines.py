"""Is every simulated machine what its name says, and the same for ever? And does the synthetic backend become it?"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from autotune.contract import PARTS, Outcome, Params, TrialDir, TrialResult
from autotune.run.trial import run_trial
from autotune.worker.machines import FAMILIES, draw, drift, measure, truth
from tests.run.trials import spec

GPU: Params = {
    "batch_per_gpu": 16, "workers": 8, "cache": False, "amp": True, "compile": False, "channels_last": True,
    "cudnn_benchmark": False, "deterministic": True,
}  # fmt: skip
SEVERAL = [name for name in FAMILIES if draw(name).n_gpus > 1]


def rate(name: str, n_ranks: int | None = None, seed: int = 0, **changes: object) -> float:
    machine = draw(name, seed)
    return truth(machine, {**GPU, **changes}, n_ranks or machine.n_gpus).images_per_s  # type: ignore[dict-item]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_machine_and_trial_answer_the_same_and_every_seed_is_another(name: str) -> None:
    one, again, other = draw(name, 3), draw(name, 3), draw(name, 4)
    assert one == again
    n = one.n_gpus
    params = {**GPU, "batch_per_gpu": 4, "some_new_knob": 7}
    assert truth(one, params, n) == truth(again, params, n)
    assert measure(one, params, n, seed=1, number=5) == measure(again, params, n, seed=1, number=5)
    assert measure(one, params, n, seed=1, number=5) != measure(one, params, n, seed=1, number=6)
    if name == "dry_run":
        assert (one.seed, one) == (0, other)
    else:
        ratio = truth(other, params, n).step_s / truth(one, params, n).step_s
        assert ratio != pytest.approx(1, abs=1e-6)
        assert 0.3 < ratio < 3


def test_hashes_are_the_same_in_another_process() -> None:
    said = "from autotune.worker.machines import *; " + (
        "print(repr(truth(draw('rough_a100x4', 2), {'amp': True, 'new': 'x', 'batch_per_gpu': 8}, 4).step_s), "
        "[m for m in ('torch', 'numpy') if m in __import__('sys').modules])"
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, timeout=60, check=True)
    here = truth(draw("rough_a100x4", 2), {"amp": True, "new": "x", "batch_per_gpu": 8}, 4).step_s
    assert done.stdout.split() == [repr(here), "[]"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_are_the_step(name: str) -> None:
    machine = draw(name, 1)
    for workers in (0, 2):
        t = truth(machine, {**GPU, "batch_per_gpu": 4, "workers": workers}, machine.n_gpus)
        parts = [getattr(t, part) for part in PARTS]
        assert sum(parts) + t.rest_s == pytest.approx(t.step_s)
        assert min(parts) >= 0
        assert t.images_per_s == pytest.approx(0.0 if t.oom else 4 * machine.n_gpus / t.step_s)


@pytest.mark.parametrize("seed", range(5))
def test_folklore_holds_and_adv_reverses_it(seed: int) -> None:
    believed = {"amp": (False, True), "compile": (False, "default"), "channels_last": (False, True)}
    for knob, (without, with_) in believed.items():
        for name, gains in (("a100x4_m", True), ("adv_a100x4", False)):
            ratios = [
                rate(name, seed=seed, batch_per_gpu=b, workers=4, ddp_wrap="compiled_ddp", **{knob: with_})
                / rate(name, seed=seed, batch_per_gpu=b, workers=4, ddp_wrap="compiled_ddp", **{knob: without})
                for b in (8, 12, 16, 24)
            ]
            assert (fmean(ratios) > 1) is gains, (knob, name, ratios)
    slow = {"workers": 2, "compile": "max-autotune"}
    assert rate("adv_a100x4", seed=seed, **slow, cache="ram") < rate("adv_a100x4", seed=seed, **slow)
    assert rate("a100x4_m", seed=seed, **slow, cache="ram") >= rate("a100x4_m", seed=seed, **slow)
    many, few = ({"cache": "ram", "workers": w} for w in (16, 4))
    loader = [truth(draw("adv_a100x4", seed), {**GPU, **p}, 4).data_s for p in (many, few)]
    assert loader[0] > loader[1], "more workers hurt there"


def additivity(name: str) -> float:
    """Mean size of what two knobs do together beyond what each does alone, on a log scale."""
    out = []
    for seed in range(6):
        for batch in (8, 16, 32):
            a, b = {"amp": "bf16"}, {"cudnn_benchmark": True}
            base = {"batch_per_gpu": batch, "cache": "ram"}
            r = [rate(name, seed=seed, **{**base, **p}) for p in ({}, a, b, {**a, **b})]
            out.append(abs(r[3] * r[0] / (r[1] * r[2]) - 1))
    return fmean(out)


def test_rough_breaks_the_structure() -> None:
    assert additivity("a100x4_m") < 0.02
    assert additivity("rough_a100x4") > 3 * additivity("a100x4_m")


def test_memory_is_affine_and_ends_at_a_wall() -> None:
    machine = draw("t4_n", 2)
    at = {b: truth(machine, {**GPU, "batch_per_gpu": b}, 1) for b in (8, 16, 32, 512)}
    slopes = [(at[16].peak_mem_bytes - at[8].peak_mem_bytes) / 8, (at[32].peak_mem_bytes - at[16].peak_mem_bytes) / 16]
    assert slopes[1] == pytest.approx(slopes[0], rel=0.05)
    assert (at[8].oom, at[512].oom, at[512].images_per_s) == (False, True, 0.0)
    assert at[512].peak_mem_bytes > machine.mem_limit_bytes
    assert measure(machine, {**GPU, "batch_per_gpu": 512}, 1, seed=0, number=0).outcome == "oom"
    worst = truth(machine, {**GPU, "batch_per_gpu": 8}, 1, "certificate")
    assert worst.peak_mem_bytes == pytest.approx(1.1 * at[8].peak_mem_bytes, rel=1e-6)


def test_what_binds_differs_and_so_does_what_helps() -> None:
    fast = {"batch_per_gpu": 64, "compile": "default", "ddp_wrap": "compiled_ddp", "workers": 2}
    by_loader = rate("h100x8_n", **fast) / rate("h100x8_n", **{**fast, "workers": 12})
    by_gpu = rate("t4_x1280", **{**fast, "batch_per_gpu": 2}) / rate(
        "t4_x1280", **{**fast, "batch_per_gpu": 2, "workers": 6}
    )
    assert by_loader < 0.4
    assert by_gpu == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", SEVERAL)
def test_ranks_pay_for_what_they_exchange(name: str) -> None:
    machine, n = draw(name, 1), draw(name).n_gpus
    params = {**GPU, "batch_per_gpu": 4, "find_unused_parameters": True}
    whole, local, alone = truth(machine, params, n), truth(machine, params, n, "no_sync"), truth(machine, params, 1)
    assert whole.step_s > local.step_s
    assert whole.step_s - local.step_s == pytest.approx(whole.exposed_s + whole.straggler_s)
    assert alone.exposed_s == alone.straggler_s == 0


def test_settings_of_nccl_matter_over_tcp_and_not_over_nvlink() -> None:
    def gain(name: str) -> float:
        return rate(name, nccl_socket="4x4", bucket_cap_mb=25) / rate(name, nccl_socket="1x1", bucket_cap_mb=1)

    assert gain("a100x8tcp_l") > 1.15
    assert gain("a100x4_m") < 1.05


def test_inert_knobs_are_inert() -> None:
    assert rate("a100x4_m", activation_memory_budget=0.5) == rate("a100x4_m")
    assert rate("a100x4_m", compile="default", activation_memory_budget=0.5) != rate("a100x4_m", compile="default")
    assert rate("a100x4_m", fp32_precision="ieee") == rate("a100x4_m")
    assert rate("t4_n", nccl_socket="8x8") == rate("t4_n")


def test_noise_is_as_large_as_it_says() -> None:
    logs = {}
    for name in ("t4_n", "noisy_t4"):
        machine = draw(name, 1)
        seen = [measure(machine, GPU, 1, seed=7, number=i, t_s=90.0 * i) for i in range(400)]
        slow = sorted(m.slowdown for m in seen)
        logs[name] = (slow[340] - slow[60]) / 2  # about one standard deviation
        hung = sum(m.outcome == "timeout" for m in seen) / len(seen)
        assert (hung > 0.01) is (name == "noisy_t4"), hung
    assert 0.01 < logs["t4_n"] < 0.04
    assert logs["noisy_t4"] > 1.5 * logs["t4_n"]
    machine = draw("noisy_t4", 1)
    drifts = [drift(machine, 60.0 * i) for i in range(60)]
    assert max(drifts) - min(drifts) > machine.drift_frac


def on(folder: Path, name: str, **fields: object) -> TrialResult:
    knobs: Params = {k: v for k, v in GPU.items() if k != "batch_per_gpu"}
    asked = spec("demo", backend="synthetic", changes=knobs, synthetic={"machine": name, "machine_seed": 3}, batch=16)
    return run_trial(replace(asked, **fields), TrialDir(folder), started_s=0.0)  # type: ignore[arg-type]


def test_the_backend_is_the_machine_that_it_is_told(tmp_path: Path) -> None:
    machine = draw("t4_n", 3)
    true = truth(machine, GPU, 1)
    result = on(tmp_path / "a", "t4_n")
    assert result.outcome is Outcome.OK, result.error
    assert result.images_per_s == pytest.approx(true.images_per_s, rel=0.25)
    assert result.effective["simulated"] is True
    assert sum(result.parts_s.values()) == pytest.approx(16 / (result.images_per_s or 1), rel=0.05)
    assert result.parts_s["backward"] == pytest.approx(true.backward_s, rel=0.3)
    assert result.peak_mem_bytes[0] == pytest.approx(true.peak_mem_bytes, rel=0.03)
    assert result.phases_s["import"] == pytest.approx(machine.import_s)


def test_a_hang_ends_at_once_and_is_a_timeout(tmp_path: Path) -> None:
    machine = draw("noisy_t4", 3)
    number = next(i for i in range(1000) if measure(machine, GPU, 1, seed=0, number=i).outcome == "timeout")
    result = on(tmp_path / "a", "noisy_t4", number=number, seed=0)
    assert result.outcome is Outcome.TIMEOUT
    assert "simulated" in (result.error or "")
    assert result.took_s < 30


def test_no_such_machine() -> None:
    with pytest.raises(ValueError, match="no simulated machine 'cray'"):
        draw("cray")
