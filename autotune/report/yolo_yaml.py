"""What does a configuration look like as a file for `yolo train cfg=`? (PRODUCT B6)

Only YOLO's own keys, and of these only what differs from YOLO's defaults or must be pinned; comments for the rest.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

from autotune.contract import RunInfo, TrialSpec
from autotune.errors import AutotuneError
from autotune.report.shell import one_line
from autotune.space import training
from autotune.space.yolo_args import yolo_defaults

NEVER: Final = frozenset({"save_dir", "resume", "time", "cfg"})
"""They would redirect, continue or cut the user's run."""
TRIAL_ONLY: Final = frozenset(
    {"data", "device", "plots", "val", "save", "warmup_epochs", "project", "name", "exist_ok"}
)
"""What a trial sets for its own sake; the user's own values are taken from run.json."""
ONLY_IF_GIVEN: Final = frozenset({"project", "name", "exist_ok"})
PINS: Final = ("optimizer", "lr0", "momentum", "warmup_bias_lr")
FIRST: Final = ("task", "mode", "model", "data", "epochs", "imgsz", "batch", "device", *PINS)
"""Always written, in this order; then the rest in the order of YOLO's own file."""
_NO_FOLD: Final = 1 << 30


def job_args(info: RunInfo) -> dict[str, Any]:
    """The user's job as YOLO arguments: what differs from YOLO's defaults, and what `auto` became in it."""
    args = {k: v for k, v in info.train_args.items() if k not in NEVER and k != "mode"}
    args = {k: v for k, v in args.items() if k not in ONLY_IF_GIVEN or k in info.user_args}
    args = {k: v for k, v in args.items() if k in FIRST or k in info.user_args or v != yolo_defaults().get(k)}
    args["task"] = info.task
    args["device"] = int(info.device) if info.device.isdecimal() else info.device
    if str(args.get("optimizer", "auto")).lower() == "auto":
        args |= {k: info.resolved[k] for k in PINS if info.resolved.get(k) is not None}
    return args


def winner_args(info: RunInfo, spec: TrialSpec, base: TrialSpec) -> dict[str, Any]:
    """The user's job with what this trial changed against the baseline's trial.

    Keys that every trial sets alike, and the farm of links it reads from, are not among the changes.
    """
    skip = TRIAL_ONLY | NEVER | set(PINS) | {"mode", "task"}
    changes = {k: v for k, v in spec.train_args.items() if k not in skip and _value(base.train_args, k) != v}
    return job_args(info) | changes


def effective_batch(args: dict[str, Any]) -> int:
    """Images an optimizer step sees."""
    return training.effective_batch(max(int(_value(args, "batch")), 1), int(_value(args, "nbs")))  # -1 is AutoBatch


def keeps_training(args: dict[str, Any], job: dict[str, Any]) -> bool:
    """Same effective batch and the same weight decay in effect as the user's job (MEASURING 6)."""

    def decay(a: dict[str, Any]) -> float:
        batch = max(int(_value(a, "batch")), 1)
        return training.decay_product(float(_value(a, "weight_decay")), batch, int(_value(a, "nbs")))

    return effective_batch(args) == effective_batch(job) and math.isclose(decay(args), decay(job), rel_tol=1e-9)


def changes_training(args: dict[str, Any], job: dict[str, Any]) -> str | None:
    """The warning that a file carries when the batch is another optimisation; None when it is the same."""
    new, old = effective_batch(args), effective_batch(job)
    if new == old:
        return None
    return (
        f"CHANGES THE TRAINING: batch {_value(job, 'batch')} -> {_value(args, 'batch')}, so one optimizer step sees "
        f"{new} images, not {old} (nbs). Check accuracy."
    )


def yolo_yaml(args: dict[str, Any], info: RunInfo, header: list[str]) -> str:
    """The file: header as comments, then one `key: value  # comment` a line.

    Args:
        args: of the configuration, from `winner_args`.
        info: the run, for the user's own values.
        header: lines without `#`.
    """
    job, defaults = job_args(info), yolo_defaults()
    values = {"mode": "train"} | args
    order = [k for k in FIRST if k in values]
    order += [k for k in (*defaults, *sorted(values)) if k in values and k not in order]
    order = list(dict.fromkeys(order))
    lines = [f"# {one_line(h)}" for h in header]
    for key in order:
        value, was = values[key], _value(job, key)
        if key not in FIRST and value == was == defaults.get(key):
            continue
        line = f"{key}: {scalar(value)}"
        if note := _note(key, value, was, info):
            line = f"{line:<18}  # {one_line(note)}"
        lines.append(line)
    text = "\n".join(lines) + "\n"
    assert yaml.safe_load(text) == {k: _plain(values[k]) for k in yaml.safe_load(text)}, "the YAML does not read back"
    return text


def check_with_yolo(files: list[Path]) -> None:
    """Let Ultralytics read and check the files as `yolo train cfg=` would, in a process of its own.

    Raises:
        AutotuneError: it refuses one, with its own words.
    """
    code = (
        "import sys\n"
        "from ultralytics.cfg import get_cfg\n"
        "from ultralytics.utils import YAML\n"
        "for path in sys.argv[1:]:\n"
        "    get_cfg(overrides=YAML.load(path))\n"
    )
    # Its settings file is not the user's; beside the files, so that whoever removes a torn export removes it too.
    with tempfile.TemporaryDirectory(prefix="autotune-cfg-", dir=files[0].parent.parent) as config:
        env = os.environ | {"YOLO_CONFIG_DIR": config, "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
        argv = [sys.executable, "-c", code, *map(str, files)]
        try:
            done = subprocess.run(
                argv,
                env=env,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=180,
                check=False,
                start_new_session=True,  # a Ctrl-C on the terminal is for us, not for the check
            )
        except subprocess.TimeoutExpired as e:
            raise AutotuneError("Ultralytics did not check the exported YAML within 180 s", "export again") from e
    if done.returncode:
        said = one_line((done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1])
        raise AutotuneError(
            f"Ultralytics refuses the exported YAML: {said}", "the installed ultralytics may be older than the run's"
        )


def _value(args: dict[str, Any], key: str) -> Any:
    """The argument, or YOLO's default for it."""
    return args.get(key, yolo_defaults().get(key))


def _note(key: str, value: Any, was: Any, info: RunInfo) -> str:
    """The comment of a line."""
    parts = []
    if key == "batch" and info.n_ranks > 1:
        parts.append(f"total over {info.n_ranks} {_rank(info)}s, {int(value) // info.n_ranks} each")
    elif key == "workers" and info.n_ranks > 1:
        parts.append(f"per {_rank(info)}")
    elif key in ("nbs", "weight_decay") and value != was:
        parts.append("keeps the effective batch" if key == "nbs" else "keeps the weight decay in effect")
    elif key == "optimizer" and str(_value(info.train_args, key)).lower() == "auto" and str(value).lower() != "auto":
        parts.append("what 'auto' chose; with 'auto' lr0 and momentum would be ignored")
    if value != was:
        parts.append(f"was {scalar(was)}")
    return "; ".join(parts)


def _rank(info: RunInfo) -> str:
    return "rank" if info.device == "cpu" else "GPU"


def _plain(value: Any) -> Any:
    """As YAML gives it back: a tuple is a list."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def scalar(value: Any) -> str:
    """A YAML value on one line, whatever is in it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_quoted(v) if isinstance(v, str) else scalar(v) for v in value) + "]"
    if isinstance(value, dict):
        return json.dumps(value)
    text = yaml.safe_dump(value, allow_unicode=True, width=_NO_FOLD).removesuffix("...\n").strip("\n")
    # PyYAML's own choice of style spreads line breaks over lines, and loses U+0085.
    return _quoted(value) if isinstance(value, str) and (not value.isprintable() or " #" in text) else text


def _quoted(value: str) -> str:
    """A double-quoted YAML string: the one style that holds line breaks on one line."""
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=_NO_FOLD).strip("\n")
