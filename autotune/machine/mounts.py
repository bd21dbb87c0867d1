"""On which file system does a folder lie, and is that one slow by nature?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from autotune.contract import Mount
from autotune.machine.host import Host

NETWORK: Final = re.compile(
    r"(nfs|smb|lustre|ceph|beegfs|gpfs|wekafs|afs)\w*|cifs|9p|virtiofs|fuse\.(?!fuse-overlayfs$).+"
)
"""Kinds behind which another machine answers, or the host of this one. fuse-overlayfs is a rootless container's own."""


def mount_of(host: Host, folder: str) -> Mount | None:
    """The file system that holds a folder: the mount point that is its longest prefix, the newest of several there.

    Args:
        host: whose /proc/self/mountinfo and /sys.
        folder: absolute; symbolic links in it are followed.

    Returns:
        None where the kernel does not tell.
    """
    text = host.read("proc/self/mountinfo")
    if text is None:
        return None
    there = Path(_real(host, folder))
    best: tuple[int, Mount] | None = None
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if not dash or len(left) < 5 or len(right) < 2:
            continue
        point = Path(unescape(left[4]))
        if not there.is_relative_to(point) or (best and len(point.parts) < best[0]):
            continue
        kind = right[0]
        mount = Mount(
            path=folder,
            point=str(point),
            kind=kind,
            source=unescape(right[1]),
            network=NETWORK.fullmatch(kind) is not None,
            rotational=_rotational(host, left[2], right[1]),
        )
        best = len(point.parts), mount
    return best[1] if best else None


def unescape(text: str) -> str:
    r"""Space, tab, line break and backslash are octal there: `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def _real(host: Host, folder: str) -> str:
    """The folder without symbolic links, as seen below the root."""
    root = host.root.resolve()
    real = (root / folder.lstrip("/")).resolve()
    return f"/{real.relative_to(root)}" if real.is_relative_to(root) else folder


def _rotational(host: Host, device: str, source: str) -> bool | None:
    """Of a block device `8:1`; a partition has its queue one folder up.

    A virtual disk says that it turns, whatever lies below it.
    """
    base = f"sys/dev/block/{device}"
    said = host.read(f"{base}/queue/rotational") or host.read(f"{base}/../queue/rotational")
    if said == "1":
        virtual = Path(source).name.startswith(("vd", "xvd")) or " hypervisor" in (host.read("proc/cpuinfo") or "")
        return None if virtual else True
    return False if said == "0" else None
