"""Real training on two gloo ranks with the settings of communication and of the loop: what do they change?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.run.demo import demo_dataset

REPOSITORY = Path(__file__).parents[2]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "bucket_1": {"bucket_cap_mb": 1},
    "bucket_25": {"bucket_cap_mb": 25},
    "view": {"gradient_as_bucket_view": True},
    "copy": {"batched_grad_copy": True},
    "static": {"static_graph": True},
    "used": {"find_unused_parameters": False},
}
LOOP = {"log_every": 5, "gc_freeze": True, "stride_on_cpu": True, "empty_cache": False, "val_workers": 0}
NEUTRAL = {k: v for group in ARGUMENTS.values() for k, v in group.items() if k != "static_graph"}
"""DDP does without its search for unused parameters in two ways, so one of them."""
ACCUMULATING = {"nbs": 16, "warmup_epochs": 1.0, "momentum": 0.9}


def train(folder: Path, jobs: dict[str, dict[str, Any]], n_images: int) -> dict[str, list[dict[str, Any]]]:
    """Job -> what its two ranks wrote."""
    data = demo_dataset(folder / "set", n_train=n_images, n_val=4)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["-m", "tests.worker.two_ranks", str(data), str(folder), json.dumps(jobs)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, *script], env=env, capture_output=True, text=True, timeout=300, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)] for name in jobs}


def alike(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
def test_neutral_knobs_leave_the_losses_as_they_are(tmp_path: Path) -> None:
    jobs = {name: {"patches": patches} for name, patches in ARGUMENTS.items()}
    jobs |= {"stock": {}, "loop": {"patches": LOOP}, "all": {"patches": NEUTRAL | LOOP}}
    done = train(tmp_path, jobs, 32)
    stock = done["stock"]
    assert len(stock[0]["losses"]) == 24
    assert stock[0]["losses"][-1] < stock[0]["losses"][0]
    for name, ranks in done.items():
        for rank, record in enumerate(ranks):
            assert record["ended"].startswith("SegmentOverError"), (name, record["ended"])
            assert record["images"] == stock[rank]["images"], name
            assert record["losses"] == stock[rank]["losses"], name
            asked = jobs[name].get("patches", {})
            shown = {k: record["effective"][k] for k in asked if k != "val_workers"}
            assert shown == {k: v for k, v in asked.items() if k != "val_workers"}
        assert alike(ranks[0]["params"], ranks[1]["params"])


@pytest.mark.slow
def test_no_sync_steps_on_the_gradients_of_all_ranks(tmp_path: Path) -> None:
    # 22 images: 11 a rank, in five batches of two and one of one. Epoch 1 is warm-up, where accumulate ramps to 4.
    jobs = {
        "stock": ACCUMULATING,
        "no_sync": ACCUMULATING | {"patches": {"no_sync": True}},
        "static": ACCUMULATING | {"patches": {"no_sync": True, "static_graph": True, "gradient_as_bucket_view": True}},
        "cold": ACCUMULATING | {"warmup_epochs": 0.0, "patches": {"no_sync": True, "static_graph": True}},
    }
    done = train(tmp_path, jobs, 22)
    assert [len(batch) for batch in done["stock"][0]["images"]] == [2, 2, 2, 2, 2, 1] * 4
    for name, (first, second) in done.items():
        assert first["ended"].startswith("SegmentOverError"), (name, first["ended"])
        assert first["effective"]["no_sync"] is (name != "stock")
        assert alike(first["params"], second["params"]), name
        assert first["effective"]["params_at_start"] != first["effective"]["params"]
    stock = done["stock"][0]
    assert stock["n_optimizer_steps"] < 15, "six batches of warm-up, then every fourth"
    for name in ("no_sync", "static"):
        record = done[name][0]
        assert record["images"] == stock["images"]
        assert record["n_optimizer_steps"] == stock["n_optimizer_steps"]
        for mine, theirs in zip(record["params"], stock["params"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_around_ddp_trains_as_the_stock_order_does(tmp_path: Path) -> None:
    compiled = {"compile": True, "steps": 8, "nbs": 16}
    patches = {"ddp_wrap": "compiled_ddp", "no_sync": True, "activation_memory_budget": 0.5}
    done = train(tmp_path, {"stock": compiled, "around": compiled | {"patches": patches}}, 32)
    (stock, _), (first, second) = done["stock"], done["around"]
    assert first["ended"].startswith("SegmentOverError"), first["ended"]
    assert {k: first["effective"][k] for k in patches} == patches
    assert stock["effective"]["ddp_wrap"] == "ddp_of_compiled"
    assert (first["effective"]["compile"], first["effective"]["ddp"]) == ("default", True)
    assert alike(first["params"], second["params"])
    assert first["losses"] == pytest.approx(stock["losses"], rel=1e-3)
