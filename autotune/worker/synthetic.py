"""What would a machine answer that is a formula? No GPU, no torch, no waiting; every number from here is simulated.

    seconds per step = max(data, compute) with
    compute = (overhead + images * per_image / precision) * layout * compile / threads**0.8
    data    = images * per_image_data(cache) / max(1, workers), without mosaic CLOSED_FRAC of it
    val     = N_VAL * per_image_val / precision / threads**0.8; a checkpoint and the rest of an epoch's end are constant

The best of cpu.yaml and default.yaml is known: most threads, largest batch that fits, channels_last, compile,
cache=ram. For tests of all that surrounds a trial it can take real time and fail in many ways: see faults.py.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import time
from pathlib import Path
from typing import Any

from autotune.contract import EpochEnd, TrialSpec
from autotune.worker import faults
from autotune.worker.recorder import Recorder

MEM_LIMIT_BYTES = 16 * 2**30
N_IMAGES = 1280
WORST = 1.1
"""Times the memory of an ordinary step, what the certificate finds."""
ALL_REDUCE_S = 0.012
"""What several ranks exchange in a step, none of it hidden."""


N_VAL = 128
VAL_S, SAVE_S, REST_S, RESET_S, PLOTS_S = 0.005, 0.4, 0.1, 0.5, 3.0
"""A validated image, a checkpoint, the rest of an epoch's end, the loader's restart, and plots."""
CLOSED_FRAC = 0.4
"""A mosaic decodes four images, less those in its buffer."""


class SimulatedOutOfMemoryError(RuntimeError):
    """The simulated machine's memory is full."""


class Synthetic:
    """Answers at once: its clock is virtual and moves by what the formula says, unless `step_s` is given."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.asked = faults.settings(recorder.spec.train_args)
        self.n_ranks = int(self.asked.get("n_ranks", recorder.spec.n_ranks))
        self.real_step_s: float | None = self.asked.get("step_s")
        self.t = 0.0
        if self.real_step_s is None:
            recorder.clock = lambda: self.t
            recorder.began = 0.0
            recorder._mark = 0.0
        self.spec: TrialSpec | None = None

    def build(self, spec: TrialSpec) -> None:
        """Book simulated import and build phases."""
        self.spec = spec
        self._commit("import")
        self._spend("import", 2.0)
        self.recorder.begin("build")
        self._commit("build")
        if self._get("cache", False) == "ram":
            self.t += N_IMAGES / 450
            self.recorder.add_phase("cache", N_IMAGES / 450)
        self._spend("build", 1.0)
        self.recorder.begin("first_step")

    def train(self, recorder: Recorder) -> None:
        """Steps with 2 % noise, drawn from the spec's seed and number."""
        assert self.spec is not None
        spec = self.spec
        args = spec.train_args
        rng = random.Random(f"{spec.seed}/{spec.number}")
        run_offset = rng.gauss(1.0, 0.01)
        n_ranks = self.n_ranks
        batch = int(args.get("batch", 16)) // n_ranks
        recorder.resolved = {"optimizer": "MuSGD", "lr0": 0.01, "momentum": 0.937, "warmup_bias_lr": 0.0}
        nbs = int(args.get("nbs", 64))
        epochs = int(args.get("epochs", 100))
        recorder.job = {
            "n_images": N_IMAGES,
            "n_batches": -(-N_IMAGES // max(batch * n_ranks, 1)),
            "epochs": epochs,
            "n_closed_epochs": min(int(args.get("close_mosaic", 10)), epochs),
            "nc": 6,
            "accumulate": max(round(nbs / max(batch * n_ranks, 1)), 1),
        }
        recorder.segment.accumulate = recorder.job["accumulate"]
        mem = int(1.2e9 + batch * 1.9e8 * (0.6 if self._get("amp", False) in (True, "bf16") else 1.0))
        recorder.peak_mem_bytes = mem
        if spec.probe == "certificate":
            recorder.peak_mem_bytes = mem = int(WORST * mem)
        if mem > MEM_LIMIT_BYTES:
            raise SimulatedOutOfMemoryError("out of memory (simulated)")
        if spec.probe == "certificate":
            self.certify(batch)
            return
        compute, data = self._seconds(batch)
        if self._get("compile", False):
            self.t += 40.0
        if spec.probe == "epoch_end":
            data = self._end_epoch(data)
        together = _Lockstep(recorder.rank, spec.n_ranks)
        n_steps = 0
        while True:
            step = max(compute, data) * run_offset * rng.gauss(1.0, 0.02)
            wait = max(0.0, data - compute)
            if self.real_step_s is not None:
                before = time.perf_counter()
                time.sleep(self.real_step_s)
                together.wait(n_steps)
                step, wait = time.perf_counter() - before, 0.0
            else:
                together.wait(n_steps)
            self.t += step
            self._commit("step", n_steps)
            n_steps += 1
            if recorder.step(wait_s=wait, step_s=step, images=batch * n_ranks // spec.n_ranks):
                recorder.effective = self.effective()
                return

    def _end_epoch(self, data: float) -> float:
        """Book what the formula says of an epoch's end; returns the loader's seconds a step after it."""
        assert self.spec is not None
        recorder, args = self.recorder, self.spec.train_args
        closes = 0 < recorder.job["n_closed_epochs"] < recorder.job["epochs"]
        amp = 2.0 if self._get("amp", False) else 1.0
        val_s = N_VAL * VAL_S / amp / float(self._get("torch_threads", 1)) ** 0.8
        end = EpochEnd(
            val_s=val_s,
            val_n_batches=N_VAL,
            val_n_timed=N_VAL,
            val_every_epoch=bool(args.get("val", True)),
            save_s=SAVE_S,
            save_every_epoch=bool(args.get("save", True)),
            rest_s=REST_S,
            reset_s=RESET_S if closes else None,
            final_s=val_s + (PLOTS_S if args.get("plots", True) else 0.0),
        )
        recorder.epoch_end = end
        took_s = 2 * (val_s + SAVE_S + REST_S) + (end.reset_s or 0.0) + (end.final_s or 0.0)
        self.t += took_s
        recorder.add_phase("epoch_end", took_s)
        return data * (CLOSED_FRAC if closes else 1.0)

    def certify(self, batch: int) -> None:
        """Say what a certificate says (worker/certificate.py), of images that nobody drew."""
        self._spend("first_step", 3.0)
        recorder = self.recorder
        recorder.certificate = {"n_images": batch, "n_val_images": 2 * batch, "n_optimizer_steps": 2, "simulated": True}
        recorder.effective = self.effective()

    def effective(self) -> dict[str, Any]:
        """The formula obeys every knob: what was asked is what runs."""
        assert self.spec is not None
        return {**self.spec.params, "optimizer": "MuSGD", "simulated": True}

    def close(self) -> None:
        """Nothing to let go of; the place of a fault after the record is written."""
        self._commit("end")

    def _commit(self, when: faults.When, n_steps: int = 0) -> None:
        faults.commit(when, self.asked, rank=self.recorder.rank, n_steps=n_steps)

    def _get(self, knob: str, default: Any) -> Any:
        assert self.spec is not None
        value = self.spec.params.get(knob)
        return default if value is None else value

    def _spend(self, phase: str, seconds: float) -> None:
        self.t += seconds
        self.recorder.phase(phase)

    def _seconds(self, batch: int) -> tuple[float, float]:
        amp = {True: 2.0, "fp16": 2.0, "bf16": 2.1}.get(self._get("amp", False), 1.0)
        compute = 0.03 + batch * 0.008 / amp
        compute *= 0.9 if self._get("channels_last", False) else 1.0
        compute *= 0.85 if self._get("compile", False) else 1.0
        compute *= 0.97 if self._get("cudnn_benchmark", False) else 1.0
        compute /= float(self._get("torch_threads", 1)) ** 0.8
        per_image = {"ram": 0.0028, "disk": 0.003}.get(str(self._get("cache", False)), 0.0035)
        workers = int(self._get("workers", 0))
        data = batch * per_image / max(1, workers)
        assert self.spec is not None
        if self.n_ranks > 1 and self.spec.probe != "no_sync":
            compute += ALL_REDUCE_S
        if self.spec.probe in ("data", "compute"):
            return (compute, 0.0) if self.spec.probe == "compute" else (0.0, data)
        return (compute, data) if workers else (compute + data, 0.0)


class _Lockstep:
    """Ranks wait for each other in every step, as the reduction of gradients makes them."""

    def __init__(self, rank: int, n_ranks: int) -> None:
        self.rank = rank
        self.n_ranks = n_ranks
        if n_ranks > 1:
            with (Path(os.environ["TMPDIR"]) / "lockstep").open("a+b") as f:
                f.truncate(8 * n_ranks)
                self.begun = mmap.mmap(f.fileno(), 8 * n_ranks)

    def wait(self, n_steps: int) -> None:
        """Return when all ranks have called this for the same step."""
        if self.n_ranks == 1:
            return
        struct.pack_into("q", self.begun, 8 * self.rank, n_steps + 1)
        while min(struct.unpack_from(f"{self.n_ranks}q", self.begun)) <= n_steps:
            time.sleep(0.001)


def make(recorder: Recorder) -> Synthetic:
    """Table entry of backends.BACKENDS."""
    return Synthetic(recorder)
