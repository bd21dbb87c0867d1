"""Which distributions does a training import here, in which versions? For constraints.txt of the export."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOTS: Final = ("ultralytics", "torch", "torchvision", "yolo-autotune")
"""What a training needs, and what `autotune train` needs; the rest follows from their requirements."""


@cache
def distributions(roots: tuple[str, ...] = ROOTS) -> dict[str, str]:
    """Name -> version of these distributions and of all that they require here, sorted by name.

    Only what is installed; an extra (cuda-toolkit[cublas]) counts where somebody asks for it. Our own is left out: its
    version is Winner.versions["autotune"], and a source tree on PYTHONPATH has no distribution.
    """
    found: dict[str, str] = {}
    todo = [(root, "") for root in roots]
    seen: set[tuple[str, str]] = set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[canonicalize_name(name)] = distribution.version
        for text in distribution.requires or ():
            try:
                wanted = Requirement(text)
            except InvalidRequirement:
                continue
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(wanted.name), e) for e in ("", *sorted(wanted.extras))]
    found.pop("yolo-autotune", None)
    return dict(sorted(found.items()))
