"""How is the container started by Compose and by Kubernetes? The text of compose.yaml and k8s.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from autotune.report.container import RESULTS, Container
from autotune.report.yolo_yaml import scalar
from autotune.run.places import outermost

STACK_BYTES: Final = 64 << 20
"""NCCL before 2.28 needs more stack than the usual 8 MiB (KNOBS 4, check 17)."""
N_FILES: Final = 65536
DATA_CLAIM: Final = "your-data-claim"
RESULTS_CLAIM: Final = "your-results-claim"


def compose_yaml(container: Container) -> str:
    """compose.yaml: one service that builds the image and trains; a `$` of ours is written `$$`."""
    c = container
    lines = [
        f"# {c.claim}",
        "# From this folder (README.md has the same):",
        '#   mkdir -p ../runs && RUNS=../runs RUN_AS="$(id -u):$(id -g)" docker compose up --build',
        f"name: {scalar(c.name)}",
        "services:",
        "  train:",
        "    build: .",
        f"    image: {scalar(c.name)}",
        '    user: "${RUN_AS:-1000:1000}"',
        "    # Loader workers hand batches over in /dev/shm: workers x prefetch x bytes of a batch x ranks, training",
        "    # and validation, and a margin (see README.md). Docker's own 64 MB hold hardly one batch.",
        f"    shm_size: {c.shm_bytes >> 30}gb",
        "    # All ranks are in this one container, so its own /dev/shm serves them; `host` would take the machine's.",
        "    ipc: private",
        "    ulimits:",
        "      memlock: -1",
        f"      stack: {STACK_BYTES}",
        f"      nofile: {N_FILES}",
    ]
    if len(c.gpus) > 1:
        lines += ["    # For NCCL, which asks for memory of a NUMA node.", "    cap_add: [SYS_NICE]"]
    if c.gpus:
        lines += [
            "    deploy:",
            "      resources:",
            "        reservations:",
            "          devices:",
            "            # The GPUs that it was measured on; on another machine put its own here (nvidia-smi -L).",
            "            - driver: nvidia",
            f"              device_ids: {_list(c.gpus)}",
            "              capabilities: [gpu]",
        ]
    lines += ["    volumes:", "      # Everything at the path that it has here: the dataset's YAML names its folders."]
    for mount in c.mounts:
        path = scalar(mount.path.replace("$", "$$"))
        lines += ["      - type: bind", f"        source: {path}", f"        target: {path}"]
        lines += ["        read_only: true"] if mount.read_only else []
        lines += ["        bind: {create_host_path: false}"]
    lines += [
        "      - type: bind",
        '        source: "${RUNS:?a folder for the results that you may write, such as RUNS=../runs}"',
        f"        target: {RESULTS}",
        "        bind: {create_host_path: false}",
    ]
    return "\n".join(lines) + "\n"


def k8s_yaml(container: Container) -> str:
    """k8s.yaml: a Job; image and volume claims are the cluster's own, to be named by the user."""
    c = container
    folders = outermost(m.path if m.is_folder else str(Path(m.path).parent) for m in c.mounts)
    claims = [f"{DATA_CLAIM}-{i}" if len(folders) > 1 else DATA_CLAIM for i in range(1, len(folders) + 1)]
    lines = [
        f"# {c.claim}",
        "# Name your own: image (pushed to where the cluster finds it) and the claims. kubectl apply -f k8s.yaml",
        "apiVersion: batch/v1",
        "kind: Job",
        "metadata:",
        f"  name: {scalar(c.name)}",
        "spec:",
        "  backoffLimit: 0",
        "  template:",
        "    spec:",
        "      restartPolicy: Never",
        "      securityContext: {runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000}",
        "      containers:",
        "        - name: train",
        f"          image: {scalar(c.name)}",
        "          # Its environment is in the image: launch.sh reads env.sh. More arguments for YOLO:",
        '          # args: ["epochs=300"]',
    ]
    if c.gpus:
        lines += [
            "          resources:",
            "            # Add cpu and memory as your nodes have them: whole cores, requests equal to limits, or a",
            "            # quota slows the loader. What lies in /dev/shm counts as memory.",
            "            limits:",
            f"              nvidia.com/gpu: {len(c.gpus)}",
        ]
    lines += [
        "          volumeMounts:",
        "            - {name: shm, mountPath: /dev/shm}",
        f"            - {{name: results, mountPath: {RESULTS}}}",
    ]
    if folders:
        lines.append("            # The claim must hold what this folder holds here; the dataset's YAML names it.")
    for i, folder in enumerate(folders, 1):
        lines += [f"            - name: data-{i}", f"              mountPath: {scalar(folder)}"]
        lines += ["              readOnly: true"] if all(m.read_only for m in c.mounts) else []
    lines += [
        "      volumes:",
        "        # Workers x prefetch x bytes of a batch x ranks, training and validation, a margin (README.md).",
        "        - name: shm",
        f"          emptyDir: {{medium: Memory, sizeLimit: {c.shm_bytes >> 30}Gi}}",
        "        - name: results",
        f"          persistentVolumeClaim: {{claimName: {RESULTS_CLAIM}}}",
    ]
    for i, claim in enumerate(claims, 1):
        lines += [f"        - name: data-{i}", f"          persistentVolumeClaim: {{claimName: {claim}}}"]
    return "\n".join(lines) + "\n"


def _list(items: tuple[str, ...]) -> str:
    return scalar([item.replace("$", "$$") for item in items])
