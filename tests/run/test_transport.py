"""NCCL's log of each transport, handmade after the format strings of libnccl: no GPU was at hand (SOURCES.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.contract import RunInfo, Transport, from_dict, to_dict
from autotune.run.transport import ASSUMED, LOGGING, kinds, logging_env, parse_transport, read_transport
from tests.run.test_signs_in_libraries import _holds, libraries

LOGS = Path(__file__).parents[1] / "goldens" / "logs"
RING = ("0-1", "0-3", "1-2", "2-3")


def of(name: str) -> Transport:
    found = read_transport(LOGS / f"handmade_benign__nccl_{name}.log")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "pairs", "n_nodes"),
    [
        ("p2p_nvlink", dict.fromkeys(RING, "P2P/NVLink"), 1),
        ("p2p_pcie", {"0-1": "P2P/PCIe"}, 1),
        ("p2p_old", {"0-1": "P2P"}, None),
        ("shm", {"0-1": "SHM"}, 1),
        ("socket", {"0-1": "SHM", "2-3": "SHM", "1-2": "NET/Socket", "0-3": "NET/Socket"}, 2),
        ("ib", {"0-1": "P2P/NVLink", "2-3": "P2P/NVLink", "1-2": "NET/IB", "0-3": "NET/IB"}, 2),
        ("other_network", {"0-1": "NET/AWS Libfabric"}, None),
    ],
)
def test_every_pair_of_ranks_has_its_transport(name: str, pairs: dict[str, str], n_nodes: int | None) -> None:
    found = of(name)
    assert found.pairs == pairs
    assert found.n_nodes == n_nodes
    assert found.nccl == ("2.14.3" if name == "p2p_old" else "2.30.7")


def test_bandwidth_is_that_of_nccls_own_model_and_only_where_every_pair_has_one() -> None:
    assert of("p2p_nvlink").bus_bytes_per_s == pytest.approx(370.8e9)
    assert of("p2p_pcie").bus_bytes_per_s == pytest.approx(24e9)
    assert of("ib").bus_bytes_per_s is None, "the topology of a machine knows nothing of the other one"


def test_what_the_environment_set_is_kept() -> None:
    assert of("p2p_pcie").env == {"NCCL_DEBUG_SUBSYS": LOGGING["NCCL_DEBUG_SUBSYS"], "NCCL_BUFFSIZE": "8388608"}
    assert of("socket").env["NCCL_SOCKET_IFNAME"] == "eth0"


def test_a_log_that_names_no_pair_says_nothing(tmp_path: Path) -> None:
    assert read_transport(LOGS / "handmade_benign__nccl_one_rank.log") is None
    assert read_transport(tmp_path / "none.log") is None
    assert parse_transport(["Channel 00 : 0[0] -> 1[1] via SHM/direct"]) is None, "not a line of NCCL"
    assert kinds(None) is None


def test_a_pair_that_uses_two_transports_is_as_slow_as_the_slower() -> None:
    line = "h:1:2 [0] NCCL INFO Channel 00/0 : {} via {}"
    both = [line.format("0[0] -> 1[1]", "P2P/IPC"), line.format("1[1] -> 0[0] [send]", "NET/Socket/0")]
    for lines in (both, both[::-1]):
        found = parse_transport(lines)
        assert found is not None
        assert found.pairs == {"0-1": "NET/Socket"}


def test_what_is_assumed_is_added_to_what_was_seen() -> None:
    assert kinds(of("p2p_nvlink")) == {"P2P/NVLink"}
    assert kinds(of("p2p_nvlink"), {ASSUMED["socket"]}) == {"P2P/NVLink", "NET/Socket"}
    assert kinds(None, {ASSUMED["ib"]}) == {"NET/IB"}


def test_only_ranks_on_gpus_log_and_only_where_the_user_said_nothing() -> None:
    assert logging_env(2, "cuda", ()) == LOGGING
    assert logging_env(2, "cuda", ("NCCL_SOCKET_IFNAME",)) == LOGGING
    assert logging_env(2, "cuda", ("NCCL_DEBUG",)) == logging_env(1, "cuda", ()) == logging_env(2, "cpu", ()) == {}


def test_run_json_keeps_it_and_older_ones_are_still_read() -> None:
    info = RunInfo(
        name="n",
        command="c",
        started="s",
        budget_s=1.0,
        objective="job_time",
        strategy="tpe",
        space="cpu",
        training="same",
        seed=0,
        backend="yolo",
        simulated=False,
        task="detect",
        device="0,1",
        transport=of("socket"),
    )
    data = to_dict(info)
    assert from_dict(RunInfo, data) == info
    for new in ("transport", "assume_transport", "nccl_set"):
        del data[new]
    assert from_dict(RunInfo, data).transport is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        "Channel %02d : %d[%d] -> %d[%d] via SHM/direct",
        "Channel %02d/%01d : %d[%d] -> %d[%d] via P2P/%s",
        "Channel %02d/%d : %d[%d] -> %d[%d] [send] via NET/%s/%d",
        "%s comm %p rank %d nranks %d cudaDev %d nvmlDev %d busId %lx commId 0x%llx - Init START",
        "comm %p rank %d nRanks %d nNodes %d localRanks %d localRank %d",
        "%s/%lx-%lx (%d/%.1f/%s) ",
        "%s set by environment to %lld.",
        "NCCL version ",
    ],
)
def test_the_forms_are_in_the_library(form: str) -> None:
    assert any(_holds(path, form.encode()) for path in libraries("libnccl")), f"NCCL writes {form!r} no more"
