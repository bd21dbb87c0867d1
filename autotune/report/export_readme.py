"""How does a person use the exported files? README.md of best/: every file, every command, and what to expect."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from autotune.report.chosen import Chosen
from autotune.report.container import RESULTS, Container
from autotune.report.container_yaml import STACK_BYTES
from autotune.report.shell import one_line

WHAT: Final = {
    "winner.json": "the configuration, whole: YOLO arguments, environment, patches; read by `autotune train`",
    "best.yaml": "its part that plain YOLO understands",
    "keep-training.yaml": "the fastest configuration that keeps the training the same as yours",
    "env.sh": "its environment variables",
    "launch.sh": "starts the full training with all of it, from any folder",
    "Dockerfile": "the image: this Python, these versions, this configuration",
    "compose.yaml": "starts that image with Docker Compose",
    "k8s.yaml": "the same as a Job of Kubernetes, for you to name image and claims",
    "constraints.txt": "exact versions of what the training imports, for pip",
    "receipt.json": "figures with their intervals, machine, versions, commands",
}


def readme(
    files: Sequence[str], chosen: Chosen, container: Container, table: str, certified: Sequence[str] = ()
) -> str:
    """README.md.

    Args:
        files: names of all files of the folder.
        chosen: what is exported.
        container: how it runs in one.
        table: before and after, as Markdown.
        certified: a line of Markdown for each certificate of the winner.
    """
    lines = [f"# {one_line(chosen.info.name)}", "", one_line(chosen.claim), ""]
    lines += [table, ""]
    lines += ["What was checked beside the speed:", "", *certified, ""] if certified else []
    lines += ["All commands are for this folder (`cd` to it first); what you add to one wins: `epochs=300`.", ""]
    lines += _start(container)
    lines += _in_container(container)
    lines += [
        "## On another machine, or after an update",
        "",
        "What is fastest depends on the GPU, the driver and the versions. In minutes, from a copy of this folder:",
        "",
        *_block("python -m autotune recheck ."),
        "## Files",
        "",
        *(f"- `{name}`: {WHAT[name]}" for name in files if name in WHAT),
    ]
    return "\n".join(lines) + "\n"


def _start(container: Container) -> list[str]:
    """Without a container."""
    lines = ["## Start the training", "", *_block("bash launch.sh")]
    if container.wheel:
        lines += ["That needs autotune, because plain YOLO cannot start all of it.", ""]
    lines += ["Through autotune, which compares the real epochs with what is promised here:", ""]
    lines += _block("python -m autotune train winner.json")
    lines += ["The part that plain YOLO understands, alone:", "", *_block("yolo train cfg=best.yaml")]
    if start := container.datasets_dir:
        lines += [
            "The dataset's YAML has a relative `path:`, which YOLO looks for where you start it, then in "
            f"Ultralytics' `datasets_dir`. Here it begins in {_code(start)}: start from there.",
            "",
        ]
    return lines


def docker_run(container: Container) -> str:
    """`docker run`, as it can be typed in this folder: results in ../runs, which must be there."""
    c = container
    words = ["docker run --rm", '--user "$(id -u):$(id -g)"', f"--shm-size {c.shm_bytes >> 30}g"]
    words += [f"--ulimit memlock=-1 --ulimit stack={STACK_BYTES}"]
    if c.gpus:
        words.append("--gpus " + shlex.quote(_csv([f"device={','.join(c.gpus)}"])))
    words += ["--cap-add SYS_NICE"] if len(c.gpus) > 1 else []
    for m in c.mounts:
        fields = ["type=bind", f"source={m.path}", f"target={m.path}", *(["readonly"] if m.read_only else [])]
        words.append("--mount " + shlex.quote(_csv(fields)))
    words += [f"--mount type=bind,source=../runs,target={RESULTS}", c.name]
    return " \\\n  ".join(words)


def _in_container(c: Container) -> list[str]:
    """Docker, Compose, Kubernetes."""
    lines = ["## In a container", ""]
    if c.wheel:
        lines += [
            f"autotune is on no package index yet: its wheel must lie here as `{c.wheel}` before the image is built.",
            "",
            *_block("pip wheel --no-deps --wheel-dir . FOLDER_OF_AUTOTUNE"),
        ]
    compose = 'RUNS=../runs RUN_AS="$(id -u):$(id -g)" docker compose up --build'
    lines += [
        *_block(f"docker build --tag {c.name} .\nmkdir -p ../runs\n{docker_run(c)}"),
        "Or with Compose, after the `mkdir`:",
        "",
        *_block(compose),
        "The dataset is mounted at the path that it has here, because its YAML may name its folders; where it lies "
        "elsewhere, change the mounts and add `data=` with the path in the container.",
        "",
        f"`/dev/shm` gets {c.shm_bytes >> 30} GiB. Per rank: workers x prefetched batches x 3 x imgsz x imgsz bytes an "
        "image for training, the same for validation with twice the workers and twice the batch, and a fifth more.",
        "",
    ]
    return lines


def _block(command: str) -> list[str]:
    """A fenced block that nothing in the command can end, and an empty line."""
    fence = "```"
    while fence in command:
        fence += "`"
    return [f"{fence}sh", command, fence, ""]


def _code(text: str) -> str:
    """Text as code in a line of Markdown."""
    ticks = "`"
    while ticks in text:
        ticks += "`"
    return f"{ticks} {one_line(text)} {ticks}"


def _csv(fields: Sequence[str]) -> str:
    """As docker reads --mount and --gpus."""
    return ",".join('"' + f.replace('"', '""') + '"' if set(f) & set(',"\r\n') else f for f in fields)
