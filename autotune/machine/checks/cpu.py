"""Are there cores enough, near enough, at full clock and ours alone? (KNOBS 4: 17, 18, 19, 22, 23, 27, 36)"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from autotune.machine.checks.finding import Finding, Subject, Verdict, ok, unknown
from autotune.machine.checks.memory import workers_of
from autotune.machine.limits import cgroup_pids_left, limits_show, throttled_frac
from autotune.machine.memory import spell_size as size

NOFILE_LEAST: Final = 256
NOFILE_GOOD: Final = 4096
FDS_BASE: Final = 256
FDS_A_WORKER: Final = 48
"""A batch is handed over in up to 6 tensors, a descriptor each; 4 batches of training and, with twice the workers, 2 of
validation are on their way (torch's file_descriptor strategy)."""
PIDS_A_RANK: Final = 256
"""Threads of a rank and its loader workers: torch, OpenCV, CUDA. An assumption."""
STACK_FIXED: Final = (2, 28)
"""NCCL before it misbehaves with an unlimited stack."""
IMAGE_CPU_S: Final = 0.0087
"""Of one JPEG of 640 x 480 with mosaic, on a Xeon VM (KNOBS 1.6, measured): what a rank's loaders can feed at most."""
CORES_SHORT: Final = 4
CORES_GOOD: Final = 8
"""Usable cores a GPU below which a loader is the likely limit: 460 and 920 images/s by IMAGE_CPU_S."""
UNSEEN_QUOTA: Final = "whether a quota leaves less cannot be read (/sys/fs/cgroup)"
THROTTLED_FRAC: Final = 0.1
PRESSED_PERCENT: Final = 10.0
"""Share of the last ten seconds in which somebody waited (KNOBS 4, check 27)."""
CLOCK_SLOW: Final = {"powersave"}
CLOCK_DYNAMIC: Final = {"intel_pstate", "amd-pstate", "amd-pstate-epp", "intel_cpufreq"}
"""Drivers whose `powersave` follows the load."""


def limits(subject: Subject) -> Finding:
    """17: open files, locked memory, stack, processes."""
    m, plan = subject.machine, subject.plan
    limits_ = m.rlimits
    workers = workers_of(plan, m.n_cores_host)
    need = FDS_BASE + FDS_A_WORKER * workers
    faults: list[tuple[Verdict, str, str]] = []
    nofile = limits_.get("nofile")
    if nofile is not None and nofile < NOFILE_GOOD:
        verdict: Verdict = "fail" if nofile < NOFILE_LEAST else "warn" if nofile < need else "info"
        said = f"{nofile} open files allowed, a rank with {workers} loader workers may need {need}"
        faults.append((verdict, said, "ulimit -n 65536; docker run --ulimit nofile=65536:65536"))
    memlock = limits_.get("memlock")
    if memlock is not None and subject.host.names("sys/class/infiniband"):
        said = f"{size(memlock)} of locked memory allowed, InfiniBand needs more for its buffers"
        faults.append(("warn", said, "ulimit -l unlimited; docker run --ulimit memlock=-1"))
    nccl = tuple(int(x) for x in re.findall(r"\d+", m.versions.get("nccl", ""))[:2])
    if len(plan.gpus) > 1 and limits_.get("stack", 0) is None and nccl and nccl < STACK_FIXED:
        faults.append(
            ("warn", f"the stack is unlimited, which NCCL {m.versions['nccl']} does not stand", "ulimit -s 8192")
        )
    nproc = limits_.get("nproc")
    pids = cgroup_pids_left(subject.host.root)
    for what, left in (("processes of this user allowed", nproc), ("processes left in this container", pids)):
        if left is not None and left < PIDS_A_RANK * plan.n_ranks:
            said = f"{left} {what}, threads count: {plan.n_ranks} rank{'s' * (plan.n_ranks > 1)} may need "
            said += f"{PIDS_A_RANK * plan.n_ranks}"
            faults.append(
                ("fail" if left < PIDS_A_RANK // 8 else "warn", said, "ulimit -u; docker run --pids-limit -1")
            )
    evidence = (
        ", ".join(f"{name} {_limit(name, limits_[name])}" for name in limits_),
        *([f"{pids} processes left in this container"] if pids is not None else []),
    )
    if not faults:
        if "nofile" not in limits_:
            return unknown("the limits of this process cannot be read")
        enough = f", enough for {workers} workers a rank" if workers else " allowed"
        return ok(f"{_limit('nofile', nofile)} open files{enough}", *evidence)
    faults.sort(key=lambda f: ("fail", "warn", "info").index(f[0]))
    return Finding(
        verdict=faults[0][0],
        says="; ".join(said for _, said, _ in faults),
        evidence=evidence,
        remedy="; ".join(remedy for _, _, remedy in faults),
    )


def _limit(name: str, soft: int | None) -> str:
    if soft is None:
        return "unlimited"
    return size(soft) if name in ("memlock", "stack") else str(soft)


def cpus(subject: Subject) -> Finding:
    """18: Ultralytics takes os.cpu_count() for what there is, whatever affinity and quota leave."""
    m, plan = subject.machine, subject.plan
    if m.n_cores_affinity is None:
        return unknown("it cannot be read which cores this process may use")
    throttled = throttled_frac(subject.host.root)
    evidence = (
        f"{m.n_cores_host} on the host, affinity {m.n_cores_affinity}, "
        + ("no quota" if m.cgroup_cores is None else f"quota {m.cgroup_cores:g}"),
        *([f"throttled in {throttled:.1%} of the scheduler's periods so far"] if throttled is not None else []),
    )
    usable = f"{m.n_cores} of {m.n_cores_host} cores usable"
    loaders = workers_of(plan, m.n_cores_host) * plan.n_ranks
    if m.n_cores < m.n_cores_host and loaders > m.n_cores:
        each = max(1, m.n_cores // plan.n_ranks)
        return Finding(
            verdict="warn",
            says=f"{usable}, but Ultralytics counts all and would start {loaders} loader workers",
            evidence=evidence,
            remedy=f"workers={each}, or give the container more CPUs (docker run --cpus)",
        )
    if throttled is not None and throttled > THROTTLED_FRAC:
        return Finding(
            verdict="warn",
            says=f"{usable}, and the quota stopped this group in {throttled:.0%} of its periods: steps stutter",
            evidence=evidence,
            remedy="whole CPUs of its own (docker run --cpuset-cpus; Kubernetes: limits = requests)",
        )
    if m.cgroup_cores is None and not limits_show("cpu", subject.host.root):
        return unknown(f"{m.n_cores_affinity} of {m.n_cores_host} cores by affinity; {UNSEEN_QUOTA}")
    if m.n_cores < m.n_cores_host:
        return Finding(verdict="info", says=f"{usable}: os.cpu_count() counts them all", evidence=evidence)
    return ok(usable, *evidence)


def cores_per_rank(subject: Subject) -> Finding | None:
    """19: how many images a second the cores of a GPU's rank can prepare."""
    m, plan = subject.machine, subject.plan
    if not plan.gpus:
        return None
    cores = m.n_cores / plan.n_ranks
    at_most = f"about {cores / IMAGE_CPU_S:.0f} images/s"
    says = f"{cores:.3g} cores a rank prepare {at_most} at most"
    evidence = (f"{m.n_cores} usable cores, {plan.n_ranks} ranks, {1000 * IMAGE_CPU_S} ms of a core an image (mosaic)",)
    if cores < CORES_SHORT:
        remedy = "more CPUs, fewer GPUs, cache=ram, or less augmentation: the GPU will wait for images"
        return Finding(verdict="warn", says=says, evidence=evidence, remedy=remedy)
    if m.cgroup_cores is None and not limits_show("cpu", subject.host.root):
        return unknown(f"{says}; {UNSEEN_QUOTA}")
    if cores < CORES_GOOD:
        return Finding(verdict="info", says=f"{says}: a small model may wait for images", evidence=evidence)
    return ok(says, *evidence)


def governor(subject: Subject) -> Finding | None:
    """22: the CPU's clock policy; virtual machines show none."""
    base = "sys/devices/system/cpu"
    folders = [n for n in subject.host.names(base) or () if re.fullmatch(r"cpu\d+", n)]
    scaled = [n for n in folders if subject.host.names(f"{base}/{n}/cpufreq") is not None]
    if not scaled:
        return None
    found = {subject.host.read(f"{base}/{n}/cpufreq/scaling_governor") for n in scaled}
    if None in found:
        return unknown("the clock policy (scaling_governor) cannot be read")
    names = ", ".join(sorted(filter(None, found)))
    driver = subject.host.read(f"{base}/{scaled[0]}/cpufreq/scaling_driver") or "unknown"
    evidence = (f"scaling_governor {names}, scaling_driver {driver}, {len(scaled)} CPUs",)
    if found & CLOCK_SLOW and driver not in CLOCK_DYNAMIC:
        says = f"clock policy {names}: the CPUs stay at their lowest clock"
        return Finding(
            verdict="warn", says=says, evidence=evidence, remedy="cpupower frequency-set -g performance (root)"
        )
    if found == {"performance"}:
        return ok("clock policy performance", *evidence)
    return Finding(
        verdict="info", says=f"clock policy {names}: short loads may run below the full clock", evidence=evidence
    )


def numa(subject: Subject) -> Finding:
    """23: memory and PCIe of another node are farther away."""
    host, m, plan = subject.host, subject.machine, subject.plan
    nodes = [n for n in host.names("sys/devices/system/node") or () if re.fullmatch(r"node\d+", n)]
    cores = {int(n[4:]): _cpu_list(host.read(f"sys/devices/system/node/{n}/cpulist")) for n in nodes}
    if not cores or None in cores.values():
        return unknown("NUMA nodes cannot be read (/sys/devices/system/node)")
    with_cores = {n: c for n, c in cores.items() if c}
    if len(with_cores) < 2:
        return ok("one NUMA node")
    gpus = [g for g in m.gpus if g.uuid in plan.gpus]
    homes = {g.index: g.numa_node for g in gpus}
    status = re.search(r"^Cpus_allowed_list:\s*(\S+)", host.read("proc/self/status") or "", re.MULTILINE)
    allowed = _cpu_list(status[1]) if status else None
    evidence = tuple(f"node {n}: {len(c)} CPUs" for n, c in with_cores.items()) + tuple(
        f"GPU {i}: node {'not told' if n is None else n}" for i, n in homes.items()
    )
    nodes_said = f"{len(with_cores)} NUMA nodes"
    far = [i for i, n in homes.items() if n in with_cores and allowed is not None and not allowed & with_cores[n]]
    if far:
        which = ", ".join(map(str, far))
        says = f"{nodes_said}, and this process may not run on the node of GPU {which}"
        remedy = "choose GPUs of the node whose cores you have, or cores of their node (taskset, --cpuset-cpus)"
        return Finding(verdict="warn", says=says, evidence=evidence, remedy=remedy)
    if gpus and host.which("numactl") is None:
        says = f"{nodes_said}, and no numactl: ranks cannot be bound to their GPU's node"
        return Finding(
            verdict="warn", says=says, evidence=evidence, remedy="apt-get install numactl; the search then tries it"
        )
    return Finding(
        verdict="info", says=f"{nodes_said}: the search tries binding ranks" if gpus else nodes_said, evidence=evidence
    )


def _cpu_list(text: str | None) -> set[int] | None:
    """`0-3,8` -> {0, 1, 2, 3, 8}; None where it is none."""
    if text is None or not re.fullmatch(r"(\d+(-\d+)?(,\d+(-\d+)?)*)?", text):
        return None
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def pressure(subject: Subject) -> Finding:
    """27: how long somebody waited for a core, for the disk, for memory (PSI)."""
    waited: dict[str, float] = {}
    for what in ("cpu", "io", "memory"):
        match = re.search(r"^some avg10=([\d.]+)", subject.host.read(f"proc/pressure/{what}") or "", re.MULTILINE)
        if match:
            waited[what] = float(match[1])
    if not waited:
        return unknown("this kernel does not tell who waits (/proc/pressure)")
    silent = [what for what in ("cpu", "io", "memory") if what not in waited]
    evidence = (", ".join(f"{what} {x:.1f} %" for what, x in waited.items()) + " of the last 10 s",)
    pressed = [what for what, x in waited.items() if x > PRESSED_PERCENT]
    if pressed:
        says = f"something else is at work, or was just now: processes wait for {' and '.join(pressed)}"
        return Finding(
            verdict="warn",
            says=says,
            evidence=evidence,
            remedy="wait until it has ended: it disturbs every measurement",
        )
    if silent:
        return unknown(f"this kernel does not tell who waits for {' and '.join(silent)} (/proc/pressure)")
    return ok("nobody waits for cores, disk or memory", *evidence)


def kernel(subject: Subject) -> Finding:
    """36: settings of the kernel that explain differences between machines."""
    pages = re.search(r"\[(\w+)\]", subject.host.read("sys/kernel/mm/transparent_hugepage/enabled") or "")
    aslr = subject.host.read("proc/sys/kernel/randomize_va_space")
    release = subject.host.read("proc/sys/kernel/osrelease")
    if pages is None and aslr is None and release is None:
        return unknown("settings of the kernel cannot be read")
    said = (
        f"Linux {release or 'unknown'}",
        f"transparent huge pages {pages[1] if pages else 'unknown'}",
        f"address randomisation {'unknown' if aslr is None else 'off' if aslr == '0' else 'on'}",
    )
    return Finding(verdict="info", says=", ".join(said))


CPU: Final[dict[str, Callable[[Subject], Finding | None]]] = {
    "limits": limits,
    "CPUs": cpus,
    "cores per rank": cores_per_rank,
    "CPU clock policy": governor,
    "NUMA": numa,
    "pressure": pressure,
    "kernel": kernel,
}
