"""The patches of the loop on stand-ins: strides, the progress line, and which batches are reduced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.engine.trainer import BaseTrainer

from autotune.worker.patches import loop
from autotune.worker.patches.ddp import ddp_of
from autotune.worker.patches.sync import GradSync
from tests.worker.trainers import TINY


class FakeCudaTensor(torch.Tensor):
    """A tensor that says it is on a GPU; `.cpu()` gives a plain one."""

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)


def test_both_branches_of_an_end_to_end_loss_keep_their_strides_on_the_host() -> None:
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import DEFAULT_CFG
    from ultralytics.utils.loss import E2ELoss

    model = DetectionModel(TINY, verbose=False)
    model.args = DEFAULT_CFG
    model.model[-1].stride = on_gpu = model.model[-1].stride.as_subclass(FakeCudaTensor)
    model.criterion = E2ELoss(model)
    trainer: Any = BaseTrainer.__new__(BaseTrainer)
    trainer.model, trainer.callbacks = model, {"on_train_start": []}
    with loop.stride_on_cpu(trainer, True):
        trainer.run_callbacks("on_train_start")
        for branch in (model.criterion.one2many, model.criterion.one2one):
            assert type(branch.stride) is torch.Tensor
            assert branch.stride.tolist() == on_gpu.tolist()
    assert model.criterion.one2many.stride is model.criterion.one2one.stride is on_gpu


def test_the_progress_line_reads_the_device_when_due() -> None:
    trainer: Any = type("T", (BaseTrainer,), {}).__new__(BaseTrainer)
    trainer.callbacks, trainer.tloss = {"on_train_batch_start": []}, None
    trainer.__class__ = type("T", (BaseTrainer,), {})
    lines = []
    with loop.log_every(trainer, 3):
        for step in range(8):
            trainer.run_callbacks("on_train_batch_start")
            trainer.tloss = {"box": torch.tensor(float(step)), "cls": torch.tensor(1.0)}
            assert trainer.tloss["box"].item() == step, "the mean itself is a tensor, and up to date"
            lines.append("{:.4g} {:.4g}".format(*trainer.tloss.values()))
            assert len(trainer.tloss) == 2
            assert loop.log_every_in_effect(trainer, 0) == 3
        assert {k: float(v) for k, v in trainer.tloss.items()} == {"box": 7.0, "cls": 1.0}, "what is logged at the end"
        trainer.run_callbacks("on_train_batch_start")
        trainer.run_callbacks("on_train_batch_start")
        trainer.run_callbacks("on_train_batch_start")
        assert loop.log_every_in_effect(trainer, 0) is None, "a line that was due has not been made"
    assert lines == [f"{i} 1" for i in (0, 0, 0, 3, 3, 3, 6, 6)]
    assert type(trainer.tloss) is dict


def test_gradients_that_were_not_reduced_are_refused() -> None:
    class Loop:
        epoch, accumulate = 0, 2
        train_loader = range(3)
        args = type("A", (), {"warmup_epochs": 0.0})
        model = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)

    nn.Module.__init__(Loop.model)
    sync = GradSync(Loop())
    Loop._get_warmup_iterations = lambda self, n: 0
    sync.epoch_start()
    flags, steps, last = [], [], -1
    for epoch in range(4):  # nine batches in epochs of three, and the third epoch once more, as after a NaN
        Loop.epoch = min(epoch, 2)
        last = -1 if epoch == 3 else last
        sync.epoch_start()
        for i in range(3):
            sync.batch_start()
            flags.append(ddp_of(Loop.model).require_backward_grad_sync)
            if (ni := i + 3 * Loop.epoch) - last >= Loop.accumulate:  # the loop's own rule
                sync.optimizer_step(lambda: steps.append(1))
                last = ni
    # The first batch is always reduced; DDP learns the graph from it.
    assert flags == [True, True, *[False, True] * 3, False, True, False, True]
    assert len(steps) == 6
    assert sync.in_effect
    Loop.model.require_backward_grad_sync = False
    with pytest.raises(RuntimeError, match="not reduced together"):
        sync.optimizer_step(lambda: steps.append(1))
    assert len(steps) == 6
