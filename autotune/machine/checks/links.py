"""Do the GPUs of the job reach each other, and the host, as well as they could? (KNOBS 4: 6 to 8, 28, 30)"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import Final

from autotune.contract import Gpu, GpuLink
from autotune.machine.checks.driver import cards_on_the_bus
from autotune.machine.checks.finding import Finding, Subject, ok, unknown
from autotune.machine.checks.judged import each, judged, links, mute, named

NEAREST_FIRST: Final = ("SAME", "PIX", "PXB", "PHB", "NODE", "SYS")
WAYS: Final = {
    "SAME": "one board",
    "PIX": "one PCIe switch",
    "PXB": "several PCIe switches",
    "PHB": "the CPU's PCIe bridge",
    "NODE": "several PCIe bridges of one CPU",
    "SYS": "the link between two CPUs",
}
"""GpuLink.path in words (`nvidia-smi topo`)."""
WIDEST: Final = 16
"""PCIe lanes; sysfs says 255 where it does not know."""


def peers(subject: Subject) -> Finding | None:
    """6: whether the GPUs read and write each other's memory; slices of one (MIG) never do, which `gpu mode` says."""
    pairs = links(subject)
    if not pairs or any(g.mig for g in judged(subject)):
        return None
    deaf = [k for k in pairs if k.p2p is False]
    if deaf:
        says = (
            f"{_pairs(subject, deaf)} cannot read each other's memory: NCCL copies through the host's, which is slower"
        )
        remedy = (
            "GeForce cards have no peer access; else look for ACS and the IOMMU in the BIOS, or a driver without it"
        )
        return Finding(verdict="warn", says=says, evidence=_each(subject, pairs), remedy=remedy)
    if dumb := [k for k in pairs if k.p2p is None]:
        return unknown(f"{_pairs(subject, dumb)} do not tell whether they read each other's memory")
    return ok("every GPU reads and writes the others' memory", *_each(subject, pairs))


def topology(subject: Subject) -> Finding | None:
    """7: whether these are the GPUs that are nearest to each other, and whether they are equally near.

    A ring is as fast as its slowest link, so a set is judged by its worst pair.
    """
    pairs, chosen = links(subject), judged(subject)
    if not pairs or any(g.mig for g in chosen):
        return None
    if dumb := [k for k in pairs if not k.n_nvlinks and k.path is None]:
        return unknown(f"{_pairs(subject, dumb)} do not tell how they are connected")
    table = {frozenset((k.a, k.b)): k for k in subject.machine.gpu_links}
    worst = max(pairs, key=_distance)
    better = _nearest(subject.machine.gpus, len(chosen), table)
    evidence = _each(subject, pairs)
    if better and _distance(_worst(better, table)) < _distance(worst):
        near, far = _way(_worst(better, table)), _way(worst)
        says = f"{named(better)} are nearer to each other ({near}) than {named(chosen)} ({far})"
        remedy = f"--gpus {','.join(str(g.index) for g in better)}"
        if "CUDA_VISIBLE_DEVICES" in subject.host.env:  # which numbers them anew
            remedy = f"CUDA_VISIBLE_DEVICES={','.join(g.uuid for g in better)}"
        return Finding(verdict="warn", says=says, evidence=evidence, remedy=remedy)
    ways = {_distance(k) for k in pairs}
    if len(ways) > 1:
        says = f"not all pairs are equally near: the slowest way is {_way(worst)}, and a ring is as fast as that"
        return Finding(verdict="info", says=says, evidence=evidence)
    if not worst.n_nvlinks and worst.path == "SYS":
        says = f"{_pairs(subject, pairs)} reach each other through {WAYS['SYS']}"
        return Finding(verdict="info", says=says, evidence=evidence)
    return ok(f"all pairs are equally near: {_way(worst)}", *evidence)


def _distance(link: GpuLink) -> tuple[int, int]:
    """Nearest first: NVLinks, the more the nearer, then the way over PCIe."""
    way = NEAREST_FIRST.index(link.path) if link.path else len(NEAREST_FIRST)
    return (0, -link.n_nvlinks) if link.n_nvlinks else (1, way)


def _nearest(gpus: tuple[Gpu, ...], n: int, table: Mapping[frozenset[str], GpuLink]) -> tuple[Gpu, ...]:
    sets = [
        s for s in combinations(gpus, n) if all(frozenset((a.uuid, b.uuid)) in table for a, b in combinations(s, 2))
    ]
    return min(sets, key=lambda s: _distance(_worst(s, table)), default=())


def _worst(gpus: tuple[Gpu, ...], table: Mapping[frozenset[str], GpuLink]) -> GpuLink:
    return max((table[frozenset((a.uuid, b.uuid))] for a, b in combinations(gpus, 2)), key=_distance)


def _way(link: GpuLink) -> str:
    if link.n_nvlinks:
        return f"{link.n_nvlinks} NVLink{'s' * (link.n_nvlinks != 1)}"
    return f"{link.path}, {WAYS[link.path]}" if link.path else "a way that is not told"


def _each(subject: Subject, pairs: Iterable[GpuLink]) -> tuple[str, ...]:
    """The pairs by what connects them: `GPU 0-1, 2-3: 4 NVLinks`."""
    groups: dict[str, list[GpuLink]] = {}
    for link in pairs:
        groups.setdefault(_way(link), []).append(link)
    return tuple(f"{_pairs(subject, of)}: {way}" for way, of in groups.items())


def _pairs(subject: Subject, pairs: Iterable[GpuLink]) -> str:
    index = {g.uuid: g.index for g in subject.machine.gpus}
    told = [f"{index[k.a]}-{index[k.b]}" for k in pairs]
    return "GPU " + ", ".join(told[:6]) + f" and {len(told) - 6} more" * (len(told) > 6)


def pcie(subject: Subject) -> Finding | None:
    """8: whether each GPU has the lanes that it could have. An idle link shifts its generation down: no fault."""
    gpus = judged(subject)
    if not gpus:
        return None
    most = {g: _lanes(subject, g) for g in gpus}
    narrow = [g for g in gpus if g.pcie_width is not None and (n := most[g]) is not None and g.pcie_width < n]
    evidence = each(
        (g for g in gpus if g.pcie_width is not None),
        lambda g: f"{g.pcie_width} of {most[g]} lanes, generation {g.pcie_gen} now, {g.pcie_gen_max} under load",
    )
    if narrow:
        g = narrow[0]
        says = f"{named(narrow)} has {g.pcie_width} of {most[g]} PCIe lanes: images reach it at half speed or less"
        remedy = "another slot, no riser; slots that share their lanes; seat the card anew"
        return Finding(verdict="warn", says=says, evidence=evidence, remedy=remedy)
    if dumb := [g for g in gpus if g.pcie_width is None or most[g] is None]:
        return mute(dumb, "the PCIe link")
    return ok("every GPU has its PCIe lanes", *evidence)


def _lanes(subject: Subject, gpu: Gpu) -> int | None:
    """The card's own, where sysfs tells; NVML says what card and slot can do together."""
    said = subject.host.read(f"sys/bus/pci/devices/{gpu.pci}/max_link_width") if gpu.pci else None
    card = int(said) if said and said.isdigit() and 0 < int(said) <= WIDEST else None
    return max((n for n in (gpu.pcie_width_max, card) if n is not None), default=None)


def iommu(subject: Subject) -> Finding | None:
    """28: whether transfers from GPU to GPU over PCIe are translated by the IOMMU; NVLink does not pass it.

    The PCI bridges' access control (ACS), which has the same effect, can only be read by root.
    """
    over_pcie = [k for k in links(subject) if not k.n_nvlinks and k.p2p is not False]
    if not over_pcie or any(g.mig for g in judged(subject)):
        return None
    groups = subject.host.names("sys/kernel/iommu_groups")
    if groups is None:
        return unknown("/sys/kernel/iommu_groups cannot be read")
    if not groups:
        return ok("no IOMMU is on the way from GPU to GPU")
    uuids = {u for k in over_pcie for u in (k.a, k.b)}
    gpus = [g for g in judged(subject) if g.uuid in uuids]
    kinds = {g: subject.host.read(f"sys/bus/pci/devices/{g.pci}/iommu_group/type") for g in gpus}
    translated = [g for g, kind in kinds.items() if kind is not None and kind.startswith("DMA")]
    if translated:
        says = f"the IOMMU translates what {named(translated)} send each other: slower, and NCCL may hang"
        remedy = (
            "on a machine of your own: iommu=pt on the kernel's command line, and ACS off in the BIOS (NCCL's guide)"
        )
        evidence = each(gpus, lambda g: f"its IOMMU group is of type {kinds[g]}")
        return Finding(verdict="warn", says=says, evidence=evidence, remedy=remedy)
    if dumb := [g for g, kind in kinds.items() if kind is None]:
        return mute(dumb, "how the IOMMU treats a transfer")
    return ok("the IOMMU lets the GPUs' transfers pass as they are")


def containers(subject: Subject) -> Finding | None:
    """30: whether this container has only some of the host's GPUs, as with one container a GPU.

    Two ranks use peer access and shared memory only where host name and /dev/shm are the same (NCCL 2.30.7,
    src/graph/paths.cc); a container sees no other, so this says when it could matter.
    """
    if subject.machine.container is None or not judged(subject):
        return None
    cards = cards_on_the_bus(subject)
    here = len(subject.machine.gpus)
    if not cards:
        return unknown("the host's PCI bus cannot be read: how many GPUs it has is not known")
    if len(cards) <= here:
        return ok(f"all GPUs of the host ({len(cards)}) are in this container")
    says = f"this container has {here} of the host's {len(cards)} GPUs"
    if subject.plan.n_nodes == 1:
        return Finding(verdict="info", says=says)
    says += ": ranks in two containers of one host use neither peer access nor shared memory"
    remedy = "one container for all GPUs of a host, or --ipc=host and one host name (--uts=host) for all of them"
    return Finding(verdict="warn", says=says, remedy=remedy)


LINKS: Final[dict[str, Callable[[Subject], Finding | None]]] = {
    "peer access": peers,  # 6
    "gpu topology": topology,  # 7
    "pcie link": pcie,  # 8
    "iommu": iommu,  # 28
    "gpus in container": containers,  # 30
}
