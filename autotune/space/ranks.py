"""How many ranks, and can this job be shared out among them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autotune.contract import Machine
from autotune.errors import InputError


def count_ranks(flag: int | None, gpus: Sequence[str], machine: Machine, *, simulated: bool = False) -> int:
    """Ranks of a trial: one on each GPU; on the CPU as many as asked for, one without.

    Args:
        flag: --ranks.
        gpus: UUIDs to train on; () is the CPU.
        machine: from read_machine.
        simulated: a dry run, which needs no cores.

    Raises:
        InputError: ranks and GPUs disagree, or there are fewer cores than ranks.
    """
    if flag is not None and flag < 1:
        raise InputError(f"--ranks {flag} must be at least 1")
    if flag is not None and gpus and flag != len(gpus):
        raise InputError(
            f"--ranks {flag} and {len(gpus)} GPU{'s' * (len(gpus) != 1)}: a rank trains on a GPU of its own",
            "leave --ranks to the CPU: device=cpu --ranks 2",
        )
    n_ranks = len(gpus) or flag or 1
    if n_ranks > machine.n_cores and not simulated:
        raise InputError(
            f"{n_ranks} ranks on {machine.n_cores} CPU core{'s' * (machine.n_cores != 1)}: every rank needs one",
            "fewer --gpus or --ranks, or a container with more cores",
        )
    return n_ranks


def check_batch(n_ranks: int, args: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """YOLO's batch is the total; what the ranks cannot share evenly it would drop in silence (trainer.py: //).

    Args:
        n_ranks: ranks of the job.
        args: the job, complete.
        given: what the user typed of it.

    Raises:
        InputError: it does not divide.
    """
    batch = int(args["batch"])
    if batch % n_ranks == 0:
        return
    below, above = batch // n_ranks * n_ranks, (batch // n_ranks + 1) * n_ranks
    hints = [f"batch={b} ({b // n_ranks} each)" for b in (below, above) if b]
    whose = "" if "batch" in given else " (YOLO's default)"
    raise InputError(f"batch={batch}{whose} does not divide by {n_ranks} ranks", " or ".join(hints))
