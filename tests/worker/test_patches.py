"""Every patch of the table applies, shows in `effective`, and leaves no trace."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import ultralytics.data.build as build
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer

from autotune.contract import RankRecord, Site
from autotune.run.outcome import mismatches
from autotune.space.knobs import KNOBS
from autotune.worker.patches import PATCHES, TuneMixin, probe
from autotune.worker.patches.compute import is_channels_last
from autotune.worker.patches.ddp import BLOCKING_WAIT
from autotune.worker.readback import effective
from tests.run.trials import spec
from tests.worker.trainers import TINY

VALUES: dict[str, Any] = {
    "workers": 2,
    "channels_last": True,
    "prefetch_factor": 7,
    "pin_memory": True,
    "val_workers": 2,
    "torch_threads": 3,
    "cudnn_benchmark": True,
    "fp32_precision": "ieee",
    "activation_memory_budget": 0.5,
    "fused_sgd": True,
    "log_every": 3,
    "stride_on_cpu": True,
    "gc_freeze": True,
    "empty_cache": False,
    "bucket_cap_mb": 25,
    "gradient_as_bucket_view": True,
    "batched_grad_copy": True,
    "find_unused_parameters": False,
    "static_graph": True,
    "ddp_wrap": "compiled_ddp",
    "no_sync": True,
    "blocking_wait": False,
}
"""A value of each that the tiny job on a CPU does not have by itself; strides are there anyway, see their own test."""
NEEDS: dict[str, dict[str, Any]] = {
    "prefetch_factor": {"patches": {"workers": 2}},
    "fused_sgd": {"optimizer": "SGD"},
    "activation_memory_budget": {"compile": True},
    "ddp_wrap": {"compile": True},
}


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone, in which DDP can be made; started by the trainer's own call."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


class GroupOfOne(DetectionTrainer):
    """A trainer that believes in two ranks, one of which is there; its set-up is Ultralytics' own."""

    store: Path
    params_at_start = ""

    def _setup_ddp(self) -> None:
        dist.init_process_group("gloo", init_method=f"file://{self.store}", rank=0, world_size=1)

    def set_up(self) -> None:
        """All that comes before the first step."""
        self._setup_ddp()
        wanted = nn.parallel.DistributedDataParallel
        # device_ids=[None] is refused on a CPU
        cpu = type(
            "CpuDDP", (wanted,), {"__init__": lambda s, *a, **k: wanted.__init__(s, *a, **k | {"device_ids": None})}
        )
        nn.parallel.DistributedDataParallel = cpu
        try:
            self._setup_train()
        finally:
            nn.parallel.DistributedDataParallel = wanted
        self.epoch = 0
        self.run_callbacks("on_train_start")


def make(data: Path, folder: Path, *, patches: dict[str, Any] | None = None, **args: Any) -> Any:
    given = {"model": TINY, "imgsz": 64, "batch": 8, "nbs": 16, "optimizer": "AdamW", "save_dir": str(folder / "yolo")}
    cls = type("T", (TuneMixin, GroupOfOne), {"patches": patches or {}, "store": folder / "store"})
    trainer: Any = cls(overrides=dict(spec(data, **given | args).train_args))
    trainer.world_size = 2
    return trainer


def places(trainer: Any) -> dict[str, Any]:
    """Everything that a patch may touch."""
    return {
        "own": {k for k in vars(trainer) if callable(getattr(type(trainer), k, None))},
        "attributes": {k for k in ("progress", "grad_sync") if hasattr(trainer, k)},
        "callbacks": {k: len(v) for k, v in trainer.callbacks.items() if v},
        "class": set(vars(type(trainer))),
        "workers": trainer.args.workers,
        "loader": build.InfiniteDataLoader,
        "ddp": nn.parallel.DistributedDataParallel,
        "init": dist.init_process_group,
        "sgd": torch.optim.SGD,
        "threads": torch.get_num_threads(),
        "cudnn": torch.backends.cudnn.benchmark,
        "conv": torch.backends.cudnn.conv.fp32_precision,
        "matmul": torch.backends.cuda.matmul.fp32_precision,
        "budget": torch._functorch.config.activation_memory_budget,
        "frozen": gc.get_freeze_count(),
        "blocking_wait": os.environ.get(BLOCKING_WAIT),
    }


def test_the_table_is_that_of_the_knobs() -> None:
    assert set(VALUES) == set(PATCHES)
    sites = {name for name, knob in KNOBS.items() if knob.site is Site.PATCH}
    assert set(PATCHES) == sites | {"workers", "channels_last"}  # YOLO's own arguments, ignored on CPU
    for name, value in VALUES.items():
        assert KNOBS[name].legal(value) is None


COMPILES = ("activation_memory_budget", "ddp_wrap")


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in COMPILES)) for n in PATCHES])
def test_a_patch_applies_shows_and_reverts(name: str, tiny: Path, tmp_path: Path) -> None:
    needs = dict(NEEDS.get(name, {}))
    other = needs.pop("patches", {})
    trainer = make(tiny, tmp_path, patches={**other, name: VALUES[name]}, **needs)
    before = places(trainer)
    with trainer.patched():
        trainer.set_up()
        shown = effective(trainer, 2)
    assert shown[name] == VALUES[name]
    assert type(shown[name]) is type(VALUES[name])
    assert places(trainer) == before


@pytest.fixture(scope="module")
def stock(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    trainer = make(tiny, tmp_path_factory.mktemp("stock"), optimizer="SGD")
    with trainer.patched():
        trainer.set_up()
        shown = effective(trainer, 2)
    dist.destroy_process_group()
    return shown


@pytest.mark.parametrize("name", sorted(set(PATCHES) - {"stride_on_cpu"}))
def test_stock_training_does_not_show_it(name: str, stock: dict[str, Any]) -> None:
    assert stock[name] != VALUES[name]


def test_reverts_after_an_error(tiny: Path, tmp_path: Path) -> None:
    trainer = make(tiny, tmp_path, patches=VALUES)
    before = places(trainer)
    with pytest.raises(RuntimeError, match="stop"), trainer.patched():
        raise RuntimeError("stop")
    assert places(trainer) == before


def test_channels_last_is_read_from_the_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3))
    assert not is_channels_last(model)
    assert is_channels_last(model.to(memory_format=torch.channels_last))
    assert not is_channels_last(nn.Conv2d(3, 8, 1)), "a 1x1 kernel cannot tell"


@pytest.mark.usefixtures("group")
def test_loaders_get_their_own_settings(tiny: Path, tmp_path: Path) -> None:
    trainer = make(tiny, tmp_path, patches={"workers": 1, "prefetch_factor": 3, "val_workers": 2}, batch=16)
    with trainer.patched():
        trainer.set_up()
    assert (trainer.train_loader.num_workers, trainer.train_loader.prefetch_factor) == (1, 3)
    assert (trainer.test_loader.num_workers, trainer.test_loader.prefetch_factor) == (2, 2)


class OneUnused(nn.Module):
    """A model with a parameter that only images with objects reach, as a head's box branch once was (KNOBS 0.16)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.boxes = nn.Parameter(torch.ones(1))
        self.register_buffer("stride", torch.tensor([32.0]))
        self.criterion = None

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
        self.criterion = "made"
        loss = self.drop(self.norm(batch["img"] + torch.rand(1))).mean()
        return (loss + self.boxes.sum() * batch["cls"].sum() if len(batch["cls"]) else loss), None


def test_the_probe_finds_what_no_empty_image_reaches_and_leaves_no_trace() -> None:
    model = OneUnused().eval()
    batch = {"img": torch.randn(2, 3, 8, 8), "cls": torch.zeros(0, 1)}
    model.boxes.grad = grad = torch.full((1,), 7.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state, rng = random.getstate(), torch.get_rng_state()
    assert probe.unused_parameters(model, batch) == ["boxes"]
    assert probe.unused_parameters(model, {**batch, "cls": torch.ones(1, 1)}) == []
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.boxes.grad is grad
    assert model.norm.weight.grad is None
    assert torch.equal(torch.get_rng_state(), rng)
    assert random.getstate() == state
    assert not model.training
    assert model.criterion is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "suffix", "model"),
    [
        ("detect", "", "DetectionModel"),
        ("segment", "-seg", "SegmentationModel"),
        ("pose", "-pose", "PoseModel"),
        ("obb", "-obb", "OBBModel"),
        ("classify", "-cls", "ClassificationModel"),
    ],
)
def test_the_probe_can_be_made_for_every_task(task: str, suffix: str, model: str) -> None:
    from ultralytics.nn import tasks
    from ultralytics.utils import DEFAULT_CFG

    built = getattr(tasks, model)(f"yolo26n{suffix}.yaml", verbose=False)
    built.args = DEFAULT_CFG
    trainer = SimpleNamespace(
        device=torch.device("cpu"),
        model=built,
        data={"channels": 3, "kpt_shape": [17, 3]},
        args=SimpleNamespace(task=task),
    )
    for name, p in built.named_parameters():
        p.requires_grad = ".dfl" not in name
    assert probe.unused_parameters(built, probe.object_less_batch(trainer)) == []


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("name", ["find_unused_parameters", "static_graph"])
def test_a_model_with_an_unused_parameter_keeps_the_search(name: str, tiny: Path, tmp_path: Path) -> None:
    class Extra(GroupOfOne):
        def get_model(self, *args: Any, **kwargs: Any) -> Any:
            model = super().get_model(*args, **kwargs)
            model.never = nn.Parameter(torch.ones(1))
            return model

    trainer = make(tiny, tmp_path, patches={name: VALUES[name]})
    trainer.__class__ = type("T", (TuneMixin, Extra), {"patches": trainer.patches, "store": trainer.store})
    with trainer.patched():
        trainer.set_up()
        shown = effective(trainer, 2)
    assert shown["find_unused_parameters"] is True
    assert shown["static_graph"] is False
    record = RankRecord(rank=0, status="done", effective=shown)
    asked = spec(tiny, changes={name: VALUES[name]})
    assert mismatches(asked, record) == [(name, VALUES[name], not VALUES[name])]


class Stock:
    trained = False

    def train(self) -> None:
        self.trained = True


@pytest.mark.parametrize("tolerant", [True, False])
def test_a_full_training_goes_on_without_what_cannot_be_applied(
    tolerant: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def moved(trainer: Any, value: Any) -> Any:
        return trainer.an_internal_that_moved

    monkeypatch.setitem(PATCHES, "gc_freeze", moved)
    bases = (TuneMixin, Stock)
    unknown = type("Tuned", bases, {"patches": {"nonesuch": 1}, "tolerant": tolerant})
    broken = type("Tuned", bases, {"patches": {"gc_freeze": True}, "tolerant": tolerant})
    if not tolerant:
        with pytest.raises(ValueError, match="no such patch: nonesuch"):
            unknown()
        with pytest.raises(AttributeError, match="an_internal_that_moved"):
            broken().train()
        return
    for cls, name in ((unknown, "nonesuch=1"), (broken, "gc_freeze=True")):
        trainer = cls()
        trainer.train()
        assert trainer.trained
        assert f"{name} is left out" in caplog.text
