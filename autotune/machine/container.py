"""Does this process live in a container, and in whose?"""

from __future__ import annotations

from typing import Final

from autotune.machine.host import Host

IN_PATHS: Final = {
    "kubepods": "kubernetes",
    "docker": "docker",
    "libpod": "podman",
    "containerd": "containerd",
    "lxc": "lxc",
}
"""Part of a cgroup's path -> who makes such groups."""


def container_of(host: Host) -> str | None:
    """docker, podman, kubernetes, containerd, lxc, or what /run/systemd/container says; None: none that shows.

    A folder of cgroup v2 is hidden from inside (its path is `/`), so files that the engines leave are asked first.
    """
    if host.env.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if host.read("run/.containerenv") is not None:
        return "podman"
    if host.read(".dockerenv") is not None:
        return "docker"
    if said := host.read("run/systemd/container"):
        return said
    paths = host.read("proc/self/cgroup") or ""
    found = next((name for part, name in IN_PATHS.items() if part in paths), None)
    return found or ("container" if host.env.get("container") else None)
