"""What command and what environment does a trial start with?"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import autotune
from autotune.contract import PARENT, TrialDir, TrialSpec
from autotune.run.demo import cache_home

TAG = "AUTOTUNE_TRIAL_ID"
"""In the environment of every process of a trial: finds the ones that left the tree."""
RUN_TAG = "AUTOTUNE_RUN_ID"
"""In the environment of every process of a run: finds what a dead controller left behind. The run folder's path."""
DROPPED = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "ROLE_RANK",
    "ROLE_NAME",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "ULTRALYTICS_API_KEY",
)
"""Never inherited: a launcher's leftovers, and the key that would switch trackers on."""
DROPPED_PREFIXES = ("TORCHELASTIC_", "PET_")
"""Of torchrun: what it tells its ranks, and its options given as environment."""


def argv(spec: TrialSpec, directory: TrialDir) -> list[str]:
    """The command: this process is the rank, or torchrun starts several."""
    worker = ["-m", "autotune.worker", str(directory.path.resolve())]
    if spec.n_ranks == 1 and spec.nodes is None:
        return [sys.executable, *worker]
    meeting = ["--standalone"]
    if spec.nodes is not None:
        here = spec.nodes
        meeting = ["--nnodes", str(here.n_nodes), "--node-rank", str(here.node_rank)]
        meeting += ["--rdzv-backend", "c10d", "--rdzv-endpoint", here.rdzv_endpoint, "--rdzv-id", "autotune"]
    torchrun = [*meeting, "--nproc-per-node", str(spec.n_ranks), "--max-restarts", "0"]
    return [sys.executable, "-m", "autotune.worker.agent", *torchrun, *worker]


def environment(
    spec: TrialSpec, directory: TrialDir, tag: str, base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment: the user's own, a private world for the trial, then the knobs of site ENV.

    A full training (role train) keeps the user's YOLO settings, trackers and TMPDIR, unless it is private.
    """
    env = {
        k: v
        for k, v in (os.environ if base is None else base).items()
        if k not in DROPPED and not k.startswith(DROPPED_PREFIXES)
    }
    package = str(Path(autotune.__file__).resolve().parents[1])
    env["PYTHONPATH"] = os.pathsep.join(p for p in (package, env.get("PYTHONPATH", "")) if p)
    env["PYTHONUNBUFFERED"] = "1"
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    # Compiled code is keyed by shape, precision and machine: shared by all trials and by the training that follows.
    env.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_home() / "inductor"))
    # As `import ultralytics` does, which plain YOLO imports first: torch reads it when it is loaded.
    env["OMP_NUM_THREADS"] = env.get("OMP_NUM_THREADS") or "1"
    env[TAG] = tag
    env[RUN_TAG] = run_tag(directory.path)
    env[PARENT] = str(os.getpid())
    if spec.n_ranks > 1 or spec.nodes is not None:
        # torchrun would wait 30 s for ranks that ignore SIGTERM.
        env.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(max(1, round(spec.deadlines.grace_s))))
    if spec.n_ranks > 1 and spec.nodes is None:
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine needs no name that can be resolved
    if spec.role != "train" or spec.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpus)
    if spec.role != "train" or spec.private:
        env |= {
            "YOLO_CONFIG_DIR": str(_settings(directory).resolve()),
            "YOLO_OFFLINE": "true",
            "YOLO_AUTOINSTALL": "false",
            "TMPDIR": str(directory.tmp),
            "MPLBACKEND": "Agg",
        }
    # An empty value of a knob unsets; NCCL would take it for a choice that it cannot read.
    return {k: v for k, v in (env | spec.env).items() if v or (k not in spec.env and not k.startswith("NCCL_"))}


def make_private_folders(directory: TrialDir) -> None:
    """The folders that a trial's environment names: its TMPDIR, and the run's YOLO settings."""
    for folder in (_settings(directory), directory.tmp):
        folder.mkdir(parents=True, exist_ok=True)


def _settings(directory: TrialDir) -> Path:
    return directory.path.parent / ".yolo"


def run_tag(trial: Path) -> str:
    """Value of RUN_TAG for a trial folder RUN/trials/NUMBER: the real path of RUN."""
    return str(trial.resolve().parents[1])
