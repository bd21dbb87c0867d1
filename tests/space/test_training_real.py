"""Ultralytics' own arithmetic on twenty jobs: does the best train as the baseline does?

Its trainer builds optimizer, accumulate and weight decay from the arguments and from the number of images alone, so a
loader that only has a length is enough; everything else here is the real code.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.contract import Machine
from autotune.space.config import baseline_params, materialise
from autotune.space.context import Context
from autotune.space.space import load_space, prepare
from autotune.space.training import pin_optimizer
from autotune.space.yolo_args import job_args

MACHINE = Machine(hostname="h", cpu="c", n_cores=2, n_cores_host=2, ram_bytes=1 << 36, shm_bytes=1 << 30)
JOBS = [
    {"n_images": n, "epochs": epochs, "batch": batch, "optimizer": optimizer}
    for (n, epochs), (batch, optimizer) in itertools.product(
        [(1280, 10), (5000, 150), (40_000, 100), (118_000, 300)],
        [(16, "auto"), (24, "auto"), (64, "auto"), (128, "auto"), (32, "SGD")],
    )
]


def build(args: dict[str, Any], n_images: int) -> dict[str, Any]:
    """What Ultralytics makes of these arguments."""
    import torch
    from ultralytics.cfg import get_cfg
    from ultralytics.models.yolo.detect import DetectionTrainer

    trainer = DetectionTrainer.__new__(DetectionTrainer)
    trainer.args = get_cfg(overrides={k: v for k, v in args.items() if k not in ("device", "task", "mode")})
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 8, 3))
    trainer.model = torch.nn.Module()
    trainer.model.model = layers  # MuSGD looks at the last layer of model.model, the head
    trainer.data = {"train": "train", "val": "val", "nc": 6}
    trainer.device = torch.device("cpu")
    trainer.batch_size, trainer.epochs, trainer.world_size = trainer.args.batch, trainer.args.epochs, 0
    trainer.stride, trainer.optimizer, trainer.class_weights = 32, None, None

    class Loader:
        batch_size, drop_last, dataset, sampler = trainer.args.batch, False, range(n_images), range(n_images)

        def __len__(self) -> int:
            return -(-n_images // self.batch_size)

    trainer.get_dataloader = lambda *_, **__: Loader()  # type: ignore[method-assign]
    from ultralytics.engine.trainer import BaseTrainer

    BaseTrainer._build_train_pipeline(trainer)
    groups = [g for g in trainer.optimizer.param_groups if g.get("weight_decay")]
    first = trainer.optimizer.param_groups[0]
    return {
        "effective batch": trainer.batch_size * trainer.accumulate,
        "decay": pytest.approx(groups[0]["weight_decay"]),
        "optimizer": type(trainer.optimizer).__name__,
        "lr": [g["lr"] for g in trainer.optimizer.param_groups],
        "momentum": first["betas"][0] if "betas" in first else trainer.args.momentum,
        "warmup_bias_lr": trainer.args.warmup_bias_lr,
        "args": SimpleNamespace(optimizer=trainer.args.optimizer, lr0=trainer.args.lr0),
    }


@pytest.mark.parametrize("job", JOBS, ids=lambda j: f"{j['n_images']}x{j['epochs']}-{j['batch']}-{j['optimizer']}")
def test_every_candidate_trains_as_the_baseline(job: dict[str, Any]) -> None:
    user = {"epochs": job["epochs"], "batch": job["batch"], "optimizer": job["optimizer"]}
    ctx = Context(
        machine=MACHINE, task="detect", device="cpu", n_ranks=1, train_args=job_args(user), n_images=job["n_images"]
    )
    prepared = prepare(load_space("cpu"), ctx, "same")
    own = build(job_args(user), job["n_images"])
    resolved = {
        "optimizer": own["optimizer"],
        "lr0": own["args"].lr0,
        "momentum": own["momentum"],
        "warmup_bias_lr": own["warmup_bias_lr"],
    }
    batches = prepared.domain["batch_per_gpu"]
    assert len(batches) >= 2
    baseline = baseline_params(prepared.baseline, ctx)
    for batch in batches:
        applied = materialise({**baseline, "batch_per_gpu": batch}, baseline, ctx, "same")
        args = {**applied.train_args, **pin_optimizer(ctx.train_args, resolved)}
        other = build(args, job["n_images"])
        del other["args"]
        assert other == {k: v for k, v in own.items() if k != "args"}, f"batch {batch}"


def test_without_the_pins_the_optimizer_would_change() -> None:
    # ULTRALYTICS 1.5: 5,000 images, 150 epochs: batch 64 is trained by MuSGD, batch 128 by AdamW.
    args = job_args({"epochs": 150, "batch": 64})
    assert build(args, 5000)["optimizer"] == "MuSGD"
    assert build({**args, "batch": 128}, 5000)["optimizer"] == "AdamW"
