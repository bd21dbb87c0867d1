"""What does the user's job say in Ultralytics' words? Its keys, defaults and models, read without importing it."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from autotune.errors import InputError, MachineError
from autotune.space.knobs import KNOBS
from autotune.space.near import near
from autotune.space.scalars import load

TASKS = ("detect", "segment", "pose", "obb", "classify")
SUFFIX_TASKS = {"-seg": "segment", "-pose": "pose", "-obb": "obb", "-cls": "classify"}
"""End of a model's name -> task, as Ultralytics names its models."""
UNSUPPORTED = {"-sem": "semantic", "-depth": "depth"}
OWNED = {
    "mode": "autotune always trains",
    "resume": "autotune measures a training from its start; give the checkpoint as model=",
    "save_dir": "every trial has its own folder; say where the results go with --out",
    "cfg": "give the keys of the file as key=value",
    "time": "time= makes the job's length depend on its speed; give epochs=",
}
"""Keys that are not the user's here -> why."""
TEXT_KEYS = ("model", "data", "project", "name", "pretrained", "optimizer", "tracker", "source", "format")
"""Keys whose value stays the text it is: project=2026 is a name, not a number."""
FIXED = ("amp", "compile", "cache", "workers", "deterministic")
"""Knobs whose YOLO argument has the knob's own legal values."""


def _package() -> Path:
    spec = importlib.util.find_spec("ultralytics")
    if spec is None or spec.origin is None:
        raise MachineError("Ultralytics is not installed", "pip install ultralytics")
    return Path(spec.origin).parent


@cache
def _defaults() -> dict[str, Any]:
    data = yaml.safe_load((_package() / "cfg" / "default.yaml").read_text(encoding="utf-8"))
    return dict(data)


def yolo_defaults() -> dict[str, Any]:
    """Key -> default of the installed Ultralytics.

    Raises:
        MachineError: Ultralytics is not installed.
    """
    return dict(_defaults())


def parse_pairs(pairs: Iterable[str], *, full_training: bool = False) -> dict[str, Any]:
    """`key=value` words as a dict; values are YAML scalars (1e-3 is a number, none is None).

    Args:
        pairs: words as typed.
        full_training: for `autotune train`, which owns no argument: resume= and time= are the user's there.

    Raises:
        InputError: not key=value, a key given twice, or one that Ultralytics does not know.
    """
    args: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"{pair!r} is not key=value", "YOLO arguments look like epochs=100; flags begin with --")
        if key in args:
            raise InputError(f"{key} is given twice", "leave one of the two")
        args[key] = _value(key, text.strip())
    _check_keys(args, owned={} if full_training else OWNED)
    return args


def _value(key: str, text: str) -> Any:
    if key in TEXT_KEYS:
        special = {"none": None, "true": True, "false": False}  # pretrained=false is the one that needs these
        return special.get(text.lower(), text)
    if text.startswith("("):  # scale=(0.5,1.5), as Ultralytics reads it
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError) as e:
            raise InputError(f"{key}={text} cannot be read") from e
    try:
        return load(text)
    except yaml.YAMLError:
        return text


def _check_keys(args: Mapping[str, Any], owned: Mapping[str, str] = OWNED) -> None:
    known = yolo_defaults()
    for key in args:
        if key in owned and not (key == "mode" and args[key] == "train"):
            raise InputError(f"{key}= cannot be given to autotune", owned[key])
        if key not in known:
            knob = f"{key} is a knob of autotune: name it in a space file (--space)" if key in KNOBS else ""
            raise InputError(f"Ultralytics has no argument {key!r}{near(key, known)}", knob)


def job_args(user_args: Mapping[str, Any]) -> dict[str, Any]:
    """The user's arguments over YOLO's defaults, checked as far as autotune depends on them.

    Raises:
        InputError: an unknown key, one that autotune owns, or a value that cannot train.
    """
    _check_keys(user_args)
    args = yolo_defaults() | dict(user_args)
    batch = args["batch"]
    if type(batch) is not int or batch < 1:
        hint = "autotune searches the batch itself; give the one you would train with, such as batch=16"
        raise InputError(f"batch={batch} must be a whole number of at least 1", hint)
    for key, least in (("epochs", 1), ("imgsz", 32), ("nbs", 1)):
        if type(args[key]) is not int or args[key] < least:
            raise InputError(f"{key}={args[key]} must be a whole number of at least {least}")
    for key in ("lr0", "momentum", "weight_decay", "warmup_epochs"):
        if type(args[key]) not in (int, float) or args[key] < 0:
            raise InputError(f"{key}={args[key]} must be a number of at least 0")
    for key in FIXED:
        if key in args and not (key == "cache" and args[key] is None) and (what := KNOBS[key].legal(args[key])):
            raise InputError(f"{key}={args[key]} {what}")
    return args


def _config_names() -> dict[str, Path]:
    return {f.name: f for f in sorted((_package() / "cfg" / "models").rglob("*.yaml"))}


def _config(name: str) -> Path | None:
    """The model config behind a name; the scale letter is taken out as in ultralytics.nn.tasks.yaml_model_load."""
    names = _config_names()
    return names.get(name) or names.get(re.sub(r"(\d+)([nslmx])(.+)?$", r"\1\3", name))


def _stems() -> list[str]:
    """Names of models people type: yolo11n-seg, not yolo11-seg."""
    stems = [Path(name).stem for name in _config_names()]
    scaled = [re.sub(r"^(yolo(?:e-)?v?\d+)(?=-|$)", rf"\g<1>{scale}", s) for s in stems for scale in "nsmlx"]
    return sorted({*stems, *scaled})


def weights_dir(env: Mapping[str, str] = os.environ) -> Path | None:
    """Where the user's Ultralytics keeps weights, None when it was never started."""
    config = env.get("YOLO_CONFIG_DIR") or env.get("XDG_CONFIG_HOME") or Path(env.get("HOME", "~")) / ".config"
    settings = Path(config).expanduser() / "Ultralytics" / "settings.json"
    try:
        folder = json.loads(settings.read_text(encoding="utf-8"))["weights_dir"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Path(folder).expanduser()


def resolve_model(model: str, env: Mapping[str, str] = os.environ) -> str:
    """What to give Ultralytics as `model`, from any folder.

    Args:
        model: a .pt or .yaml file, a name in the weights folder of Ultralytics, or the name of one of its configs.
        env: where HOME and YOLO_CONFIG_DIR are looked up.

    Returns:
        An absolute path, or the config's name as given (its scale letter tells Ultralytics the size).

    Raises:
        InputError: there is no such model; autotune downloads nothing.
    """
    name = model if Path(model).suffix else f"{model}.pt"
    path = Path(name).expanduser()
    if path.suffix not in (".pt", ".yaml", ".yml"):
        raise InputError(f"model={model} must be a .pt or .yaml file", "such as model=yolo11n.yaml")
    if path.is_file():
        return str(path.resolve())
    if path.suffix != ".pt" and _config(name):
        return name
    if path.suffix == ".pt" and (folder := weights_dir(env)) and (folder / name).is_file():
        return str((folder / name).resolve())
    if path.suffix == ".pt" and _config(f"{path.stem}.yaml") and path.name == name:
        hint = f"autotune downloads nothing: put {name} here, or train from scratch with model={path.stem}.yaml"
        raise InputError(f"there is no file {name}", hint)
    guess = near(path.stem, _stems()) if path.name == name else ""
    raise InputError(f"there is no model {model}{guess}", "give a .pt or .yaml file, or a name such as yolo11n.yaml")


def task_of(user_args: Mapping[str, Any], model: str) -> str:
    """The task: as given, else by the model's name, else as its weights or the head of its YAML say, else detect.

    Raises:
        InputError: a task that autotune cannot train, or a model YAML that cannot be read.
    """
    task = user_args.get("task") or _task_by_name(model) or _task_by_weights(model) or _task_by_head(model) or "detect"
    if task not in TASKS:
        raise InputError(f"task={task} is not supported{near(task, TASKS)}", "tasks: " + ", ".join(TASKS))
    return str(task)


def _task_by_name(model: str) -> str | None:
    stem = Path(model).stem
    return next((task for end, task in (SUFFIX_TASKS | UNSUPPORTED).items() if end in stem), None)


def _task_by_weights(model: str) -> str | None:
    """The `task` in the train_args of a checkpoint: its pickle is read as text, never run, and torch is not needed."""
    if not model.endswith(".pt"):
        return None
    try:
        with zipfile.ZipFile(model) as archive:
            data = archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl")))
        memo: dict[Any, Any] = {}
        last = None
        for op, arg, _ in pickletools.genops(data):
            if op.name.endswith("PUT"):
                memo[arg] = last
                continue
            value = memo.get(arg) if op.name.endswith("GET") else arg if op.name.endswith("UNICODE") else None
            if last == "task" and value in (*TASKS, *UNSUPPORTED.values()):
                return str(value)
            last = value
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile):
        pass  # not a checkpoint that we can look into: Ultralytics will say what it thinks of it
    return None


def _task_by_head(model: str) -> str | None:
    path = Path(model) if Path(model).is_file() else _config(Path(model).name)
    if path is None or path.suffix == ".pt":
        return None
    try:
        head = str(yaml.safe_load(path.read_text(encoding="utf-8"))["head"][-1][-2]).lower()
    except (OSError, ValueError, KeyError, TypeError, IndexError, yaml.YAMLError) as e:
        raise InputError(f"{path} is not a model of Ultralytics", "it needs a list `head` of layers") from e
    if "semanticsegment" in head:
        return "semantic"
    words = {"detect": "detect", "segment": "segment", "pose": "pose", "obb": "obb", "classify": "classify"}
    return next((task for word, task in words.items() if word in head), None)
