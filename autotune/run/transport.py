"""How do the ranks of this trial talk to each other? What NCCL itself logs when it connects them (KNOBS 1.5)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from autotune.contract import Transport

LOGGING: Final = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,GRAPH,ENV"}
"""Makes NCCL say it. These subsystems speak when ranks are connected, not in a step."""
NVLINK: Final = "P2P/NVLink"
PCIE: Final = "P2P/PCIe"
ASSUMED: Final = {"socket": "NET/Socket", "ib": "NET/IB", "shm": "SHM", "p2p": PCIE}
"""What --assume-transport takes -> a transport, which opens the knobs that act on it."""
_SLOWEST: Final = ("NET/", "SHM", "P2P/PCIe", "P2P")
"""A pair that uses two transports (a ring over one, a tree over another) is as slow as the first of these."""

# The forms are those of the format strings in libnccl 2.30.7; NCCL before 2.18 wrote a bus id in the second brackets.
_CHANNEL: Final = re.compile(
    r"Channel \d+(?:/\d+)? : (?P<a>\d+)\[[0-9a-f]+\] -> (?P<b>\d+)\[[0-9a-f]+\] "
    r"(?:\[(?:send|receive)\] )?via (?P<what>P2P|SHM|NET)(?:/(?P<how>[^/\s(]+(?: [^/\s(]+)*))?"
)
_VERSION: Final = re.compile(r"NCCL version (?P<version>\d+(?:\.\d+)+)")
_SET: Final = re.compile(r"NCCL INFO (?P<name>NCCL_\w+) set (?:by environment )?to (?P<value>.*?)\.?\s*$")
_RANK: Final = re.compile(r"\brank (?P<rank>\d+) nranks \d+ cudaDev \d+ (?:nvmlDev \d+ )?busId (?P<bus>[0-9a-f]+)\b")
_NODES: Final = re.compile(r"\brank \d+ nRanks \d+ nNodes (?P<n>\d+) ")
_PATHS: Final = re.compile(r"NCCL INFO GPU/(?:[0-9A-Fa-f]+-)?(?P<bus>[0-9A-Fa-f]+) :(?P<to>.*)")
_PATH: Final = re.compile(r"GPU/(?:[0-9A-Fa-f]+-)?(?P<bus>[0-9A-Fa-f]+) \(\d+/(?P<gb>[\d.]+)/(?P<kind>[A-Z0-9]+)\)")


def logging_env(n_ranks: int, device: str, own: Collection[str]) -> dict[str, str]:
    """What makes NCCL log it, for the baseline; nothing where NCCL has nothing to do, or the user said how it logs.

    Args:
        n_ranks: of the job.
        device: cpu or cuda.
        own: names of variables that the user has set.
    """
    if n_ranks == 1 or device == "cpu" or {"NCCL_DEBUG", "NCCL_DEBUG_SUBSYS"} & set(own):
        return {}
    return dict(LOGGING)


def read_transport(log: Path) -> Transport | None:
    """What the log of a trial says; None when it is not there or names no pair of ranks."""
    try:
        with log.open(encoding="utf-8", errors="replace") as f:
            return parse_transport(f)
    except OSError:
        return None


def parse_transport(lines: Iterable[str]) -> Transport | None:
    """NCCL's lines among those of all ranks, in any order -> the transport of each pair of ranks; None: no pair.

    P2P is NVLink where NCCL's topology says that the path between the two GPUs is (type NVL, or NVB through a third
    GPU), PCIe where it says that it is not, and neither where the topology is missing.
    """
    seen: dict[tuple[int, int], set[str]] = {}
    env: dict[str, str] = {}
    bus_of: dict[int, str] = {}
    paths: dict[tuple[str, str], tuple[str, float]] = {}
    version, n_nodes = None, None
    for line in lines:
        if "NCCL" not in line:
            continue
        if m := _CHANNEL.search(line):
            a, b = sorted((int(m["a"]), int(m["b"])))
            if a != b:
                seen.setdefault((a, b), set()).add(_name(m["what"], m["how"] or ""))
        elif m := _SET.search(line):
            env[m["name"]] = m["value"]
        elif m := _PATHS.search(line):
            for to in _PATH.finditer(m["to"]):
                paths[m["bus"].lower(), to["bus"].lower()] = (to["kind"], float(to["gb"]) * 1e9)
        elif m := _RANK.search(line):
            bus_of[int(m["rank"])] = m["bus"].lower()
        elif m := _NODES.search(line):
            n_nodes = max(int(m["n"]), n_nodes or 0)
        elif m := _VERSION.search(line):
            version = m["version"]
    if not seen:
        return None
    pairs: dict[str, str] = {}
    speeds: list[float | None] = []
    for (a, b), names in sorted(seen.items()):
        path = paths.get((bus_of.get(a, ""), bus_of.get(b, "")))
        exact = {_over(path) if name == "P2P" else name for name in names}
        pairs[f"{a}-{b}"] = min(exact, key=lambda name: next(i for i, s in enumerate(_SLOWEST) if name.startswith(s)))
        # Two machines have the same bus ids: a path is one of this pair only where no network is.
        speeds.append(path[1] if path and not pairs[f"{a}-{b}"].startswith("NET/") else None)
    known = [speed for speed in speeds if speed is not None]
    return Transport(
        nccl=version,
        n_nodes=n_nodes,
        pairs=pairs,
        bus_bytes_per_s=min(known) if known and len(known) == len(speeds) else None,
        env=env,
    )


def _name(what: str, how: str) -> str:
    if what != "NET":
        return what
    return "NET/IB" if how.startswith("IB") else f"NET/{how or 'other'}"  # IBext is the plugin's InfiniBand


def _over(path: tuple[str, float] | None) -> str:
    return "P2P" if path is None else NVLINK if path[0] in ("NVL", "NVB") else PCIE


def kinds(transport: Transport | None, assumed: Collection[str] = ()) -> frozenset[str] | None:
    """The transports that carry something, and those that the user says do; None: nothing is known."""
    if transport is None:
        return frozenset(assumed) or None
    return frozenset({*transport.pairs.values(), *assumed})
