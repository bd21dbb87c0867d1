"""What a trial starts with."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.contract import TrialDir
from autotune.run.launch import environment
from tests.run.trials import spec


@pytest.mark.parametrize(
    ("shell", "threads"), [({}, "1"), ({"OMP_NUM_THREADS": ""}, "1"), ({"OMP_NUM_THREADS": "3"}, "3")]
)
def test_torch_is_loaded_with_the_threads_that_ultralytics_gives_it(
    tmp_path: Path, shell: dict[str, str], threads: str
) -> None:
    # Plain YOLO imports ultralytics first, which sets 1 before torch is loaded; the worker imports torch first.
    assert environment(spec("none"), TrialDir(tmp_path / "t"), "tag", shell)["OMP_NUM_THREADS"] == threads
    assert (
        environment(spec("none", env={"OMP_NUM_THREADS": "4"}), TrialDir(tmp_path / "t"), "tag", shell)[
            "OMP_NUM_THREADS"
        ]
        == "4"
    )
