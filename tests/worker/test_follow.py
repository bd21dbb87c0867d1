"""Between two trials of one process everything is as it was, or the second does not begin."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import cv2
import pytest
import torch

from autotune.contract import RankRecord, TrialDir, read_json
from autotune.worker import follow
from autotune.worker.recorder import Recorder
from tests.run.trials import spec


class Holder:
    """A backend, or a trainer."""

    def __init__(self, trainer: Holder | None = None) -> None:
        self.trainer = trainer


def test_settings_are_what_they_were() -> None:
    settings = follow.Settings()
    settings.take()
    before = follow._torch_settings(torch)
    cv2_threads = cv2.getNumThreads()
    environ = dict(os.environ)
    try:
        torch.set_num_threads(before["threads"] + 2)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = not before["fill"]
        torch.backends.cudnn.deterministic = not torch.backends.cudnn.deterministic
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.set_float32_matmul_precision("medium")
        torch.set_default_dtype(torch.float64)
        cv2.setNumThreads(cv2_threads + 1)
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        os.environ.pop("PATH")
        gc.freeze()
        assert all(now != before[k] for k, now in follow._torch_settings(torch).items())
    finally:
        settings.restore()
    assert follow._torch_settings(torch) == before
    assert cv2.getNumThreads() == cv2_threads
    assert dict(os.environ) == environ
    assert gc.get_freeze_count() == 0


def test_a_trainer_in_a_cycle_is_freed() -> None:
    backend = Holder(Holder())
    assert backend.trainer
    backend.trainer.trainer = backend.trainer
    gone = follow.watched(backend)
    assert len(gone) == 2
    del backend
    assert follow.forget(gone)


def test_a_trainer_that_somebody_keeps_is_a_fault() -> None:
    backend = Holder(Holder())
    kept = backend.trainer
    gone = follow.watched(backend)
    del backend
    with pytest.raises(RuntimeError, match="Holder of the last trial is still in memory"):
        follow.forget(gone)
    assert kept


def test_a_worker_that_stays_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "WORKERS_END_S", 0.1)
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(RuntimeError, match="workers of the last trial"):
            follow.forget([])
    finally:
        worker.kill()
        worker.wait()


def test_the_peak_is_forgotten() -> None:
    """In a process of its own, whose memory nobody else uses."""
    script = """
        import torch
        from autotune.worker import follow
        from autotune.worker.memory import peak_memory_bytes
        cpu = torch.device("cpu")
        before = peak_memory_bytes(cpu)
        big = torch.ones(50_000_000)
        with_it = peak_memory_bytes(cpu)
        del big
        assert peak_memory_bytes(cpu) >= with_it - 2**20
        assert follow.forget([])
        print(with_it - before, peak_memory_bytes(cpu) - before)
    """
    env = os.environ | {"PYTHONPATH": str(Path(follow.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=env, check=True, capture_output=True, text=True
    )
    gained, kept = map(int, done.stdout.split())
    assert gained > 190_000_000
    assert kept < 20_000_000


def test_a_peak_that_cannot_be_forgotten_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert not follow.forget([])
    monkeypatch.undo()
    for known in (True, False):
        recorder = Recorder(spec("none"), TrialDir(tmp_path))
        recorder.peak_mem_bytes, recorder.peak_known = 123, known
        recorder.write()
        assert read_json(TrialDir(tmp_path).rank(0), RankRecord).peak_mem_bytes == (123 if known else None)


def test_a_follower_is_in_its_own_folder(tmp_path: Path) -> None:
    """In a process of its own: it changes where its output goes."""
    script = f"""
        import os, tempfile
        from pathlib import Path
        from autotune.contract import TrialDir
        from autotune.worker import follow
        tempfile.gettempdir()
        directory = TrialDir(Path({str(tmp_path)!r}))
        directory.tmp.mkdir()
        print("before", flush=True)
        follow.enter(directory)
        print("after", os.getcwd() == {str(tmp_path)!r}, tempfile.gettempdir() == str(directory.tmp))
        os.system("echo of a child")
    """
    env = os.environ | {"PYTHONPATH": str(Path(follow.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-u", "-c", textwrap.dedent(script)], env=env, check=True, capture_output=True, text=True
    )
    assert done.stdout == "before\n"
    assert TrialDir(tmp_path).log.read_text() == "after True True\nof a child\n"
    assert tempfile.gettempdir() != str(tmp_path)
