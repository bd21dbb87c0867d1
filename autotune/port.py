"""What does the search see of the space? The space room's functions with this run's job and machine behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from autotune.contract import Params, Transport
from autotune.run.transport import kinds
from autotune.space.config import Applied, canonical, materialise
from autotune.space.context import Context
from autotune.space.space import Prepared, SearchSpace, prepare
from autotune.space.training import pin_optimizer


@dataclass
class SpacePort:
    """The space of this run with its job and machine behind it (search.plan.SpacePort)."""

    space: SearchSpace
    ctx: Context
    training: str
    prepared: Prepared | None = None

    def prepare(
        self,
        effective: Mapping[str, Any],
        n_images: int | None,
        train_args: Mapping[str, Any] | None = None,
        transport: Transport | None = None,
    ) -> Prepared:
        """Domain and baseline, now that the baseline's effective values are known (or before, with none)."""
        changes: dict[str, Any] = {"effective": dict(effective)}
        if n_images is not None:
            changes["n_images"] = n_images
        if train_args is not None:
            changes["train_args"] = {**self.ctx.train_args, **train_args}
        if transport is not None:
            changes["transports"] = kinds(transport, self.ctx.transports or ())
        self.ctx = replace(self.ctx, **changes)
        self.prepared = prepare(self.space, self.ctx, self.training)
        return self.prepared

    def pin(self, resolved: Mapping[str, Any]) -> dict[str, Any]:
        """YOLO arguments that keep what `auto` became."""
        return pin_optimizer(self.ctx.train_args, dict(resolved))

    def canonical(self, params: Params) -> Params:
        """The one spelling of a configuration."""
        return canonical(params, self.ctx)

    def materialise(self, params: Params) -> Applied:
        """Settings of a configuration."""
        assert self.prepared is not None
        return materialise(params, self.prepared.baseline, self.ctx, self.training)
