"""Warm trials: what a preloaded parent forks is a cold trial in all but its start. Real processes and signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.contract import Deadlines, Machine, Outcome, RunDir, Site, TrialDir, TrialResult, TrialSpec
from autotune.run import preloaded as preloaded_module
from autotune.run.launch import environment
from autotune.run.leftover import kill_leftovers, sweep_files
from autotune.run.preloaded import ForkedRoot, Preloaded
from autotune.run.supervise import start_cold
from autotune.run.trial import run_trial
from autotune.space.config import materialise
from autotune.space.context import Context
from autotune.space.knobs import KNOBS
from tests.run.trials import spec as yolo_spec

PACKAGE = Path(__file__).parents[2]
# Every process of a trial imports this at its start. It looks at the trial's own process where it would leave.
SPY = """
    import ctypes, json, os, resource, signal, sys, tempfile, time
    leave = os._exit

    def facts():
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_char_p
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        files = {}
        for fd in os.listdir("/proc/self/fd"):
            if os.path.exists(f"/proc/self/fd/{fd}"):
                files[fd] = os.readlink(f"/proc/self/fd/{fd}")
        environ = open("/proc/self/environ", "rb").read().decode().split("\\0")
        return {
            "environ": dict(os.environ),
            "in C": {k: libc.getenv(k.encode()).decode() for k in os.environ},
            "tag seen from outside": [v for v in environ if v.startswith("AUTOTUNE_TRIAL_ID=")],
            "argv": sys.argv,
            "cwd": os.getcwd(),
            "tempdir": tempfile.gettempdir(),
            "path": sys.path[1:],
            "files": files,
            "signals": {k: status[k].strip() for k in ("SigBlk", "SigIgn", "SigCgt", "Threads")},
            "handlers": {int(s): str(signal.getsignal(s)).split(" at ")[0] for s in signal.valid_signals()},
            "limits": [resource.getrlimit(i) for i in range(16)],
            "affinity": sorted(os.sched_getaffinity(0)),
            "nice": os.nice(0),
            "umask": os.umask(0o022),
            "leads its session": os.getsid(0) == os.getpid() == os.getpgid(0),
            "parent": os.getppid(),
        }

    def spy(code):
        if os.path.exists("spec.json"):
            with open("facts.json", "w") as f:
                json.dump(facts(), f)
            if "STAY" in os.environ:
                stay()
        leave(code)

    def stay():
        import subprocess
        pids = [os.getpid()]
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(300)"], start_new_session=True)
        pids.append(child.pid)
        fork = os.fork()
        if fork == 0:
            os.setsid()
            time.sleep(300)
        with open("pids.tmp", "w") as f:
            json.dump([*pids, fork], f)
        os.rename("pids.tmp", "pids.json")
        time.sleep(300)

    os._exit = spy
"""


@pytest.fixture
def spied(tmp_path: Path) -> dict[str, str]:
    return site(tmp_path / "site", SPY)


def site(folder: Path, body: str) -> dict[str, str]:
    """Environment of a trial that runs this at the start of each of its interpreters."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(body))
    return {"PYTHONPATH": f"{folder}:{PACKAGE}"}


@pytest.fixture
def preloaded() -> Iterator[Preloaded]:
    with Preloaded() as pool:
        yield pool
    assert parents() == [], "nothing outlives the context"


def parents(of: int | None = None) -> list[psutil.Process]:
    """Preloaded parents among the children; a forked trial has their command line, but a folder of its own."""
    children = [p for p in psutil.Process(of).children() if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in children if ".preload-" in p.cwd()]


def synthetic(number: int = 0, **fields: Any) -> TrialSpec:
    return replace(yolo_spec("none", backend="synthetic", number=number), **fields)


def trial(
    tmp_path: Path, asked: TrialSpec, preloaded: Preloaded | None, **options: Any
) -> tuple[TrialResult, TrialDir]:
    directory = TrialDir(tmp_path / "run" / "trials" / f"{asked.number:04d}")
    return run_trial(asked, directory, started_s=0.0, preloaded=preloaded, **options), directory


def facts(directory: TrialDir) -> dict[str, Any]:
    """What the spy saw, without what differs between any two trials."""
    text = (directory.path / "facts.json").read_text()
    environ = json.loads(text)["environ"]
    for own, name in ((environ["TMPDIR"], "TMP"), (str(directory.path), "DIR"), (environ["AUTOTUNE_TRIAL_ID"], "TAG")):
        text = text.replace(own, name)
    seen: dict[str, Any] = json.loads(text)
    return seen


def test_a_forked_trial_is_what_a_cold_one_is(tmp_path: Path, preloaded: Preloaded, spied: dict[str, str]) -> None:
    cold, cold_dir = trial(tmp_path, synthetic(0, env=spied), None)
    assert not cold.warm
    for number in (1, 2):  # what the first fork leaves behind in the parent must not reach the second
        warm, warm_dir = trial(tmp_path, synthetic(number, env=spied), preloaded)
        assert warm.warm
        assert warm.outcome is cold.outcome is Outcome.OK, warm.error
        assert facts(warm_dir) == facts(cold_dir)
    assert facts(warm_dir)["tag seen from outside"] == ["AUTOTUNE_TRIAL_ID=TAG"]
    assert facts(warm_dir)["tempdir"] == "TMP"
    assert len(parents()) == 1


@pytest.mark.slow
def test_every_env_knob_and_the_losses_of_a_real_warm_trial(
    tiny: Path, tmp_path: Path, preloaded: Preloaded, spied: dict[str, str]
) -> None:
    changes = {
        "omp_num_threads": 2,
        "alloc_conf": "expandable_segments:True",
        "nccl_socket": "2x4",
        "nccl_p2p_level": "SYS",
        "nccl_ctas": "1-8",
        "nccl_buffsize": 8 << 20,
        "nccl_algo": "allreduce:tree",
        "nccl_ib_qps": 4,
        "nccl_backend": "legacy",
    }
    assert set(changes) == {name for name, knob in KNOBS.items() if knob.site is Site.ENV}
    machine = Machine(hostname="h", cpu="c", n_cores=2, n_cores_host=2, ram_bytes=2**34, shm_bytes=None, gpus=())
    ctx = Context(machine=machine, device="cuda", train_args={}, task="detect", has_compiler=True)
    env = materialise(changes, dict.fromkeys(changes), ctx, "same").env
    unset = {k for k, v in env.items() if not v}
    assert (len(env), unset) == (12, {"PYTORCH_ALLOC_CONF"})
    seen, losses, results = [], [], []
    killed: list[int] = []

    def kill_the_parent(_: object) -> None:
        killed.extend(p.pid for p in parents())
        for p in parents():
            p.kill()

    for number, pool in enumerate((None, preloaded)):
        asked = yolo_spec(tiny, number=number, env=spied | env)
        result, directory = trial(tmp_path, asked, pool, watch=kill_the_parent)
        assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), (result.error, result.log_tail)
        results.append(result)
        seen.append(facts(directory))
        # The last state of the first epoch's progress line: three mean losses and the number of objects.
        losses.append(re.findall(r"\b1/100 +\S+ +(\S+ +\S+ +\S+ +\d+)", directory.log.read_text())[-1])
    cold, warm = results
    assert (cold.warm, warm.warm) == (False, True)
    assert len(killed) == 1, "the trial did not need its parent any more"
    assert losses[0] == losses[1]
    assert {k: v for k, v in env.items() if v}.items() <= seen[1]["in C"].items()
    assert not unset & seen[1]["in C"].keys()
    on_cpu = changes | {"alloc_conf": None, "nccl_backend": None}  # no CUDA allocator, and one rank has no group
    assert {k: warm.effective.get(k) for k in changes} == {k: cold.effective.get(k) for k in changes} == on_cpu
    same = ("environ", "in C", "argv", "cwd", "tempdir", "handlers", "tag seen from outside", "leads its session")
    assert {k: seen[1][k] for k in same} == {k: seen[0][k] for k in same}
    assert warm.peak_mem_bytes[0] == pytest.approx(cold.peak_mem_bytes[0], rel=0.1)
    assert warm.phases_s["import"] < cold.phases_s["import"] / 2, "what it took, not what it would have taken"


def test_only_search_trials_of_one_rank_start_warm(tmp_path: Path, preloaded: Preloaded) -> None:
    for number, role in enumerate(("baseline", "finalist")):
        result, _ = trial(tmp_path, synthetic(number, role=role), preloaded)
        assert (result.outcome, result.warm) == (Outcome.OK, False)
    several = synthetic(2, n_ranks=2)
    directory = TrialDir(tmp_path / "run" / "trials" / "0002")
    directory.path.mkdir()
    env = environment(replace(several, n_ranks=1), directory, "0" * 32)
    start = preloaded.start(several, directory, env, lambda: start_cold(["true"], env=env, cwd=tmp_path, log=None))
    start().wait()
    assert not start.warm
    assert parents() == [], "none was needed, so none was started"
    for number, role in enumerate(("sentinel", "probe", "trial"), start=3):
        result, _ = trial(tmp_path, synthetic(number, role=role), preloaded)
        assert (result.outcome, result.warm) == (Outcome.OK, True)


def test_another_environment_takes_another_parent(tmp_path: Path, preloaded: Preloaded) -> None:
    pids = []
    for number, threads in enumerate("1213"):
        result, _ = trial(tmp_path, synthetic(number, env={"OMP_NUM_THREADS": threads}), preloaded)
        assert result.warm
        pids.append({int(p.environ()["OMP_NUM_THREADS"]): p.pid for p in parents()})
    assert [set(p) for p in pids] == [{1}, {1, 2}, {1, 2}, {1, 3}], "two at most; the one used longest ago goes"
    assert pids[0][1] == pids[3][1], "one parent served both"


@pytest.mark.slow
def test_a_stopped_and_a_killed_parent_cost_no_trial(tmp_path: Path, preloaded: Preloaded) -> None:
    outcomes = []
    for number, sig in enumerate((None, signal.SIGSTOP, None, signal.SIGKILL, None)):
        for p in parents() if sig else []:
            p.send_signal(sig)
        result, _ = trial(tmp_path, synthetic(number), preloaded)
        outcomes.append((result.outcome, result.warm))
        assert not any(p.status() == psutil.STATUS_STOPPED for p in parents())
    # The stopped one is found out when it does not answer; after the second failure everything starts cold.
    assert outcomes == [(Outcome.OK, warm) for warm in (True, False, True, False, False)]
    assert parents() == []


def test_a_parent_that_dies_between_the_promise_and_the_fork(tmp_path: Path, preloaded: Preloaded) -> None:
    asked = synthetic()
    directory = TrialDir(tmp_path / "run" / "trials" / "0000")
    directory.path.mkdir(parents=True)
    env = environment(asked, directory, "0" * 32)
    start = preloaded.start(asked, directory, env, lambda: start_cold(["true"], env=env, cwd=tmp_path, log=None))
    (parent,) = parents()
    parent.kill()
    root = start()
    assert not isinstance(root, ForkedRoot)
    assert root.wait() == 0


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit('no')",
        "time.sleep(300)",
        "threading.Thread(target=time.sleep, args=(300,), daemon=True).start()",
        "subprocess.Popen(['sleep', '300'])",
    ],
    ids=["dies", "hangs", "thread", "child"],
)
def test_a_parent_that_is_no_sound_one_is_not_used(
    tmp_path: Path, preloaded: Preloaded, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_s = 2.0 if "sleep(" in body else 30.0  # the cold trial that follows has its own, longer limit
    make = preloaded_module.Parent
    monkeypatch.setattr(preloaded_module, "Parent", lambda backend, env, trials, _: make(backend, env, trials, wait_s))
    env = site(
        tmp_path / "site",
        f"import subprocess, sys, threading, time\nif 'autotune.worker.preload' in sys.orig_argv: {body}",
    )
    asked = synthetic(env=env, deadlines=Deadlines(import_s=60.0))
    result, directory = trial(tmp_path, asked, preloaded)
    assert (result.outcome, result.warm) == (Outcome.OK, False)
    assert parents() == []
    assert [p for p in psutil.Process().children() if p.name() == "sleep"] == []
    assert list(directory.path.parent.glob(".preload-*")) == []


def test_a_child_of_the_caller_keeps_its_status_when_a_parent_ends(tmp_path: Path) -> None:
    mine = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"], start_new_session=True)
    with Preloaded() as pool:
        assert trial(tmp_path, synthetic(), pool)[0].warm
        os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its status is there
    assert mine.wait(5) == 7, "reaped by somebody else it would be 0"


def test_a_parent_that_touched_cuda_is_refused() -> None:
    fake = """
        import os, sys, types
        from autotune.worker.preload import unfit
        FakeTorch = types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: FakeTorch.answer))
        sys.modules["torch"] = FakeTorch
        for FakeTorch.answer in (False, True):
            print(unfit())
    """
    argv = [sys.executable, "-c", textwrap.dedent(fake)]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(PACKAGE)}
    )
    assert done.stdout.splitlines() == ["None", "CUDA is initialised in the preloaded parent"]


@pytest.mark.slow
def test_the_tree_of_a_warm_trial_dies_whole(tmp_path: Path, preloaded: Preloaded, spied: dict[str, str]) -> None:
    asked = synthetic(env=spied | {"STAY": "1"}, deadlines=Deadlines(grace_s=0.2))
    pids_file = tmp_path / "run" / "trials" / "0000" / "pids.json"
    asked = replace(asked, deadlines=replace(asked.deadlines, total_s=4.0))
    result, _ = trial(tmp_path, asked, preloaded)
    pids = json.loads(pids_file.read_text())
    assert len(pids) == 3
    assert not any(psutil.pid_exists(pid) for pid in pids), "root, a child in its own session, a fork in its own"
    assert result.warm
    assert result.took_s < 20
    (parent,) = parents()
    assert parent.status() == psutil.STATUS_SLEEPING, "the parent is no member of the trial's tree"


def test_parent_and_trial_die_with_the_controller(tmp_path: Path, spied: dict[str, str]) -> None:
    controller = tmp_path / "controller.py"
    controller.write_text(
        textwrap.dedent(f"""
            from pathlib import Path
            from tests.run.test_preloaded import synthetic, trial
            from autotune.run.preloaded import Preloaded
            with Preloaded() as pool:
                trial(Path({str(tmp_path)!r}), synthetic(env={spied | {"STAY": "1"}!r}), pool)
        """)
    )
    process = subprocess.Popen([sys.executable, str(controller)], env={**os.environ, "PYTHONPATH": str(PACKAGE)})
    pids_file = tmp_path / "run" / "trials" / "0000" / "pids.json"
    deadline = time.monotonic() + 60
    while not pids_file.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    root, *sessions = json.loads(pids_file.read_text())
    (parent,) = parents(process.pid)
    process.kill()
    process.wait()
    try:
        _, alive = psutil.wait_procs([parent, psutil.Process(root)] if psutil.pid_exists(root) else [parent], 10)
        assert alive == []
        # What had left the tree is found when the search is resumed, the fork too, which never called execve.
        assert kill_leftovers(tmp_path / "run") == len(sessions) == 2
        assert kill_leftovers(tmp_path / "run") == 0
    finally:
        for pid in (root, *sessions):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # ours to reap when an earlier test made us a subreaper
                os.waitpid(pid, 0)
    trials = tmp_path / "run" / "trials"
    assert len(list(trials.glob(".preload-*"))) == 1
    sweep_files(RunDir(tmp_path / "run"))
    assert list(trials.glob(".preload-*")) == []


@pytest.mark.gpu
def test_a_warm_trial_trains_on_the_gpu(tiny: Path, tmp_path: Path, preloaded: Preloaded) -> None:
    from autotune.machine.gpus import read_gpus

    gpu = read_gpus()[0].uuid
    env = {"OMP_NUM_THREADS": "2", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    changes = {"omp_num_threads": 2, "alloc_conf": "expandable_segments:True"}
    for number in range(2):
        asked = yolo_spec(tiny, number=number, changes=changes, env=env, device="0", workers=2)
        result, _ = trial(tmp_path, replace(asked, gpus=(gpu,)), preloaded)
        assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), (result.error, result.log_tail)
        assert result.warm
        assert result.effective["device"].startswith("cuda")
        assert {k: result.effective[k] for k in changes} == changes
    (parent,) = parents()
    held = [str(p.readlink()) for p in Path(f"/proc/{parent.pid}/fd").iterdir()]
    assert not any(target.startswith("/dev/nvidia") for target in held)
