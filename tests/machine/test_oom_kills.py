"""The kernel's counter of killed processes, in cgroup v1, v2, and without either."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.machine.limits import oom_kills


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


VMSTAT = {"proc/vmstat": "nr_free_pages 1\noom_kill 40\noom_kill_other 9\n"}


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/memory.events": "oom 5\noom_kill 2\n"}, 2),
        ({"proc/self/cgroup": "0::/gone\n", "sys/fs/cgroup/memory.events": "oom 5\noom_kill 3\n"}, 3),
        (
            {
                "proc/self/cgroup": "5:memory:/job\n0::/\n",
                "sys/fs/cgroup/memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n",
            },
            7,
        ),
        ({"proc/self/cgroup": "0::/\n"}, 40),
    ],
    ids=["v2", "v2 seen from inside", "v1", "no cgroup counts"],
)
def test_counter(files: dict[str, str], kills: int, tmp_path: Path) -> None:
    assert oom_kills(write(tmp_path, VMSTAT | files)) == kills


def test_without_any_counter(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) == 0
