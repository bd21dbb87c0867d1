"""What is in the user's dataset, and how do trials read it without leaving a trace there?

Ultralytics writes label caches (*.cache), decoded images (*.npy, cache=disk) and even repaired JPEGs next to what it
reads, and every later run reads the .npy in any cache mode. So a trial gets a farm of symbolic links in our own
folder: one for cache=disk, one for the other modes (MEASURING 1).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import yaml

from autotune.contract import Value
from autotune.errors import InputError, MachineError
from autotune.run.places import folders_of, start_of
from autotune.run.sources import Source, find_source, label_of

SAMPLE: Final = 200
"""Images whose size is looked at: the mean of 200 file sizes is good to a few per cent."""
_LINE_BREAKS: Final = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff%]")
"""What a line of a UTF-8 list cannot hold; `%` because it marks what was replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """What the search must know about a dataset before the first trial."""

    task: str
    data: str
    """The user's dataset as a `data` argument that works from any folder."""
    data_yaml: Path | None
    """None for classify."""
    root: Path
    n_train: int
    n_val: int
    mean_image_bytes: float
    """Of the train images' files, from a sample."""
    median_shape: tuple[int, int]
    """(height, width) in pixels of the train images, from a sample."""
    nc: int
    """Classes."""
    folders: tuple[str, ...] = ()
    """Absolute, none inside another; all images and labels of training and validation are in them."""
    datasets_dir: str | None = None
    """What a relative `path:` of the YAML starts from; None: it is absolute, or not given."""


def inspect_dataset(data: str, task: str) -> DatasetInfo:
    """Look at a dataset without importing Ultralytics and without writing anything.

    Args:
        data: as the user would give it to YOLO.
        task: detect, segment, pose, obb or classify.

    Raises:
        InputError: it is missing, is not YAML, has no images or no labels; names the paths.
    """
    source = find_source(data, task)
    train = source.images["train"]
    sample = [Path(p) for p in train[:: max(1, len(train) // SAMPLE)]]
    try:
        sizes = [p.stat().st_size for p in sample]
    except OSError as e:
        raise InputError(f"dataset {data}: image {e.filename} cannot be read: {e.strerror}") from e
    shapes = _shapes(sample, data)
    if task == "classify":
        nc = sum(1 for p in source.folders["train"].iterdir() if p.is_dir())
    else:
        names = source.config.get("names")
        nc = len(names) if names is not None else int(float(source.config["nc"]))
    return DatasetInfo(
        task=task,
        data=str(source.data),
        data_yaml=None if task == "classify" else source.data,
        root=source.root,
        n_train=len(train),
        n_val=len(source.images.get("val") or source.images.get("test") or ()),
        mean_image_bytes=statistics.fmean(sizes),
        median_shape=(int(statistics.median(h for h, _ in shapes)), int(statistics.median(w for _, w in shapes))),
        nc=nc,
        folders=folders_of(source),
        datasets_dir=start_of(source),
    )


def decode_rate(data: str, task: str, imgsz: int, n: int = 200) -> float | None:
    """Images a second that filling a RAM cache takes here, from decoding and resizing `n` of the training images.

    As Ultralytics does it (data/base.py): OpenCV in a pool of min(8, cores - 1) threads. None when none can be read.
    """
    import cv2

    train = find_source(data, task).images["train"]
    sample = train[:: max(1, len(train) // n)][:n]

    def load(path: str) -> bool:
        image = cv2.imread(path)
        if image is None:
            return False
        scale = imgsz / max(image.shape[:2])
        cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        return True

    began = time.perf_counter()
    with ThreadPool(min(8, max(1, (os.cpu_count() or 1) - 1))) as pool:
        n_read = sum(pool.map(load, sample))
    seconds = time.perf_counter() - began
    return n_read / seconds if n_read and seconds > 0 else None


def _shapes(sample: list[Path], data: str) -> list[tuple[int, int]]:
    """(height, width) from the images' headers; those that cannot be read are left to Ultralytics to report."""
    from PIL import Image

    shapes: list[tuple[int, int]] = []
    reason = ""
    for path in sample:
        try:
            with Image.open(path) as image:
                shapes.append((image.height, image.width))
        except (OSError, ValueError, ImportError) as e:
            # ImportError: a caller who has imported ultralytics has its patched PIL, which looks for a HEIF reader.
            reason = str(e)
    if not shapes:
        raise InputError(f"dataset {data}: none of {len(sample)} images looked at can be opened", reason)
    return shapes


class DatasetView:
    """Link farms of one dataset under a folder of ours; made when first asked for.

    The links stay after `close()`, so that a trial can be run again by hand; the decoded images do not.

    Args:
        data: the user's dataset.
        task: of the job.
        folder: of ours.
        most: only so many images of each split; None: all.
    """

    def __init__(self, data: str, task: str, folder: Path, most: int | None = None) -> None:
        self._data, self._task, self._most = data, task, most
        self._folder = folder.absolute()
        self._made: dict[str, str] = {}

    def path(self, cache: Value) -> str:
        """The `data` argument for a trial with this cache mode (False, None, True, "ram" or "disk").

        Raises:
            InputError: the dataset is gone or has no images.
            MachineError: the farm cannot be written.
        """
        name = "disk" if str(cache).lower() == "disk" else "plain"
        if name not in self._made:
            farm = self._folder / name
            try:
                source = find_source(self._data, self._task)
                source = replace(source, images={split: paths[: self._most] for split, paths in source.images.items()})
                self._made[name] = str(_make_farm(source, farm))
            except OSError as e:
                raise MachineError(f"cannot link the dataset under {farm}: {e}", "choose another folder: --out") from e
        return self._made[name]

    def close(self) -> None:
        """Remove the decoded images of cache=disk: six to ten times the size of the JPEGs."""
        for at, _dirs, files in os.walk(self._folder):
            for name in files:
                if name.endswith(".npy"):
                    (Path(at) / name).unlink(missing_ok=True)

    def __enter__(self) -> DatasetView:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _make_farm(source: Source, farm: Path) -> Path:
    """Make the links, or find those of an earlier call for the same files; whole or not at all.

    Returns:
        What to give to YOLO as `data`.
    """
    plan = _plan_classify(source, farm) if source.task == "classify" else _plan_detect(source, farm)
    digest = plan.digest()
    marker = farm / "farm.sha256"
    if not (marker.is_file() and marker.read_text(encoding="ascii") == digest):
        shutil.rmtree(farm, ignore_errors=True)
        for folder in plan.folders:
            folder.mkdir(parents=True, exist_ok=True)
        for link, target in plan.links.items():
            os.symlink(target, link)  # noqa: PTH211 - 100,000 times
        for file, text in plan.texts.items():
            file.write_text(text, encoding="utf-8")
        marker.write_text(digest, encoding="ascii")  # last: a farm without it is made anew
    return plan.data


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What a farm consists of."""

    data: Path
    folders: list[Path]
    links: dict[str, str]
    texts: dict[Path, str]

    def digest(self) -> str:
        """Changes when any link or text does."""
        h = hashlib.sha256()
        parts: Iterable[str] = (str(x) for d in (self.folders, *self.links.items(), *self.texts.items()) for x in d)
        for part in parts:
            h.update(os.fsencode(part) + b"\0")
        return h.hexdigest()


def _plan_detect(source: Source, farm: Path) -> _Plan:
    """The user's tree mirrored under the farm by absolute path, so that order, duplicates and labels stay as they are.

    Splits are lists of paths: a folder would be searched by glob, which skips hidden folders and folds duplicates.
    """
    links: dict[str, str] = {}
    folders = {str(farm)}
    texts: dict[Path, str] = {}
    config: dict[str, Any] = {"path": str(farm)}
    for split, images in source.images.items():
        lines = []
        for image in images:
            label = label_of(image)
            # An image outside any /images/ has its label beside it; the farm's own path may hold an /images/, which
            # would then be the last one, so such an image gets one below the farm.
            nested = f"{os.sep}images{os.sep}" in image
            image_link = f"{farm}{'' if nested else '/images'}{_safe(image)}"
            label_link = label_of(image_link)
            lines.append(image_link)
            if image_link in links:
                continue
            links[image_link] = image
            if os.path.isfile(label):  # noqa: PTH113 - 100,000 times
                links[label_link] = label
            folders.update((os.path.dirname(image_link), os.path.dirname(label_link)))  # noqa: PTH120
        texts[farm / f"{split}.txt"] = "\n".join(lines) + "\n"
        config[split] = f"{split}.txt"
    ours = {"path", "train", "val", "test", "minival", "download", "yaml_file"}
    config |= {k: v for k, v in source.config.items() if k not in ours}
    data = farm / "data.yaml"
    texts[data] = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    return _Plan(data=data, folders=[Path(f) for f in sorted(folders)], links=links, texts=texts)


def _plan_classify(source: Source, farm: Path) -> _Plan:
    """split/class folders of links; class folders without an image count as classes too."""
    root = farm / "set"
    folders = [farm, root]
    links: dict[str, str] = {}
    for split, original in source.folders.items():
        folders += [root / original.name, *(root / original.name / p.name for p in original.iterdir() if p.is_dir())]
        for image in source.images[split]:
            link = root / original.name / Path(image).relative_to(original)
            folders.append(link.parent)
            links[str(link)] = image
    names = source.root / ".ndjson.yaml"  # Ultralytics' own note of class names
    if names.is_file():
        links[str(root / names.name)] = str(names)
    return _Plan(data=root, folders=sorted(set(folders)), links=links, texts={})


def _safe(path: str) -> str:
    """The path with what a line of a list cannot hold written as %XX; only our links are renamed."""
    return _LINE_BREAKS.sub(lambda m: f"%{ord(m[0]):02X}", path)
