"""How is one configuration run again? A trial with its log on screen, or the winner as full training."""

from __future__ import annotations

import logging
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from autotune.contract import (
    Machine,
    Nodes,
    RunDir,
    RunInfo,
    TrialDir,
    TrialResult,
    TrialSpec,
    Winner,
    read_json,
    write_json,
)
from autotune.errors import InputError
from autotune.folders import find_winner
from autotune.machine.facts import read_machine, resolve_gpus
from autotune.space.ranks import check_batch
from autotune.space.yolo_args import yolo_defaults

log = logging.getLogger(__name__)

TRACE_STEPS: Final = 5
"""Steps of a trace: 10 to 50 MB before compression (KNOBS 6)."""
FINISH_S: Final = 5.0
"""After Ctrl-C a full training has so long to finish the checkpoint that it is writing."""
TRACE_S: Final = 600.0
"""A traced trial may take so long whatever the search had left for it: profiling and export are slow."""


def rerun_trial(folder: str, *, trace: bool = False) -> tuple[TrialDir, TrialResult]:
    """Run the trial of this folder again, in a new folder inside it, with its output on our stdout.

    Args:
        folder: of the trial.
        trace: write a torch.profiler trace of a few steps in place of measuring; its output goes to log.txt.

    Returns:
        The new folder, and its result: of a trace no measurement, `role="trace"`.

    Raises:
        InputError: not a trial folder, or a trace of a simulated trial.
        MachineError: a search, or another trial, is measured on the same device.
    """
    from autotune.run.dataset import DatasetView
    from autotune.run.lock import lock_devices
    from autotune.run.trial import run_trial
    from autotune.simulation import in_one_process

    directory = TrialDir(Path(folder).resolve())
    if not directory.spec.is_file():
        raise InputError(f"{folder} is not a trial folder (no spec.json in it)", "give RUN/trials/0003")
    spec = read_json(directory.spec, TrialSpec)
    if spec.backend == "replay":
        raise InputError(f"{folder} is a replayed trial: nothing ran", "run a trial of the recorded run")
    if trace and spec.backend != "yolo":
        raise InputError(f"{folder} is a simulated trial: there is nothing to trace", "trace one of a real search")
    if trace:
        deadlines = replace(spec.deadlines, total_s=max(TRACE_S, spec.deadlines.total_s))
        spec = replace(spec, role="trace", probe=None, trace_steps=TRACE_STEPS, deadlines=deadlines)
    again = next(p for i in range(1, 10_000) if not (p := directory.path / f"again-{i}").exists())
    if spec.backend != "yolo":
        return TrialDir(again), in_one_process(partial(run_trial, sampled=False), spec, TrialDir(again), started_s=0.0)
    # The search removed its view of the dataset when it ended: make one for this run from the user's own path.
    run_json = directory.path.parents[1] / "run.json"
    info = read_json(run_json, RunInfo)
    with lock_devices(spec.gpus) as sign, DatasetView(str(info.train_args["data"]), spec.task, again / ".data") as view:
        sign(again)
        data = view.path(spec.train_args.get("cache"))
        again_spec = replace(spec, train_args={**spec.train_args, "data": data})
        return TrialDir(again), run_trial(again_spec, TrialDir(again), started_s=0.0, to_screen=not trace)


def limit_lines(again: TrialDir, result: TrialResult) -> list[str]:
    """What limits a trial that was run again, and what would lift it; nothing of a simulated one, nor of a probe.

    Args:
        again: from rerun_trial.
        result: from rerun_trial.
    """
    from autotune.report.advice import advise

    spec, machine = read_json(again.spec, TrialSpec), RunDir(again.path.parents[2]).machine
    if spec.backend != "yolo" or spec.probe or not machine.is_file():
        return []
    found = advise(result, read_json(machine, Machine), gpus=spec.gpus, n_ranks=spec.n_ranks)
    return [f"limit: {found.says}", f"lift: {found.lifts[0]}", found.resources_say] if found else []


def nodes(n_nodes: int, node_rank: int, rdzv_endpoint: str | None) -> Nodes | None:
    """This machine's place among several, as typed; None: it trains alone.

    Raises:
        InputError: the three do not make a place.
    """
    if n_nodes == 1 and node_rank == 0 and rdzv_endpoint is None:
        return None
    if n_nodes < 1 or not 0 <= node_rank < n_nodes:
        raise InputError(f"--node-rank {node_rank} of --nnodes {n_nodes}", "nodes are numbered 0 to nnodes-1")
    host, _, port = (rdzv_endpoint or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        said = "--nnodes needs" if rdzv_endpoint is None else f"--rdzv-endpoint {rdzv_endpoint} is not"
        raise InputError(f"{said} host:port of node 0", "the same on every node: --rdzv-endpoint 10.0.0.1:29500")
    return Nodes(n_nodes=n_nodes, node_rank=node_rank, rdzv_endpoint=str(rdzv_endpoint))


def train(
    path: str,
    overrides: Mapping[str, Any],
    place: Nodes | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> int:
    """Train the winner in full, with the mixin of the trials; ordinary Ultralytics results in the current folder.

    Args:
        path: see find_winner.
        overrides: YOLO arguments that win over the file's; `resume` continues a checkpoint. Another `device` trains
            on as many ranks as it names GPUs.
        place: this machine's among several; each runs as many ranks.
        say: given the line that tells whether the receipt's promise was kept, when there is one.

    Returns:
        Exit status of the training.

    Raises:
        InputError: no winner, or one of a simulated run; its GPUs are not here; its batch does not divide.
    """
    from autotune.report.promises import check_promise
    from autotune.run.launch import argv, environment
    from autotune.run.supervise import run_tree, start_cold

    found = find_winner(path)
    winner = read_json(found, Winner)
    if winner.simulated:
        raise InputError(f"{path} comes from a simulated run (--dry-run)", "run the search without --dry-run first")
    args = {**winner.train_args, **overrides}
    gpus, n_ranks = _ranks(winner, args)
    n_world = n_ranks * (place.n_nodes if place else 1)
    batch = args.get("batch", yolo_defaults()["batch"])
    if n_world > 1 and (type(batch) is not int or batch < 1):
        raise InputError(
            f"batch={batch} on {n_world} ranks must be a whole number of at least 1", "such as the winner's own"
        )
    if n_world > 1:
        check_batch(n_world, {"batch": batch}, args)
    if n_world != winner.n_ranks and "batch" not in overrides and type(batch) is int:
        each, measured = batch // n_world, batch // winner.n_ranks
        log.warning(
            "%s ranks share batch=%s, %s each; %s each were measured (batch=%s keeps those, and is another training)",
            *(n_world, batch, each, measured, measured * n_world),
        )
    if n_world > 1 and gpus:
        # NCCL may bind rank i to visible GPU i whatever device= says (KNOBS 0.3): show it only the ones that count.
        args["device"] = ",".join(map(str, range(n_ranks)))
    with tempfile.TemporaryDirectory(prefix="autotune-train-") as tmp:
        directory = TrialDir(Path(tmp))
        spec = TrialSpec(
            number=0,
            role="train",
            backend="yolo",
            task=winner.task,
            params=winner.params,
            changes={},
            train_args=args,
            env=winner.env,
            patches=winner.patches,
            gpus=gpus if n_world > 1 else (),
            n_ranks=n_ranks,
            nodes=place,
        )
        write_json(directory.spec, spec)
        tag = uuid.uuid4().hex
        start = partial(
            start_cold, argv(spec, directory), env=environment(spec, directory, tag), cwd=Path.cwd(), log=None
        )
        try:
            end = run_tree(start, tag=tag, poll=lambda _: None, interrupt_s=FINISH_S)
        finally:  # after a Ctrl-C, of the epochs that there are
            nodes = place.n_nodes if place else 1
            if kept := check_promise(found.parent, winner, overrides, directory.epochs, n_nodes=nodes):
                say(kept.sentence)
    return end.returncode


def _ranks(winner: Winner, args: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """GPUs and ranks of a full training on this machine."""
    device, gpus = resolve_gpus(None, args.get("device"), read_machine())
    if device == "cpu":
        return (), winner.n_ranks if str(winner.train_args.get("device")) == "cpu" else 1
    return gpus, len(gpus)
