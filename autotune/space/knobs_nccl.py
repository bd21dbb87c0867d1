"""How do the ranks talk to each other? NCCL's environment, each variable offered only where it acts (KNOBS 1.5)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from autotune.contract import Site, Training, Value
from autotune.space.context import Context
from autotune.space.knob import Knob, variable
from autotune.space.legal import Legal, one_of

VARIABLES: Final[dict[str, tuple[str, ...]]] = {
    "nccl_socket": ("NCCL_SOCKET_NTHREADS", "NCCL_NSOCKS_PERTHREAD"),
    "nccl_p2p_level": ("NCCL_P2P_LEVEL",),
    "nccl_ctas": ("NCCL_MIN_CTAS", "NCCL_MAX_CTAS"),
    "nccl_buffsize": ("NCCL_BUFFSIZE",),
    "nccl_algo": ("NCCL_ALGO",),
    "nccl_ib_qps": ("NCCL_IB_QPS_PER_CONNECTION",),
}
"""Knob -> the variables that it sets."""
ANY_BUT_NVLINK: Final = ("P2P", "P2P/PCIe", "SHM", "NET/")
"""NET/ stands for every network. Over NVLink an all-reduce of a YOLO's gradients is calculated to take under 1 % of a
step, whatever is set (KNOBS 1.5)."""
STOCK_BUFFSIZE: Final = 4 << 20


def _pair(text: str, pattern: str, largest: int) -> tuple[int, int] | None:
    match = re.fullmatch(pattern, text)
    if not match:
        return None
    a, b = int(match[1]), int(match[2])
    return (a, b) if 1 <= a <= largest and 1 <= b <= largest else None


def legal_socket(value: Value) -> str | None:
    """`AxB`: NCCL_SOCKET_NTHREADS x NCCL_NSOCKS_PERTHREAD; NCCL clamps a product over 64 instead of failing."""
    if value is None:
        return None
    pair = _pair(str(value), r"(\d{1,3})x(\d{1,3})", 999)
    if pair is None:
        return "must be THREADSxSOCKETS, both at least 1, such as 4x4"
    if pair[0] > 16:
        return "NCCL_SOCKET_NTHREADS must be 1 to 16"
    return "NCCL_SOCKET_NTHREADS x NCCL_NSOCKS_PERTHREAD must be 1 to 64" if pair[0] * pair[1] > 64 else None


def legal_ctas(value: Value) -> str | None:
    """`A-B`: NCCL_MIN_CTAS and NCCL_MAX_CTAS."""
    pair = None if value is None else _pair(str(value), r"(\d{1,2})-(\d{1,2})", 64)
    if value is None or (pair and pair[0] <= pair[1]):
        return None
    return "must be MIN-MAX, 1 to 64 each and MIN not above MAX, such as 1-8"


def legal_buffsize(value: Value) -> str | None:
    """Bytes, a power of two."""
    if value is None or (type(value) is int and value >= 1 << 16 and value & (value - 1) == 0):
        return None
    return "must be a power of two in bytes, at least 65536, such as 8388608"


def legal_algo(value: Value) -> str | None:
    """`FUNCTION:ALGORITHM`: since NCCL 2.24 an algorithm for all functions fails where one of them has it not."""
    function = r"(?:allreduce|broadcast|reduce|allgather|reducescatter)"
    algorithms = r"\^?(?:ring|tree|collnetdirect|collnetchain|nvls|nvlstree)"
    one = rf"{function}:{algorithms}(?:,{algorithms})*"
    if value is None or re.fullmatch(rf"{one}(?:;{one})*", str(value)):
        return None
    return "must be FUNCTION:ALGORITHM, such as allreduce:tree or allreduce:^tree"


def legal_qps(value: Value) -> str | None:
    """NCCL_IB_QPS_PER_CONNECTION."""
    return None if value is None or (type(value) is int and 1 <= value <= 128) else "must be a whole number, 1 to 128"


def _spread(name: str, between: str) -> Callable[[Value], dict[str, str]]:
    """Knob.variables of two variables in one value; None unsets both."""

    def variables(value: Value) -> dict[str, str]:
        first, _, second = ("" if value is None else str(value)).partition(between)
        return dict(zip(VARIABLES[name], (first, second), strict=True))

    return variables


def _blocked(name: str, needed: tuple[str, ...], what: str) -> Callable[[Context], str | None]:
    """Knob.blocked of a knob that acts on these transports only."""

    def blocked(ctx: Context) -> str | None:
        if ctx.n_ranks == 1:
            return "one rank: there is no NCCL traffic"
        if ctx.device == "cpu":
            return "on CPU the ranks talk through gloo: there is no NCCL traffic"
        for variable_ in VARIABLES[name]:
            if variable_ in ctx.nccl_files:
                return f"a file of NCCL says {variable_}={ctx.nccl_files[variable_]}, which is kept"
        if ctx.transports is None:
            return "it is not known over what NCCL's traffic goes here; --assume-transport says it"
        networks = {"NET/"} if any(used.startswith("NET/") for used in ctx.transports) else set()
        return None if set(needed) & (ctx.transports | networks) else f"no NCCL traffic {what} here"

    return blocked


def _baseline(name: str, legal: Legal, between: str) -> Callable[[Context], Value]:
    """Knob.baseline: what the user exports, where it is all there and is what the knob can say."""

    def baseline(ctx: Context) -> Value:
        values = [ctx.env.get(v) or "" for v in VARIABLES[name]]
        text = between.join(values)
        exported: Value = int(text) if text.isdecimal() else text
        return exported if all(values) and legal(exported) is None else None

    return baseline


def _row(
    name: str, doc: str, training: Training, legal: Legal, needed: tuple[str, ...], what: str, between: str = ""
) -> Knob:
    """One knob: over the transports `needed` only, in words `what`; `between` stands between two variables' values."""
    return Knob(
        name=name,
        site=Site.ENV,
        training=training,
        doc=doc,
        needs=f"Several ranks on GPUs whose traffic {what}.",
        legal=legal,
        baseline=_baseline(name, legal, between),
        blocked=_blocked(name, needed, what),
        variables=_spread(name, between) if between else variable(VARIABLES[name][0]),
    )


_SLOW: Final = "takes another way than NVLink"
NCCL_KNOBS: Final[dict[str, Knob]] = {
    row.name: row
    for row in (
        _row(
            "nccl_socket",
            "NCCL_SOCKET_NTHREADS x NCCL_NSOCKS_PERTHREAD: helper threads and connections of NCCL over TCP.",
            Training.NEUTRAL,
            legal_socket,
            ("NET/Socket",),
            "crosses TCP sockets",
            "x",
        ),
        _row(
            "nccl_p2p_level",
            "NCCL_P2P_LEVEL: how far apart two GPUs may be (SYS: anywhere) and still copy directly; null: PXB.",
            Training.NUMERICS,
            one_of(None, "LOC", "NVL", "PIX", "PXB", "PHB", "SYS"),
            ("SHM",),
            "goes through shared memory between GPUs of one machine",
        ),
        _row(
            "nccl_ctas",
            "NCCL_MIN_CTAS-NCCL_MAX_CTAS: blocks of a GPU that a collective takes from the computation.",
            Training.NUMERICS,
            legal_ctas,
            ANY_BUT_NVLINK,
            _SLOW,
            "-",
        ),
        _row(
            "nccl_buffsize",
            "NCCL_BUFFSIZE: bytes of the buffer between two ranks, per channel; null is 4194304.",
            Training.NUMERICS,
            legal_buffsize,
            ANY_BUT_NVLINK,
            _SLOW,
        ),
        _row(
            "nccl_algo",
            "NCCL_ALGO of one function, such as allreduce:tree; null lets NCCL choose by message size.",
            Training.NUMERICS,
            legal_algo,
            ANY_BUT_NVLINK,
            _SLOW,
        ),
        _row(
            "nccl_ib_qps",
            "NCCL_IB_QPS_PER_CONNECTION: queue pairs of a connection over InfiniBand or RoCE; null is 1.",
            Training.NEUTRAL,
            legal_qps,
            ("NET/IB",),
            "crosses InfiniBand or RoCE",
        ),
    )
}

_SITE: Final = "what is right is a property of the network: set it yourself, it is kept for every trial"
_OFF: Final = "switches a transport off, which is for diagnosis: what takes its place is slower"
NOT_OFFERED: Final[dict[str, str]] = {
    "NCCL_MIN_NCHANNELS": "deprecated, and the stricter of it and NCCL_MIN_CTAS would hold: use nccl_ctas",
    "NCCL_MAX_NCHANNELS": "deprecated, and the stricter of it and NCCL_MAX_CTAS would hold: use nccl_ctas",
    "NCCL_NRINGS": "deprecated: use nccl_ctas",
    "NCCL_PROTO": "forcing LL128 where NCCL would not choose it can corrupt data, and NCCL chooses by message size",
    "NCCL_NTHREADS": "NCCL silently changes a value it cannot take, and there is little to win",
    "NCCL_LAUNCH_MODE": "GROUP is deprecated, and with one GPU a process there is nothing to choose",
    "NCCL_P2P_DISABLE": _OFF,
    "NCCL_SHM_DISABLE": _OFF,
    "NCCL_IB_DISABLE": _OFF,
    "NCCL_NVLS_ENABLE": "NCCL turns it on where it can; forced, the start fails where its memory cannot be had",
    "NCCL_CUMEM_ENABLE": "NCCL chooses by driver; a wrong value breaks containers instead of being slower",
    "NCCL_CHECKS_DISABLE": "deprecated, and it only hides faults",
    "NCCL_SOCKET_IFNAME": f"a wrong value hangs; {_SITE}",
    "NCCL_IB_HCA": _SITE,
    "NCCL_IB_GID_INDEX": _SITE,
    "NCCL_IB_TC": _SITE,
    "NCCL_IB_SL": _SITE,
    "NCCL_IB_TIMEOUT": _SITE,
    "NCCL_IB_RETRY_CNT": _SITE,
    "NCCL_CROSS_NIC": _SITE,
    "NCCL_NET": _SITE,
    "NCCL_NET_PLUGIN": _SITE,
    "NCCL_NET_GDR_LEVEL": _SITE,
    "NCCL_TUNER_PLUGIN": _SITE,
    "NCCL_MULTI_RANK_GPU_ENABLE": "experimental, for tests with two ranks on one GPU",
    "NCCL_DEBUG": "it logs; the baseline of a search on several GPUs sets it by itself",
}
"""Variables that somebody may want to search -> why they are no knobs (KNOBS 1.5)."""


def why_not(name: object) -> str | None:
    """Why something that looks like a setting of NCCL is no knob, or which knob it is; None: it does not look so."""
    variable_ = str(name).upper()
    for knob, variables in VARIABLES.items():
        if variable_ in variables:
            return f"{variable_} is set by the knob {knob}"
    reason = NOT_OFFERED.get(variable_)
    return f"{variable_} is not offered: {reason}" if reason else None
