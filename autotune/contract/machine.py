"""What do we run on? Facts of a machine, as machine.json holds them; what cannot be read is None."""

from __future__ import annotations

from dataclasses import dataclass, field

from autotune.contract.words import FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One CUDA device as NVML sees it."""

    index: int
    uuid: str
    name: str
    mem_bytes: int
    capability: tuple[int, ...] | None = None
    """CUDA compute capability: (9, 0)."""
    pci: str | None = None
    """Bus id as in /sys/bus/pci/devices: `0000:3b:00.0`."""
    pcie_gen: int | None = None
    """Of the link now; an idle link shifts down."""
    pcie_gen_max: int | None = None
    """What GPU and slot can do together."""
    pcie_width: int | None = None
    """Lanes now."""
    pcie_width_max: int | None = None
    numa_node: int | None = None
    power_limit_w: float | None = None
    """Enforced."""
    power_default_w: float | None = None
    mig: bool | None = None
    """It is cut into slices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLink:
    """How two GPUs reach each other."""

    a: str
    """UUID."""
    b: str
    """UUID."""
    p2p: bool | None = None
    """Each may read and write the other's memory."""
    n_nvlinks: int | None = None
    """Active NVLinks between the two (all of them behind a switch)."""
    path: str | None = None
    """Of `nvidia-smi topo`: SAME (one board), PIX, PXB, PHB, NODE or SYS, nearest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """The file system that holds a folder."""

    path: str
    """The folder."""
    point: str
    """Where it is mounted."""
    kind: str
    """Of /proc/self/mountinfo: ext4, overlay, nfs4, tmpfs, fuse.sshfs, ..."""
    source: str = ""
    """Device or server."""
    network: bool = False
    rotational: bool | None = None
    """A disk that turns; None: no block device of ours, or not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What we run on; `fingerprint` is what must agree for two numbers to be compared."""

    format: int = FORMAT
    hostname: str
    cpu: str
    n_cores: int
    """Usable cores: affinity and cgroup quota, not the host's count."""
    n_cores_host: int
    """os.cpu_count(), which is what Ultralytics clamps workers by."""
    ram_bytes: int
    """Usable: the smaller of host and cgroup."""
    shm_bytes: int | None
    gpus: tuple[Gpu, ...] = ()
    gpu_links: tuple[GpuLink, ...] = ()
    """One a pair."""
    driver: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Name -> version: distributions (python, torch, ultralytics, ...), and cuda, cudnn, nccl of torch's wheel."""
    n_cores_affinity: int | None = None
    cgroup_cores: float | None = None
    """The CPU quota; None: none."""
    ram_host_bytes: int | None = None
    cgroup_mem_bytes: int | None = None
    """The memory limit; None: none."""
    rlimits: dict[str, int | None] = field(default_factory=dict)
    """nofile, memlock (bytes), stack (bytes), nproc -> soft limit; None: unlimited. One that is not here is unknown."""
    container: str | None = None
    """docker, podman, kubernetes, lxc or `container`; None: none that shows."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables that can change a training's speed."""
    data: Mount | None = None
    """Where the dataset lies."""
    fingerprint: str = ""
