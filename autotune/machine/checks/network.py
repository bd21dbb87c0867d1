"""Several machines: can they reach each other fast, and do their clocks agree? (KNOBS 4: 32, 33)"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Final

from autotune.machine.checks.finding import Finding, Subject, ok, unknown
from autotune.machine.host import Host

SLOW_MBIT: Final = 10_000
FRAMES_MBIT: Final = 25_000
"""From this speed on frames of 1500 bytes cost throughput."""
SKEW_S: Final = 1.0


def network(subject: Subject) -> Finding | None:
    """32: the interface of the default route, and InfiniBand."""
    if subject.plan.n_nodes < 2:
        return None
    host = subject.host
    names = host.names("sys/class/net")
    if names is None:
        return unknown("network interfaces cannot be read (/sys/class/net)")
    up = [n for n in names if n != "lo" and host.read(f"sys/class/net/{n}/operstate") in ("up", "unknown")]
    ports = _ports(host)
    active = [p for p, state in ports.items() if "ACTIVE" in state]
    evidence = [f"{n}: {_speed(host, n)}, MTU {host.read(f'sys/class/net/{n}/mtu') or 'unknown'}" for n in up]
    evidence += [f"InfiniBand {p}: {state}" for p, state in ports.items()]
    if not up and not active:
        return Finding(
            verdict="fail",
            says=f"no network interface is up: {subject.plan.n_nodes} machines cannot meet",
            evidence=tuple(evidence),
            remedy="connect it, or start the container with --network=host",
        )
    down = [p for p in ports if p not in active]
    if down:
        says = f"InfiniBand port {', '.join(down)} is not active: NCCL would take another way"
        return Finding(
            verdict="warn", says=says, evidence=tuple(evidence), remedy="look at ibstat; cable, switch, opensm"
        )
    if active:
        if subject.plan.gpus and "nvidia_peermem" not in (host.read("proc/modules") or ""):
            says = "InfiniBand without nvidia_peermem: its traffic goes through the host's memory"
            return Finding(
                verdict="warn",
                says=says,
                evidence=tuple(evidence),
                remedy="modprobe nvidia_peermem (root, each machine)",
            )
        return ok(f"InfiniBand is active on {', '.join(active)}", *evidence)
    way = _default_route(host)
    chosen = way if way in up else up[0]
    mbit = _mbit(host, chosen)
    if mbit is None:
        return unknown(f"the speed of {chosen} is not told", "measure it between the machines, such as with iperf3")
    if mbit < SLOW_MBIT:
        says = f"{chosen} has {_speed(host, chosen)}: gradients of a large model take longer than a step"
        remedy = "NCCL_SOCKET_IFNAME names a faster interface; else one machine is likely faster"
        return Finding(verdict="warn", says=says, evidence=tuple(evidence), remedy=remedy)
    if mbit >= FRAMES_MBIT and host.read(f"sys/class/net/{chosen}/mtu") == "1500":
        says = f"{chosen} has {_speed(host, chosen)} and frames of 1500 bytes"
        remedy = f"ip link set {chosen} mtu 9000 (root, on all machines and the switch)"
        return Finding(verdict="warn", says=says, evidence=tuple(evidence), remedy=remedy)
    return ok(f"{chosen} has {_speed(host, chosen)}", *evidence)


def clock(subject: Subject) -> Finding | None:
    """33: what the kernel knows of its clock's error; the clocks themselves are not compared."""
    if subject.plan.n_nodes < 2:
        return None
    error_s = subject.host.clock_error_s()
    if error_s is None:
        return unknown("the kernel does not say whether its clock is kept")
    if math.isinf(error_s) or error_s > SKEW_S:
        says = (
            "nothing keeps this machine's clock" if math.isinf(error_s) else f"the clock may be off by {error_s:.1f} s"
        )
        remedy = "start chrony or systemd-timesyncd on every machine: logs and time limits are compared between them"
        return Finding(verdict="warn", says=says, remedy=remedy)
    return ok(f"the clock is kept, off by {1000 * error_s:.0f} ms at most")


def _ports(host: Host) -> dict[str, str]:
    """`mlx5_0/1` -> `4: ACTIVE, 400 Gb/sec`."""
    base = "sys/class/infiniband"
    found = {}
    for card in host.names(base) or ():
        for port in host.names(f"{base}/{card}/ports") or ():
            state, rate = (host.read(f"{base}/{card}/ports/{port}/{x}") or "unknown" for x in ("state", "rate"))
            found[f"{card}/{port}"] = f"{state}, {rate}"
    return found


def _mbit(host: Host, name: str) -> int | None:
    """Of an interface; virtual ones say -1, or nothing."""
    said = host.read(f"sys/class/net/{name}/speed") or ""
    return int(said) if said.isdecimal() and int(said) else None


def _speed(host: Host, name: str) -> str:
    mbit = _mbit(host, name)
    return "speed not told" if mbit is None else f"{mbit / 1000:g} Gbit/s"


def _default_route(host: Host) -> str | None:
    match = re.search(r"^(\S+)\s+00000000\s", host.read("proc/net/route") or "", re.MULTILINE)
    return match[1] if match else None


NETWORK: Final[dict[str, Callable[[Subject], Finding | None]]] = {
    "network": network,
    "clock": clock,
}
