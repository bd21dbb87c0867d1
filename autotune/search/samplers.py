"""Which samplers are there, and can they run here?"""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from autotune.errors import InputError, MachineError

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
"""--strategy -> function of the seed."""

NEEDS: Final[dict[str, tuple[str, ...]]] = {"gp": ("torch", "scipy")}
"""Strategy -> modules it imports late: GPSampler itself would only miss them at its first model, trials later."""


def check_strategy(name: str) -> str:
    """The name, if that strategy exists and everything it imports is installed.

    Raises:
        InputError: no such strategy.
        MachineError: a module it needs is missing.
    """
    if name not in SAMPLERS:
        near = difflib.get_close_matches(name, SAMPLERS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(SAMPLERS)}"
        raise InputError(f"unknown strategy '{name}'", hint)
    missing = [module for module in NEEDS.get(name, ()) if importlib.util.find_spec(module) is None]
    if missing:
        raise MachineError(
            f"strategy {name} needs {' and '.join(missing)}, not installed", f"pip install {' '.join(missing)}"
        )
    return name
