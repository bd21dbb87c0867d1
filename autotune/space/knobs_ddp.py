"""How do several ranks reduce their gradients? Arguments of torch's DDP and of the process group (KNOBS 1.4)."""

from __future__ import annotations

from collections.abc import Callable

from autotune.contract import Site, Training, Value
from autotune.space import here, legal
from autotune.space.context import Context
from autotune.space.knob import Condition, Knob, Now, variable
from autotune.space.training import accumulate, pins

ALONE = "one rank: there are no gradients to reduce"
ON_CPU = "NCCL runs on GPUs only; the ranks on CPU talk by gloo"


def _several(value: Value) -> Callable[[Context], Value]:
    """The baseline of a knob that one rank does not have."""
    return lambda ctx: value if ctx.n_ranks > 1 else None


def _alone(ctx: Context) -> str | None:
    return ALONE if ctx.n_ranks == 1 else None


def _nccl(ctx: Context) -> str | None:
    return _alone(ctx) or (ON_CPU if ctx.device == "cpu" else None)


def _accumulates(now: Now, ctx: Context) -> bool:
    """With the nbs that the batch will be given to keep the training (space/training.py)."""
    total = int(now("batch_per_gpu")) * ctx.n_ranks
    nbs = pins(ctx.train_args, total).get("nbs", ctx.train_args["nbs"])
    return ctx.n_ranks > 1 and accumulate(total, int(nbs)) > 1


def _argument(name: str, training: Training, doc: str, needs: str = "Several ranks.") -> Knob:
    """A switch of DDP that Ultralytics leaves off."""
    return Knob(
        name=name,
        site=Site.PATCH,
        training=training,
        doc=doc,
        needs=needs,
        legal=legal.one_of(True, False),
        baseline=_several(False),
        blocked=lambda ctx: _alone(ctx) or here.ddp_lacks(name),
    )


DDP_KNOBS: dict[str, Knob] = {
    "bucket_cap_mb": Knob(
        name="bucket_cap_mb",
        site=Site.PATCH,
        training=Training.NUMERICS,
        doc="MiB of gradients that DDP reduces at a time; null is torch's own, 25 with a first bucket of 1.",
        needs="Several ranks, and a model with more gradients than one bucket holds.",
        legal=legal.or_null(legal.whole(1)),
        baseline=lambda _: None,
        blocked=_alone,
    ),
    "gradient_as_bucket_view": _argument(
        "gradient_as_bucket_view",
        Training.NEUTRAL,
        "Gradients live in DDP's buckets, which spares one copy of them and its memory.",
    ),
    "batched_grad_copy": _argument(
        "batched_grad_copy",
        Training.NEUTRAL,
        "DDP copies the gradients of a bucket by one kernel in place of one a parameter.",
        "Several ranks, and a torch whose DDP has this argument.",
    ),
    "static_graph": Knob(
        name="static_graph",
        site=Site.PATCH,
        training=Training.NEUTRAL,
        doc="DDP learns the graph from the first step and relies on it.",
        needs="Several ranks, no torch.compile (Ultralytics then sets it), a gradient for every parameter.",
        legal=legal.one_of(True, False),
        baseline=_several(False),
        blocked=_alone,
        condition=Condition(
            knobs=("compile",),
            acts=lambda now, ctx: ctx.n_ranks > 1 and not now("compile"),
            stock=False,
            otherwise="under torch.compile Ultralytics sets it itself",
        ),
    ),
    "find_unused_parameters": Knob(
        name="find_unused_parameters",
        site=Site.PATCH,
        training=Training.NEUTRAL,
        doc="DDP searches each step for parameters without gradient; false only if images without objects leave none.",
        needs="Several ranks, neither torch.compile nor static_graph (both do without the search).",
        legal=legal.one_of(True, False),
        baseline=_several(True),
        blocked=_alone,
        condition=Condition(
            knobs=("compile", "static_graph"),
            acts=lambda now, ctx: ctx.n_ranks > 1 and not now("compile") and not now("static_graph"),
            stock=True,
            otherwise="under torch.compile Ultralytics sets it itself",
        ),
    ),
    "ddp_wrap": Knob(
        name="ddp_wrap",
        site=Site.PATCH,
        training=Training.NUMERICS,
        doc="DDP around the compiled model, or torch.compile around DDP, whose reductions overlap the backward pass.",
        needs="Several ranks and torch.compile.",
        legal=legal.one_of("ddp_of_compiled", "compiled_ddp"),
        baseline=_several("ddp_of_compiled"),
        blocked=_alone,
        condition=Condition(
            knobs=("compile",),
            acts=lambda now, ctx: ctx.n_ranks > 1 and bool(now("compile")),
            stock="ddp_of_compiled",
            otherwise="there is no torch.compile here to put DDP into",
        ),
    ),
    "no_sync": Knob(
        name="no_sync",
        site=Site.PATCH,
        training=Training.NUMERICS,
        doc="Reduce the gradients once an optimizer step, not in each of the batches that it accumulates.",
        needs="Several ranks, and a batch of less than two thirds of nbs.",
        legal=legal.one_of(True, False),
        baseline=_several(False),
        blocked=_alone,
        condition=Condition(
            knobs=("batch_per_gpu",),
            acts=_accumulates,
            stock=False,
            otherwise="every batch ends in an optimizer step",
        ),
    ),
    "blocking_wait": Knob(
        name="blocking_wait",
        site=Site.PATCH,
        training=Training.NEUTRAL,
        doc="TORCH_NCCL_BLOCKING_WAIT, which Ultralytics forces on; off, the host does not wait inside collectives.",
        needs="Several GPUs.",
        legal=legal.one_of(True, False),
        baseline=lambda ctx: True if ctx.n_ranks > 1 and ctx.device == "cuda" else None,
        blocked=_nccl,
    ),
    "nccl_backend": Knob(
        name="nccl_backend",
        site=Site.ENV,
        training=Training.NEUTRAL,
        doc="TORCH_DIST_USE_NCCL2: which of torch's two process groups drives NCCL; legacy is the older one.",
        needs="Several GPUs, and a torch that has both.",
        legal=legal.one_of("nccl2", "legacy"),
        baseline=here.nccl_backend_baseline,
        blocked=lambda ctx: _nccl(ctx) or here.no_nccl2(ctx),
        variables=lambda v: variable("TORCH_DIST_USE_NCCL2")("0" if v == "legacy" else None),
    ),
}
