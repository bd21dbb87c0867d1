"""torchrun --nproc-per-node 2 -m tests.worker.two_ranks DATA.yaml FOLDER JOBS: the same training again and again.

JOBS is JSON, name -> {"patches": {...}, "steps": n, ...YOLO arguments}. Each rank trains every job for its number of
steps, from the same seed, and writes FOLDER/NAME-RANK.pt: losses, batches, parameters, what was in effect, and what
ended it. One process for all jobs: starting torch costs more than they do.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import unwrap_model

from autotune.contract import TrialDir
from autotune.worker.cut_short import SegmentOverError
from autotune.worker.parent import die_with_parent
from autotune.worker.patches import TuneMixin
from autotune.worker.patches.replace import replaced
from autotune.worker.ranks import RanksMixin
from autotune.worker.readback import effective
from autotune.worker.recorder import Recorder
from tests.run.trials import spec

MODEL = str(Path(__file__).parents[1] / "models" / "tiny-detect.yaml")


class Seen(DetectionTrainer):
    """Remembers what it trains on, and stops after some steps."""

    recorder: Recorder
    n_steps: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[float] = []
        self.images: list[list[str]] = []
        self.n_optimizer_steps = 0
        self.shown: dict[str, Any] = {}
        self.add_callback("on_train_batch_end", lambda _: self.after_batch())

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.images.append([Path(f).name for f in batch["im_file"]])
        return super().preprocess_batch(batch)

    def optimizer_step(self) -> None:
        self.n_optimizer_steps += 1
        super().optimizer_step()

    def validate(self) -> tuple[dict[str, float], None]:
        return {}, None

    def after_batch(self) -> None:
        self.losses.append(float(self.loss.detach()))
        if len(self.losses) == self.n_steps:
            self.shown = effective(self, 2)
            self.recorder.over = True
            raise SegmentOverError


def run(data: str, folder: Path, name: str, job: dict[str, Any]) -> None:
    rank = int(os.environ["RANK"])
    patches, n_steps = job.pop("patches", {}), job.pop("steps", 24)
    given = {"model": MODEL, "imgsz": 64, "batch": 4, "nbs": 4, "optimizer": "SGD", "save_dir": str(folder / name)}
    asked = spec(data, patches=patches, **given | job)
    (folder / name).mkdir(exist_ok=True)
    recorder = Recorder(asked, TrialDir(folder / name), rank=rank)
    attributes = {"patches": patches, "recorder": recorder, "n_steps": n_steps}
    trainer: Any = type("T", (TuneMixin, RanksMixin, Seen), attributes)(overrides=dict(asked.train_args))
    ended = "nothing"
    # torchrun's own store still holds the addresses of the group before: each job has one of its own.
    store = dist.FileStore(str(folder / f"{name}.store"), 2)
    try:
        with replaced(dist, "init_process_group", lambda stock: partial(stock, store=store)):
            trainer.train()
    except (SegmentOverError, RuntimeError) as e:
        ended = f"{type(e).__name__}: {e}"
    params = [p.detach().clone() for p in unwrap_model(trainer.model).parameters()]
    record = {
        "losses": trainer.losses,
        "images": trainer.images,
        "params": params,
        "effective": trainer.shown,
        "n_optimizer_steps": trainer.n_optimizer_steps,
        "ended": ended,
    }
    torch.save(record, folder / f"{name}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    die_with_parent()
    for name, job in json.loads(sys.argv[3]).items():
        run(sys.argv[1], Path(sys.argv[2]), name, job)
    sys.stdout.flush()
    os._exit(0)
