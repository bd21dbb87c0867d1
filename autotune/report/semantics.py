"""Is the exported training still the user's? Effective batch, weight decay in effect, optimizer, and all that differs.

Rounding is not looked at here: for that there is the numerics check (search/numerics.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from autotune.contract import RunInfo, Training, Value
from autotune.report.yolo_yaml import PINS, effective_batch, job_args
from autotune.space import training
from autotune.space.knobs import KNOBS
from autotune.space.yolo_args import yolo_defaults

ARG_OF: Final = {"batch_per_gpu": "batch"}
"""Knob -> YOLO's own name for it, where that is another."""
RESOLVED: Final = frozenset({*PINS, "batch", "nbs", "weight_decay", "mode", "task"})
"""Arguments that are judged by what they come to, or say nothing of the training."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that the exported training does otherwise."""

    what: str
    yours: Value
    tuned: Value
    why: str = ""
    """What it means, where the name does not say it."""

    def __str__(self) -> str:
        return f"{self.what} {self.yours} -> {self.tuned}{f' ({self.why})' if self.why else ''}"


def semantics(info: RunInfo, args: dict[str, Any]) -> dict[str, Any]:
    """The semantics certificate.

    Args:
        info: of the run, with the user's job and what `auto` became in it.
        args: YOLO arguments of the exported configuration, complete (chosen.Chosen.args).

    Returns:
        training: what --training allows. same: the optimisation is the user's. allowed: it is, or what differs is
        within --training. sentence. figures: name -> [yours, tuned] of effective batch, weight decay in effect and
        optimizer pins. differs: changes of the optimisation. lightly: changes of which images a step sees, or with
        which others, that leave it alone.
    """
    job = job_args(info)
    figures = dict(_figures(job, args))
    differs = [Difference(name, *both) for name, both in figures.items() if not _equal(*both)]
    differs += _others(job, args)
    lightly = list(_lightly(info, job, args))
    allowed = not differs or info.training == "any"
    if info.training == "bounded":
        allowed = all(d.what == EFFECTIVE for d in differs) and effective_batch(args) <= 2 * effective_batch(job)
    return {
        "training": info.training,
        "same": not differs,
        "allowed": allowed,
        "sentence": _sentence(info, figures, differs, lightly, allowed=allowed),
        "figures": {name: list(both) for name, both in figures.items()},
        "differs": [asdict(d) for d in differs],
        "lightly": [asdict(d) for d in lightly],
    }


EFFECTIVE: Final = "images an optimizer step"
DECAY: Final = "weight decay in effect"


def _figures(job: dict[str, Any], args: dict[str, Any]) -> Iterator[tuple[str, tuple[Value, Value]]]:
    """What the optimisation comes to, in the user's job and in the exported one."""
    yield EFFECTIVE, (effective_batch(job), effective_batch(args))
    yield DECAY, (_decay(job), _decay(args))
    for pin in PINS:
        yield pin, (_value(job, pin), _value(args, pin))


def _decay(args: dict[str, Any]) -> float:
    batch = max(int(_value(args, "batch")), 1)  # -1 is AutoBatch
    return training.decay_product(float(_value(args, "weight_decay")), batch, int(_value(args, "nbs")))


def _others(job: dict[str, Any], args: dict[str, Any]) -> Iterator[Difference]:
    """Arguments that differ and are no knob, or one of class SEMANTICS; the batch is judged by what a step sees."""
    harmless = {ARG_OF.get(k.name, k.name) for k in KNOBS.values() if k.training is not Training.SEMANTICS}
    for key in sorted({*job, *args} - RESOLVED - harmless):
        if not _equal(_value(job, key), _value(args, key)):
            yield Difference(key, _value(job, key), _value(args, key))


def _lightly(info: RunInfo, job: dict[str, Any], args: dict[str, Any]) -> Iterator[Difference]:
    """What a user may want to know all the same (MEASURING 6: lightly)."""
    old, new = int(_value(job, "batch")), int(_value(args, "batch"))
    if old != new:
        ranks = max(info.n_ranks, 1)
        why = "of a rank: BatchNorm takes its statistics of them"
        yield Difference("images a forward pass", old // ranks, new // ranks, why)
    caches = [_value(a, "cache") in (True, "ram") for a in (job, args)]
    if caches[0] != caches[1] and float(_value(args, "mosaic") or 0.0) > 0:
        whole, few = "all images", "the last images that were loaded"
        yield Difference("mosaic draws from", *((few, whole) if caches[1] else (whole, few)), "cache=ram")
    compiled = [_value(a, "compile") not in (False, None, "") for a in (job, args)]
    # Of a dataset that is smaller than the batch, a batch is the whole.
    if compiled[0] != compiled[1] and info.n_images and (rest := info.n_images % min(max(new, 1), info.n_images)):
        left, n = f"{rest} of {info.n_images} images", "none"
        yield Difference("left out of an epoch", *((n, left) if compiled[1] else (left, n)), "compile")


def _sentence(
    info: RunInfo,
    figures: dict[str, tuple[Value, Value]],
    differs: list[Difference],
    lightly: list[Difference],
    *,
    allowed: bool,
) -> str:
    """All of it in a line."""
    if not differs:
        of_step, decay, optimizer, lr0 = (figures[name][1] for name in (EFFECTIVE, DECAY, "optimizer", "lr0"))
        text = (
            f"the same training as yours: {of_step} images an optimizer step, weight decay {_short(decay)} in effect, "
            f"{optimizer} with lr0 {_short(lr0)}"
        )
    else:
        within = f"as --training {info.training} allows" if allowed else f"more than --training {info.training} allows"
        text = f"CHANGES THE TRAINING, {within}: {', '.join(map(str, map(_shortened, differs)))}"
    return text + (f"; lightly: {', '.join(map(str, map(_shortened, lightly)))}" if lightly else "")


def _shortened(d: Difference) -> Difference:
    return Difference(d.what, _short(d.yours), _short(d.tuned), d.why)


def _short(value: Value) -> Value:
    return f"{value:.6g}" if isinstance(value, float) else value


def _value(args: dict[str, Any], key: str) -> Any:
    """The argument, or YOLO's default for it."""
    return args.get(key, yolo_defaults().get(key))


def _equal(a: Any, b: Any) -> bool:
    """As numbers where both are, up to the rounding of a product; True is not 1."""
    if type(a) in (int, float) and type(b) in (int, float):
        return math.isclose(a, b, rel_tol=1e-9)
    return json.dumps(a, default=str) == json.dumps(b, default=str)
