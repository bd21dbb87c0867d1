"""What is one row of the table of knobs?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autotune.contract import Site, Training, Value
from autotune.space.context import Context
from autotune.space.legal import Legal

Now = Callable[[str], Any]
"""Knob -> its value in the configuration that is asked about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Of a knob that acts only with some values of others; with the rest of them it is spelled None."""

    knobs: tuple[str, ...]
    """Those others; one of them that has a condition itself stands above in the table."""
    acts: Callable[[Now, Context], bool]
    """Given the values of `knobs`."""
    stock: Value
    """What Ultralytics does by itself where the knob acts."""
    otherwise: str
    """Why it is not searched, where it acts with no value of the others."""


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
    condition: Condition | None = None
    variables: Callable[[Value], dict[str, str]] = lambda _: {}
    """Site ENV: the variables that a value sets; an empty one unsets what the user's shell exports."""


def variable(name: str) -> Callable[[Value], dict[str, str]]:
    """Knob.variables of a knob that is one variable, its value spelled as it is; None unsets it."""
    return lambda value: {name: "" if value is None else str(value)}
