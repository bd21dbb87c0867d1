"""What of NCCL has the user set already, in the environment or in a file that NCCL reads? (KNOBS 1.5)"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

SYSTEM_FILE: Final = Path("/etc/nccl.conf")
PREFIXES: Final = ("NCCL_", "TORCH_NCCL_")


def nccl_files(env: Mapping[str, str], system: Path = SYSTEM_FILE) -> dict[str, str]:
    """What NCCL's configuration files set: NAME=VALUE a line, `#` begins a comment.

    Args:
        env: NCCL_CONF_FILE and HOME in it say where the user's file is.
        system: the administrator's file.

    Returns:
        Variable -> `value (FILE)`. The user's file wins over the administrator's.
    """
    own = env.get("NCCL_CONF_FILE") or str(Path(env.get("HOME") or "~").expanduser() / ".nccl.conf")
    found: dict[str, str] = {}
    for path in (Path(own), system):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, equals, value = (part.strip() for part in line.partition("#")[0].partition("="))
            if equals and name and value:
                found.setdefault(name, f"{value} ({path})")
    return found


def nccl_set(env: Mapping[str, str], system: Path = SYSTEM_FILE) -> dict[str, str]:
    """Variable -> `value (environment)` or `value (FILE)`, sorted; the environment wins over the files, as in NCCL."""
    exported = {k: f"{v} (environment)" for k, v in env.items() if k.startswith(PREFIXES) and v}
    return dict(sorted((nccl_files(env, system) | exported).items()))


def kept_note(found: Mapping[str, str]) -> tuple[str, ...]:
    """A line that names what the user has set: it is part of the baseline."""
    if not found:
        return ()
    said = ", ".join(f"{name}={value}" for name, value in found.items())
    return (f"your own NCCL settings are kept, for the baseline and wherever a trial does not change them: {said}",)
