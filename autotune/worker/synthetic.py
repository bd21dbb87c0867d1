"""What would a machine answer that is a formula? No GPU, no torch, no waiting; every number from here is simulated.

The formula is that of machines.py. Which machine: `machine` and `machine_seed` of the settings described in faults.py;
without them `dry_run`, of whose cpu.yaml and default.yaml the best is known. For tests of all that surrounds a trial it
can take real time and fail in many ways: see faults.py.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import time
from pathlib import Path
from typing import Any

from autotune.contract import TrialSpec
from autotune.worker import faults
from autotune.worker.machines import Measured, draw, epoch_end, measure
from autotune.worker.recorder import Recorder

MACHINE = "dry_run"
APART_S = 60.0
"""Between the starts of two trials, for the drift of a machine: a trial does not know when its search began."""
COLUMNS = ("prepare", "forward", "backward", "optimizer")
"""Of a step's anatomy, beside the wait; the rest is what they leave of the step."""


class SimulatedOutOfMemoryError(RuntimeError):
    """The simulated machine's memory is full."""


class SimulatedHangError(RuntimeError):
    """A rank of the simulated machine stopped; nobody waits for it in real time."""


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
        self.machine = draw(self.asked.get("machine", MACHINE), int(self.asked.get("machine_seed", 0)))

    def build(self, spec: TrialSpec) -> None:
        """Book simulated import and build phases."""
        self.spec = spec
        self._commit("import")
        self._spend("import", self.machine.import_s)
        self.recorder.begin("build")
        self._commit("build")
        fill_s = self.machine.fill_s.get(spec.params.get("cache") or False, 0.0)
        if fill_s:
            self.t += fill_s
            self.recorder.add_phase("cache", fill_s)
        self._spend("build", self.machine.build_s)
        self.recorder.begin("first_step")

    def train(self, recorder: Recorder) -> None:
        """Steps with the noise of the machine, drawn from its seed and the spec's seed and number."""
        assert self.spec is not None
        spec, args, n_ranks = self.spec, self.spec.train_args, self.n_ranks
        batch = int(args.get("batch", 16)) // n_ranks
        recorder.resolved = {"optimizer": "MuSGD", "lr0": 0.01, "momentum": 0.937, "warmup_bias_lr": 0.0}
        recorder.job = self._job(batch)
        recorder.segment.accumulate = recorder.job["accumulate"]
        seen = measure(
            self.machine,
            {**spec.params, "batch_per_gpu": batch},
            n_ranks,
            seed=spec.seed,
            number=spec.number,
            t_s=float(self.asked.get("t_s", APART_S * spec.number)),
            segment_s=spec.segment.measure_s,
            probe=spec.probe,
        )
        recorder.peak_mem_bytes = seen.peak_mem_bytes
        if seen.outcome == "oom":
            raise SimulatedOutOfMemoryError("out of memory (simulated)")
        if spec.probe == "certificate":
            self.certify(batch)
            return
        if spec.params.get("compile"):
            self.t += seen.truth.compile_s
        if spec.probe == "epoch_end":
            self._end_epoch()
        self._steps(seen, batch)

    def _steps(self, seen: Measured, batch: int) -> None:
        """Until the segment is over; on a real clock they take what was asked, and have no anatomy."""
        assert self.spec is not None
        recorder, spec = self.recorder, self.spec
        rng = random.Random(f"{spec.seed}/{spec.number}")
        together = _Lockstep(recorder.rank, spec.n_ranks)
        n_steps = 0
        while True:
            noise = rng.gauss(1.0, self.machine.step_sigma)
            step, wait = seen.truth.step_s * seen.slowdown * noise, seen.parts_s["wait"] * noise
            if self.real_step_s is not None:
                before = time.perf_counter()
                time.sleep(self.real_step_s)
                together.wait(n_steps)
                step, wait = time.perf_counter() - before, 0.0
            else:
                together.wait(n_steps)
                for part in COLUMNS:
                    getattr(recorder.segment.steps, f"{part}_s").append(seen.parts_s[part] * noise)
            self.t += step
            self._commit("step", n_steps)
            n_steps += 1
            if seen.outcome == "timeout" and n_steps > spec.segment.warmup_steps and self.real_step_s is None:
                self.t += spec.deadlines.stall_s
                recorder.phase("warmup")
                raise SimulatedHangError("Watchdog caught collective operation timeout (simulated)")
            images = batch * self.n_ranks // spec.n_ranks
            if recorder.step(wait_s=wait, step_s=step, images=images):
                recorder.effective = self.effective()
                return

    def _job(self, batch: int) -> dict[str, Any]:
        """What a trainer reports of the job."""
        assert self.spec is not None
        args, total, n_images = self.spec.train_args, batch * self.n_ranks, self.machine.n_images
        epochs = int(args.get("epochs", 100))
        job: dict[str, Any] = {
            "n_images": n_images,
            "n_batches": -(-n_images // max(total, 1)),
            "epochs": epochs,
            "n_closed_epochs": min(int(args.get("close_mosaic", 10)), epochs),
            "nc": 6,
            "accumulate": max(round(int(args.get("nbs", 64)) / max(total, 1)), 1),
        }
        return job | ({"gradient_bytes": self.machine.gradient_bytes} if self.machine.gradient_bytes else {})

    def _end_epoch(self) -> None:
        """Book what the formula says of an epoch's end."""
        assert self.spec is not None
        recorder = self.recorder
        closes = 0 < recorder.job["n_closed_epochs"] < recorder.job["epochs"]
        end = epoch_end(self.machine, self.spec.params, self.spec.train_args, closes=closes)
        recorder.epoch_end = end
        ends_s = sum(s or 0.0 for s in (end.val_s, end.save_s, end.rest_s))
        took_s = 2 * ends_s + (end.reset_s or 0.0) + (end.final_s or 0.0)
        self.t += took_s
        recorder.add_phase("epoch_end", took_s)

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

    def _spend(self, phase: str, seconds: float) -> None:
        self.t += seconds
        self.recorder.phase(phase)


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
