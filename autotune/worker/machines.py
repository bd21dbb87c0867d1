"""What does a trial see of a simulated machine? Its truth (machine_truth.py) with noise, drift, outliers and hangs.

Nothing here was measured on anything, and everything that comes from here is labelled as simulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, pi, sin, sqrt
from random import Random
from typing import Any, Final, Literal, NamedTuple

from autotune.contract import EpochEnd, Params, Probe
from autotune.worker.machine_constants import Effect, Interaction, SimulatedMachine
from autotune.worker.machine_truth import Truth, inert, truth
from autotune.worker.machines_draw import FAMILIES, draw

__all__ = [
    "FAMILIES",
    "Effect",
    "Interaction",
    "Measured",
    "SimulatedMachine",
    "Truth",
    "draw",
    "drift",
    "epoch_end",
    "inert",
    "measure",
    "truth",
]
COMPUTE_NOISE, COMM_NOISE, MEM_NOISE, WAIT_NOISE = 0.03, 0.15, 0.005, 0.05
"""Of attributions, as shares (SEARCH 2.1; the wait is read off a clock, a guess)."""
WINDOW_S: Final = 20.0
"""To whose square root noise within a run is scaled (SEARCH 2.1)."""


class Measured(NamedTuple):
    """What a trial sees of it."""

    truth: Truth
    outcome: Literal["ok", "oom", "timeout"]
    images_per_s: float
    half_width_frac: float
    """Of its 95 % interval, as the noise within the run lets it seem."""
    slowdown: float
    """Times the true step."""
    parts_s: dict[str, float]
    wait_frac: float
    exposed_s: float
    peak_mem_bytes: int


def measure(
    machine: SimulatedMachine,
    params: Params,
    n_ranks: int,
    *,
    seed: int,
    number: int,
    t_s: float = 0.0,
    segment_s: float = WINDOW_S,
    probe: Probe | None = None,
) -> Measured:
    """What one run sees: the same for the same machine, seed, number and time.

    Args:
        machine: as drawn.
        params: the configuration.
        n_ranks: of all nodes.
        seed: of the study.
        number: of the trial.
        t_s: seconds since the search began, for the drift.
        segment_s: length of the measured window.
        probe: the part of the step that is measured.
    """
    true = truth(machine, params, n_ranks, probe)
    rng = Random(f"{machine.name}/{machine.seed}/{seed}/{number}")
    run, within, width, outlier, hit, hang = (
        *(rng.gauss(0.0, 1.0) for _ in range(3)), *(rng.random() for _ in range(3))
    )  # fmt: skip
    noise = [rng.gauss(0.0, 1.0) for _ in range(8)]
    sigma = machine.window_sigma * sqrt(WINDOW_S / max(segment_s, 0.1))
    slow = (1 + machine.run_sigma * run) * (1 + sigma * within) * drift(machine, t_s)
    slow /= 1 - (0.02 + 0.13 * outlier) if hit < machine.outlier_rate else 1.0
    step_s = true.step_s * slow
    # Nine degrees of freedom, whose chi is normal enough: Student's t times a standard error that is itself uncertain.
    half = 2.26 * sigma * max(0.3, 1 + width / sqrt(18))
    exposed = true.exposed_s * slow * max(0.0, 1 + COMM_NOISE * noise[0])
    parts = {
        "wait": true.wait_s * slow * max(0.0, 1 + WAIT_NOISE * noise[1]),
        "prepare": true.prepare_s * slow * (1 + COMPUTE_NOISE * noise[2]),
        "forward": true.forward_s * slow * (1 + COMPUTE_NOISE * noise[3]),
        "backward": (true.backward_s - true.exposed_s) * slow * (1 + COMPUTE_NOISE * noise[4]) + exposed,
        "optimizer": true.optimizer_s * slow * (1 + COMPUTE_NOISE * noise[5]),
    }
    parts["rest"] = max(0.0, step_s - sum(parts.values()))
    return Measured(
        truth=true,
        outcome="oom" if true.oom else "timeout" if hang < machine.hang_rate else "ok",
        images_per_s=true.batch * n_ranks / step_s,
        half_width_frac=half,
        slowdown=slow,
        parts_s=parts,
        wait_frac=min(1.0, parts["wait"] / step_s),
        exposed_s=exposed,
        peak_mem_bytes=int(true.peak_mem_bytes * (1 + MEM_NOISE * noise[6])),
    )


def drift(machine: SimulatedMachine, t_s: float) -> float:
    """Times the time of a step, at this time of the search: slow waves, and the first minutes' cold clock."""
    if not machine.drift_frac:
        return 1.0
    waves = sin(2 * pi * (t_s / machine.drift_period_s + 0.37 * machine.seed))
    return 1 + machine.drift_frac * (waves - 0.5 * exp(-t_s / 300))


def epoch_end(machine: SimulatedMachine, params: Params, train_args: Mapping[str, Any], *, closes: bool) -> EpochEnd:
    """What the end of an epoch takes; `closes`: the mosaic is closed within the job."""
    amp = 2.0 if params.get("amp") else 1.0
    threads = min(int(params.get("torch_threads") or 1), machine.cores)
    val_s = machine.n_val * machine.val_image_s / amp / threads**machine.thread_exponent
    return EpochEnd(
        val_s=val_s,
        val_n_batches=machine.n_val,
        val_n_timed=machine.n_val,
        val_every_epoch=bool(train_args.get("val", True)),
        save_s=machine.save_s,
        save_every_epoch=bool(train_args.get("save", True)),
        rest_s=machine.end_s,
        reset_s=machine.reset_s if closes else None,
        final_s=val_s + (machine.plots_s if train_args.get("plots", True) else 0.0),
    )
