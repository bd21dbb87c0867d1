"""How are the values that people write read? As YAML, without YAML 1.1's traps for numbers and dates."""

from __future__ import annotations

import re
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2, and off/on/yes/no still boolean.

    With PyYAML's own rules `1e-3` is a string, `010` is 8, `1:30` is 90 and `2026-11-23` a date.
    """


Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"(?i:true|false|on|off|yes|no)", "tTfFoOyYnN"),
    ("int", r"[-+]?\d+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|(?i:null|none)|", ["~", "n", "N", ""]),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


class Dumper(yaml.SafeDumper):
    """Quotes the texts that Loader would take for something else."""


Dumper.yaml_implicit_resolvers = Loader.yaml_implicit_resolvers


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


Loader.add_constructor("tag:yaml.org,2002:int", _whole)


def load(text: str) -> Any:
    """One YAML document as plain Python values.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, Loader)


def dump(data: Any, *, flow: bool = False) -> str:
    """YAML that `load` reads back to the same values, mappings in their order.

    Args:
        data: mappings, lists and scalars.
        flow: all on one line, as {a: 1, b: [2, 3]}.
    """
    return yaml.dump(
        data, Dumper=Dumper, default_flow_style=flow, width=10**6, sort_keys=False, allow_unicode=True
    ).strip()
