"""autotune train, autotune watch: the verbs about a full training; no logic."""

from __future__ import annotations

import functools
import logging
import sys
from typing import Annotated

import typer

Pairs = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="YOLO's own arguments.")]


def train(
    run: Annotated[str, typer.Argument(help="A run folder, its best/ folder, or winner.json.")],
    pairs: Pairs = None,
    nnodes: Annotated[int, typer.Option(help="Machines that train together; the command runs on each.")] = 1,
    node_rank: Annotated[int, typer.Option(help="This machine's number among them, from 0.")] = 0,
    rdzv_endpoint: Annotated[str | None, typer.Option(help="host:port of machine 0, where they meet.")] = None,
) -> int:
    """Train the winner in full, with the settings that `yolo train` cannot express; key=value wins over the file."""
    from autotune.rerun import nodes
    from autotune.rerun import train as run_train
    from autotune.space.yolo_args import parse_pairs

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    place = nodes(nnodes, node_rank, rdzv_endpoint)
    return run_train(run, parse_pairs(pairs or [], full_training=True), place, say=functools.partial(print, flush=True))


def watch(
    folder: Annotated[str, typer.Argument(help="Where YOLO writes results.csv; or a run folder, of whose winner.")],
    run: Annotated[str | None, typer.Option(help="A run folder: hold the training against its promise.")] = None,
    once: Annotated[bool, typer.Option("--once", help="One look, then end.")] = False,
    every: Annotated[str, typer.Option(help="Between two looks: 10s, 1m.")] = "10s",
) -> int:
    """Watch a training in progress: how fast, how long still, and why it is slow when it is."""
    from autotune.watching import watch as look

    return look(folder, run=run, once=once, every=every, say=functools.partial(print, flush=True))
