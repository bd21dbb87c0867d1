"""Which of Optuna's samplers are there?"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def _tpe(seed: int) -> BaseSampler:
    """Multivariate TPE, Optuna 5's default; the first trials are the space's seeds, then random ones."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=6)


def _random(seed: int) -> BaseSampler:
    """Uniform over the domain: the yardstick."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def _gp(seed: int) -> BaseSampler:
    """Gaussian process with constrained LogEI."""
    _import_torch_without_cuda()
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, n_startup_trials=6)


def _import_torch_without_cuda() -> None:
    """Import torch so that it cannot open a CUDA context here: that would take memory from the trial it measures."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        import torch  # noqa: F401
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


SAMPLERS: Final[dict[str, Callable[[int], BaseSampler]]] = {
    "tpe": _tpe,
    "random": _random,
    "gp": _gp,
}
"""Name -> function of the seed; strategies.py says which strategy has which."""
