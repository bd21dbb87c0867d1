"""How much memory did this rank need at its peak?"""

from __future__ import annotations

from pathlib import Path

import psutil
import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Peak bytes of the rank.

    CUDA: what torch's allocator reserved at most. CPU: the peak resident set of this process (VmHWM) without its file
    pages now, plus what its loader workers hold alone now: what they share with it since the fork is counted there.
    File pages are the libraries: the kernel may drop them, and a forked process counts them only as it touches them.
    (The proportional set size in place of what they hold alone gave a rank with one worker 8 % less when a preloaded
    parent had forked it, who shares pages too.)
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    status = Path("/proc/self/status")
    own = _kib(status, "VmHWM:") - _kib(status, "RssFile:")
    children = sum(
        _kib(Path(f"/proc/{p.pid}/smaps_rollup"), "Private_Dirty:") for p in psutil.Process().children(recursive=True)
    )
    return (own + children) * 1024


def _kib(path: Path, key: str) -> int:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1])
    except OSError:
        return 0  # the worker has gone, or a container hides the file
    return 0
