"""Which environment variables of the user's can change a training's speed?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

SPEED: Final = re.compile(
    r"(NCCL|TORCH|TORCHINDUCTOR|TORCHDYNAMO|TRITON|PYTORCH|CUDA|CUDNN|CUBLAS|NVIDIA|OMP|MKL|KMP|GOMP|OPENBLAS|ONEDNN"
    r"|DNNL|ATEN|MALLOC)_\w+"
    r"|LD_PRELOAD|LD_LIBRARY_PATH|PYTHONMALLOC|PYTHONDEVMODE|YOLO_AUTOINSTALL|YOLO_OFFLINE"
)
SECRET: Final = re.compile(r"TOKEN|KEY|PASSW|SECRET|CREDENTIAL", re.IGNORECASE)


def speed_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Variable -> value, sorted: what machine.json keeps and `autotune doctor` looks at.

    It is pasted into issues and goes with receipts: a variable whose name sounds like a secret is left out, the home
    folder is not spelled.
    """
    kept = {k: v for k, v in env.items() if v and SPEED.fullmatch(k) and not SECRET.search(k)}
    return {k: without_home(v, env) for k, v in sorted(kept.items())}


def without_home(text: str, env: Mapping[str, str]) -> str:
    """The text with the home folder in it, which names the user, written as `~`."""
    home = env.get("HOME", "").rstrip("/")
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if home else text
