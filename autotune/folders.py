"""Where does a run live, and which folder did the user name?"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import autotune
from autotune.contract import Machine, RunDir, RunInfo, read_json
from autotune.errors import InputError


def label(model: str, data: str, machine: Machine, gpus: Sequence[str], n_ranks: int) -> str:
    """What a run folder is called after its date: model, dataset, machine."""
    path = Path(data)
    stem = path.parent.name if path.stem == "data" else path.stem
    names = [g.name for g in machine.gpus if g.uuid in gpus] or ["cpu"]
    where = f"{n_ranks}x" * (n_ranks > 1) + re.sub(r"[^A-Za-z0-9]+", "", names[0])
    return f"{Path(model).stem}_{stem}_{where}"


def writable(out: Path) -> Path:
    """The folder for results, absolute; not made yet.

    Raises:
        InputError: it could not be made, or nothing could be written into it.
    """
    out = out.expanduser().absolute()
    existing = next(p for p in (out, *out.parents) if p.exists())
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".autotune-"):
            pass
    except OSError as e:
        raise InputError(f"--out {out}: cannot write to {existing}: {e.strerror}", "choose another --out") from e
    return out


def safe_name(title: str) -> str:
    """What a title looks like in a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", title).strip("-.") or "run"


def make_folder(out: Path, title: str) -> Path:
    """A new folder; a second search of the same minute gets -2."""
    safe = safe_name(title)
    stamp = dt.datetime.now().strftime("%Y-%m-%d_%H%M")
    for i in range(1, 1000):
        folder = out / (f"{stamp}_{safe}" if i == 1 else f"{stamp}_{safe}-{i}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise InputError(f"{out} already holds 999 runs of this minute", "use --name")


def point_latest(out: Path, folder: Path) -> None:
    """results/latest -> this run; a real file of that name is left alone."""
    link = out / "latest"
    if link.is_symlink() or not link.exists():
        tmp = out / f".latest.{os.getpid()}"
        with contextlib.suppress(OSError):
            tmp.symlink_to(folder.name)
            tmp.replace(link)


def run_folder(path: str) -> RunDir:
    """A run folder named on the command line.

    Raises:
        InputError: not a run folder.
    """
    folder = Path(path)
    if not (folder / "run.json").is_file():
        raise InputError(f"{path} is not a run folder (no run.json in it)", "give results/latest or results/NAME")
    read_json(folder / "run.json", RunInfo)
    return RunDir(folder.resolve())


def find_winner(path: str) -> Path:
    """RUN, RUN/best or winner.json -> winner.json.

    Raises:
        InputError: there is none.
    """
    given = Path(path)
    for candidate in (given, given / "winner.json", given / "best" / "winner.json"):
        if candidate.is_file():
            return candidate
    raise InputError(f"no winner.json in {path}", "give a run folder, its best/ folder, or winner.json")


def git_state() -> str | None:
    """Commit of this checkout of autotune, '+' when it was changed; None when it is an installed wheel."""
    root = Path(autotune.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        args = ["git", "-C", str(root), "describe", "--always", "--dirty=+"]
        return subprocess.run(args, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return None
