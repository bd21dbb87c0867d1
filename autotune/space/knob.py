"""What is one row of the table of knobs?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autotune.contract import Site, Training, Value
from autotune.space.context import Context
from autotune.space.legal import Legal


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One row of KNOBS; labels, help and comments of exported files come from it."""

    name: str
    site: Site
    training: Training
    doc: str
    needs: str
    """What it takes to have an effect, one sentence; empty when nothing."""
    legal: Legal
    """Value -> what a written value must be, None when it is legal."""
    baseline: Callable[[Context], Value]
    """What the user's own arguments give here."""
    blocked: Callable[[Context], str | None] = lambda _: None
    """Why the knob is inert or impossible here, None when it is not."""
    fits: Callable[[Value, Context], str | None] = lambda _v, _c: None
    """Why one legal value cannot be had here."""
    clamp: Callable[[Value, Context], Value] = lambda v, _: v
    """What a value becomes here, spelled one way."""
    variables: Callable[[Value], dict[str, str]] = lambda _: {}
    """Site ENV: the variables that a value sets; an empty one unsets what the user's shell exports."""


def variable(name: str) -> Callable[[Value], dict[str, str]]:
    """Knob.variables of a knob that is one variable, its value spelled as it is; None unsets it."""
    return lambda value: {name: "" if value is None else str(value)}
