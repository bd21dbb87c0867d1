"""How do the types become JSON files, whole or not at all, and come back?"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from autotune.contract.words import FORMAT
from autotune.errors import FormatError

T = TypeVar("T")


def to_dict(obj: Any) -> Any:
    """Dataclass -> plain JSON types (recursive)."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: to_dict(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, dict):
        return {str(k): to_dict(v) for k, v in obj.items()}
    if isinstance(obj, list | tuple):
        return [to_dict(v) for v in obj]
    if isinstance(obj, StrEnum):
        return obj.value
    return obj


def from_dict(cls: type[T], data: dict[str, Any]) -> T:
    """Plain JSON types -> dataclass; keys it does not know are refused.

    Raises:
        FormatError: the file is newer than this autotune, or a field is missing or unknown.
    """
    version = data.get("format", FORMAT) if isinstance(data, dict) else FORMAT
    if isinstance(version, int) and version > FORMAT:
        raise FormatError(
            f"{cls.__name__} has format {data['format']}, this autotune reads up to {FORMAT}",
            "update autotune: pip install -U yolo-autotune",
        )
    try:
        return typing.cast(T, _build(cls, data))
    except (TypeError, KeyError, ValueError) as e:
        raise FormatError(f"cannot read a {cls.__name__}: {e}", "the file is damaged or not one of autotune's") from e


def _build(tp: Any, value: Any) -> Any:
    """Value of JSON -> value of the annotated type, for the few shapes this contract uses."""
    if dataclasses.is_dataclass(tp) and isinstance(tp, type):
        if not isinstance(value, dict):
            raise TypeError(f"expected an object for {tp.__name__}")
        hints = typing.get_type_hints(tp)
        unknown = set(value) - {f.name for f in dataclasses.fields(tp)}
        if unknown:
            raise TypeError(f"unknown fields {sorted(unknown)}")
        return tp(**{k: _build(hints[k], v) for k, v in value.items()})
    origin = typing.get_origin(tp)
    if origin is tuple and value is not None:
        return tuple(_build(typing.get_args(tp)[0], v) for v in value)
    if origin is list:
        return [_build(typing.get_args(tp)[0], v) for v in value]
    if origin is dict:
        vt = typing.get_args(tp)[1]
        return {k: _build(vt, v) for k, v in value.items()}
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(tp) if a is not type(None)]
        return _build(inner[0], value) if value is not None and len(inner) == 1 else value
    if isinstance(tp, type) and issubclass(tp, StrEnum):
        return tp(value)
    return value


def write_json(path: Path, obj: Any) -> None:
    """Write whole or not at all: a temporary name, fsync, rename."""
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with tmp.open("w", encoding="utf-8") as f:
        json.dump(to_dict(obj), f, indent=1, ensure_ascii=False, allow_nan=False)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
    tmp.replace(path)


def read_json(path: Path, cls: type[T]) -> T:
    """Read one of our files.

    Raises:
        FormatError: missing, damaged or newer than this autotune.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise FormatError(f"{path} does not exist", "is this a run folder or a trial folder of autotune?") from e
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise FormatError(f"{path} cannot be read: {e}") from e
    return from_dict(cls, data)
