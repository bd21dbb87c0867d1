"""Which of our NCCL settings are in effect in this rank? Read from the environment that NCCL itself reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def nccl_in_effect(env: Mapping[str, str]) -> dict[str, Any]:
    """Knob -> value as the knob spells it; None where its variables are not all set."""

    def joined(between: str, *names: str) -> str | None:
        values = [env.get(name) for name in names]
        return between.join(v for v in values if v) if all(values) else None

    def whole(name: str) -> int | None:
        text = env.get(name, "")
        return int(text) if text.isdecimal() else None

    return {
        "nccl_socket": joined("x", "NCCL_SOCKET_NTHREADS", "NCCL_NSOCKS_PERTHREAD"),
        "nccl_p2p_level": env.get("NCCL_P2P_LEVEL") or None,
        "nccl_ctas": joined("-", "NCCL_MIN_CTAS", "NCCL_MAX_CTAS"),
        "nccl_buffsize": whole("NCCL_BUFFSIZE"),
        "nccl_algo": env.get("NCCL_ALGO") or None,
        "nccl_ib_qps": whole("NCCL_IB_QPS_PER_CONNECTION"),
    }
