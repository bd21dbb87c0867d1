"""Where must a dataset's files lie for its YAML to find them? Asked by whoever moves a job into a container."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from autotune.run.sources import Source, label_of


def folders_of(source: Source) -> tuple[str, ...]:
    """Absolute folders with all images and labels of training and validation; none lies inside another.

    The root, and what is outside of it: images behind symbolic links (Ultralytics resolves them) or in a list of paths.
    """
    found = {str(source.root)}
    known = {str(source.root), os.path.realpath(source.root)}
    if source.task != "classify":
        images = {os.path.dirname(p): p for split in ("train", "val") for p in source.images.get(split, ())}  # noqa: PTH120
        for folder, image in images.items():
            for place in (_top(folder, "images"), _top(os.path.dirname(label_of(image)), "labels")):  # noqa: PTH120
                if Path(place).is_dir() and not any(Path(place).is_relative_to(k) for k in known):
                    found.add(place)
    return outermost(found)


def start_of(source: Source) -> str | None:
    """What a relative `path:` of the dataset's YAML starts from: the current folder, or Ultralytics' `datasets_dir`."""
    given = Path(str(source.config.get("path") or "/"))
    if given.is_absolute():
        return None
    if given.exists():
        return str(Path.cwd())
    n_parts = len(given.parts)
    return str(source.root.parents[n_parts - 1]) if ".." not in given.parts else None


def outermost(folders: Iterable[str]) -> tuple[str, ...]:
    """The folders without those that lie inside another, sorted."""
    kept: list[str] = []
    for folder in sorted(set(folders), key=lambda f: (len(Path(f).parts), f)):
        if not any(Path(folder).is_relative_to(k) for k in kept):
            kept.append(folder)
    return tuple(sorted(kept))


def _top(folder: str, name: str) -> str:
    """The part of a path up to its last component of this name; all of it where there is none."""
    parts = Path(folder).parts
    last = next((i for i in reversed(range(len(parts))) if parts[i] == name), len(parts) - 1)
    return str(Path(*parts[: last + 1]))
