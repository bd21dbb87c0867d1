"""What command and what environment does a trial start with?"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import autotune
from autotune.contract import TrialDir, TrialSpec
from autotune.run.demo import cache_home

TAG = "AUTOTUNE_TRIAL_ID"
"""In the environment of every process of a trial: finds the ones that left the tree."""
RUN_TAG = "AUTOTUNE_RUN_ID"
"""Likewise, with the real path of the run folder: finds what a search that was killed left behind."""
DROPPED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ULTRALYTICS_API_KEY")
"""Never inherited: a launcher's leftovers, and the key that would switch trackers on."""


def argv(spec: TrialSpec, directory: TrialDir) -> list[str]:
    """The command: one process for one rank."""
    assert spec.n_ranks == 1, "several ranks are refused at the command line"
    return [sys.executable, "-m", "autotune.worker", str(directory.path.resolve())]


def environment(
    spec: TrialSpec, directory: TrialDir, tag: str, base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment: the user's own, a private world for the trial, then the knobs of site ENV.

    A full training (role train) keeps the user's YOLO settings, trackers and TMPDIR.
    """
    env = {k: v for k, v in (os.environ if base is None else base).items() if k not in DROPPED}
    package = str(Path(autotune.__file__).resolve().parents[1])
    env["PYTHONPATH"] = os.pathsep.join(p for p in (package, env.get("PYTHONPATH", "")) if p)
    env["PYTHONUNBUFFERED"] = "1"
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    # Compiled code is keyed by shape, precision and machine: shared by all trials and by the training that follows.
    env.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_home() / "inductor"))
    env[TAG] = tag
    env[RUN_TAG] = str(directory.path.resolve().parents[1])
    if spec.role != "train":
        private = directory.path.parent / ".yolo"
        tmp = directory.tmp
        for folder in (private, tmp):
            folder.mkdir(parents=True, exist_ok=True)
        env |= {
            "CUDA_VISIBLE_DEVICES": ",".join(spec.gpus),
            "YOLO_CONFIG_DIR": str(private.resolve()),
            "YOLO_OFFLINE": "true",
            "YOLO_AUTOINSTALL": "false",
            "TMPDIR": str(tmp),
            "MPLBACKEND": "Agg",
        }
    return env | spec.env
