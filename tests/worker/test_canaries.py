"""What the patches lean on inside Ultralytics and torch: when one of these fails, it says what moved.

They read source and signatures, or build a tiny object; what the knobs do is tested elsewhere.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import ultralytics.data.build as build
import ultralytics.engine.trainer as engine
from torch.nn.parallel.distributed import DistributedDataParallel
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT
from ultralytics.utils.torch_utils import unwrap_model

from autotune.worker.patches.loop import criteria
from tests.worker.trainers import TINY


def source(function: Any) -> str:
    """Its code in one spelling: no comments, one kind of quotes, one spacing."""
    return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))


SETUP, LOOP, GROUP = source(BaseTrainer._setup_train), source(BaseTrainer._do_train), source(BaseTrainer._setup_ddp)
LEANED_ON = [
    (
        SETUP,
        "nn.parallel.DistributedDataParallel(self.model",
        "Ultralytics no longer wraps with nn.parallel.DistributedDataParallel in _setup_train: ddp knobs do nothing",
    ),
    (
        SETUP,
        "find_unused_parameters=not bool(self.args.compile)",
        "Ultralytics passes another find_unused_parameters to DDP: the baseline of that knob is wrong",
    ),
    (
        SETUP,
        "'static_graph': bool(self.args.compile)",
        "Ultralytics passes another static_graph to DDP: the baseline of that knob is wrong",
    ),
    (
        SETUP,
        "self.model = attempt_compile(self.model",
        "Ultralytics no longer compiles the model before it wraps it: ddp_wrap does nothing",
    ),
    (
        SETUP,
        "self.run_callbacks('on_pretrain_routine_end')",
        "_setup_train no longer ends with on_pretrain_routine_end: ddp_wrap cannot compile around DDP",
    ),
    (
        SETUP,
        "self._build_train_pipeline()",
        "_setup_train builds its loaders elsewhere: the loader knobs may come too late",
    ),
    (
        GROUP,
        "os.environ['TORCH_NCCL_BLOCKING_WAIT'] = '1'",
        "Ultralytics no longer forces TORCH_NCCL_BLOCKING_WAIT: the knob blocking_wait has another baseline",
    ),
    (
        GROUP,
        "dist.init_process_group(",
        "Ultralytics no longer calls dist.init_process_group in _setup_ddp: blocking_wait and the timeout do nothing",
    ),
    (
        LOOP,
        "if ni - last_opt_step >= self.accumulate:\n",
        "Ultralytics decides otherwise when to step: no_sync would reduce the wrong batches (its guard would refuse)",
    ),
    (
        LOOP,
        "ni = i + nb * epoch",
        "Ultralytics counts its batches otherwise: no_sync would reduce the wrong ones (its guard would refuse)",
    ),
    (
        LOOP,
        "if nw and ni <= nw:",
        "Ultralytics' warm-up ends elsewhere: no_sync might act while accumulate still ramps",
    ),
    (
        LOOP,
        "self.run_callbacks('on_train_batch_start')",
        "_do_train no longer calls on_train_batch_start: no_sync and log_every do nothing",
    ),
    (
        LOOP,
        "*self.tloss.values()",
        "the progress line is no longer made of self.tloss.values(): log_every does nothing",
    ),
    (
        LOOP,
        "self.tloss[k] * i + v",
        "the running means are no longer updated by key: log_every might show old numbers in the results",
    ),
    (
        LOOP,
        "self._clear_memory(",
        "_do_train no longer calls self._clear_memory: empty_cache does nothing",
    ),
    (
        LOOP,
        "self.run_callbacks('on_train_start')",
        "_do_train no longer calls on_train_start: gc_freeze and stride_on_cpu do nothing",
    ),
    (
        source(BaseTrainer._build_train_pipeline),
        "self.build_optimizer(",
        "the optimizer is no longer built by self.build_optimizer: fused_sgd does nothing",
    ),
    (
        source(BaseTrainer.build_optimizer),
        "getattr(optim, name)",
        "build_optimizer no longer takes the class from torch.optim: fused_sgd does nothing",
    ),
    (
        source(BaseTrainer._handle_nan_recovery),
        "return True",
        "an epoch with a NaN is no longer done again: no_sync may forget its last step without need",
    ),
    (
        source(build.build_dataloader),
        "InfiniteDataLoader(",
        "build_dataloader no longer makes an InfiniteDataLoader: the loader knobs do nothing",
    ),
    (
        source(BaseTrainer.__init__),
        "self.args.workers = 0",
        "Ultralytics no longer sets workers to 0 on CPU: the patch of workers is not needed",
    ),
]


@pytest.mark.parametrize(("code", "words", "moved"), LEANED_ON, ids=[words[:40] for _, words, _ in LEANED_ON])
def test_the_code_leaned_on_is_there(code: str, words: str, moved: str) -> None:
    assert words in code, moved


@pytest.mark.parametrize("argument", ["prefetch_factor", "pin_memory", "num_workers"])
def test_the_loader_is_made_by_keyword(argument: str) -> None:
    moved = f"build_dataloader no longer passes {argument} by keyword: the loader knobs cannot change it"
    assert f"{argument}=" in source(build.build_dataloader).split("return InfiniteDataLoader(")[1], moved


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("get_dataloader", ["dataset_path", "batch_size", "rank", "mode"]),
        ("build_optimizer", ["model", "name"]),
        ("_clear_memory", ["threshold"]),
        ("optimizer_step", []),
        ("setup_model", []),
        ("_get_warmup_iterations", ["num_batches"]),
    ],
)
def test_methods_keep_their_parameters(method: str, parameters: list[str]) -> None:
    found = list(inspect.signature(getattr(DetectionTrainer, method)).parameters)[1:]
    assert found[: len(parameters)] == parameters, f"Ultralytics calls {method}{tuple(found)}: its patch may not fit"


@pytest.mark.parametrize(
    "argument", ["bucket_cap_mb", "gradient_as_bucket_view", "static_graph", "find_unused_parameters"]
)
def test_ddp_still_takes_its_arguments(argument: str) -> None:
    assert argument in inspect.signature(DistributedDataParallel.__init__).parameters, (
        f"torch's DDP has no argument {argument} any more: the knob does nothing"
    )


def test_ddp_still_has_the_switch_of_no_sync() -> None:
    assert "require_backward_grad_sync" in source(DistributedDataParallel.no_sync), (
        "torch's DDP.no_sync no longer sets require_backward_grad_sync: the knob no_sync does nothing"
    )


def test_the_running_means_are_a_dict() -> None:
    model = DetectionModel(TINY, verbose=False)
    model.args = DEFAULT_CFG
    batch = {"img": torch.zeros(2, 3, 64, 64), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    items = model({**batch, "batch_idx": torch.zeros(0)})[1]
    assert type(items) is dict, "the model returns its loss items as no dict: log_every reads every step, as stock"


def test_the_loss_keeps_its_strides_as_a_tensor() -> None:
    model = DetectionModel(TINY, verbose=False)
    model.args = DEFAULT_CFG
    assert len(list(criteria(model.init_criterion()))) >= 1, (
        "the detection loss no longer keeps a tensor `stride`: stride_on_cpu does nothing"
    )


def test_a_new_model_has_no_criterion() -> None:
    assert getattr(DetectionModel(TINY, verbose=False), "criterion", None) is None, (
        "models are built with their criterion: stride_on_cpu and the unused-parameter probe expect none"
    )


def test_unwrap_model_looks_through_both_wraps() -> None:
    inner = torch.nn.Identity()
    compiled = SimpleNamespace(_orig_mod=torch.nn.Sequential())
    compiled._orig_mod.module = inner
    assert unwrap_model(compiled) is inner, (
        "unwrap_model no longer looks through torch.compile around DDP: ddp_wrap=compiled_ddp would break the loss"
    )


def test_only_rank_0_and_a_single_process_print_a_progress_line() -> None:
    line = LOOP.split("*self.tloss.values()")[0].rsplit("if RANK in {", 1)
    assert len(line) == 2, "the progress line is no longer that of rank 0 alone: log_every's reading is wrong"
    assert line[1].startswith("-1, 0}"), "the progress line is no longer that of rank 0 alone"


def test_precision_is_spelled_as_the_knob_says() -> None:
    assert "amp" in DEFAULT_CFG_DICT, "Ultralytics has no argument amp: the knob does nothing"
    assert "bf16" in inspect.getsource(engine), "Ultralytics no longer knows amp=bf16: the knob offers what is refused"
    for operation in (torch.backends.cudnn.conv, torch.backends.cuda.matmul):
        assert hasattr(operation, "fp32_precision"), "torch has no fp32_precision any more: the knob does nothing"
