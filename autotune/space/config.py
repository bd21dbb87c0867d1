"""How is a configuration spelled one way, and how is it put into effect?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from autotune.contract import Params, Site
from autotune.space.context import CUDAGRAPH_MODES, Context, n_batches
from autotune.space.knobs import KNOBS
from autotune.space.legal import same
from autotune.space.training import pins


def baseline_params(names: Iterable[str], ctx: Context) -> Params:
    """What the user's own arguments really give here, for these knobs.

    Values that the baseline's own run reported (`ctx.effective`) win over what is predicted.
    """
    whole = {name: ctx.effective.get(name, knob.baseline(ctx)) for name, knob in KNOBS.items()}
    whole = canonical(whole, ctx)
    return {name: whole[name] for name in names}


def canonical(params: Params, ctx: Context) -> Params:
    """The same configuration spelled one way, so that two that run alike compare equal.

    Values are replaced by what they become here (workers above the cap, a cache that cannot fit), values inert in this
    combination by None (prefetch_factor without workers). Knobs that are not in `params` are as in the baseline.
    """
    out = {name: KNOBS[name].clamp(value, ctx) for name, value in params.items()}

    def now(name: str) -> Any:
        return out[name] if name in out else ctx.effective.get(name, KNOBS[name].baseline(ctx))

    batches = n_batches(int(now("batch_per_gpu")), ctx)
    if "workers" in out and batches is not None:
        out["workers"] = min(now("workers"), 0 if batches <= 1 else batches)
    for name, knob in KNOBS.items():
        if name in out and (condition := knob.condition):
            stock = condition.stock if out[name] is None else out[name]
            out[name] = stock if condition.acts(now, ctx) else None
    # reported to hang together (KNOBS 1.8), and the graphs' private pools gain nothing from growing segments
    if (
        "alloc_conf" in out
        and now("compile") in CUDAGRAPH_MODES
        and "expandable_segments:True" in str(out["alloc_conf"])
    ):
        out["alloc_conf"] = None
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A configuration as the trial needs it."""

    train_args: dict[str, Any]
    env: dict[str, str] = field(default_factory=dict)
    patches: Params = field(default_factory=dict)


def materialise(params: Params, baseline: Params, ctx: Context, training: str) -> Applied:
    """Put into effect what differs from the baseline, and leave everything else as the user wrote it.

    Args:
        params: canonical values; a subset of the knobs is fine.
        baseline: what the user's own arguments give, at least for the knobs in `params`.
        ctx: the job on this machine.
        training: same, bounded or any; `any` leaves nbs and weight_decay alone where the batch cannot keep them.
    """
    args = dict(ctx.train_args)
    env: dict[str, str] = {}
    patches: Params = {}
    for name, value in params.items():
        if same(value, baseline[name]):
            continue
        if name == "batch_per_gpu":
            total = int(value or 0) * ctx.n_ranks
            args |= pins(ctx.train_args, total, training) | {"batch": total}
        elif KNOBS[name].site is Site.ENV:
            env |= KNOBS[name].variables(value)
        elif KNOBS[name].site is Site.PATCH or (ctx.device == "cpu" and name in ("workers", "channels_last")):
            condition = KNOBS[name].condition
            stock = condition.stock if condition and baseline[name] is None else None
            if value is not None and not same(value, stock):  # neither inert, nor what Ultralytics does by itself
                patches[name] = value
        else:
            args[name] = value
    return Applied(train_args=args, env=env, patches=patches)
