from __future__ import annotations

import json
import subprocess
import sys

import pytest

from autotune.contract import Gpu, Site, Training
from autotune.space.config import baseline_params, canonical, materialise
from autotune.space.knobs import KNOBS
from autotune.space.knobs_ddp import DDP_KNOBS
from autotune.space.legal import same


@pytest.mark.parametrize("name", KNOBS)
def test_every_row_is_complete(name, context):
    knob = KNOBS[name]
    assert knob.name == name
    assert knob.doc.endswith(".")
    assert len(knob.doc) > 30
    assert isinstance(knob.site, Site)
    assert isinstance(knob.training, Training)
    for device in ("cpu", "cuda"):
        ctx = context(device)
        value = knob.baseline(ctx)
        assert value is None or knob.legal(value) is None
        assert same(knob.clamp(value, ctx), value)
        assert knob.blocked(ctx) is None or knob.blocked(ctx).strip()


@pytest.mark.parametrize("name", KNOBS)
@pytest.mark.parametrize("value", ["nonsense", -1, 0.5, "", (1,)])
def test_every_row_refuses_nonsense(name, value):
    legal_share = name == "activation_memory_budget" and value == 0.5
    assert bool(KNOBS[name].legal(value)) is not legal_share


def test_baseline_on_cpu_is_what_ultralytics_falls_back_to(context):
    ctx = context("cpu", n_cores=16, args={"workers": 8, "amp": True, "channels_last": True, "cache": True})
    assert baseline_params(KNOBS, ctx) == {
        "batch_per_gpu": 16,
        "amp": False,
        "compile": False,
        "channels_last": False,
        "workers": 0,
        "cache": "ram",
        "deterministic": True,
        "cudnn_benchmark": False,
        "prefetch_factor": None,
        "torch_threads": 8,
        "omp_num_threads": 1,
        "alloc_conf": None,
        "nccl_socket": None,
        "pin_memory": False,
        "val_workers": None,
        "fp32_precision": None,
        "activation_memory_budget": None,
        "fused_sgd": None,
        "log_every": 1,
        "stride_on_cpu": False,
        "gc_freeze": False,
        "empty_cache": True,
        **dict.fromkeys(DDP_KNOBS),  # one rank
        "nccl_p2p_level": None,
        "nccl_ctas": None,
        "nccl_buffsize": None,
        "nccl_algo": None,
        "nccl_ib_qps": None,
    }
    assert baseline_params(["torch_threads"], context("cpu", n_cores=2)) == {"torch_threads": 1}
    assert baseline_params(["torch_threads"], context("cpu", n_cores=1)) == {"torch_threads": 1}


def test_baseline_on_cuda(context):
    env = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64", "OMP_NUM_THREADS": "3"}
    ctx = context("cuda", n_cores_host=6, args={"amp": "fp16", "compile": True}, env=env)
    base = baseline_params(KNOBS, ctx)
    assert base["workers"] == 6
    assert base["amp"] is True
    assert base["compile"] == "default"
    assert base["channels_last"] is True
    assert base["prefetch_factor"] == 4
    assert base["alloc_conf"] == "max_split_size_mb:64"
    assert base["omp_num_threads"] == 3
    assert baseline_params(["compile"], context("cuda", args={"compile": True}, has_compiler=False)) == {
        "compile": False
    }


def test_what_really_ran_wins_over_predictions(context):
    ctx = context("cuda", effective={"amp": False, "batch_per_gpu": 8, "workers": 0, "cache": None})
    names = ["amp", "batch_per_gpu", "workers", "prefetch_factor", "cache"]
    assert list(baseline_params(names, ctx).values()) == [False, 8, 0, None, False]


@pytest.mark.parametrize(
    ("name", "device", "more", "reason"),
    [
        ("amp", "cpu", {}, "without mixed precision on CPU"),
        ("alloc_conf", "cpu", {}, "no CUDA memory"),
        ("omp_num_threads", "cpu", {}, "sets torch threads itself on CPU"),
        ("cudnn_benchmark", "cpu", {}, "GPUs only"),
        ("cudnn_benchmark", "cuda", {"args": {"multi_scale": 0.5}}, "multi_scale"),
        ("torch_threads", "cuda", {}, "the GPU does the work; use omp_num_threads"),
        ("compile", "cuda", {"has_compiler": False}, "C compiler"),
        ("deterministic", "cpu", {}, None),
        ("channels_last", "cpu", {}, None),
        ("workers", "cpu", {}, None),
        ("compile", "cpu", {}, None),
    ],
)
def test_blocked(name, device, more, reason, context):
    said = KNOBS[name].blocked(context(device, **more))
    assert (said is None) if reason is None else (reason in said)


def test_an_older_ultralytics_has_no_channels_last(context):
    ctx = context("cuda")
    del ctx.train_args["channels_last"]
    assert "no argument channels_last" in KNOBS["channels_last"].blocked(ctx)
    assert KNOBS["channels_last"].baseline(ctx) is False


ALLOC = [
    ("expandable_segments:True", True),
    ("expandable_segments:true", False),
    ("garbage_collection_threshold:0.8", True),
    ("garbage_collection_threshold:0.0", False),
    ("garbage_collection_threshold:1.0", False),
    ("max_split_size_mb:20", True),
    ("max_split_size_mb:19", False),
    ("backend:cudaMallocAsync", False),
    (None, True),
]


@pytest.mark.parametrize(("value", "good"), ALLOC)
def test_alloc_conf(value, good):
    assert (KNOBS["alloc_conf"].legal(value) is None) == good


def test_torch_agrees_about_alloc_conf():
    """In a process of its own, since settings stay; torch reads them without a GPU."""
    code = (
        "import json, sys, torch\n"
        "def ok(v):\n"
        "    try: torch._C._accelerator_setAllocatorSettings(v)\n"
        "    except (ValueError, RuntimeError): return False\n"
        "    return True\n"
        "print(json.dumps([ok(v) for v in json.loads(sys.argv[1])]))"
    )
    values = [(v, good) for v, good in ALLOC if v and "backend" not in v]  # another backend is legal, but not offered
    run = [sys.executable, "-c", code, json.dumps([v for v, _ in values])]
    assert json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout) == [g for _, g in values]


def test_true_is_not_one():
    assert KNOBS["workers"].legal(True)
    assert KNOBS["amp"].legal(1)
    assert not same(False, 0)


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_no_growing_segments_with_cuda_graphs(mode, context):
    ctx = context("cuda")
    params = {"compile": mode, "alloc_conf": "expandable_segments:True"}
    assert canonical(params, ctx)["alloc_conf"] is None
    assert (
        canonical({"compile": mode, "alloc_conf": "max_split_size_mb:64"}, ctx)["alloc_conf"] == "max_split_size_mb:64"
    )
    assert canonical(params | {"compile": "default"}, ctx)["alloc_conf"] == "expandable_segments:True"
    assert (
        canonical({"alloc_conf": "expandable_segments:True"}, context("cuda", args={"compile": mode}))["alloc_conf"]
        is None
    )


def test_prefetch_needs_workers(context):
    ctx = context("cpu")
    assert canonical({"workers": 0, "prefetch_factor": 8}, ctx) == {"workers": 0, "prefetch_factor": None}
    assert canonical({"workers": 1, "prefetch_factor": None}, ctx) == {"workers": 1, "prefetch_factor": 4}
    assert canonical({"prefetch_factor": 8}, ctx) == {"prefetch_factor": None}  # the baseline has no workers on CPU
    assert canonical({"prefetch_factor": 8}, context("cuda")) == {"prefetch_factor": 8}


def test_workers_are_capped_by_cores_ranks_and_batches(context):
    assert canonical({"workers": 32}, context("cuda", n_cores_host=16)) == {"workers": 16}
    assert canonical({"workers": 32}, context("cuda", n_cores_host=16, n_ranks=4)) == {"workers": 4}
    shared = {"n_cores_host": 32, "n_visible_gpus": 8}
    assert canonical({"workers": 8}, context("cuda", **shared)) == {"workers": 4}, "one of eight that the shell shows"
    assert canonical({"workers": 8}, context("cpu", **shared)) == {"workers": 8}
    few = context("cuda", n_images=40)
    assert canonical({"workers": 4, "batch_per_gpu": 16}, few)["workers"] == 3
    assert canonical({"workers": 4, "batch_per_gpu": 64}, few)["workers"] == 0  # one batch is loaded in process


def test_cache_that_cannot_fit_is_none(context):
    ctx = context("cuda", n_images=100_000, image_hw=(480, 640), free_disk_bytes=10 << 30)
    assert canonical({"cache": "ram"}, ctx) == {"cache": False}
    assert canonical({"cache": "disk"}, ctx) == {"cache": False}
    assert KNOBS["cache"].fits("ram", ctx) == "needs 171.7 GiB of memory, 16.0 GiB there"
    assert KNOBS["cache"].fits("disk", ctx) == "needs 94.4 GiB of disk, 10.0 GiB free"
    assert canonical({"cache": "ram"}, context("cuda", n_images=1000)) == {"cache": "ram"}
    assert canonical({"cache": "disk"}, context("cuda", n_images=10**9)) == {"cache": "disk"}  # unknown is not refused
    assert canonical({"cache": "ram"}, context("cuda", n_images=1000, free_ram_bytes=1 << 30)) == {"cache": False}


def test_canonical_is_idempotent_and_spells_one_way(context):
    ctx = context("cuda")
    params = {"amp": "fp32", "compile": True, "cache": True, "alloc_conf": "expandable_segments:False"}
    once = canonical(params, ctx)
    assert once == {"amp": False, "compile": "default", "cache": "ram", "alloc_conf": None}
    assert canonical(once, ctx) == once


def test_bf16_only_where_the_gpu_has_it(context):
    old = Gpu(index=0, uuid="GPU-0", name="Tesla T4", mem_bytes=16 << 30)
    assert KNOBS["amp"].fits("bf16", context("cuda", gpus=(old,))) == "Tesla T4 has no native bf16"
    for name in ("NVIDIA H100 80GB HBM3", "NVIDIA A40", "NVIDIA L4", "NVIDIA GeForce RTX 4090", "NVIDIA RTX 6000 Ada"):
        gpu = Gpu(index=0, uuid="GPU-0", name=name, mem_bytes=16 << 30)
        assert KNOBS["amp"].fits("bf16", context("cuda", gpus=(gpu,))) is None


def test_the_baseline_changes_nothing(context):
    for device in ("cpu", "cuda"):
        ctx = context(device)
        base = baseline_params(KNOBS, ctx)
        done = materialise(base, base, ctx, "same")
        assert done.train_args == ctx.train_args
        assert (done.env, done.patches) == ({}, {})


def test_materialise_on_cpu(context):
    ctx = context("cpu")
    base = baseline_params(KNOBS, ctx)
    change = {"batch_per_gpu": 64, "workers": 2, "channels_last": True, "torch_threads": 4, "prefetch_factor": 8}
    done = materialise(base | change, base, ctx, "same")
    assert done.train_args == ctx.train_args | {"batch": 64, "nbs": 64, "weight_decay": 5e-4}
    assert done.patches == {"workers": 2, "channels_last": True, "torch_threads": 4, "prefetch_factor": 8}
    assert done.env == {}
    # what the loader does by itself is not patched
    assert materialise(base | {"workers": 2, "prefetch_factor": 4}, base, ctx, "same").patches == {"workers": 2}


def test_materialise_on_cuda(context):
    ctx = context("cuda", n_ranks=2, args={"batch": 32})
    base = baseline_params(KNOBS, ctx)
    change = {
        "batch_per_gpu": 32,
        "amp": "bf16",
        "compile": "default",
        "channels_last": False,
        "workers": 2,
        "cache": "ram",
        "deterministic": False,
        "cudnn_benchmark": True,
        "omp_num_threads": 4,
        "alloc_conf": "max_split_size_mb:128",
        "nccl_socket": "4x8",
    }
    base["workers"] = 1
    done = materialise(base | change, base, ctx, "same")
    wanted = {"batch": 64, "nbs": 64, "weight_decay": 5e-4, "amp": "bf16", "compile": "default", "channels_last": False}
    assert done.train_args == ctx.train_args | wanted | {"workers": 2, "cache": "ram", "deterministic": False}
    assert done.patches == {"cudnn_benchmark": True}
    assert done.env == {
        "OMP_NUM_THREADS": "4",
        "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128",
        "PYTORCH_ALLOC_CONF": "",
        "NCCL_SOCKET_NTHREADS": "4",
        "NCCL_NSOCKS_PERTHREAD": "8",
    }
    assert ctx.train_args["batch"] == 32  # the user's job is not written to


def test_an_exported_option_can_be_unset(context):
    ctx = context("cuda", env={"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
    base = baseline_params(["alloc_conf"], ctx)
    env = materialise({"alloc_conf": None}, base, ctx, "same").env
    assert env == {"PYTORCH_CUDA_ALLOC_CONF": "", "PYTORCH_ALLOC_CONF": ""}
