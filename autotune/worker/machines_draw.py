"""Which simulated machines are there? Scenarios by name; every seed of one is a new machine of its kind.

Constants are guesses of the right size (SEARCH 2.1), not measurements. `adv_` reverses all folklore, `rough_` breaks
the structure that a surrogate would assume, `noisy_` is a bad neighbourhood. `dry_run` is one fixed machine, whose best
configuration is known: most threads, the largest batch that fits, channels_last, compile, cache=ram.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import exp, inf, log
from random import Random
from typing import Final

from autotune.contract import Value
from autotune.worker.machine_constants import Effect, Interaction, SimulatedMachine

GIB: Final = 2**30
Effects = dict[tuple[str, Value], Effect]

FOLKLORE: Final[Effects] = {
    ("amp", True): Effect(compute=0.53, launch=1.06, image_bytes=0.58),
    ("amp", "bf16"): Effect(compute=0.55, image_bytes=0.58),
    ("fp32_precision", "tf32"): Effect(compute=0.93),
    ("fp32_precision", "ieee"): Effect(compute=1.5),
    ("compile", "default"): Effect(compute=0.88, launch=0.6, image_bytes=0.9),
    ("compile", "reduce-overhead"): Effect(compute=0.885, launch=0.3, bytes=1.08),
    ("compile", "max-autotune"): Effect(compute=0.85, launch=0.3, bytes=1.09),
    ("compile", "max-autotune-no-cudagraphs"): Effect(compute=0.86, launch=0.6, image_bytes=0.9),
    ("channels_last", True): Effect(compute=0.91, image_bytes=1.01),
    ("cudnn_benchmark", True): Effect(compute=0.96, bytes=1.03),
    ("deterministic", True): Effect(compute=1.05),
    ("alloc_conf", None): Effect(bytes=1.07),
    ("alloc_conf", "garbage_collection_threshold:0.8"): Effect(compute=1.004, bytes=1.03),
    ("alloc_conf", "max_split_size_mb:128"): Effect(compute=1.002, bytes=1.05),
    ("activation_memory_budget", 0.8): Effect(compute=1.03, image_bytes=0.87),
    ("activation_memory_budget", 0.5): Effect(compute=1.10, image_bytes=0.7),
    ("prefetch_factor", 8): Effect(loader=1.03),
    ("prefetch_factor", 16): Effect(loader=1.06),
    ("log_every", 10): Effect(launch=0.95),
    ("log_every", 50): Effect(launch=0.94),
    ("stride_on_cpu", True): Effect(launch=0.97),
    ("gc_freeze", True): Effect(launch=0.98),
    ("empty_cache", False): Effect(bytes=1.01),
    ("omp_num_threads", 2): Effect(launch=0.98, loader=1.01),
    ("omp_num_threads", 4): Effect(launch=0.97, loader=1.03),
    ("omp_num_threads", 8): Effect(launch=0.98, loader=1.08),
    ("find_unused_parameters", True): Effect(compute=1.008, launch=1.08),
    ("static_graph", True): Effect(launch=0.96),
    ("gradient_as_bucket_view", True): Effect(compute=0.995),
    ("batched_grad_copy", True): Effect(launch=0.97),
    ("blocking_wait", True): Effect(launch=1.04),
    ("nccl_backend", "legacy"): Effect(comm=1.03, latency=0.97),
    ("nccl_socket", "1x1"): Effect(comm=1.6),
    ("nccl_socket", "2x4"): Effect(comm=1.12),
    ("nccl_socket", "4x4"): Effect(compute=1.003),
    ("nccl_socket", "4x8"): Effect(compute=1.006, comm=1.03),
    ("nccl_socket", "8x8"): Effect(compute=1.012, comm=1.06),
    ("nccl_ctas", "1-4"): Effect(compute=0.985, comm=1.4),
    ("nccl_ctas", "1-8"): Effect(compute=0.992, comm=1.12),
    ("nccl_ctas", "1-16"): Effect(comm=1.02),
    ("nccl_ctas", "8-32"): Effect(compute=1.015, comm=0.9),
    ("nccl_buffsize", 1048576): Effect(comm=1.1, latency=0.95),
    ("nccl_buffsize", 2097152): Effect(comm=1.04),
    ("nccl_buffsize", 8388608): Effect(comm=0.96, bytes=1.003),
    ("nccl_buffsize", 16777216): Effect(comm=0.95, bytes=1.008),
    ("nccl_algo", "allreduce:ring"): Effect(latency=1.3),
    ("nccl_algo", "allreduce:tree"): Effect(comm=1.12, latency=0.6),
    ("nccl_p2p_level", "PHB"): Effect(comm=0.88),
    ("nccl_p2p_level", "SYS"): Effect(comm=0.82),
    ("nccl_ib_qps", 2): Effect(comm=0.96),
    ("nccl_ib_qps", 4): Effect(comm=0.94),
}
"""What people believe of a GPU, in factors; a value without a row changes nothing."""
REVERSED: Final[Effects] = {
    ("amp", True): Effect(compute=1.35, launch=1.06, image_bytes=0.58),
    ("amp", "bf16"): Effect(compute=1.25, image_bytes=0.58),
    ("fp32_precision", "tf32"): Effect(compute=1.04),
    ("compile", "default"): Effect(compute=1.12, launch=1.1, image_bytes=0.9),
    ("compile", "reduce-overhead"): Effect(compute=1.08, launch=0.9, bytes=1.08),
    ("compile", "max-autotune"): Effect(compute=0.8, launch=0.9, bytes=1.09),
    ("compile", "max-autotune-no-cudagraphs"): Effect(compute=1.1, image_bytes=0.9),
    ("channels_last", True): Effect(compute=1.15, image_bytes=1.01),
    ("cudnn_benchmark", True): Effect(compute=1.06, bytes=1.03),
    ("deterministic", True): Effect(compute=0.96),
    ("log_every", 10): Effect(launch=1.03),
    ("log_every", 50): Effect(launch=1.05),
    ("stride_on_cpu", True): Effect(launch=1.04),
    ("find_unused_parameters", True): Effect(compute=0.99, launch=0.95),
    ("static_graph", True): Effect(launch=1.06),
    ("batched_grad_copy", True): Effect(launch=1.05),
    ("blocking_wait", True): Effect(launch=0.96),
}
COMPILE_S: Final[Mapping[Value, float]] = {
    "default": 38.0, "reduce-overhead": 55.0, "max-autotune": 190.0, "max-autotune-no-cudagraphs": 170.0
}  # fmt: skip
SHAPE: Final = ("amp", "compile", "channels_last", "batch_per_gpu")
NATURAL: Final = (Interaction(knobs=SHAPE, sigma_frac=0.015, of="compute"),)
ROUGH: Final = (
    Interaction(knobs=SHAPE, sigma_frac=0.07, of="step"),
    Interaction(knobs=("workers", "cache", "prefetch_factor", "batch_per_gpu"), sigma_frac=0.06, of="step"),
    Interaction(knobs=("bucket_cap_mb", "cudnn_benchmark", "deterministic", "amp"), sigma_frac=0.07, of="step"),
    Interaction(knobs=("alloc_conf", "compile", "find_unused_parameters", "workers"), sigma_frac=0.06, of="step"),
    Interaction(knobs=SHAPE, sigma_frac=0.08, of="bytes"),
)
JITTER: Final[Mapping[str, float]] = {
    "image_s": 0.15, "half_batch": 0.3, "launch_s": 0.2, "optimizer_s": 0.2, "prepare_image_s": 0.2, "rest_s": 0.2,
    "disk_bytes_per_s": 0.3, "worker_drag": 0.2, "core_steal": 0.3, "link_bytes_per_s": 0.25, "link_latency_s": 0.3,
    "overlap_frac": 0.1, "compiled_overlap": 0.15, "steal_frac": 0.25, "straggler_frac": 0.3, "base_bytes": 0.1,
    "image_bytes": 0.1, "import_s": 0.2, "build_s": 0.2, "run_sigma": 0.15, "window_sigma": 0.1, "val_image_s": 0.2,
}  # fmt: skip
"""Field -> standard deviation of its logarithm from seed to seed."""
LOADER_JITTER, EFFECT_JITTER, SMALL = 0.2, 0.25, 0.003


def _gpu(
    name: str, image_s: float, image_gib: float, base_gib: float, limit_gib: float, launch_s: float,
    decode_s: float, gradient_mb: float, **fields: object,
) -> SimulatedMachine:  # fmt: skip
    """A GPU job; seconds and bytes of an image are those of fp32, eager, NCHW."""
    whole = {
        "name": name, "seed": 0, "n_images": 40_000, "image_s": image_s, "half_batch": 2.0, "launch_s": launch_s,
        "mem_limit_bytes": int(limit_gib * GIB), "base_bytes": base_gib * GIB, "image_bytes": image_gib * GIB,
        "optimizer_s": 0.12 * launch_s, "prepare_image_s": 5e-5, "rest_s": 0.04 * launch_s,
        "loader_s": {False: decode_s, "ram": 0.62 * decode_s, "disk": 0.72 * decode_s},
        "read_bytes": {False: 3e4, "disk": 2.5e5}, "disk_bytes_per_s": 1.5e9, "worker_drag": 0.004, "core_steal": 0.25,
        "gradient_bytes": int(gradient_mb * 1e6), "overlap_frac": 0.8, "steal_frac": 0.06, "straggler_frac": 0.008,
        "ram_image_bytes": 1.2e6, "fill_s": {"ram": 60.0, "disk": 80.0}, "compile_s": dict(COMPILE_S),
        "val_image_s": 0.35 * image_s, "outlier_rate": 0.04, "drift_frac": 0.005,
        "stock": {"workers": 8}, "effects": FOLKLORE, "interactions": NATURAL, "ram_bytes": 64 * GIB,
        **fields,
    }  # fmt: skip
    return SimulatedMachine(**whole)  # type: ignore[arg-type]


def _t4_n(name: str = "t4_n", **fields: object) -> SimulatedMachine:
    return _gpu(
        name, 0.016, 0.16, 1.3, 14.6, 0.05, 0.007, 12.0, cores=8, run_sigma=0.018, disk_bytes_per_s=3e8, **fields
    )


def _a100x4(name: str = "a100x4_m", **fields: object) -> SimulatedMachine:
    return _gpu(
        name, 0.0125, 0.55, 2.2, 39.4, 0.085, 0.012, 104.0, n_gpus=4, cores=64, link_bytes_per_s=1.8e11,
        link_latency_s=8e-5, run_sigma=0.01, hang_rate=0.001, ram_bytes=900 * GIB, **fields,
    )  # fmt: skip


def _t4_x1280() -> SimulatedMachine:
    return _gpu(
        "t4_x1280", 0.9, 3.6, 2.4, 14.6, 0.14, 0.026, 228.0, cores=8, run_sigma=0.014, disk_bytes_per_s=3e8,
        ram_image_bytes=4.8e6, half_batch=0.4,
    )  # fmt: skip


def _h100x8_n() -> SimulatedMachine:
    return _gpu(
        "h100x8_n", 0.0012, 0.16, 1.5, 79.0, 0.055, 0.008, 12.0, n_gpus=8, cores=112, link_bytes_per_s=3e11,
        link_latency_s=5e-5, hang_rate=0.001, disk_bytes_per_s=4e9, ram_bytes=1800 * GIB, half_batch=8.0,
    )  # fmt: skip


def _r3090x2_s() -> SimulatedMachine:
    return _gpu(
        "r3090x2_s", 0.006, 0.25, 1.6, 23.3, 0.06, 0.009, 45.0, n_gpus=2, cores=12, link_bytes_per_s=6e9,
        link_latency_s=2e-4, disk_bytes_per_s=1.2e8, hang_rate=0.001, ram_bytes=120 * GIB,
        read_bytes={False: 8e4, "disk": 4e5},
    )  # fmt: skip


def _a100x8tcp_l() -> SimulatedMachine:
    return _gpu(
        "a100x8tcp_l", 0.02, 0.75, 2.6, 39.4, 0.11, 0.012, 106.0, n_gpus=8, gpus_per_node=4, cores=64,
        link_bytes_per_s=1.3e9, link_latency_s=2.5e-3, steal_frac=0.04, straggler_frac=0.012, hang_rate=0.002,
        ram_bytes=900 * GIB,
    )  # fmt: skip


def _h100x16_x() -> SimulatedMachine:
    return _gpu(
        "h100x16_x", 0.016, 1.0, 3.2, 79.0, 0.13, 0.012, 236.0, n_gpus=16, cores=192, link_bytes_per_s=2.2e10,
        link_latency_s=4e-4, straggler_frac=0.01, hang_rate=0.002, disk_bytes_per_s=4e9, ram_bytes=1800 * GIB,
    )  # fmt: skip


def _cpu_2core() -> SimulatedMachine:
    return SimulatedMachine(
        name="cpu_2core", seed=0, on_cpu=True, cores=2, mem_limit_bytes=6 * GIB, n_images=1280, image_s=0.11,
        half_batch=1.0, optimizer_s=0.05, prepare_image_s=4e-4, rest_s=0.01, ram_bytes=8 * GIB,
        loader_s={False: 0.016, "ram": 0.010, "disk": 0.012}, read_bytes={False: 3e4, "disk": 2e5},
        disk_bytes_per_s=3e8, worker_drag=0.01, core_steal=0.1, base_bytes=0.6 * GIB, image_bytes=0.07 * GIB,
        worker_bytes=0.2 * GIB, ram_image_bytes=1.2e6, import_s=5.0, build_s=3.0, fill_s={"ram": 8.0, "disk": 11.0},
        val_image_s=0.04, outlier_rate=0.04, drift_frac=0.005, run_sigma=0.012, stock={"workers": 0},
        effects={("channels_last", True): Effect(compute=0.92), ("deterministic", True): Effect(compute=1.01)},
        interactions=(Interaction(knobs=("torch_threads", "channels_last", "batch_per_gpu"), sigma_frac=0.015,
                                  of="compute"),),
    )  # fmt: skip


def _adv_a100x4() -> SimulatedMachine:
    slow_ram = {False: 0.012, "ram": 0.048, "disk": 0.02}
    return _a100x4("adv_a100x4", effects={**FOLKLORE, **REVERSED}, loader_s=slow_ram, worker_drag=0.2, unpinned=0.7)


def _noisy_t4() -> SimulatedMachine:
    bad = {"window_sigma": 0.025, "step_sigma": 0.05, "drift_frac": 0.04, "outlier_rate": 0.15, "hang_rate": 0.03}
    return replace(_t4_n("noisy_t4"), **bad, run_sigma=0.03)  # type: ignore[arg-type]


def _dry_run() -> SimulatedMachine:
    return SimulatedMachine(
        name="dry_run", seed=0, mem_limit_bytes=16 * GIB, n_images=1280, image_s=0.008, half_batch=3.75,
        loader_s={False: 0.0035, "ram": 0.0028, "disk": 0.003}, sharpness=inf, link_latency_s=0.012,
        base_bytes=1.2e9, image_bytes=1.9e8, mem_log=0.0, import_s=2.0, build_s=1.0, fill_s={"ram": 1280 / 450},
        compile_s=dict.fromkeys(COMPILE_S, 40.0), run_sigma=0.01, window_sigma=0.0, unknown_sigma=0.0,
        effects={
            ("amp", True): Effect(compute=1 / 2.0, image_bytes=0.6), ("amp", "bf16"): Effect(compute=1 / 2.1,
            image_bytes=0.6), ("channels_last", True): Effect(compute=0.9), ("cudnn_benchmark", True): Effect(
            compute=0.97), **{("compile", mode): Effect(compute=0.85) for mode in COMPILE_S},
        },
    )  # fmt: skip


FAMILIES: Final[dict[str, Callable[[], SimulatedMachine]]] = {
    "dry_run": _dry_run,
    "t4_n": _t4_n,
    "t4_x1280": _t4_x1280,
    "a100x4_m": _a100x4,
    "h100x8_n": _h100x8_n,
    "r3090x2_s": _r3090x2_s,
    "a100x8tcp_l": _a100x8tcp_l,
    "h100x16_x": _h100x16_x,
    "cpu_2core": _cpu_2core,
    "adv_a100x4": _adv_a100x4,
    "rough_a100x4": lambda: _a100x4("rough_a100x4", interactions=ROUGH),
    "noisy_t4": _noisy_t4,
}
"""Name -> the machine that all of its seeds scatter around."""


def draw(name: str, seed: int = 0) -> SimulatedMachine:
    """The machine of this kind and seed; of `dry_run` there is one only.

    Raises:
        ValueError: there is no such kind.
    """
    if name not in FAMILIES:
        raise ValueError(f"no simulated machine {name!r}; there are {', '.join(FAMILIES)}")
    centre = FAMILIES[name]()
    if name == "dry_run":
        return centre
    rng = Random(f"{name}/{seed}")
    fields: dict[str, object] = {}
    for field, sigma in JITTER.items():
        fields[field] = getattr(centre, field) * exp(rng.gauss(0.0, sigma))
    fields["overlap_frac"] = min(1.0, float(str(fields["overlap_frac"])))
    loader = exp(rng.gauss(0.0, LOADER_JITTER))
    fields["loader_s"] = {k: v * loader * exp(rng.gauss(0.0, 0.07)) for k, v in centre.loader_s.items()}
    fields["fill_s"] = {k: v * exp(rng.gauss(0.0, 0.3)) for k, v in centre.fill_s.items()}
    slower = exp(rng.gauss(0.0, 0.2))
    fields["compile_s"] = {k: v * slower * exp(rng.gauss(0.0, 0.1)) for k, v in centre.compile_s.items()}
    fields["effects"] = {item: _jittered(effect, rng) for item, effect in centre.effects.items()}
    return replace(centre, seed=seed, **fields)  # type: ignore[arg-type]


def _jittered(effect: Effect, rng: Random) -> Effect:
    """The same direction, another strength; a large one (half precision) is surer than a small one."""
    out = []
    for factor in effect:
        spread = EFFECT_JITTER if abs(log(factor)) < SMALL + 0.3 else 0.5 * EFFECT_JITTER
        out.append(factor if factor == 1.0 else exp(log(factor) * max(0.2, 1 + rng.gauss(0.0, spread))))
    return Effect(*out)
