"""Which configurations of a space too large to list are worth a look? Rows of the encoding in, rows out. (SEARCH 5.3)

Neighbours of the best, single exchanges and random ones of two and three settings; composite moves of precision,
compile and batch together, because a better precision may need another batch before it shows; optima of samples of the
model (Thompson); and random ones.
"""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np

from autotune.contract import Params
from autotune.search.effects import BATCH, Encoding, Integers
from autotune.search.model import Surrogate

SHAPES: Final = ("amp", "compile", "channels_last", "activation_memory_budget")
"""Moved together with the batch."""
MOST_SHAPES: Final = 48
N_PAIRS, N_TRIPLES, N_RANDOM, N_SAMPLES = 300, 150, 200, 8
N_DESCENTS: Final = 12
ROOM: Final = 0.03
"""Of the log of the memory: what comes nearer to the limit is no optimum."""


def around(model: Surrogate, top: Integers, fixed: Params, room: float, rng: np.random.Generator) -> Integers:
    """Distinct candidates, (n, knobs).

    Args:
        model: whose samples have optima.
        top: (k, knobs) the best that were measured, the very best first.
        fixed: knob -> the value that all but single exchanges and composite moves keep.
        room: log of the bytes that a rank has.
        rng: draws.
    """
    encoding = model.encoding
    sizes = np.array([len(values) for values in encoding.values])
    found = [np.concatenate([singles(row, sizes) for row in top])]
    found += [exchanged(top, sizes, 2, N_PAIRS, rng), exchanged(top, sizes, 3, N_TRIPLES, rng)]
    found += [rng.integers(0, sizes, (N_RANDOM, len(sizes)))]
    for column, value in ((encoding.names.index(n), v) for n, v in fixed.items()):
        for rows in found[1:]:  # single exchanges look everywhere, to see when it matters again
            rows[:, column] = encoding.index[column].get((type(value), value), 0)
    found += [composites(encoding, row, rng) for row in top[:3]]
    starts = np.concatenate([top[:1].repeat(N_SAMPLES // 2, axis=0), top[rng.integers(0, len(top), N_SAMPLES)]])
    found.append(optima(model, starts[:N_SAMPLES], room, rng))
    return np.unique(np.concatenate(found), axis=0)


def singles(row: Integers, sizes: Integers) -> Integers:
    """All rows that differ from this one in one setting."""
    out = []
    for j, size in enumerate(sizes):
        for value in range(int(size)):
            if value != row[j]:
                other = row.copy()
                other[j] = value
                out.append(other)
    return np.array(out).reshape(-1, len(row))


def exchanged(top: Integers, sizes: Integers, n_changes: int, n: int, rng: np.random.Generator) -> Integers:
    """Random exchanges of so many settings of the best."""
    rows = top[rng.integers(0, len(top), n)].copy()
    for _ in range(n_changes):
        column = rng.integers(0, len(sizes), n)
        rows[np.arange(n), column] = rng.integers(0, sizes[column])
    return rows


def composites(encoding: Encoding, row: Integers, rng: np.random.Generator) -> Integers:
    """Every combination of what changes the memory of an image, with every batch."""
    names = [n for n in (*SHAPES, BATCH) if n in encoding.names]
    at = [encoding.names.index(n) for n in names]
    combos = list(itertools.product(*(range(len(encoding.values[j])) for j in at)))
    most = MOST_SHAPES * (len(encoding.values[at[-1]]) if BATCH in names else 1)
    if len(combos) > most:
        combos = [combos[i] for i in rng.choice(len(combos), most, replace=False)]
    rows = np.repeat(row[None], len(combos), axis=0)
    if at:
        rows[:, at] = np.array(combos)
    return rows


def optima(model: Surrogate, starts: Integers, room: float, rng: np.random.Generator) -> Integers:
    """The optimum, by single exchanges, of a sample of the model for each start but the first: there of its mean."""
    sizes = np.array([len(values) for values in model.encoding.values])
    thetas = np.concatenate([model.theta[None], model.draw(rng, len(starts) - 1)])
    here, seen = starts.copy(), []
    for _ in range(N_DESCENTS):
        near = [np.concatenate([row[None], singles(row, sizes)]) for row in here]
        ends = np.cumsum([len(a) for a in near])
        values, log_bytes = model.by_formula(thetas, np.concatenate(near))
        values = values + np.where(log_bytes > room - ROOM, 10.0, 0.0)
        best = [near[i][int(np.argmin(values[i, end - len(near[i]) : end]))] for i, end in enumerate(ends)]
        seen.append(np.array(best))
        if (seen[-1] == here).all():
            break
        here = seen[-1]
    return np.concatenate(seen)
