"""What can go wrong inside a trial? Faults that the synthetic backend commits when its spec asks for one.

The spec's train_args["synthetic"], or else the JSON in AUTOTUNE_SYNTHETIC, is a mapping:

    step_s   seconds a step takes on the real clock; without it the clock is virtual and nothing takes time
    n_ranks  ranks that this one process answers for, when its clock is virtual
    machine  a name of machines.FAMILIES; default dry_run
    machine_seed  which machine of that kind; default 0
    t_s      seconds since the search began, for what drifts; default a minute a trial
    fault    a name of FAULTS
    at       number of finished steps before it happens (0: in the first step), for the faults of a step
    rank     the rank that commits it; default 0
    folder   what `reads_folder` reads and `fills_disk` fills
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

ENV = "AUTOTUNE_SYNTHETIC"
Settings = Mapping[str, Any]
When = Literal["import", "build", "step", "end"]


class OutOfMemoryError(RuntimeError):
    """Named and worded as torch's."""


def settings(train_args: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping described above; empty when nothing is asked."""
    return dict(train_args.get("synthetic") or json.loads(os.environ.get(ENV, "{}")))


def commit(when: When, asked: Settings, *, rank: int, n_steps: int = 0) -> None:
    """Commit the fault that these settings ask for at this point, if any."""
    if "fault" not in asked or rank != asked.get("rank", 0):
        return
    due, fault = FAULTS[asked["fault"]]
    if due == when and (when != "step" or n_steps >= asked.get("at", 0)):
        fault(asked)


def _hang(_: Settings) -> NoReturn:
    while True:
        time.sleep(3600)


def _signal_self(number: signal.Signals) -> Callable[[Settings], None]:
    return lambda _: os.kill(os.getpid(), number)


def _loader_killed(_: Settings) -> None:
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    worker.kill()
    worker.wait()
    raise RuntimeError(f"DataLoader worker (pid {worker.pid}) is killed by signal: Killed. ")


def _nan(_: Settings) -> None:
    raise FloatingPointError("the loss is NaN or infinite")


def _oom(_: Settings) -> None:
    raise OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.10 GiB is "
        "free."
    )


def _host_memory(_: Settings) -> None:
    """Really out of memory: the address space is limited to little more than what is in use."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), limits[1]))
    try:
        bytearray(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _reads_folder(asked: Settings) -> None:
    for path in sorted(Path(asked["folder"]).iterdir()):
        path.read_bytes()


def _fills_disk(asked: Settings) -> None:
    """Until the file system refuses, at most 64 MiB: the test's is small."""
    with (Path(asked["folder"]) / "filler").open("wb", buffering=0) as f:
        for _ in range(1024):
            f.write(bytes(1 << 16))


def _stubborn(asked: Settings) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    for _ in range(2):
        subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    _hang(asked)


def _leaves_files(_: Settings) -> None:
    """What a killed torch leaves in shared memory and in TMPDIR."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f"torch_{dead.pid}_1_0", f"psm_{os.getpid():x}", f"sem.mp-{os.getpid():x}"):
        (Path("/dev/shm") / name).write_bytes(b"left")
    (Path(os.environ["TMPDIR"]) / "torchelastic_left").mkdir(exist_ok=True)


def _abort(_: Settings) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).abort()


FAULTS: Final[dict[str, tuple[When, Callable[[Settings], None]]]] = {
    "import_hang": ("import", _hang),
    "build_hang": ("build", _hang),
    "hang": ("step", _hang),  # at 0: a compile that never ends
    "sigkill_self": ("step", _signal_self(signal.SIGKILL)),
    "sigstop_self": ("step", _signal_self(signal.SIGSTOP)),
    "loader_killed": ("step", _loader_killed),
    "nan": ("step", _nan),
    "oom": ("step", _oom),
    "host_memory": ("step", _host_memory),
    "reads_folder": ("step", _reads_folder),
    "fills_disk": ("step", _fills_disk),
    "stubborn": ("step", _stubborn),
    "leaves_files": ("build", _leaves_files),
    "end_hang": ("end", _hang),
    "aborts_at_end": ("end", _abort),
}
"""Name -> at which point, and what is done there."""
