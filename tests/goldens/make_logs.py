"""python -m tests.goldens.make_logs [NAME ...]: break real processes, and keep what they said in tests/goldens/logs.

Run by hand; needs unshare (user namespaces) for the two cases with a small tmpfs. For each case: NAME.log, the last
bytes of the trial's log as they are, from the start of a line; and for each rank that wrote a record with an error
NAME.rank{r}.json, that record without its steps. NAME begins with the sign's name in autotune.run.signs.
"""

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

from autotune.contract import Deadlines, SegmentSettings, TrialDir, TrialSpec, write_json
from autotune.run.demo import demo_dataset
from autotune.run.launch import environment
from autotune.run.trial import run_trial
from autotune.run.watch import Live
from tests.run.trials import spec

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
            kept = {k: record[k] for k in ("rank", "status", "error", "ended_s")}
            kept["n_steps"] = len(record["steps"]["end_s"])
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


def loader_worker__killed(f: Path) -> None:
    asked = spec(copy(f), patches={"workers": 1}, segment=LONG)
    trial("loader_worker__killed", asked, f, once(lambda: leaf().kill()))


def files__ulimit(f: Path) -> None:
    body = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))"
    trial("files__ulimit", spec(copy(f), patches={"workers": 2}, env=site(f, "files", body)), f)


def host_memory__rlimit_as(f: Path) -> None:
    asked = spec(copy(f), env=site(f, "as", address_space(600)), batch=64, model="yolo11x.yaml")
    trial("host_memory__rlimit_as", asked, f)


def host_memory__python(f: Path) -> None:
    script("host_memory__python", f"{address_space(50)}\n        x = bytearray(10**9)\n", f)


def host_memory__numpy(f: Path) -> None:
    script("host_memory__numpy", f"import numpy\n{textwrap.dedent(address_space(50))}\nx = numpy.ones(10**9)\n", f)


def host_memory__import(f: Path) -> None:
    script("host_memory__import", f"{textwrap.dedent(address_space(300))}\nimport torch\n", f)


def threads__address_space(f: Path) -> None:
    body = f"import threading\n{textwrap.dedent(address_space(4))}\nthreading.Thread(target=print).start()\n"
    script("threads__address_space", body, f)


COMPILE = "import torch; torch.compile(lambda x: x.sin() + 1)(torch.ones(10))"


def compile__no_compiler(f: Path) -> None:
    script("compile__no_compiler", COMPILE, f, CXX="/bin/false", TORCHINDUCTOR_CACHE_DIR=str(f / "i1"))


def compile__missing_compiler(f: Path) -> None:
    script("compile__missing_compiler", COMPILE, f, CXX="no-such-compiler", TORCHINDUCTOR_CACHE_DIR=str(f / "i2"))


def refused__optimizer(f: Path) -> None:
    trial("refused__optimizer", spec(copy(f), optimizer="Nonesuch"), f)


def refused__unknown(f: Path) -> None:
    trial("refused__unknown", spec(copy(f), nonesuch=1), f)


def refused__type(f: Path) -> None:
    trial("refused__type", spec(copy(f), epochs="many"), f)


def refused__device(f: Path) -> None:
    trial("refused__device", spec(copy(f), device="0"), f)


def dataset_missing__yaml(f: Path) -> None:
    trial("dataset_missing__yaml", spec(f / "none.yaml"), f)


def dataset_missing__folder(f: Path) -> None:
    data = copy(f)
    shutil.rmtree(data.parent / "images")
    trial("dataset_missing__folder", spec(data), f)


def dataset_missing__midway(f: Path) -> None:
    data = copy(f)
    trial("dataset_missing__midway", spec(data, segment=LONG), f, once(lambda: shutil.rmtree(data.parent)))


def dataset_missing__midway_worker(f: Path) -> None:
    data = copy(f)
    asked = spec(data, patches={"workers": 1}, batch=4, segment=LONG)
    trial("dataset_missing__midway_worker", asked, f, once(lambda: shutil.rmtree(data.parent)))


def dataset_broken__all_images(f: Path) -> None:
    data = copy(f)
    for image in (data.parent / "images").rglob("*.jpg"):
        image.write_bytes(image.read_bytes()[:200])
    trial("dataset_broken__all_images", spec(data), f)


def dataset_broken__labels(f: Path) -> None:
    data = copy(f)
    for label in (data.parent / "labels").rglob("*.txt"):
        label.write_text("99 0.5 0.5 0.1 0.1\n")
    trial("dataset_broken__labels", spec(data), f)


def dataset_missing__unreadable(f: Path) -> None:
    data = copy(f)

    def corrupt() -> None:
        for image in (data.parent / "images").rglob("*.jpg"):
            image.write_bytes(b"\xff\xd8 no more a picture")

    trial("dataset_missing__unreadable", spec(data, segment=LONG), f, once(corrupt))


def benign__corrupt_images(f: Path) -> None:
    data = copy(f)
    for image in sorted((data.parent / "images" / "train").glob("*.jpg"))[:3]:
        image.write_bytes(b"\xff\xd8 error")
    trial("benign__corrupt_images", spec(data), f)


def nan__loss_gain(f: Path) -> None:
    trial("nan__loss_gain", spec(copy(f), box=1e38, nbs=8, segment=LONG), f)


def interrupted__sigint(f: Path) -> None:
    asked = spec(copy(f), segment=LONG)
    trial("interrupted__sigint", asked, f, once(lambda: leaf().send_signal(signal.SIGINT)))


def peer_gone__sigkill(f: Path) -> None:
    two_ranks("peer_gone__sigkill", spec(copy(f)), f, lambda rank: rank.kill())


def peer_gone__sigsegv(f: Path) -> None:
    two_ranks("peer_gone__sigsegv", spec(copy(f)), f, lambda rank: rank.send_signal(signal.SIGSEGV))


def collective_timeout__sigstop(f: Path) -> None:
    asked = replace(spec(copy(f)), deadlines=Deadlines(build_s=10.0))
    two_ranks("collective_timeout__sigstop", asked, f, lambda rank: rank.suspend())


def rendezvous__one_node_of_two(f: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-conf", "join_timeout=3", "--rdzv-id", "x"]
    script("rendezvous__one_node_of_two", "print('never')", f, launcher)


def rendezvous__one_rank_of_two(f: Path) -> None:
    body = f"""
        import datetime, torch.distributed as dist
        dist.TCPStore("localhost", {free_port()}, 2, True, timeout=datetime.timedelta(seconds=2))
    """
    script("rendezvous__one_rank_of_two", body, f)


def port__in_use(f: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        launcher += ["--master-port", str(taken.getsockname()[1])]
        script("port__in_use", "import torch.distributed as d; d.init_process_group('gloo')", f, launcher)


def ddp_misuse__unused(f: Path) -> None:
    body = """
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        class M(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
            def forward(self, x):
                return self.a(x)
        m = torch.nn.parallel.DistributedDataParallel(M())
        for _ in range(3):
            m(torch.ones(1, 2)).sum().backward()
    """
    script("ddp_misuse__unused", body, f, RANKS)


def ddp_misuse__static_graph(f: Path) -> None:
    body = """
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        class M(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
            def forward(self, x, both):
                return self.a(x) + self.b(x) if both else self.a(x)
        m = torch.nn.parallel.DistributedDataParallel(M(), static_graph=True)
        for both in (True, False, False):
            m(torch.ones(1, 2), both).sum().backward()
    """
    script("ddp_misuse__static_graph", body, f, RANKS)


def bad_setting__alloc_conf(f: Path) -> None:
    script("bad_setting__alloc_conf", "import torch; torch.cuda.memory._set_allocator_settings('nonsense:1')", f)


def driver__none(f: Path) -> None:
    script("driver__none", "import torch; torch.zeros(1).cuda()", f)


def small_tmpfs(at: str, size: str, asked: TrialSpec, name: str, f: Path) -> None:
    """A real trial in a mount namespace of its own, where `at` is a small tmpfs."""
    directory = TrialDir(f / name)
    directory.path.mkdir()
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


def shm__small(f: Path) -> None:
    asked = spec(copy(f), patches={"workers": 2}, imgsz=320, batch=16)
    small_tmpfs("/dev/shm", "512k", asked, "shm__small", f)


def disk_full__save_dir(f: Path) -> None:
    full = f / "full"
    full.mkdir()
    small_tmpfs(str(full), "1k", spec(copy(f), save_dir=str(full / "yolo")), "disk_full__save_dir", f)


def disk_full__write(f: Path) -> None:
    script("disk_full__write", "import torch; torch.save(torch.ones(10**6), open('/dev/full', 'wb'))", f)


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


CASES = {k: v for k, v in list(globals().items()) if "__" in k and not k.startswith("__")}


def main(names: list[str]) -> None:
    """Make the cases of these names; all of them when there is none."""
    LOGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="autotune-logs-") as folder:
        for name in names or CASES:
            CASES[name](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
