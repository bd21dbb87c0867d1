"""Knobs of several ranks and of the loop: where they are offered, and what inert ones are spelled as."""

from __future__ import annotations

import random

import pytest

from autotune.contract import UNFELT, Gpu
from autotune.space import here
from autotune.space.config import baseline_params, canonical, materialise
from autotune.space.knobs import COMMUNICATION, KNOBS
from autotune.space.knobs_ddp import DDP_KNOBS
from autotune.space.space import Choices, SearchSpace, load_space, prepare

ON_GLOO = {
    "bucket_cap_mb",
    "gradient_as_bucket_view",
    "batched_grad_copy",
    "static_graph",
    "find_unused_parameters",
    "ddp_wrap",
    "no_sync",
}


@pytest.mark.parametrize("name", DDP_KNOBS)
def test_ddp_knobs_need_several_ranks(name, context):
    knob = KNOBS[name]
    for device in ("cpu", "cuda"):
        assert "one rank" in knob.blocked(context(device))
        assert knob.baseline(context(device)) is None
    assert knob.blocked(context("cuda", n_ranks=2)) is None
    assert (knob.blocked(context("cpu", n_ranks=2)) is None) is (name in ON_GLOO)


def test_the_space_of_ranks_on_cpu_and_gpu(context):
    space = load_space("ddp")
    cpu = prepare(space, context("cpu", n_ranks=2), "same")
    assert set(cpu.domain) == (ON_GLOO - {"ddp_wrap"}) | {"log_every", "gc_freeze"}
    gpu = prepare(space, context("cuda", n_ranks=2), "same")
    assert set(gpu.domain) == set(space.knobs) - {"nccl_socket"}
    alone = prepare(space, context("cuda"), "same")
    assert set(alone.domain) == {"log_every", "stride_on_cpu", "gc_freeze", "empty_cache"}


@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("fused_sgd", {}, "the optimizer is auto, not SGD"),
        ("fused_sgd", {"args": {"optimizer": "sgd"}}, None),
        ("fused_sgd", {"effective": {"optimizer": "SGD"}}, None),
        ("fused_sgd", {"args": {"optimizer": "SGD"}, "effective": {"optimizer": "AdamW"}}, "the optimizer is AdamW"),
        ("stride_on_cpu", {"task": "classify"}, "no strides"),
        ("fp32_precision", {"gpus": (Gpu(index=0, uuid="G", name="Tesla T4", mem_bytes=16 << 30),)}, "T4 has no TF32"),
        ("val_workers", {}, "does not validate"),
    ],
)
def test_blocked(name, more, reason, context):
    said = KNOBS[name].blocked(context("cuda", **more))
    assert (said is None) if reason is None else (reason in said)


@pytest.mark.parametrize("name", ["pin_memory", "fp32_precision", "stride_on_cpu", "empty_cache", "blocking_wait"])
def test_inert_on_cpu(name, context):
    assert KNOBS[name].blocked(context("cpu", n_ranks=2))


def test_an_inert_value_is_spelled_none(context):
    two = context("cuda", n_ranks=2, args={"batch": 32})
    params = {"find_unused_parameters": False, "static_graph": False, "ddp_wrap": "compiled_ddp"}
    eager = canonical(params | {"compile": False}, two)
    assert eager == {"find_unused_parameters": False, "static_graph": False, "ddp_wrap": None, "compile": False}
    compiled = canonical(params | {"compile": "default"}, two)
    assert compiled == params | {"find_unused_parameters": None, "static_graph": None, "compile": "default"}
    static = canonical({"find_unused_parameters": True, "static_graph": True}, two)
    assert static == {"find_unused_parameters": None, "static_graph": True}
    assert canonical({"static_graph": None, "find_unused_parameters": None}, two) == {
        "static_graph": False,
        "find_unused_parameters": True,
    }
    assert canonical({"fp32_precision": "tf32", "amp": True}, two)["fp32_precision"] is None
    assert canonical({"fp32_precision": "tf32", "amp": False}, two)["fp32_precision"] == "tf32"
    assert canonical({"fp32_precision": "tf32", "amp": False, "compile": "default"}, two)["fp32_precision"] is None
    assert canonical({"activation_memory_budget": 0.5}, two) == {"activation_memory_budget": None}
    assert canonical({"no_sync": True, "batch_per_gpu": 16}, two)["no_sync"] is True
    assert canonical({"no_sync": True, "batch_per_gpu": 32}, two)["no_sync"] is None


def test_only_what_differs_from_the_stock_training_is_patched(context):
    two = context("cuda", n_ranks=2, args={"compile": True})
    base = baseline_params(KNOBS, two)
    assert (base["find_unused_parameters"], base["static_graph"], base["ddp_wrap"]) == (None, None, "ddp_of_compiled")
    eager = canonical(base | {"compile": False}, two)
    assert (eager["find_unused_parameters"], eager["static_graph"]) == (True, False)
    assert materialise(eager, base, two, "same").patches == {}
    change = canonical(eager | {"find_unused_parameters": False, "bucket_cap_mb": 25, "log_every": 10}, two)
    wanted = {"find_unused_parameters": False, "bucket_cap_mb": 25, "log_every": 10}
    assert materialise(change, base, two, "same").patches == wanted


def test_the_process_group_is_chosen_by_the_environment(context):
    two = context("cuda", n_ranks=2)
    base = baseline_params(["nccl_backend"], two)
    assert base == {"nccl_backend": "nccl2"}
    assert materialise({"nccl_backend": "legacy"}, base, two, "same").env == {"TORCH_DIST_USE_NCCL2": "0"}
    old = context("cuda", n_ranks=2, env={"TORCH_DIST_USE_NCCL2": "0"})
    assert baseline_params(["nccl_backend"], old) == {"nccl_backend": "legacy"}
    assert materialise({"nccl_backend": "nccl2"}, {"nccl_backend": "legacy"}, old, "same").env == {
        "TORCH_DIST_USE_NCCL2": ""
    }


def test_a_knob_whose_condition_never_holds_says_why(context):
    knobs = {"ddp_wrap": Choices(("ddp_of_compiled", "compiled_ddp")), "fp32_precision": Choices((None, "tf32"))}
    done = prepare(SearchSpace(name="x", doc="y", knobs=knobs), context("cuda", n_ranks=2), "same")
    assert done.domain == {}
    assert done.frozen == {
        "ddp_wrap": "there is no torch.compile here to put DDP into",
        "fp32_precision": "amp computes in 16 bits, and torch.compile cannot be told",
    }
    knobs["compile"] = Choices((False, "default"))
    done = prepare(SearchSpace(name="x", doc="y", knobs=knobs), context("cuda", n_ranks=2), "same")
    assert done.domain["ddp_wrap"] == (None, "ddp_of_compiled", "compiled_ddp")


@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_that_full_draws_is_canonical_in_its_own_domain(device, n_ranks, context):
    ctx = context(device, n_ranks=n_ranks, n_images=1280, args={"optimizer": "SGD", "batch": 8 * n_ranks})
    done = prepare(load_space("full"), ctx, "same")
    rng = random.Random(0)
    inert = set()
    for _ in range(300):
        drawn = {name: rng.choice(values) for name, values in done.domain.items()}
        whole = canonical(done.baseline | drawn, ctx)
        assert canonical(whole, ctx) == whole
        # A value made None because it is inert here is the sampler's to fill in (search/study.py).
        assert all(v is None or v in done.domain[k] for k, v in whole.items() if k in done.domain)
        inert |= {k for k, v in whole.items() if v is None and drawn.get(k) is not None}
        assert set(materialise(whole, done.baseline, ctx, "same").patches) <= set(done.domain)
    expected = {"prefetch_factor", "activation_memory_budget", "fp32_precision"} if device == "cuda" else set()
    assert inert >= expected | ({"static_graph", "find_unused_parameters", "ddp_wrap"} if n_ranks > 1 else set())


def test_probes_know_every_knob_that_they_do_not_feel():
    assert UNFELT["data"] | UNFELT["compute"] <= set(KNOBS)
    assert UNFELT["data"] >= COMMUNICATION


@pytest.mark.parametrize(
    ("n_ranks", "args", "batch_per_gpu", "acts"),
    [
        (4, {"batch": 128, "nbs": 64}, 16, True),  # 64 in total, run with nbs=128 so that a step still sees 128
        (4, {"batch": 128, "nbs": 64}, 32, False),
        (2, {"batch": 16, "nbs": 64}, 8, True),
        (2, {"batch": 64, "nbs": 64}, 32, False),
    ],
)
def test_no_sync_acts_where_the_trial_will_accumulate(n_ranks, args, batch_per_gpu, acts, context):
    ctx = context("cpu", n_ranks=n_ranks, n_cores=8, args=args)
    got = canonical({"no_sync": True, "batch_per_gpu": batch_per_gpu}, ctx)["no_sync"]
    assert got is (True if acts else None)


def test_a_ddp_without_the_argument(context, monkeypatch):
    monkeypatch.setattr(here, "torch_mentions", lambda file, word: word != "batched_grad_copy")
    ctx = context("cpu", n_ranks=2)
    assert "has no argument batched_grad_copy" in KNOBS["batched_grad_copy"].blocked(ctx)
    assert KNOBS["gradient_as_bucket_view"].blocked(ctx) is None
