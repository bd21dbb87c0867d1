"""What the user has set of NCCL is found where NCCL itself looks."""

from __future__ import annotations

from pathlib import Path

from autotune.machine.nccl import kept_note, nccl_files, nccl_set


def test_environment_before_the_users_file_before_the_administrators(tmp_path: Path) -> None:
    system, own = tmp_path / "nccl.conf", tmp_path / ".nccl.conf"
    system.write_text("NCCL_SOCKET_IFNAME=eth9\nNCCL_IB_TC = 106 # switch\n# NCCL_ALGO=Ring\nnonsense\n")
    own.write_text("NCCL_SOCKET_IFNAME=eth0\nNCCL_BUFFSIZE=\n")
    env = {"HOME": str(tmp_path), "NCCL_IB_TC": "5", "NCCL_ALGO": "", "TORCH_NCCL_BLOCKING_WAIT": "0", "PATH": "x"}
    assert nccl_set(env, system) == {
        "NCCL_IB_TC": "5 (environment)",
        "NCCL_SOCKET_IFNAME": f"eth0 ({own})",
        "TORCH_NCCL_BLOCKING_WAIT": "0 (environment)",
    }
    other = tmp_path / "mine.conf"
    other.write_text("NCCL_DEBUG=WARN\n")
    found = nccl_files(env | {"NCCL_CONF_FILE": str(other)}, system)
    assert found["NCCL_DEBUG"] == f"WARN ({other})"
    assert found["NCCL_SOCKET_IFNAME"] == f"eth9 ({system})"


def test_the_note_names_each_of_them_and_where_it_is() -> None:
    assert kept_note({}) == ()
    (note,) = kept_note({"NCCL_ALGO": "Ring (environment)", "NCCL_IB_TC": "5 (/etc/nccl.conf)"})
    assert "kept" in note
    assert note.endswith("NCCL_ALGO=Ring (environment), NCCL_IB_TC=5 (/etc/nccl.conf)")
