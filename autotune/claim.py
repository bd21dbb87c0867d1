"""Which claim is to be measured again, and can it be on this machine? What `autotune recheck` was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from autotune.contract import Machine, Winner, read_json
from autotune.errors import InputError
from autotune.folders import find_winner
from autotune.machine.facts import changes, describe, read_machine, resolve_gpus
from autotune.report.receipt import Job, Receipt, read_receipt
from autotune.run.dataset import inspect_dataset
from autotune.run.energy import check_energy
from autotune.space.ranks import count_ranks
from autotune.space.yolo_args import parse_pairs, resolve_model, yolo_defaults

ELSEWHERE: Final = ("data", "model", "device")
"""Where things are may differ on another machine; anything else would be another job."""
Name = Literal["baseline", "best"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The claim of a receipt, and where it is to be measured again."""

    best: Path
    """The folder with winner.json and receipt.json."""
    winner: Winner
    receipt: Receipt
    machine: Machine
    gpus: tuple[str, ...]
    n_ranks: int
    data: str
    model: str
    changes: tuple[str, ...]
    same_machine: bool
    notes: tuple[str, ...]

    def job(self, name: Name) -> Job:
        """What is run under this name."""
        w = self.winner
        return (
            self.receipt.baseline
            if name == "baseline"
            else Job(train_args=w.train_args, env=w.env, patches=w.patches, n_ranks=w.n_ranks)
        )

    @property
    def headline(self) -> str:
        """What is measured again, and where."""
        ranks = f"{self.n_ranks} ranks on " if self.n_ranks > 1 and not self.gpus else ""
        what = f"{Path(self.model).name}, imgsz {self.winner.train_args.get('imgsz', 640)}"
        where = f"{ranks}{describe(self.machine, self.gpus)}"
        return f"autotune recheck: {what}, on {where}; receipt of {self.receipt.started[:10]}"


def find_claim(path: str, flag: str | None, pairs: Sequence[str]) -> Claim:
    """Check everything that can be wrong, before a folder or a process is made.

    Args:
        path: a run folder, its best/, or a copy of that.
        flag: --gpus; None: the receipt's device=.
        pairs: data=, model= or device= where they are others on this machine.

    Raises:
        AutotuneError: the first thing that is wrong.
    """
    found = find_winner(path)
    best, winner = found.parent, read_json(found, Winner)
    if winner.simulated:
        raise InputError(f"{path} comes from a simulated run (--dry-run)", "run the search without --dry-run first")
    receipt = read_receipt(best)
    if receipt.ratio is None:
        raise InputError(f"the receipt in {best} claims no speed-up: {receipt.claim}", "recheck a confirmed winner")
    given = parse_pairs(pairs)
    if other := [key for key in given if key not in ELSEWHERE]:
        raise InputError(
            f"{other[0]}= would be another job than the receipt's", f"only {', '.join(ELSEWHERE)} may be given"
        )
    machine, args = read_machine(), winner.train_args
    was = args.get("device")
    device, gpus = resolve_gpus(flag, given.get("device", was if flag is None else None), machine)
    if (device == "cpu") != (str(was) == "cpu"):
        raise InputError(f"the receipt is of device={was}, this would be device={device}", "search on this device anew")
    if gpus and len(gpus) != winner.n_ranks:
        raise InputError(
            f"the receipt is of {winner.n_ranks} GPUs, this would be {len(gpus)}", f"--gpus {winner.n_ranks}"
        )
    energy_notes = check_energy(receipt.objective, gpus, simulated=False)
    count_ranks(None if gpus else winner.n_ranks, gpus, machine)
    dataset = inspect_dataset(str(given.get("data", args["data"])), winner.task)
    then = receipt.machine
    said = list(changes(then, machine)) if then else ["the receipt does not know its machine"]
    if receipt.n_images not in (None, dataset.n_train):
        said.append(f"training images {receipt.n_images}, now {dataset.n_train}")
    return Claim(
        best=best,
        winner=winner,
        receipt=receipt,
        machine=machine,
        gpus=gpus,
        n_ranks=winner.n_ranks,
        data=dataset.data,
        model=resolve_model(str(given.get("model", args["model"]))),
        changes=tuple(said),
        same_machine=then is not None and then.fingerprint == machine.fingerprint,
        notes=(*_edited(best / "best.yaml", winner), *energy_notes),
    )


def _edited(path: Path, winner: Winner) -> tuple[str, ...]:
    """A note where best.yaml says otherwise than winner.json, which is what counts."""
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return ()
    if not isinstance(said, dict):
        return ()
    defaults, args = yolo_defaults(), winner.train_args

    def value(where: dict[str, Any], key: str) -> Any:
        found = where.get(key, defaults.get(key))
        return list(found) if isinstance(found, tuple) else found

    keys = (said.keys() | args.keys()) - {"mode"}
    other = [f"{k} {value(args, k)} -> {value(said, k)}" for k in sorted(keys) if value(args, k) != value(said, k)]
    return (f"best.yaml was edited ({', '.join(other)}): winner.json is what was measured",) if other else ()
