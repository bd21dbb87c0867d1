"""How does Ultralytics' own trainer train on several ranks that torchrun started, also on CPUs with gloo?"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import ultralytics.engine.validator as validator
from torch.nn.parallel import DistributedDataParallel

from autotune.worker.patches.ddp import ddp_of
from autotune.worker.patches.replace import replaced
from autotune.worker.recorder import Recorder


def _cpu_ddp(stock: type[DistributedDataParallel]) -> type[DistributedDataParallel]:
    """The trainer passes device_ids=[device.index], which is [None] on a CPU; torch wants None there.

    A subclass, because Ultralytics asks isinstance of the same name, and of the present class, which patches may be in.
    """

    class CpuDDP(stock):  # type: ignore[valid-type,misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "device_ids": None})

    return CpuDDP


@contextlib.contextmanager
def group_timeout(timeout: timedelta) -> Iterator[None]:
    """Process groups made inside give up after this time, whatever the caller asked for (Ultralytics: 3 hours)."""
    stock = dist.init_process_group

    def impatient(*args: Any, **kwargs: Any) -> None:
        stock(*args, **{**kwargs, "timeout": timeout})

    dist.init_process_group = impatient
    try:
        yield
    finally:
        dist.init_process_group = stock


@contextlib.contextmanager
def final_eval_on_cpu() -> Iterator[None]:
    """A standalone validator inside works on the CPU: in a rank of several Ultralytics asks CUDA for its device."""
    stock_backend, stock_device = validator.AutoBackend, validator.get_torch_device_backend

    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        return stock_backend(*args, **{**kwargs, "device": torch.device("cpu")})

    validator.AutoBackend = on_cpu
    validator.get_torch_device_backend = lambda _: SimpleNamespace(current_device=lambda: 0)
    try:
        yield
    finally:
        validator.AutoBackend, validator.get_torch_device_backend = stock_backend, stock_device


def share_file(path: Path) -> None:
    """Give every rank that cannot see this file (another machine) a copy of rank 0's, at the same path."""
    seen: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, path.exists())
    if not seen[0] or all(seen):
        return
    box = [path.read_bytes() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    if box[0] is not None and not seen[dist.get_rank()]:
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = path.with_name(f".{path.name}.{dist.get_rank()}")
        tmp.write_bytes(box[0])
        tmp.replace(path)


def digest(model: torch.nn.Module) -> str:
    """A short hash of all parameters, to the bit: after any step of DDP it is the same on every rank."""
    total = hashlib.blake2b(digest_size=8)
    for p in model.parameters():
        total.update(p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def ranks_in_effect(trainer: Any) -> dict[str, Any]:
    """What holds the ranks together at this moment; `params` must be the same on all of them."""
    return {
        "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        "dist_backend": dist.get_backend() if dist.is_initialized() else None,
        "ddp": ddp_of(trainer.model) is not None,
        "params_at_start": trainer.params_at_start,
        "params": digest(trainer.model),
    }


class RanksMixin:
    """One rank of several. On CUDA the trainer's own path, only less patient; on CPU what that path lacks.

    A full training keeps Ultralytics' timeout, because rank 0 validates alone for as long as it takes. `_do_train` is
    called as it is; the override points are __init__, _setup_ddp, _setup_train, final_eval and train (ULTRALYTICS 5).
    """

    recorder: Recorder
    params_at_start = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        me: Any = self
        # Older versions spawn their own workers whenever world_size > 1; torchrun has done that.
        me.ddp = False
        # device=cpu gives 0: no DDP, and the loss times 0.
        me.world_size = int(os.environ["WORLD_SIZE"])
        me.add_callback("on_train_start", lambda _: setattr(me, "params_at_start", digest(me.model)))

    def _setup_ddp(self, *args: Any) -> None:
        me: Any = self
        spec = self.recorder.spec
        # The longest honest wait is for one rank that builds the image cache alone.
        patience = timedelta(seconds=spec.deadlines.build_s) if spec.role != "train" else timedelta(hours=3)
        with group_timeout(patience):
            if me.device.type == "cpu":
                dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=me.world_size)
            else:
                super()._setup_ddp(*args)  # type: ignore[misc]
        if spec.role == "train":
            self._agree_on_folder()

    def _agree_on_folder(self) -> None:
        """Every rank looks for checkpoints where rank 0 writes them: alone it would not count the folder's name up.

        Else it finds those of an older run there, or none, and leaves rank 0 alone in the final validation.
        """
        me: Any = self
        box = [str(me.save_dir.absolute())]
        dist.broadcast_object_list(box, src=0)
        me.save_dir = Path(box[0])
        me.args.save_dir, me.args.name = box[0], me.save_dir.name
        me.wdir, me.csv = me.save_dir / "weights", me.save_dir / "results.csv"
        me.last, me.best = me.wdir / "last.pt", me.wdir / "best.pt"

    def _setup_train(self, *args: Any) -> Any:
        me: Any = self
        on_cpu = replaced(torch.nn.parallel, "DistributedDataParallel", _cpu_ddp)
        with on_cpu if me.device.type == "cpu" else contextlib.nullcontext():
            return super()._setup_train(*args)  # type: ignore[misc]

    def final_eval(self) -> None:
        """Validate the best checkpoint on all ranks, whose machines may not share a disk."""
        me: Any = self
        share_file(me.best)
        with final_eval_on_cpu() if me.device.type == "cpu" else contextlib.nullcontext():
            super().final_eval()  # type: ignore[misc]

    def train(self) -> None:
        """Train; after a segment no rank leaves before all have finished their collectives."""
        try:
            super().train()  # type: ignore[misc]
            self.recorder.effective = ranks_in_effect(self)
        except BaseException:
            if self.recorder.over:
                dist.barrier()
            raise
