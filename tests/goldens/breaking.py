"""How is a real process broken, and what is kept of what it said? Tools of tests.goldens.make_logs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from autotune.contract import SegmentSettings, TrialDir, TrialSpec, write_json
from autotune.run.demo import demo_dataset
from autotune.run.launch import environment, make_private_folders
from autotune.run.trial import run_trial
from autotune.run.watch import Live

LOGS = Path(__file__).parent / "logs"
REPOSITORY = Path(__file__).parents[2]
KEPT_BYTES = 5000
LONG = SegmentSettings(warmup_steps=2, warmup_s=0.1, warmup_cap_s=2.0, measure_s=60.0, measure_cap_s=90.0)
RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "0"]


def keep(name: str, log: bytes, directory: Path | None = None) -> None:
    """Write the case's files."""
    cut = log if len(log) <= KEPT_BYTES else log[-KEPT_BYTES:].split(b"\n", 1)[1]
    (LOGS / f"{name}.log").write_bytes(cut)
    for path in sorted(directory.glob("rank*.json")) if directory else ():
        record = json.loads(path.read_text())
        if record["error"]:
            error = {k: record["error"][k] for k in ("type", "message")}
            kept = {"rank": record["rank"], "error": error, "n_steps": len(record["steps"]["end_s"])}
            (LOGS / f"{name}.{path.stem}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    last = cut.decode("utf-8", "replace").strip().splitlines()[-1:]
    sys.stdout.write(f"{name}: {last}\n")


def trial(name: str, asked: TrialSpec, folder: Path, watch: Callable[[Live], str | None] | None = None) -> None:
    """A real trial on one rank."""
    result = run_trial(asked, TrialDir(folder / name), started_s=0.0, watch=watch)
    sys.stdout.write(f"    {result.outcome}: {result.error} | {result.hint}\n")
    keep(name, (folder / name / "log.txt").read_bytes(), folder / name)


def script(name: str, body: str, folder: Path, launcher: list[str] | None = None, **env: str) -> None:
    """A few lines of Python in processes of their own."""
    path = folder / f"{name}.py"
    path.write_text(textwrap.dedent(body))
    command = [*(launcher or [sys.executable]), str(path)]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **env}, capture_output=True, timeout=120)
    keep(name, done.stdout + done.stderr)


def two_ranks(name: str, asked: TrialSpec, folder: Path, hurt: Callable[[psutil.Process], None]) -> None:
    """A real trial on two gloo ranks; `hurt` gets the process of rank 1 after its third step."""
    directory = TrialDir(folder / name)
    directory.path.mkdir()
    make_private_folders(directory)
    asked = replace(asked, n_ranks=2, segment=LONG)
    write_json(directory.spec, asked)
    with directory.log.open("wb") as out:
        command = [*RANKS, "-m", "autotune.worker", str(directory.path)]
        env = environment(asked, directory, name)
        agent = subprocess.Popen(command, cwd=directory.path, env=env, stdout=out, stderr=out)
        while not directory.stream(1).exists() or len(directory.stream(1).read_text().splitlines()) < 6:
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise RuntimeError(f"{name}: ended early with {agent.wait(0.2)}")
        ranks = [p for p in psutil.Process(agent.pid).children() if p.environ().get("RANK") == "1"]
        hurt(ranks[0])
        agent.wait(120)
    keep(name, directory.log.read_bytes(), directory.path)


def once(act: Callable[[], object]) -> Callable[[Live], None]:
    """A watch that acts once, after the third step."""
    done: list[object] = []

    def watch(live: Live) -> None:
        if live.n_steps >= 3 and not done:
            done.append(act())

    return watch


def site(folder: Path, name: str, body: str, when: str = "autotune.worker.memory") -> dict[str, str]:
    """Environment in which `body` runs inside the trial just before module `when` is imported."""
    home = folder / f"site_{name}"
    home.mkdir()
    (home / "sitecustomize.py").write_text(
        "import sys, importlib.abc\n"
        "class F(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {when!r}:\n"
        f"{textwrap.indent(textwrap.dedent(body), ' ' * 12)}\n"
        "sys.meta_path.insert(0, F())\n"
    )
    return {"PYTHONPATH": f"{home}:{REPOSITORY}"}


def leaf(pid: int | None = None) -> psutil.Process:
    """The youngest process below us: the loader worker of a trial with one."""
    return max(psutil.Process(pid).children(recursive=True), key=lambda p: (p.create_time(), p.pid))


def address_space(extra_mib: int) -> str:
    """Limit the address space to what is mapped now and so much more."""
    return f"""
        import resource
        vsz = int(open("/proc/self/statm").read().split()[0]) * 4096 + {extra_mib} * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (vsz, vsz))
    """


def small_tmpfs(at: str, size: str, asked: TrialSpec, name: str, f: Path) -> None:
    """A real trial in a mount namespace of its own, where `at` is a small tmpfs."""
    directory = TrialDir(f / name)
    directory.path.mkdir()
    make_private_folders(directory)
    write_json(directory.spec, asked)
    shell = f'mount -t tmpfs -o size={size} tmpfs "$1" && shift && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", shell, "sh", at]
    command += [sys.executable, "-m", "autotune.worker", str(directory.path)]
    env = environment(asked, directory, name)
    with directory.log.open("wb") as out:
        process = subprocess.Popen(command, cwd=f, env=env, stdout=out, stderr=out, start_new_session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a full /dev/shm lets the trainer wait for ever
            process.wait(40)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    keep(name, directory.log.read_bytes(), directory.path)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


def copy(folder: Path) -> Path:
    """A fresh copy of the small dataset."""
    source = demo_dataset(folder / "sets", n_train=64, n_val=8)
    target = Path(tempfile.mkdtemp(dir=folder)) / "data"
    shutil.copytree(source.parent, target, ignore=shutil.ignore_patterns("*.cache", "*.npy"))
    text = (target / source.name).read_text()
    (target / source.name).write_text(text.replace(str(source.parent), str(target)))
    return target / source.name
