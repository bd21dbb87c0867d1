"""What is wrong with a search-space file? All faults at once, with line numbers and near matches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from autotune.errors import InputError
from autotune.space.knobs import KNOBS
from autotune.space.knobs_nccl import why_not
from autotune.space.legal import same, spell
from autotune.space.near import near
from autotune.space.scalars import Loader, load

Path = tuple[str | int, ...]
Fault = tuple[Path, str]
HINT = "`autotune spaces` lists the knobs; the files in search_spaces/ are examples"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ChoicesSpec(_Strict):
    """`{choices: [8, 16]}`."""

    choices: Annotated[list[Any], Field(min_length=2)]


class RangeSpec(_Strict):
    """`{low: 1, high: 16}`, whole numbers, both ends included."""

    low: StrictInt
    high: StrictInt
    step: Annotated[StrictInt, Field(ge=1)] = 1
    log: StrictBool = False

    @model_validator(mode="after")
    def _ordered(self) -> RangeSpec:
        if self.low >= self.high:
            raise PydanticCustomError("order", f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.step != 1:
            raise PydanticCustomError("log", "log goes without step")
        if self.log and self.low < 1:
            raise PydanticCustomError("log", "log needs low to be at least 1")
        return self


def _kind(spec: Any) -> Literal["choices", "range"] | None:
    if not isinstance(spec, dict):
        return None
    if "choices" in spec:
        return "choices"
    return "range" if {"low", "high"} & spec.keys() else None


Spec = Annotated[
    Annotated[ChoicesSpec, Tag("choices")] | Annotated[RangeSpec, Tag("range")],
    Discriminator(
        _kind, custom_error_type="kind", custom_error_message="must be {choices: [a, b]} or {low: 1, high: 16}"
    ),
]


class SpaceSpec(_Strict):
    """The whole file."""

    name: StrictStr
    doc: StrictStr
    knobs: Annotated[dict[str, Spec], Field(min_length=1)]
    seeds: list[dict[str, Any]] = []


def read_space_file(text: str, source: str) -> SpaceSpec:
    """Read the text of a space file.

    Args:
        text: what stands in it.
        source: its name, for the faults.

    Raises:
        InputError: one line a fault, `FILE:LINE: where: what`.
    """
    try:
        root = yaml.compose(text, Loader)
        data = load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        what = getattr(e, "problem", None) or getattr(e, "reason", None) or "cannot be parsed"
        raise InputError(f"{where}: not YAML: {what}", HINT) from e
    if not isinstance(data, dict) or root is None:
        raise InputError(f"{source}:1: must be a mapping with name, doc and knobs", HINT)
    lines: dict[Path, int] = {}
    faults: list[Fault] = list(_walk(root, (), lines))
    spec = None
    try:
        spec = SpaceSpec.model_validate(data)
    except ValidationError as e:
        faults += [_words(error) for error in e.errors() if error["loc"][-1] != "[key]"]  # a knob's name: see _meaning
    faults += _meaning(data)
    if faults or spec is None:
        found = sorted({(_line(path, lines), _where(path), what) for path, what in faults})
        raise InputError("\n".join(f"{source}:{line}: {where}{what}" for line, where, what in found), HINT)
    return spec


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int]) -> Iterator[Fault]:
    """Note the line of every path; a key given twice (YAML would keep the last one in silence) is a fault."""
    lines.setdefault(path, node.start_mark.line + 1)
    if len(path) > 8:  # an alias may contain itself
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            if here in lines:
                yield here, f"is given twice, first in line {lines[here]}"
                for old in [p for p in lines if p[: len(here)] == here]:  # the last one is what is loaded
                    del lines[old]
            lines[here] = key.start_mark.line + 1
            yield from _walk(value, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _walk(item, (*path, i), lines)


def _line(path: Path, lines: dict[Path, int]) -> int:
    while path not in lines and path:
        path = (*path[:-1], str(path[-1])) if isinstance(path[-1], int) else path[:-1]  # a key can be a number
    return lines[path]


def _where(path: Path) -> str:
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    return f"{text}: " if text else ""


KEYS: dict[str, tuple[str, ...]] = {
    "": tuple(SpaceSpec.model_fields),
    "choices": tuple(ChoicesSpec.model_fields),
    "range": tuple(RangeSpec.model_fields),
}


def _words(error: Any) -> Fault:
    """A fault of pydantic in our words, its path without the union's tag."""
    loc: Path = error["loc"]
    tag = str(loc[2]) if len(loc) > 2 and loc[0] == "knobs" and loc[2] in ("choices", "range") else ""
    path = loc[:2] + loc[3:] if tag else loc
    kind, given = error["type"], error["input"]
    if kind == "missing":
        return path, "is missing"
    if kind in ("extra_forbidden", "invalid_key"):
        return path, f"no such key{near(path[-1], KEYS[tag])}"
    if kind == "too_short":
        least = error["ctx"]["min_length"]
        return path, f"needs at least {least} value{'s' * (least > 1)}, not {len(given)}"
    if kind in ("kind", "order", "log"):
        return path, error["msg"]
    wanted = {
        "int_type": "a whole number",
        "bool_type": "true or false",
        "string_type": "a text",
        "list_type": "a list",
        "dict_type": "a mapping",
        "greater_than_equal": "at least 1",
    }.get(kind)
    return path, f"must be {wanted}, not {_show(given)}" if wanted else error["msg"]


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value) if isinstance(value, str) else spell(value)


def _meaning(data: dict[str, Any]) -> Iterator[Fault]:
    """Faults that need KNOBS; what has the wrong shape is passed over, pydantic names it."""
    knobs = data.get("knobs")
    knobs = knobs if isinstance(knobs, dict) else {}
    for name, spec in knobs.items():
        if name not in KNOBS:
            why = why_not(name)
            yield ("knobs", name), f"no such knob: {why}" if why else f"no such knob{near(name, KNOBS)}"
        elif _kind(spec) == "choices" and isinstance(spec["choices"], list):
            yield from _choices(name, spec["choices"])
        elif _kind(spec) == "range":
            yield from _range(name, spec)
    seeds = data.get("seeds")
    for i, seed in enumerate(seeds if isinstance(seeds, list) else []):
        for name, value in seed.items() if isinstance(seed, dict) else ():
            if name not in knobs:
                what = "is not among this space's knobs" if name in KNOBS else "no such knob"
                yield ("seeds", i, name), what + near(name, map(str, knobs))
            elif not _offers(knobs[name], value):
                yield ("seeds", i, name), f"{_show(value)} is not among the values of the knob"


def _choices(name: str, values: list[Any]) -> Iterator[Fault]:
    for i, value in enumerate(values):
        path = ("knobs", name, "choices", i)
        if isinstance(value, dict | list):
            yield path, f"must be a single value, not {_show(value)}"
        elif what := KNOBS[name].legal(value):
            yield path, f"{what}, not {_show(value)}"
        elif any(same(value, before) for before in values[:i]):
            yield path, f"{_show(value)} stands there twice"


def _range(name: str, spec: dict[str, Any]) -> Iterator[Fault]:
    if KNOBS[name].legal(10**3) and KNOBS[name].legal(1):
        yield ("knobs", name), "takes choices, not a range"
        return
    for end in ("low", "high"):
        value = spec.get(end)
        if type(value) is int and (what := KNOBS[name].legal(value)):
            yield ("knobs", name, end), f"{what}, not {value}"


def _offers(spec: Any, value: Any) -> bool:
    """Whether a knob's values contain this one; true when the knob itself is faulty."""
    if _kind(spec) == "choices" and isinstance(spec["choices"], list):
        return any(same(value, v) for v in spec["choices"])
    low, high, step = (
        (spec.get("low"), spec.get("high"), spec.get("step", 1)) if isinstance(spec, dict) else (None,) * 3
    )
    if type(low) is int and type(high) is int and type(step) is int and step > 0:
        return type(value) is int and value in range(low, high + 1, step)
    return True
