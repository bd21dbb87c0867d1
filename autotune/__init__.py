"""autotune: find the configuration with which an Ultralytics YOLO training runs fastest here, and prove it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load", "tune"]

if TYPE_CHECKING:
    from autotune.api import Run, load, tune


def __getattr__(name: str) -> Any:
    """Load the API at first use: `import autotune` must cost nothing (DESIGN 2)."""
    if name in ("tune", "load", "Run"):
        from autotune import api

        return getattr(api, name)
    raise AttributeError(f"module 'autotune' has no attribute {name!r}")
