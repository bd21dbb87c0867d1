"""Which settings of NCCL are offered, over what, and what is said of the others?"""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.errors import InputError
from autotune.space.config import baseline_params, materialise
from autotune.space.knobs import KNOBS
from autotune.space.knobs_nccl import NCCL_KNOBS, NOT_OFFERED, VARIABLES
from autotune.space.space import load_space, prepare

OPEN = {
    "NET/Socket": {"nccl_socket", "nccl_ctas", "nccl_buffsize", "nccl_algo"},
    "NET/IB": {"nccl_ib_qps", "nccl_ctas", "nccl_buffsize", "nccl_algo"},
    "NET/AWS Libfabric": {"nccl_ctas", "nccl_buffsize", "nccl_algo"},
    "SHM": {"nccl_p2p_level", "nccl_ctas", "nccl_buffsize", "nccl_algo"},
    "P2P/PCIe": {"nccl_ctas", "nccl_buffsize", "nccl_algo"},
    "P2P": {"nccl_ctas", "nccl_buffsize", "nccl_algo"},
    "P2P/NVLink": set(),
}


@pytest.mark.parametrize("transport", OPEN)
def test_each_is_open_only_where_it_acts(transport, context):
    ctx = context("cuda", n_ranks=2, transports=frozenset({"P2P/NVLink", transport}))
    assert {name for name, knob in NCCL_KNOBS.items() if knob.blocked(ctx) is None} == OPEN[transport]
    domain = prepare(load_space("full"), ctx, "same").domain
    assert domain.keys() & NCCL_KNOBS.keys() == OPEN[transport]


@pytest.mark.parametrize("name", NCCL_KNOBS)
def test_elsewhere_it_says_why(name, context):
    over = frozenset(OPEN) - {"P2P/NVLink"}
    said = KNOBS[name].blocked
    assert "one rank" in said(context("cuda", transports=over))
    assert "gloo" in said(context("cpu", n_ranks=2, transports=over))
    assert "--assume-transport" in said(context("cuda", n_ranks=2))
    nvlink = said(context("cuda", n_ranks=2, transports=frozenset({"P2P/NVLink"})))
    assert nvlink.startswith("no NCCL traffic ")
    assert said(context("cuda", n_ranks=2, transports=over)) is None
    files = {VARIABLES[name][0]: "7 (/etc/nccl.conf)"}
    kept = said(context("cuda", n_ranks=2, transports=over, nccl_files=files))
    assert f"{VARIABLES[name][0]}=7 (/etc/nccl.conf)" in kept


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("nccl_socket", ("1x1", "2x4", "8x8", "16x4", "1x64"), ("8x9", "16x8", "17x1", "0x4", "4x0", "4", "4x4x4", 4)),
        ("nccl_ctas", ("1-1", "1-8", "64-64"), ("8-4", "0-4", "1-65", "4", 4, "1-8-9")),
        ("nccl_buffsize", (1 << 16, 1 << 20, 16 << 20), (True, 1 << 15, (1 << 20) + 1, "1048576")),
        (
            "nccl_algo",
            ("allreduce:tree", "allreduce:^tree", "allreduce:ring,tree;broadcast:ring", "allreduce:nvlstree"),
            ("tree", "Ring", "allreduce:pat", "allreduce:", "allreduce:tree;", "^tree"),
        ),
        ("nccl_ib_qps", (1, 4, 128), (0, 129, "4", True)),
        ("nccl_p2p_level", ("LOC", "NVL", "PIX", "PXB", "PHB", "SYS"), ("sys", 5)),
    ],
)
def test_what_nccl_would_take(name, good, bad):
    assert [v for v in (None, *good) if NCCL_KNOBS[name].legal(v)] == []
    assert [v for v in bad if NCCL_KNOBS[name].legal(v) is None] == []


def test_a_value_sets_its_variables_and_null_unsets_them(context):
    env = {
        "NCCL_SOCKET_NTHREADS": "2",
        "NCCL_NSOCKS_PERTHREAD": "4",
        "NCCL_MIN_CTAS": "1",
        "NCCL_MAX_CTAS": "8",
        "NCCL_BUFFSIZE": "8388608",
        "NCCL_ALGO": "allreduce:tree",
        "NCCL_P2P_LEVEL": "SYS",
        "NCCL_IB_QPS_PER_CONNECTION": "4",
    }
    ctx = context("cuda", n_ranks=2, env=env)
    base = baseline_params(NCCL_KNOBS, ctx)
    assert base == {
        "nccl_socket": "2x4",
        "nccl_p2p_level": "SYS",
        "nccl_ctas": "1-8",
        "nccl_buffsize": 8388608,
        "nccl_algo": "allreduce:tree",
        "nccl_ib_qps": 4,
    }
    none = dict.fromkeys(base)
    assert materialise(base, none, ctx, "same").env == env
    assert materialise(none, base, ctx, "same").env == dict.fromkeys(env, "")
    half = context("cuda", env={"NCCL_MIN_CTAS": "4", "NCCL_ALGO": "Ring"})
    assert baseline_params(["nccl_ctas", "nccl_algo"], half) == {"nccl_ctas": None, "nccl_algo": None}


@pytest.mark.parametrize("name", [*NOT_OFFERED, "nccl_min_nchannels", "NCCL_BUFFSIZE", "nccl_max_ctas"])
def test_a_space_that_names_what_is_not_offered_is_told_why(name, tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\ndoc: d\nknobs:\n  {name}: {{choices: [1, 2]}}\n")
    with pytest.raises(InputError) as caught:
        load_space(str(file))
    said = caught.value.message
    assert said.startswith(f"{file}:4: knobs.{name}: no such knob: {name.upper()} is ")
    own = {v: k for k, vs in VARIABLES.items() for v in vs}
    wanted = f"set by the knob {own[name.upper()]}" if name.upper() in own else NOT_OFFERED[name.upper()]
    assert said.endswith(wanted)


def test_every_knob_of_nccl_has_its_variables():
    assert NCCL_KNOBS.keys() == VARIABLES.keys()
    assert not NOT_OFFERED.keys() & {v for vs in VARIABLES.values() for v in vs}
