"""Where are the images of a dataset? Ultralytics' rules of path resolution, without importing it.

The truth is `check_det_dataset`, `check_cls_dataset`, `get_img_files` and `img2label_paths` of ultralytics 8.4
(data/utils.py, data/base.py); what they would download, split or guess is refused here with a line that says so.
"""

from __future__ import annotations

import difflib
import glob
import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from autotune.errors import InputError

IMAGE_SUFFIXES: Final = frozenset(
    ["avif", "bmp", "dng", "heic", "heif", "jp2", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp"]
)
SPLITS: Final = ("train", "val", "test")
_ARCHIVES: Final = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".txz", ".tbz2", ".ndjson")
_UNPRINTABLE: Final = re.compile(r"[^\x09\x0A\x0D\x20-\x7E\x85\xA0-\uD7FF\uE000-\uFFFD\U00010000-\U0010ffff]+")
"""Ultralytics drops these before it parses a YAML."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A dataset as Ultralytics would see it."""

    task: str
    data: Path
    """data.yaml, or the folder of a classification set; absolute, so it works from any folder."""
    root: Path
    """Folder that the splits are relative to."""
    config: dict[str, Any]
    """The YAML as read; empty for classify."""
    images: dict[str, list[str]]
    """Split -> image paths, sorted, as Ultralytics would list them (a path listed twice counts twice)."""
    folders: dict[str, Path]
    """Split -> its folder, classify only; the name on disk (val may be `validation` or `valid`)."""


def find_source(data: str, task: str) -> Source:
    """Resolve a `data` argument.

    Raises:
        InputError: it is missing, not YAML, or has no images; names the path that was looked at.
    """
    data = str(data).strip()
    if "://" in data:
        raise InputError(f"data={data}: autotune downloads nothing", "download it first and give the local path")
    if data.lower().endswith(_ARCHIVES) and not Path(data).is_dir():
        raise InputError(f"data={data} is an archive", "unpack it first and give the path of what is inside")
    try:
        return _find_classify(data) if task == "classify" else _find_detect(data, task)
    except (OSError, UnicodeDecodeError) as e:  # a folder without permission, a list of files that is not UTF-8
        raise InputError(f"dataset {data} cannot be read: {e}") from e


def label_of(image: str) -> str:
    """Where Ultralytics looks for the label of an image: the last /images/ becomes /labels/, the suffix .txt."""
    sep_images, sep_labels = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
    return sep_labels.join(image.rsplit(sep_images, 1)).rsplit(".", 1)[0] + ".txt"


def is_image(path: str) -> bool:
    """By its suffix, as Ultralytics does."""
    return path.rpartition(".")[-1].lower() in IMAGE_SUFFIXES


def datasets_dir() -> Path:
    """Ultralytics' `datasets_dir` setting of this user, or what its default would be."""
    config = os.environ.get("YOLO_CONFIG_DIR")
    base = Path(config).expanduser() if config else Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config"))
    try:
        settings = json.loads((base / "Ultralytics" / "settings.json").read_text(encoding="utf-8"))
        return Path(settings["datasets_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        package = _ultralytics_dir()
        repo = next((d for d in package.parents if (d / ".git").exists()), None)
        root = Path.cwd() if repo is None else repo.parent if os.access(repo.parent, os.W_OK) else repo
        return root.resolve() / "datasets"


def _ultralytics_dir() -> Path:
    """Folder of the installed package, found without running it."""
    spec = importlib.util.find_spec("ultralytics")
    assert spec is not None, "ultralytics is a dependency of this package"
    assert spec.origin is not None
    return Path(spec.origin).parent


def _builtin() -> dict[str, Path]:
    """Name -> file of the dataset files that ship with Ultralytics."""
    return {p.name: p for p in sorted((_ultralytics_dir() / "cfg" / "datasets").glob("*.yaml"))}


def _find_yaml(data: str) -> Path:
    """The file that `data` names: a path, a folder with one YAML in it, or a name that ships with Ultralytics."""
    path, builtin = Path(data), _builtin()
    if not path.exists():
        named = builtin.get(data) or builtin.get(f"{data}.yaml")
        if named is not None:
            return named
        folder = path.parent if path.parent.is_dir() else Path()
        here = sorted(str(p) for pattern in ("*.yaml", "*.yml") for p in folder.glob(pattern))
        names = {Path(p).name: p for p in here} | {n: n for n in builtin}
        near = difflib.get_close_matches(path.name, list(names), n=1)
        raise InputError(
            f"data={data}: no such file, and not a dataset that ships with Ultralytics",
            f"did you mean data={names[near[0]]}?" if near else "",
        )
    if not path.is_dir():
        return path.absolute()
    found = next((f for e in ("*.yaml", "*.yml") if (f := list(path.glob(e)) or list(path.rglob(e)))), [])
    if len(found) > 1:
        found = [f for f in found if f.stem == path.stem] or found
    if len(found) != 1:
        listed = ", ".join(sorted(f.name for f in found)[:5])
        raise InputError(
            f"data={data} is a folder with {len(found)} YAML files{f': {listed}' if found else ''}",
            "give the path of the data.yaml itself",
        )
    return found[0].absolute()


def _read_config(file: Path, data: str) -> dict[str, Any]:
    """The YAML, checked for what every dataset file must have."""
    try:
        text = file.read_text(encoding="utf-8", errors="ignore")
        config = yaml.safe_load(_UNPRINTABLE.sub("", text))
    except OSError as e:
        raise InputError(f"data={data} cannot be read: {e.strerror}") from e
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark is not None else ""
        raise InputError(f"data={data} is not YAML{line}: {getattr(e, 'problem', None) or 'cannot be parsed'}") from e
    if not isinstance(config, dict):
        raise InputError(f"data={data} is not a dataset file", "it needs train:, val: and names:")
    config = {k: None if v == "None" else v for k, v in config.items()}
    if "val" not in config and "validation" in config:
        config["val"] = config.pop("validation")
    for key in ("train", "val"):
        if not config.get(key):
            raise InputError(f"data={data} has no `{key}:`", "train and val are required in a dataset file")
    for key, kinds in {"path": str, "train": (str, list), "val": (str, list), "test": (str, list)}.items():
        if config.get(key) is not None and not isinstance(config[key], kinds):  # type: ignore[arg-type]
            raise InputError(f"data={data}: `{key}` cannot be a {type(config[key]).__name__}")
    names, nc = config.get("names"), config.get("nc")
    if names is None and nc is None:
        raise InputError(f"data={data} has neither `names:` nor `nc:`", "name the classes, e.g. names: [cat, dog]")
    if names is not None and not isinstance(names, list | dict):
        raise InputError(f"data={data}: `names` must be a list or a mapping of class names")
    if names is not None and nc is not None and str(len(names)) != str(nc).removesuffix(".0"):
        raise InputError(f"data={data}: {len(names)} names, but nc: {nc}", "make them agree, or drop nc")
    return config


def _find_detect(data: str, task: str) -> Source:
    """Detect, segment, pose, obb: check_det_dataset."""
    file = _find_yaml(data)
    config = _read_config(file, data)
    given = config.get("path")
    root = Path(given) if given else file.parent
    if not root.exists() and not root.is_absolute():
        root = (datasets_dir() / root).resolve()
    images: dict[str, list[str]] = {}
    for split in SPLITS:
        entry = config.get(split)
        if not entry:
            continue
        if isinstance(entry, str):
            where = (root / entry).resolve()
            if not where.exists() and entry.startswith("../"):
                where = (root / entry[3:]).resolve()
            wheres = [where]
        else:
            wheres = [(root / str(x)).resolve() for x in entry]
        missing = next((w for w in wheres if not w.exists()), None)
        if split == "test" and missing is not None:
            continue  # training never reads it
        if missing is not None:
            shipped = file.parent == _ultralytics_dir() / "cfg" / "datasets"
            hint = f"download {file.name} first; autotune downloads nothing" if shipped else f"see `{split}:` in {file}"
            raise InputError(f"dataset {data} has no images at {missing}", hint)
        images[split] = _list_images(wheres)
        if not images[split]:
            at = ", ".join(map(str, wheres))
            raise InputError(
                f"dataset {data} has no {split} images at {at}", "images are found by their suffix: .jpg, ..."
            )
    if not any(Path(label_of(p)).is_file() for p in images["train"]):
        first = images["train"][0]
        raise InputError(
            f"dataset {data} has no labels: not one of {len(images['train'])} train images has its file",
            f"the label of {first} is expected at {label_of(first)}",
        )
    return Source(task=task, data=file, root=root.absolute(), config=config, images=images, folders={})


def _list_images(wheres: list[Path]) -> list[str]:
    """BaseDataset.get_img_files: folders are searched, files are lists of paths, `./` is the list's own folder."""
    found: list[str] = []
    for where in wheres:
        if where.is_dir():
            found += glob.glob(str(Path(glob.escape(str(where))) / "**" / "*.*"), recursive=True)  # noqa: PTH207 - its own rules
        else:
            parent = str(where.parent) + os.sep
            lines = where.read_text(encoding="utf-8-sig").strip().splitlines()
            found += [x.replace("./", parent, 1) if x.startswith("./") else x for x in lines]
    return sorted(os.path.abspath(x) for x in found if is_image(x))  # noqa: PTH100 - links are kept


def _find_classify(data: str) -> Source:
    """check_cls_dataset: a folder of split folders of class folders."""
    root = (Path(data) if Path(data).is_dir() else datasets_dir() / data).resolve()
    if not root.is_dir():
        if Path(data).suffix:
            raise InputError(
                f"data={data}: a classification dataset must be a folder", "with train/CLASS/*.jpg and val/"
            )
        raise InputError(f"dataset {data} has no images at {root}", "download it first; autotune downloads nothing")
    folders: dict[str, Path] = {}
    for split, names in {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}.items():
        if found := next((root / n for n in names if (root / n).is_dir()), None):
            folders[split] = found
    if "train" not in folders:
        raise InputError(f"data={data}: no folder {root / 'train'}", "split it into train/CLASS/ and val/CLASS/ first")
    images = {split: _walk_images(folder) for split, folder in folders.items()}
    for split in ("train", "val"):
        if not images.get(split) and not (split == "val" and images.get("test")):
            raise InputError(f"dataset {data} has no {split} images at {folders.get(split, root / split)}")
    return Source(task="classify", data=root, root=root, config={}, images=images, folders=folders)


def _walk_images(folder: Path) -> list[str]:
    """Images inside class folders, as torchvision's ImageFolder walks them."""
    found: list[str] = []
    for at, _dirs, files in os.walk(folder, followlinks=True):
        if Path(at) != folder:
            found += [os.path.join(at, name) for name in files if is_image(name)]  # noqa: PTH118 - 100,000 times
    return sorted(found)
