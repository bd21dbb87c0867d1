"""Of which constants does a simulated machine consist? A job on hardware that is in nobody's rack: see machines.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, Literal, NamedTuple

from autotune.contract import Value


class Effect(NamedTuple):
    """What one value of a knob multiplies."""

    compute: float = 1.0
    launch: float = 1.0
    """The floor that kernel launches set, and what the host does besides."""
    loader: float = 1.0
    comm: float = 1.0
    """Bytes' share of an all-reduce."""
    latency: float = 1.0
    image_bytes: float = 1.0
    bytes: float = 1.0


NEUTRAL: Final = Effect()


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """A random effect of each combination of these knobs' values."""

    knobs: tuple[str, ...]
    sigma_frac: float
    of: Literal["compute", "step", "bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedMachine:
    """A job on a machine: all constants of the formulas above. Bytes and seconds are of one rank."""

    name: str
    seed: int
    on_cpu: bool = False
    n_gpus: int = 1
    gpus_per_node: int = 8
    cores: float = inf
    """Of one node."""
    ram_bytes: float = inf
    mem_limit_bytes: int
    n_images: int
    image_s: float
    half_batch: float
    """Images whose time a step of any batch takes."""
    launch_s: float = 0.0
    optimizer_s: float = 0.0
    fused_frac: float = 0.6
    prepare_image_s: float = 0.0
    unpinned: float = 1.7
    """Times prepare, with pin_memory=False."""
    rest_s: float = 0.0
    thread_exponent: float = 0.8
    loader_s: Mapping[Value, float]
    """Cache -> seconds of one core an image."""
    read_bytes: Mapping[Value, float] = field(default_factory=dict)
    """Cache -> bytes an image that the page cache misses."""
    disk_bytes_per_s: float = inf
    worker_drag: float = 0.0
    """Share that each worker more slows all of them down, squared: above 1 / worker_drag of them more are slower."""
    core_steal: float = 0.0
    """Share of launch_s more when workers take all cores."""
    sharpness: float = 6.0
    """Of the smooth maximum with a prefetch of two; inf: the maximum."""
    link_bytes_per_s: float = inf
    link_latency_s: float = 0.0
    """Of one bucket."""
    gradient_bytes: int = 0
    overlap_frac: float = 0.0
    """Of the backward pass, in which an all-reduce may hide."""
    compiled_overlap: float = 0.5
    """Of that, with DDP around a compiled model."""
    steal_frac: float = 0.0
    """Of the computation, what a collective all through it takes."""
    straggler_frac: float = 0.0
    """Of the computation, for each doubling of the ranks."""
    base_bytes: float
    image_bytes: float
    mem_log: float = 0.02
    worker_bytes: float = 0.0
    ram_image_bytes: float = 0.0
    """An image in RAM; counted as memory of the rank on CPU only."""
    import_s: float = 4.0
    build_s: float = 10.0
    fill_s: Mapping[Value, float] = field(default_factory=dict)
    """Cache -> seconds to fill it."""
    compile_s: Mapping[Value, float] = field(default_factory=dict)
    """Mode -> seconds, cold."""
    n_val: int = 128
    val_image_s: float = 0.005
    save_s: float = 0.4
    end_s: float = 0.1
    """The rest of an epoch's end."""
    reset_s: float = 0.5
    plots_s: float = 3.0
    run_sigma: float = 0.014
    """Run to run."""
    window_sigma: float = 0.012
    """Within a run, of a window of WINDOW_S."""
    step_sigma: float = 0.02
    drift_frac: float = 0.0
    """Amplitude of what the speed drifts by."""
    drift_period_s: float = 1800.0
    outlier_rate: float = 0.0
    """Runs that something else on the machine slows down by 2-15 %."""
    hang_rate: float = 0.0
    stock: Mapping[str, Value] = field(default_factory=dict)
    """Knob -> its value where a configuration does not name it, for the knobs that stand in the formulas."""
    effects: Mapping[tuple[str, Value], Effect] = field(default_factory=dict)
    interactions: tuple[Interaction, ...] = ()
    unknown_sigma: float = 0.004
    """Of the effect of a value of a knob that has no row in `effects`."""
    memo: dict[Any, Any] = field(init=False, compare=False, repr=False, default_factory=dict)
    """Effects and interactions that were looked up or drawn so far."""
