"""Which versions run here: of Python, of the distributions, and of what comes inside torch's wheel?"""

from __future__ import annotations

import importlib.util
import platform
import re
from typing import Final

from autotune import __version__
from autotune.machine.host import Host

DISTRIBUTIONS: Final = ("torch", "torchvision", "ultralytics", "optuna", "numpy", "opencv-python", "pandas", "plotly")
BUNDLED: Final = ("cuda", "cudnn", "nccl")
"""Inside torch's wheel, or required by it."""
_MAJORS: Final = (14, 13, 12, 11)
"""Of CUDA, newest first."""


def read_versions(host: Host) -> dict[str, str]:
    """Name -> version of what is installed; torch is not imported for it."""
    versions = {"python": platform.python_version(), "autotune": __version__}
    versions |= {name: v for name in DISTRIBUTIONS if (v := host.version(name))}
    if cuda := _torch_cuda(host):
        versions["cuda"] = cuda
    for name in ("cudnn", "nccl"):
        found = (host.version(f"nvidia-{name}-cu{major}") for major in _MAJORS)
        if version := next(filter(None, found), None):
            versions[name] = version
    return versions


def _torch_cuda(host: Host) -> str | None:
    """torch.version.cuda, read from the file; None: no torch, or a wheel for CPUs."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = host.read(spec.origin.replace("__init__.py", "version.py").lstrip("/")) or ""
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None
