"""Which spaces are there, and what of one would be tried here?"""

from __future__ import annotations

import os
from collections.abc import Sequence

from autotune.machine.facts import describe, read_machine, resolve_gpus, visible
from autotune.space.context import Context
from autotune.space.knobs import KNOBS
from autotune.space.legal import spell
from autotune.space.ranks import check_batch, count_ranks
from autotune.space.space import list_spaces, load_space, prepare
from autotune.space.yolo_args import job_args, parse_pairs


def list_all_spaces() -> list[str]:
    """Every space and every knob, a line each."""
    spaces = [f"{name:10} {doc}" for name, doc in list_spaces().items()]
    width = max(map(len, KNOBS))
    knobs = [f"{k.name:{width}} {k.site:9} {k.training:10} {k.doc}" for k in KNOBS.values()]
    return [*spaces, "", "knobs:", *knobs]


def describe_space(
    name: str, pairs: Sequence[str], gpus: str | None, training: str, ranks: int | None = None
) -> list[str]:
    """What of a space would be tried for this job on this machine, and why the rest would not.

    Raises:
        InputError: no such space, or wrong arguments.
    """
    user = parse_pairs(list(pairs))
    machine = read_machine()
    device, uuids = resolve_gpus(gpus, user.get("device"), machine)
    n_ranks = count_ranks(ranks, uuids, machine)
    args = job_args({**user, "device": device})
    check_batch(n_ranks, args, user)
    space = load_space(name)
    ctx = Context(
        machine=machine,
        task=str(user.get("task") or "detect"),
        device="cpu" if device == "cpu" else "cuda",
        n_ranks=n_ranks,
        n_visible_gpus=len(visible(machine, os.environ)),
        train_args=args,
        effective={},
    )
    prepared = prepare(space, ctx, training)
    where = describe(machine, uuids) + f", {n_ranks} ranks" * (n_ranks > 1)
    lines = [f"{space.name}: {space.doc}", f"on {where}, --training {training}:"]
    for knob, values in prepared.domain.items():
        shown = ", ".join(spell(v) + (" (yours)" if v == prepared.baseline.get(knob) else "") for v in values)
        lines.append(f"  {knob}: {shown}   [{KNOBS[knob].doc}]")
    lines += [f"  not tried: {what}: {why}" for what, why in prepared.frozen.items()]
    return lines
