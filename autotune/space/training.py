"""What keeps the training the same when the batch changes? (MEASURING 6; formulas of ultralytics/engine/trainer.py)

Batches here are totals over all ranks, as in YOLO's `batch`. Ultralytics also caps accumulation at the job's number of
batches, which a job of a single optimizer step would notice; that is left aside.
"""

from __future__ import annotations

from typing import Any


def accumulate(batch_total: int, nbs: int) -> int:
    """Batches an optimizer step gathers: Python's round, half to even, as Ultralytics computes it."""
    return max(round(nbs / batch_total), 1)


def effective_batch(batch_total: int, nbs: int) -> int:
    """Images an optimizer step sees."""
    return batch_total * accumulate(batch_total, nbs)


def decay_product(weight_decay: float, batch_total: int, nbs: int) -> float:
    """The weight decay that the optimizer really gets."""
    return weight_decay * effective_batch(batch_total, nbs) / nbs


def batch_allowed(batch_total: int, base_batch_total: int, nbs: int, training: str) -> str | None:
    """Why a batch may not be tried, None when it may.

    Args:
        batch_total: the candidate.
        base_batch_total: the user's own batch.
        nbs: the user's own nominal batch size.
        training: same (the batch divides the effective batch), bounded (at most twice the effective batch) or any.
    """
    target = effective_batch(base_batch_total, nbs)
    if training == "same" and target % batch_total:
        return f"does not divide the job's effective batch of {target} (--training same)"
    if training == "bounded" and effective_batch(batch_total, target) > 2 * target:
        return f"more than twice the job's effective batch of {target} (--training bounded)"
    return None


def pins(train_args: dict[str, Any], batch_total: int, training: str = "same") -> dict[str, Any]:
    """`nbs` and `weight_decay` with which a new batch keeps the job's effective batch and weight decay.

    Empty when the batch is the job's own. A batch that does not divide the effective batch comes as near as it can,
    with the weight decay kept; under training `any` it follows Ultralytics' own scaling instead (empty).
    """
    batch, nbs, decay = int(train_args["batch"]), int(train_args["nbs"]), float(train_args["weight_decay"])
    target = effective_batch(batch, nbs)
    if batch_total == batch or (training == "any" and target % batch_total):
        return {}
    if target == nbs and target % batch_total == 0:
        return {"nbs": nbs, "weight_decay": decay}  # exactly as written, no rounding
    product = decay_product(decay, batch, nbs)
    return {"nbs": target, "weight_decay": product * target / effective_batch(batch_total, target)}


def pin_optimizer(train_args: dict[str, Any], resolved: dict[str, Any]) -> dict[str, Any]:
    """What `optimizer=auto` became in the user's real job, as explicit arguments (ULTRALYTICS 0, trap 2).

    Empty when the user named the optimizer. For MuSGD the momentum stays the user's: auto builds with 0.9, but warm-up
    then drives it to the argument. An explicit optimizer would warm its biases up from 0.1, auto does from 0.0.
    """
    name = str(train_args.get("optimizer", "auto")).lower()
    if name != "auto" or str(resolved.get("optimizer", "auto")).lower() == "auto":
        return {}
    keys = ["optimizer", "lr0", "warmup_bias_lr"] + (["momentum"] if resolved["optimizer"] != "MuSGD" else [])
    return {key: resolved[key] for key in keys if resolved.get(key) is not None}
