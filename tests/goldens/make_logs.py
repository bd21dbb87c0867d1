"""python -m tests.goldens.make_logs [NAME ...]: break real processes, and keep what they said in tests/goldens/logs.

Run by hand; needs unshare (user namespaces) for the two cases with a small tmpfs. For each case: NAME.log, the last
bytes of the trial's log as they are, from the start of a line; and for each rank that wrote a record with an error
NAME.rank{r}.json, of that record the error and the number of steps. NAME begins with the name of a sign (run/signs.py).
"""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

from autotune.contract import Deadlines
from tests.goldens.breaking import (
    LOGS,
    LONG,
    RANKS,
    address_space,
    copy,
    free_port,
    leaf,
    once,
    script,
    site,
    small_tmpfs,
    trial,
    two_ranks,
)
from tests.run.trials import spec


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
    for i, image in enumerate(sorted((data.parent / "images").rglob("*.jpg"))):
        image.write_bytes(image.read_bytes()[:200])
        if i % 8:  # each is named in the message
            image.unlink()
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


def shm__small(f: Path) -> None:
    asked = spec(copy(f), patches={"workers": 2}, imgsz=320, batch=16)
    small_tmpfs("/dev/shm", "512k", asked, "shm__small", f)


def disk_full__save_dir(f: Path) -> None:
    full = f / "full"
    full.mkdir()
    small_tmpfs(str(full), "1k", spec(copy(f), save_dir=str(full / "yolo")), "disk_full__save_dir", f)


def disk_full__write(f: Path) -> None:
    script("disk_full__write", "import torch; torch.save(torch.ones(10**6), open('/dev/full', 'wb'))", f)


CASES = {k: v for k, v in list(globals().items()) if "__" in k and not k.startswith("__")}


def main(names: list[str]) -> None:
    """Make the cases of these names; all of them when there is none."""
    LOGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="autotune-logs-") as folder:
        for name in names or CASES:
            CASES[name](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
