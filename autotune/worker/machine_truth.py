"""How fast does a machine train that is nothing but a set of constants? The truth, without any noise.

    step     = smooth max(data, busy) + exposed + straggler                                            (SEARCH 2.1)
    busy     = prepare + device + optimizer / accumulate + rest
    device   = || image_s (batch + half_batch) C, launch_s L ||_4 / threads**0.8
    data     = || batch loader_s D / workers in effect, batch ranks read_bytes / disk ||_4
    exposed  = last bucket + positive part of (all-reduce - what the backward pass hides)      (alpha-beta model)
    memory   = (base + image_bytes batch (1 + mem_log ln batch) I) M

C, L, D, I, M are products over the knobs (Effect) and of idiosyncratic effects of combinations, which a hash of the
machine's seed draws: the same for ever, and in no table. Every number from here is simulated.
"""

from __future__ import annotations

from functools import cache
from math import ceil, exp, inf, log, log2, sqrt
from random import Random
from typing import Any, Final, NamedTuple

from autotune.contract import Params, Probe
from autotune.worker.machine_constants import NEUTRAL, Effect, Interaction, SimulatedMachine

NBS: Final = 64
"""YOLO's nominal batch: smaller ones are accumulated up to it."""
FORWARD_FRAC: Final = 0.34
"""Of a step's computation; the rest is the backward pass."""
CLOSED_FRAC: Final = 0.4
"""Of the loader's work without mosaic, which decodes four images, less those in its buffer."""
WORST: Final = 1.1
"""Times the memory of an ordinary step, what the certificate finds."""
STOCK_PREFETCH: Final = 4
ODD_FRAC: Final = 0.03
"""A batch that is no multiple of eight leaves matrix units idle."""
STRUCTURAL: Final = frozenset(
    {"batch_per_gpu", "workers", "cache", "prefetch_factor", "torch_threads", "pin_memory", "fused_sgd", "val_workers"}
    | {"bucket_cap_mb", "no_sync", "ddp_wrap"}
)
"""Knobs that stand in the formulas themselves."""
EXCHANGE: Final = frozenset(
    {"bucket_cap_mb", "gradient_as_bucket_view", "batched_grad_copy", "static_graph", "find_unused_parameters"}
    | {"ddp_wrap", "no_sync", "blocking_wait", "nccl_backend", "nccl_socket", "nccl_p2p_level", "nccl_ctas"}
    | {"nccl_buffsize", "nccl_algo", "nccl_ib_qps"}
)
"""Knobs that one rank does not have."""


class Truth(NamedTuple):
    """One configuration without any noise; seconds of a step, of a rank."""

    step_s: float
    wait_s: float
    prepare_s: float
    forward_s: float
    backward_s: float
    """With exposed communication and stragglers: the ranks meet in it."""
    optimizer_s: float
    """Mean a step."""
    rest_s: float
    exposed_s: float
    """In backward_s."""
    straggler_s: float
    data_s: float
    """What the loader needs for a batch, by itself."""
    images_per_s: float
    """Of all ranks; 0 where memory is short."""
    peak_mem_bytes: int
    oom: bool
    launch_s: float
    """Import and build."""
    compile_s: float
    cache_s: float
    batch: int
    accumulate: int


def inert(params: Params, n_ranks: int) -> frozenset[str]:
    """Knobs that have no effect beside these values of others (space/knobs*.py)."""
    get = params.get
    return _inert(bool(get("compile")), get("amp") is False, bool(get("static_graph")), n_ranks > 1)


@cache
def _inert(compiled: bool, fp32: bool, static: bool, several: bool) -> frozenset[str]:
    names = {"val_workers"} if several else {"val_workers", *EXCHANGE}
    names |= {"static_graph", "find_unused_parameters"} if compiled else {"activation_memory_budget", "ddp_wrap"}
    names |= {"find_unused_parameters"} if static else set()
    return frozenset(names if fp32 and not compiled else {*names, "fp32_precision"})


def truth(machine: SimulatedMachine, params: Params, n_ranks: int, probe: Probe | None = None) -> Truth:
    """Noise-free anatomy of a step.

    Args:
        machine: as drawn.
        params: knob -> value; a knob left out is neutral, one without a table has a small effect of its own.
        n_ranks: of all nodes.
        probe: the part of the step that is left (contract.Probe).
    """
    m, memo, get, stock = machine, machine.memo, params.get, machine.stock
    batch = int(get("batch_per_gpu") or stock.get("batch_per_gpu") or 16)
    mode = get("compile") or False
    compute = launch = loader = comm = latency = image_bytes = all_bytes = step = 1.0
    out = inert(params, n_ranks)
    for item in params.items():
        effect = memo.get(item) or _effect(m, item)
        if effect is NEUTRAL or item[0] in out:
            continue
        compute *= effect[0]
        launch *= effect[1]
        loader *= effect[2]
        comm *= effect[3]
        latency *= effect[4]
        image_bytes *= effect[5]
        all_bytes *= effect[6]
    for i, interaction in enumerate(m.interactions):
        key = (i, *map(get, interaction.knobs))
        factor = memo.get(key) or _draw(m, key, interaction)
        if interaction.of == "compute":
            compute *= factor
        elif interaction.of == "step":
            step *= factor
        else:
            all_bytes *= factor
    # Loader: processes share the cores of a node with the ranks' own.
    workers = get("workers")
    workers = int(stock.get("workers") or 0) if workers is None else int(workers)
    kept = get("cache") or False
    here = min(n_ranks, m.gpus_per_node)
    threads = int(get("torch_threads") or 1)
    crowd = ((workers + threads) * here / m.cores) ** 6
    at_work = max(1, workers) / (1 + crowd) ** (1 / 6) / (1 + m.worker_drag * workers) ** 2
    launch *= 1 + m.core_steal * crowd / (1 + crowd)
    data = batch * m.loader_s.get(kept, m.loader_s[False]) * loader / at_work
    read = m.read_bytes.get(kept, 0.0)
    if read:
        data = _norm(data, batch * here * read / m.disk_bytes_per_s, 4.0)
    # Device.
    device = m.image_s * (batch + m.half_batch) * compute * (1 + ODD_FRAC if batch > 8 and batch % 8 else 1)
    if m.launch_s:
        device = _norm(device, m.launch_s * launch, 4.0)
    if threads > 1:
        device /= min(threads, m.cores) ** m.thread_exponent
    if m.on_cpu:
        device *= (1 + crowd) ** (1 / 6)
    accumulate = max(round(NBS / (batch * n_ranks)), 1)
    optimizer = m.optimizer_s * (m.fused_frac if get("fused_sgd") else 1.0) / accumulate
    prepare = batch * m.prepare_image_s * (m.unpinned if get("pin_memory") is False else 1.0)
    rest = m.rest_s * launch
    backward = (1 - FORWARD_FRAC) * device
    exposed = straggler = 0.0
    if n_ranks > 1:
        bucket = float(get("bucket_cap_mb") or 25) * 2**20
        alone = m.link_latency_s * latency
        moved = 2 * (n_ranks - 1) / n_ranks * m.gradient_bytes / m.link_bytes_per_s * comm
        reduce = moved + max(1, ceil(m.gradient_bytes / bucket)) * alone
        rarely = 1 / accumulate if get("no_sync") else 1.0
        own = mode and get("ddp_wrap") != "compiled_ddp"
        hides = m.overlap_frac * backward * (m.compiled_overlap if own else 1.0)
        last = moved * min(1.0, bucket / max(m.gradient_bytes, 1)) + alone
        over = reduce - last - hides
        # Nothing hides perfectly: a tenth of the all-reduce is where "hidden" turns into "exposed".
        over = max(0.0, over) if m.sharpness == inf else 0.5 * (over + sqrt(over * over + 0.01 * reduce * reduce))
        exposed = (last + over) * rarely
        backward *= 1 + m.steal_frac * min(1.0, reduce * rarely / max(device, 1e-9))
        straggler = m.straggler_frac * log2(n_ranks) * device
    forward = FORWARD_FRAC * device
    # Which part is asked for.
    if probe == "compute":
        data, workers = 0.0, 1
    elif probe == "data":
        prepare = forward = backward = optimizer = rest = exposed = straggler = 0.0
    elif probe == "no_sync":
        exposed = straggler = 0.0
    elif probe == "epoch_end":
        data *= CLOSED_FRAC
    busy = prepare + forward + backward + optimizer + rest
    if workers:
        ahead = float(get("prefetch_factor") or STOCK_PREFETCH)
        both = _norm(data, busy, m.sharpness * (0.75 + 0.25 * log2(max(ahead, 1.0))))
    else:
        both = data + busy
    total = (both + exposed + straggler) * step
    # Memory.
    need = m.base_bytes + m.image_bytes * batch * (1 + m.mem_log * log(batch)) * image_bytes
    need -= m.gradient_bytes if get("gradient_as_bucket_view") and n_ranks > 1 else 0
    if m.on_cpu:
        need += workers * m.worker_bytes + (m.n_images * m.ram_image_bytes if kept == "ram" else 0.0)
    need *= all_bytes * (WORST if probe == "certificate" else 1.0)
    oom = need > m.mem_limit_bytes
    return Truth(
        total, (both - busy) * step, prepare * step, forward * step, (backward + exposed + straggler) * step,
        optimizer * step, rest * step, exposed * step, straggler * step, data * step,
        0.0 if oom else batch * n_ranks / total, int(need), oom, m.import_s + m.build_s,
        m.compile_s.get(mode, 0.0), m.fill_s.get(kept, 0.0), batch, accumulate,
    )  # fmt: skip


def _effect(machine: SimulatedMachine, item: tuple[str, Any]) -> Effect:
    """Of one value of one knob: from the table, or a small one by hash."""
    name, value = item
    effect = machine.effects.get(item)
    if effect is None:
        effect = NEUTRAL
        if name not in STRUCTURAL and value is not None and all(name != known for known, _ in machine.effects):
            effect = Effect(compute=exp(machine.unknown_sigma * _gauss(machine, name, value)))
    machine.memo[item] = effect
    return effect


def _draw(machine: SimulatedMachine, key: tuple[Any, ...], interaction: Interaction) -> float:
    """The factor of one combination; the key's first part says which interaction it is."""
    factor = exp(interaction.sigma_frac * _gauss(machine, *key))
    machine.memo[key] = factor
    return factor


def _gauss(machine: SimulatedMachine, *key: Any) -> float:
    """A standard normal that belongs to this machine and key."""
    return Random(f"{machine.name}/{machine.seed}/{key!r}").gauss(0.0, 1.0)


def _norm(a: float, b: float, power: float) -> float:
    """(a**p + b**p)**(1/p): a maximum with a soft knee; a hard one with p = inf."""
    high, low = (a, b) if a > b else (b, a)
    if low <= 0.0 or power == inf:
        return high
    return float(high * (1.0 + (low / high) ** power) ** (1.0 / power))
