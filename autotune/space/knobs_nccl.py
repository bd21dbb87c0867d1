"""How do the ranks talk to each other? NCCL's environment, each variable offered only where it acts (KNOBS 1.5)."""

from __future__ import annotations

from autotune.contract import Site, Training, Value
from autotune.space import here, legal
from autotune.space.knob import Knob


def _socket_pair(value: Value) -> dict[str, str]:
    threads, _, sockets = str(value or "x").partition("x")
    return {"NCCL_SOCKET_NTHREADS": threads, "NCCL_NSOCKS_PERTHREAD": sockets}


NCCL_KNOBS: dict[str, Knob] = {
    "nccl_socket": Knob(
        name="nccl_socket",
        site=Site.ENV,
        training=Training.NEUTRAL,
        doc="NCCL_SOCKET_NTHREADS x NCCL_NSOCKS_PERTHREAD: helper threads and connections of NCCL over TCP.",
        needs="Several ranks whose traffic crosses TCP sockets (not NVLink, PCIe, shared memory or InfiniBand).",
        legal=legal.nccl_socket,
        baseline=here.socket_baseline,
        blocked=here.socket_blocked,
        variables=_socket_pair,
    ),
}
