"""What may be tried on a simulated machine, where does its user start, and where would an expert?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.contract import Params, Transport, Value
from autotune.search.plan import Settings
from autotune.space.context import CUDAGRAPH_MODES, STOCK_PREFETCH
from autotune.worker.machines import SimulatedMachine, inert, truth

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
CPU: dict[str, tuple[Value, ...]] = {
    "channels_last": (False, True),
    "workers": (0, 1, 2),
    "cache": (False, "ram", "disk"),
    "prefetch_factor": (None, 2, 4, 8),
    "log_every": (1, 10, 50),
    "gc_freeze": (False, True),
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

STOCK: Params = {
    "prefetch_factor": STOCK_PREFETCH,
    "static_graph": False,
    "find_unused_parameters": True,
    "no_sync": False,
    "ddp_wrap": "ddp_of_compiled",
}
"""Knobs with a condition -> what they are where they act."""


def baseline_of(machine: SimulatedMachine) -> Params:
    """The user's own settings; where they do not fit into memory, the largest halving of the batch that does."""
    m = machine
    base: Params = {"batch_per_gpu": max(1, USERS_BATCH // m.n_gpus)}
    if m.on_cpu:
        base |= {"torch_threads": 1, **{k: v[0] for k, v in CPU.items()}, "workers": 0, "prefetch_factor": None}
        return base
    base |= {"workers": min(8, cap_of(m)), **{k: v[0] for k, v in GPU.items()}, "prefetch_factor": STOCK_PREFETCH}
    if m.n_gpus > 1:
        base |= {k: v[0] for k, v in DDP.items()} | {k: v[0] for k, v in TRANSPORT.get(m.name, {}).items()}
    while truth(m, base, m.n_gpus).oom and int(base["batch_per_gpu"] or 1) > 1:  # as the search does with such a job
        base = {**base, "batch_per_gpu": int(base["batch_per_gpu"] or 1) // 2}
    return canonical(base, base, m.n_gpus)


def domain_of(machine: SimulatedMachine) -> dict[str, tuple[Value, ...]]:
    """Knob -> values, the baseline's among them."""
    m = machine
    if m.on_cpu:
        return {"batch_per_gpu": (4, 8, 16, 24, 32, 48, 64), "torch_threads": (1, 2), **CPU}
    domain: dict[str, tuple[Value, ...]] = {
        "batch_per_gpu": BATCHES if m.image_bytes < 2 * 2**30 else tuple(range(1, 13)),
        "workers": tuple(w for w in sorted({*WORKERS, cap_of(m)}) if w <= cap_of(m)),
        **GPU,
    }
    if "t4" in m.name:  # no bf16 there
        domain["amp"] = (True, False)
    if min(m.n_gpus, m.gpus_per_node) * m.n_images * m.ram_image_bytes > m.ram_bytes:
        domain["cache"] = (False, "disk")
    if m.n_gpus > 1:
        domain |= {**DDP, **TRANSPORT.get(m.name, {})}
    return domain


def expert_of(machine: SimulatedMachine, baseline: Params, domain: dict[str, tuple[Value, ...]]) -> Params:
    """Folklore, the largest batch that is believed to fit, and all the cores there are."""
    m = machine
    params = {**baseline, **{k: v for k, v in FOLKLORE.items() if v in domain.get(k, ())}}
    batches = [int(b or 0) for b in domain["batch_per_gpu"]]
    half = 1.0 if m.on_cpu else 0.62
    fits = [b for b in batches if m.base_bytes + half * m.image_bytes * b < 0.7 * m.mem_limit_bytes]
    params["batch_per_gpu"] = max(fits, default=batches[0])
    if m.on_cpu:
        params |= {"torch_threads": int(m.cores), "workers": 1, "cache": False}
    else:
        params["workers"] = max(int(w or 0) for w in domain["workers"] if int(w or 0) <= max(1, cap_of(m) - 1))
    return canonical(params, baseline, m.n_gpus)


def canonical(params: Params, baseline: Params, n_ranks: int) -> Params:
    """The one spelling: what is inert beside these values becomes None (space/config.py)."""
    out = dict(params)
    whole = {**baseline, **{k: v for k, v in params.items() if v is not None}}
    for name, value in STOCK.items():
        if name in out and out[name] is None:
            out[name] = value
    if not whole.get("workers") and "prefetch_factor" in out:
        out["prefetch_factor"] = None
    for name in inert({**whole, **out}, n_ranks) & out.keys():
        out[name] = None
    if "no_sync" in out and round(64 / (int(whole["batch_per_gpu"] or 1) * n_ranks)) <= 1:
        out["no_sync"] = None
    if out.get("compile") in CUDAGRAPH_MODES and "expandable_segments:True" in str(out.get("alloc_conf")):
        out["alloc_conf"] = None
    return out


def cap_of(machine: SimulatedMachine) -> int:
    """Loader workers of a rank at most: the cores of a node over its GPUs (space/context.py)."""
    return int(machine.cores // max(1, min(machine.n_gpus, machine.gpus_per_node)))


@dataclass(frozen=True)
class Offer:
    """What may be tried, as plan.Prepared."""

    domain: dict[str, tuple[Value, ...]]
    baseline: Params
    seeds: tuple[Params, ...]
    frozen: dict[str, str]


@dataclass(frozen=True)
class WorldSpace:
    """The space of a simulated machine, as plan.SpacePort: the controller's own loop runs on it."""

    machine: SimulatedMachine
    offer: Offer

    def prepare(
        self,
        effective: Mapping[str, Any],
        n_images: int | None,
        train_args: Mapping[str, Any] | None = None,
        transport: Transport | None = None,
    ) -> Offer:
        """The same whatever ran: the user's settings fit."""
        return self.offer

    def pin(self, resolved: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing to pin: a formula has no optimizer."""
        return {}

    def canonical(self, params: Params) -> Params:
        """The one spelling."""
        return canonical(params, self.offer.baseline, self.machine.n_gpus)

    def materialise(self, params: Params) -> Settings:
        """All that a World reads of a spec are its params; the batch is what probes cut down."""
        total = int(params["batch_per_gpu"] or 1) * self.machine.n_gpus
        return Settings({"model": self.machine.name, "batch": total, "nbs": 64, "cache": params.get("cache")})
