"""Is a value that somebody wrote for a knob one that could ever work, on any machine? None, or what it must be."""

from __future__ import annotations

import re
from collections.abc import Callable

from autotune.contract import Value

Legal = Callable[[Value], str | None]


def whole(minimum: int) -> Legal:
    """A whole number of at least `minimum`; True is not 1."""

    def check(value: Value) -> str | None:
        good = type(value) is int and value >= minimum
        return None if good else f"must be a whole number of at least {minimum}"

    return check


def one_of(*values: Value) -> Legal:
    """Exactly one of these, False being something else than 0."""

    def check(value: Value) -> str | None:
        if any(same(value, v) for v in values):
            return None
        return "must be one of " + ", ".join(spell(v) for v in values)

    return check


def or_null(check: Legal) -> Legal:
    """Also null."""
    return lambda value: None if value is None else check(value)


def share(value: Value) -> str | None:
    """A number above 0, up to 1."""
    good = type(value) is float and 0 < value <= 1
    return None if good else "must be a number above 0.0, up to 1.0"


def alloc_conf(value: Value) -> str | None:
    """One option of the CUDA caching allocator (KNOBS 1.8: an illegal one ends the process at its first allocation)."""
    if value is None:
        return None
    key, _, text = str(value).partition(":")
    if key == "expandable_segments":
        return None if text in ("True", "False") else "expandable_segments must be True or False"
    if key == "garbage_collection_threshold":
        good = re.fullmatch(r"0?\.\d+", text) is not None and 0 < float(text) < 1
        return None if good else "garbage_collection_threshold must lie between 0 and 1, both excluded"
    if key == "max_split_size_mb":
        return (
            None if text.isdecimal() and int(text) >= 20 else "max_split_size_mb must be a whole number of at least 20"
        )
    return "must be expandable_segments:True, garbage_collection_threshold:0.8, max_split_size_mb:128 or the like"


def same(a: Value, b: Value) -> bool:
    """Equality that tells False from 0 and True from 1."""
    return type(a) is type(b) and a == b


def spell(value: Value) -> str:
    """A value as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
