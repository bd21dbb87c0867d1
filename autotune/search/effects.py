"""What is believed of each setting before anything is measured, and how does a configuration become numbers?

A setting acts on seven resources, each by a factor; here stand the logs of these factors, as a mean and a standard
deviation. The means are folklore (KNOBS 1, SEARCH 5.3), the deviations are wide: they are worth some ten trials when
they are right, and cost nothing by the twentieth when they are wrong (SEARCH 2.4). A setting that is not listed has
UNKNOWN, so a new knob needs no row here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from autotune.contract import Params, Value

Array = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Resource = Literal["compute", "launch", "data", "exchange", "memory", "hide", "kept"]
"""compute: seconds per image of the step without waiting; launch: its part that no batch makes longer; data: seconds
per image of the loader; exchange: the ranks' communication; memory: bytes per image; hide: what of the communication
the backward pass hides; kept: bytes whatever the batch."""
RESOURCES: Final[tuple[Resource, ...]] = ("compute", "launch", "data", "exchange", "memory", "hide", "kept")
Belief = tuple[float, float]
"""Mean and standard deviation of a log factor."""

BATCH: Final = "batch_per_gpu"
WORKERS: Final = "workers"
THREADS: Final = "torch_threads"
BUCKET: Final = "bucket_cap_mb"
WRAP: Final = "ddp_wrap"
UNKNOWN: Final[dict[Resource, Belief]] = {"compute": (0.0, 0.05), "data": (0.0, 0.03), "memory": (0.0, 0.05)}
EXCHANGE: Final[dict[Resource, Belief]] = {"exchange": (0.0, 0.35), "compute": (0.0, 0.02)}
"""Of a knob that acts on communication and has no row of its own."""
EXCHANGES: Final[dict[str, Belief]] = {
    "nccl_buffsize": (0.0, 0.1),
    "nccl_algo": (0.0, 0.25),
    "nccl_ctas": (0.0, 0.25),
    "nccl_p2p_level": (-0.1, 0.2),
    BUCKET: (0.0, 0.1),
}
"""The same for knobs that move the exchange less than EXCHANGE; what a bucket's size does stands in the formula."""
EXCHANGES_COMPUTE_SD: Final = 0.015
COMPILED_HIDES: Final[Belief] = (-1.2, 0.8)
"""A compiled graph has all gradients ready at once, at its end, unless it is cut where buckets end (KNOBS, fact 13)."""
LEVEL_SD: Final = 0.06
"""Of a single value of a knob with a slope, about its line."""

VALUES: Final[dict[str, dict[Value, dict[Resource, Belief]]]] = {
    "amp": {
        True: {"compute": (-0.6, 0.4), "launch": (0.05, 0.1), "memory": (-0.45, 0.2)},
        "bf16": {"compute": (-0.6, 0.4), "launch": (0.0, 0.1), "memory": (-0.45, 0.2)},
        False: {},
    },
    "compile": {
        "default": {"compute": (-0.1, 0.12), "launch": (-0.5, 0.4), "memory": (-0.1, 0.15)},
        "reduce-overhead": {"compute": (-0.1, 0.12), "launch": (-0.9, 0.5), "memory": (0.0, 0.2)},
        "max-autotune": {"compute": (-0.13, 0.14), "launch": (-0.9, 0.5), "memory": (0.0, 0.2)},
        "max-autotune-no-cudagraphs": {"compute": (-0.13, 0.14), "launch": (-0.5, 0.4), "memory": (-0.1, 0.15)},
        False: {},
    },
    "channels_last": {True: {"compute": (-0.09, 0.13), "memory": (0.0, 0.05)}, False: {}},
    "cudnn_benchmark": {True: {"compute": (-0.03, 0.05), "memory": (0.02, 0.05)}, False: {}},
    "deterministic": {True: {}, False: {"compute": (-0.02, 0.05)}},
    "cache": {
        False: {},
        "ram": {"data": (-0.5, 0.5)},
        "disk": {"data": (-0.4, 0.5)},
    },
    "pin_memory": {True: {}, False: {"compute": (0.02, 0.02)}},
    "fused_sgd": {False: {}, True: {"compute": (-0.01, 0.03), "launch": (-0.05, 0.1)}},
    "stride_on_cpu": {False: {}, True: {"launch": (-0.05, 0.1)}},
    "gc_freeze": {False: {}, True: {"launch": (-0.02, 0.05)}},
    "find_unused_parameters": {None: {}, True: {}, False: {"launch": (-0.05, 0.1), "exchange": (-0.1, 0.2)}},
    "no_sync": {None: {}, False: {}, True: {"exchange": (-0.5, 0.5)}},
    "nccl_backend": {"nccl2": {}, "legacy": {"exchange": (-0.2, 0.4)}},
    "gradient_as_bucket_view": {False: {}, True: {"compute": (-0.005, 0.01)}},
    "blocking_wait": {True: {}, False: {"launch": (-0.02, 0.05)}},
    "alloc_conf": {None: {}, "expandable_segments:True": {"compute": (0.0, 0.01), "memory": (-0.05, 0.08)}},
    "ddp_wrap": {
        None: {},
        "ddp_of_compiled": {"hide": COMPILED_HIDES},
        "compiled_ddp": {"hide": (0.0, 0.3), "compute": (0.0, 0.03)},
    },
}
"""Knob -> value -> resource -> log factor against that knob's plainest value."""
SLOPES: Final[dict[str, dict[Resource, Belief]]] = {
    THREADS: {"compute": (-0.6, 0.3)},
    "omp_num_threads": {"launch": (0.0, 0.05), "data": (0.0, 0.05)},
    "prefetch_factor": {"data": (-0.02, 0.04)},
    "log_every": {"launch": (-0.02, 0.03)},
    "activation_memory_budget": {"compute": (-0.2, 0.2), "memory": (0.5, 0.3)},
    "nccl_ib_qps": {"exchange": (-0.1, 0.2)},
}
"""Knob -> resource -> log factor per natural log of its value."""
CROWD_SD: Final[dict[str, tuple[float, float]]] = {WORKERS: (0.015, 0.05), "cache": (0.01, 0.03)}
"""Of the compute of knobs that take or give back CPU time, (beside a GPU, on a CPU)."""
KEPT: Final[dict[str, Belief]] = {WORKERS: (0.1, 0.3), "cache": (0.7, 0.7)}
"""Where the job's memory is the host's: of any worker, and of images that are kept in memory."""
NO_EFFECT: Final = frozenset({"val_workers"})


@dataclass(frozen=True, slots=True)
class Encoding:
    """Configurations of one domain as rows of indices, and what each index adds to each resource.

    Attributes:
        names: of the knobs, columns of a row.
        values: of each knob; the first is the baseline's.
        offsets: of each knob in the long axis of `weights`.
        columns: resource -> which coefficients act on it.
        weights: resource -> (all values, its coefficients): how often each counts with that value.
        mean: (coefficients,) prior means.
        sd: (coefficients,) prior standard deviations.
        labels: (knob, value, resource) of each coefficient; value None for a slope.
    """

    names: tuple[str, ...]
    values: tuple[tuple[Value, ...], ...]
    offsets: Integers
    columns: dict[Resource, Integers]
    weights: dict[Resource, Array]
    mean: Array
    sd: Array
    labels: tuple[tuple[str, Value, Resource], ...]
    index: tuple[dict[tuple[type, Value], int], ...]

    def rows(self, configurations: Sequence[Params]) -> Integers:
        """(n, knobs) indices; a value that the domain does not hold, None above all, counts as the baseline's."""
        values = [[params.get(name) for name in self.names] for params in configurations]
        found = [[at.get((type(v), v), 0) for at, v in zip(self.index, row, strict=True)] for row in values]
        return np.array(found, dtype=np.int64).reshape(len(configurations), len(self.names))

    def params(self, row: Sequence[int]) -> Params:
        """The other way."""
        return {name: self.values[j][row[j]] for j, name in enumerate(self.names)}

    def features(self, rows: Integers) -> dict[Resource, Array]:
        """Resource -> (n, its coefficients): how often each coefficient counts in its log factor."""
        at = rows + self.offsets
        return {resource: weights[at].sum(axis=1) for resource, weights in self.weights.items()}

    def numbers(self, rows: Integers, name: str, default: float) -> Array:
        """(n,) the values of a numeric knob; the default where the domain has no such knob, or a value is none."""
        if name not in self.names:
            return np.full(len(rows), default)
        j = self.names.index(name)
        table = np.array([default if v is None or isinstance(v, str) else float(v) for v in self.values[j]])
        out: Array = table[rows[:, j]]
        return out


def encode(
    domain: Mapping[str, Sequence[Value]], baseline: Params, exchanging: frozenset[str], *, on_cpu: bool = False
) -> Encoding:
    """The encoding of a domain.

    Args:
        domain: knob -> values.
        baseline: the user's own settings: every coefficient is a difference from them.
        exchanging: knobs that act on communication between ranks; empty with one rank.
        on_cpu: loaders and the step share the cores.
    """
    names = tuple(domain)
    values = tuple(_with_first(domain[name], baseline.get(name)) for name in names)
    labels: list[tuple[str, Value, Resource]] = []
    mean: list[float] = []
    sd: list[float] = []
    entries: list[tuple[int, int, float]] = []
    offsets = np.cumsum([0, *(len(v) for v in values)])
    for j, name in enumerate(names):
        for resource, slope in _slopes(name).items():
            base = _log(values[j][0])
            labels.append((name, None, resource))
            mean.append(slope[0])
            sd.append(slope[1])
            entries += [(int(offsets[j]) + i, len(labels) - 1, _log(v) - base) for i, v in enumerate(values[j])]
        own = _beliefs(name, values[j], exchanging, on_cpu=on_cpu)
        if name == "compile" and exchanging and WRAP not in domain:
            own = [{**b, "hide": COMPILED_HIDES} if v else b for v, b in zip(values[j], own, strict=True)]
        for i, value in enumerate(values[j][1:], start=1):
            for resource in RESOURCES:
                here, there = own[i].get(resource), own[0].get(resource)
                if here is None and there is None:
                    continue
                labels.append((name, value, resource))
                mean.append((here or (0.0, 0.0))[0] - (there or (0.0, 0.0))[0])
                sd.append(max((here or (0.0, 0.0))[1], (there or (0.0, 0.0))[1]))
                entries.append((int(offsets[j]) + i, len(labels) - 1, 1.0))
    columns = {r: np.array([i for i, label in enumerate(labels) if label[2] == r], dtype=np.int64) for r in RESOURCES}
    weights: dict[Resource, Array] = {r: np.zeros((int(offsets[-1]), len(columns[r]))) for r in RESOURCES}
    for row, column, weight in entries:
        resource = labels[column][2]
        weights[resource][row, int(np.searchsorted(columns[resource], column))] = weight
    return Encoding(
        names=names,
        values=values,
        offsets=offsets[:-1].astype(np.int64),
        columns=columns,
        weights=weights,
        mean=np.array(mean),
        sd=np.array(sd),
        labels=tuple(labels),
        index=tuple({(type(v), v): i for i, v in enumerate(vs)} for vs in values),
    )


def _with_first(values: Sequence[Value], first: Value) -> tuple[Value, ...]:
    """The values, the baseline's (None where it is inert there) in front."""
    return (first, *(v for v in values if json.dumps(v) != json.dumps(first)))


def _slopes(name: str) -> dict[Resource, Belief]:
    return SLOPES.get(name, {})


def _beliefs(
    name: str, values: Sequence[Value], exchanging: frozenset[str], *, on_cpu: bool
) -> list[dict[Resource, Belief]]:
    """For each value what is believed of it."""
    if name in CROWD_SD:
        crowd: Belief = (0.0, CROWD_SD[name][on_cpu])
        # More workers than cores help nobody, and they take cores from the step: the line alone is not enough.
        data = [VALUES[name].get(v, {}).get("data") if name in VALUES else (0.0, 0.1) for v in values]
        out: list[dict[Resource, Belief]] = [{"data": d, "compute": crowd} if d else {} for d in data]
        for value, effect in zip(values, out, strict=True):
            if on_cpu and (value == "ram" or (name == WORKERS and value)):
                effect["kept"] = KEPT[name]
        return out
    if name == BATCH:  # the formula has its line; some sizes suit the kernels
        return [{"compute": (0.0 if _is_power_of_2(v) else 0.01, 0.03)} for v in values]
    if name in EXCHANGES:
        own: dict[Resource, Belief] = {"exchange": EXCHANGES[name], "compute": (0.0, EXCHANGES_COMPUTE_SD)}
        return [own if v is not None else {} for v in values]
    if name in NO_EFFECT:
        return [{} for _ in values]
    if name in SLOPES:
        return [dict.fromkeys(SLOPES[name], (0.0, LEVEL_SD)) for _ in values]
    known = VALUES.get(name)
    if known is not None:
        return [known.get(v, UNKNOWN) if _hashable_same(known, v) else dict(UNKNOWN) for v in values]
    return [dict(EXCHANGE if name in exchanging else UNKNOWN) if v is not None else {} for v in values]


def _is_power_of_2(value: Value) -> bool:
    return isinstance(value, int) and value > 0 and value & (value - 1) == 0


def _hashable_same(known: Mapping[Value, object], value: Value) -> bool:
    """True and 1 are one key of a dict and two values here."""
    return any(type(k) is type(value) and k == value for k in known)


def _log(value: Value) -> float:
    return math.log(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) and value else 0.0
