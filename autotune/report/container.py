"""What must a container be given so that the configuration runs in it as it was measured? And the Dockerfile's text."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from autotune.contract import Machine, RunInfo, Winner
from autotune.machine.shared_memory import MARGIN, TRAIN_PREFETCH, image_bytes, train_bytes, val_bytes
from autotune.report.shell import one_line, through_autotune
from autotune.space.yolo_args import yolo_defaults

PATHS: Final = ("data", "model", "pretrained")
"""Arguments that may name a file or a folder of the user's."""
NO_DISTRIBUTIONS: Final = ("python", "autotune", "cuda", "cudnn", "nccl")
"""Names in RunInfo.versions that no package index has."""
FORKSERVER: Final = (3, 14)
"""From this Python on loader workers are not forked, and cache=ram goes to /dev/shm if twice its size is free there."""
RESULTS: Final = "/runs"
HOME: Final = "/home/yolo"
HERE: Final = "/opt/tuned"
LIBRARIES: Final = ("g++", "gcc", "libgl1", "libglib2.0-0", "numactl", "python3-dev", "tini")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A folder or file of the user's that the container sees at the same path."""

    path: str
    read_only: bool
    is_folder: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The facts that Dockerfile, compose.yaml, k8s.yaml and the README share."""

    name: str
    """Of image and job: lower-case letters, digits and dashes, at most 50."""
    claim: str
    python: str
    """Version, such as 3.11.7."""
    n_ranks: int
    gpus: tuple[str, ...]
    """UUIDs that it was measured on; empty is the CPU."""
    shm_bytes: int
    mounts: tuple[Mount, ...]
    datasets_dir: str | None
    arguments: tuple[str, ...]
    """That launch.sh is given in a container, before those of the user."""
    wheel: str | None
    """Our own, for what plain YOLO cannot start; None: plain YOLO does."""
    torch_local: str | None
    """Local part of torch's version, such as cu126: of a wheel that the default index does not have."""
    cuda: str | None
    """Version of the CUDA runtime that came with torch; None: unknown, or a CPU build."""
    driver: str | None


def container_of(info: RunInfo, winner: Winner, machine: Machine | None, claim: str) -> Container:
    """The container of a configuration, from what the run recorded."""
    gpus = tuple(info.gpus)
    torch = info.distributions.get("torch") or info.versions.get("torch", "")
    devices = (f"device={','.join(map(str, range(len(gpus))))}",) if gpus else ()
    own = f"yolo_autotune-{info.versions.get('autotune', '0')}-py3-none-any.whl"
    return Container(
        name=re.sub(r"[^a-z0-9]+", "-", f"autotune-{info.name.lower()}")[:50].strip("-"),
        claim=one_line(claim),
        python=_python(info),
        n_ranks=winner.n_ranks,
        gpus=gpus,
        shm_bytes=shared_memory_bytes(winner, info, machine),
        mounts=_mounts(info, winner),
        datasets_dir=info.datasets_dir,
        # The container sees only the GPUs that it is given, numbered from 0; a relative project= would go elsewhere.
        arguments=(*devices, f"project={RESULTS}"),
        wheel=own if through_autotune(winner) else None,
        torch_local=torch.partition("+")[2] or None,
        cuda=next((v for k, v in info.distributions.items() if k.startswith("nvidia-cuda-runtime")), None),
        driver=machine.driver if machine else None,
    )


def shared_memory_bytes(winner: Winner, info: RunInfo, machine: Machine | None) -> int:
    """Size of /dev/shm, where loader workers hand batches over: whole GiB, at least one.

    KNOBS 1.6: a rank keeps workers x prefetch x batch x 3 x imgsz^2 bytes for training and, since its training workers
    stay full meanwhile, twice the workers x 2 x twice the batch for validation; times the ranks, times MARGIN.
    """
    args = yolo_defaults() | winner.train_args
    n_ranks = max(winner.n_ranks, 1)
    batch = math.ceil(max(int(args["batch"]), 1) / n_ranks)
    most = machine.n_cores_host // max(len(info.gpus), 1) if machine else 1 << 10  # Ultralytics' own cap of workers
    workers = min(int(args["workers"]), most)
    prefetch = int(winner.patches.get("prefetch_factor") or TRAIN_PREFETCH)
    asked = winner.patches.get("val_workers")
    val_workers = min(2 * workers if asked is None else int(asked), most) if args["val"] else 0
    image = image_bytes(int(args["imgsz"]), 4 if winner.task == "classify" else 1)  # classify hands over 32 bit floats
    rank = train_bytes(workers=workers, batch_per_gpu=batch, image_bytes=image, prefetch=prefetch)
    rank += val_bytes(workers=val_workers, batch_per_gpu=batch, image_bytes=image)
    if args["cache"] in (True, "ram") and tuple(map(int, re.findall(r"\d+", _python(info))[:2])) >= FORKSERVER:
        rank += 2 * (info.n_images or 0) * image
    return max(1, math.ceil(MARGIN * n_ranks * rank / 2**30)) << 30


def constraints_txt(info: RunInfo) -> str:
    """constraints.txt: `name==version` lines.

    The local part of a version (torch 2.9.0+cu126) is left out: the default index has no such wheel, and without it
    the line also allows the one with it, where pip is shown an index that has it. The CUDA libraries are then left to
    torch, which names them exactly: those of a wheel for another CUDA have other versions.
    """
    named = info.distributions or {k: v for k, v in info.versions.items() if k not in NO_DISTRIBUTIONS}
    if "+" in named.get("torch", ""):
        named = {
            k: v for k, v in named.items() if k == "nvidia-ml-py" or not k.startswith(("nvidia-", "cuda-", "triton"))
        }
    return "".join(f"{name}=={version.partition('+')[0]}\n" for name, version in sorted(named.items()))


def dockerfile(container: Container) -> str:
    """Dockerfile: its build context is the folder it lies in."""
    c = container
    own = f" {HERE}/{c.wheel}" if c.wheel else ""
    lines = [
        f"# {c.claim}",
        "# How to build and start it stands in README.md beside this file.",
        *_about_base(c),
        f"FROM python:{c.python}-slim",
        "# g++, gcc, python3-dev (headers of C and of Python): torch.compile compiles while it trains. numactl: binds",
        "# ranks to NUMA nodes. tini: reaps what a training leaves behind. libgl1 and libglib2.0-0: OpenCV loads them.",
        "# Debian keeps only the newest version of a package, so these cannot be pinned.",
        "# hadolint ignore=DL3008",
        "RUN apt-get update \\",
        f"    && apt-get install -y --no-install-recommends {' '.join(LIBRARIES)} \\",
        "    && rm -rf /var/lib/apt/lists/*",
        "# Not root; whoever it is started as (docker run --user) may write its settings and its results.",
        f"RUN useradd --uid 1000 --create-home --home-dir {HOME} yolo \\",
        f"    && install --directory --mode 1777 {RESULTS} {HOME}/.cache {HOME}/.config \\",
        f"    && chmod 1777 {HOME}",
        f"WORKDIR {HERE}",
        *_about_torch(c),
        "ARG PIP_EXTRA_INDEX_URL",
        f"COPY constraints.txt {f'{c.wheel} ' if c.wheel else ''}./",
        "RUN pip install --no-cache-dir --constraint constraints.txt \\",
        f"    torch torchvision ultralytics cloudpickle nvidia-ml-py{own}",
        "# As in a trial: nothing is downloaded or installed while it trains. launch.sh sets the rest, from env.sh.",
        f"ENV HOME={HOME} USER=yolo YOLO_CONFIG_DIR={HOME}/.config MPLBACKEND=Agg \\",
        "    YOLO_OFFLINE=true YOLO_AUTOINSTALL=false CUDA_DEVICE_ORDER=PCI_BUS_ID PYTHONUNBUFFERED=1"
        + (" \\" if c.gpus else ""),
    ]
    if c.gpus:
        visible = ",".join(map(str, range(len(c.gpus))))
        lines.append(f"    NVIDIA_DRIVER_CAPABILITIES=compute,utility AUTOTUNE_GPUS={visible}")
    lines.append("COPY winner.json best.yaml env.sh launch.sh ./")
    if c.datasets_dir is not None:
        # Not `yolo settings`, which refuses a path with a single bracket.
        code = "import sys, ultralytics as u; u.settings.update(datasets_dir=sys.argv[1])"
        setting = f"python -c '{code}' \"$1\" && chmod -R a+rwX {HOME}/.config"
        lines += [
            "# The dataset's YAML has a relative `path:`; it starts from here.",
            f"RUN {json.dumps(['sh', '-c', setting, 'sh', c.datasets_dir])}",
        ]
    command = ["tini", "-g", "--", "bash", f"{HERE}/launch.sh", *c.arguments]
    lines += [f"WORKDIR {RESULTS}", "USER 1000", f"ENTRYPOINT {json.dumps(command)}"]
    return "\n".join(lines) + "\n"


def _about_base(c: Container) -> list[str]:
    if not c.gpus:
        return ["# It was measured on a CPU: plain Python is the base, and no GPU is asked for."]
    cuda = f"CUDA {c.cuda}" if c.cuda else "CUDA"
    driver = f" (measured with {one_line(c.driver)})" if c.driver else ""
    return [
        f"# The wheels of torch bring {cuda}, cuDNN and NCCL, so plain Python is base enough. The driver{driver}",
        "# comes from the host, through the NVIDIA container toolkit.",
    ]


def _about_torch(c: Container) -> list[str]:
    lines = []
    if c.torch_local:
        lines += [
            f"# Measured with a wheel of torch for {one_line(c.torch_local)}, which the default index does not have.",
            "# For the same one: docker build --build-arg PIP_EXTRA_INDEX_URL=... with the index that it came from.",
        ]
    if c.wheel:
        lines += [
            "# launch.sh starts the training through autotune, which is on no package index yet. Put its wheel beside",
            f"# this file:  pip wheel --no-deps --wheel-dir . FOLDER_OF_AUTOTUNE   ({c.wheel})",
        ]
    return lines


def _python(info: RunInfo) -> str:
    """The version that the run had, as the tags of the base image spell it."""
    return info.versions.get("python", "3.12").rstrip("+")


def _mounts(info: RunInfo, winner: Winner) -> tuple[Mount, ...]:
    """The dataset's folders, and files of the user's outside of them; read-only unless YOLO is to write there."""
    writes = winner.train_args.get("cache") == "disk"  # decoded images beside the originals
    named = [Path(v) for k in PATHS if Path(v := str(winner.train_args.get(k))).is_absolute()]
    folders = info.data_folders or tuple(str(p.parent) for p in named[:1])  # a run of before: the dataset is a guess
    files = [str(p) for p in named if not any(p.is_relative_to(f) for f in folders)]
    return (
        *(Mount(path=f, read_only=not writes, is_folder=True) for f in folders),
        *(Mount(path=f, read_only=True, is_folder=False) for f in dict.fromkeys(files)),
    )
