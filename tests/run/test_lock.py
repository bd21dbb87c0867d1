"""A GPU on which somebody else computes is not measured on, unless the user insists."""

from __future__ import annotations

import pytest

from autotune.errors import EXIT_ENVIRONMENT, MachineError
from autotune.run import lock


@pytest.mark.parametrize(("pids", "who"), [((4242,), "process 4242"), ((7, 4242), "processes 7, 4242")])
def test_a_gpu_in_use(monkeypatch: pytest.MonkeyPatch, pids: tuple[int, ...], who: str) -> None:
    monkeypatch.setattr(lock, "users", lambda gpus: {"GPU-1": pids} if "GPU-1" in gpus else {})
    with pytest.raises(MachineError) as e:
        lock.refuse_if_used(("GPU-0", "GPU-1"), force=False)
    assert e.value.message == f"GPU GPU-1 is in use by {who}"
    assert "--force" in e.value.hint
    assert e.value.exit_code == EXIT_ENVIRONMENT
    lock.refuse_if_used(("GPU-0", "GPU-1"), force=True)
    lock.refuse_if_used(("GPU-0",), force=False)
