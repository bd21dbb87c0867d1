"""A search begins with the checks: what fails stops it, what warns goes with the run."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.doctor.fitness import plan_of, refuse_if_unfit
from autotune.errors import MachineError
from autotune.machine.facts import read_machine
from autotune.question import Question, Request, understand
from tests.machine.fakes import LIMITS, FakeHost, fabricate


def asked(tiny: Path, out: Path, **request: Any) -> Question:
    pairs = (f"data={tiny}", "device=cpu", "batch=8", "imgsz=64", "workers=2")
    return understand(Request(pairs=pairs, out=str(out), **request))


def on(question: Question, host: FakeHost) -> Question:
    """The same question on a synthetic machine."""
    (host.root / str(question.out).lstrip("/")).mkdir(parents=True)
    assert question.dataset is not None
    return replace(question, machine=read_machine(host, data=str(question.dataset.root)))


def test_what_the_checks_are_told_of_the_job(tiny: Path, tmp_path: Path) -> None:
    question = asked(tiny, tmp_path / "runs")
    plan = plan_of(question)
    assert (plan.gpus, plan.n_ranks, plan.batch_per_gpu, plan.workers, plan.imgsz) == ((), 1, 8, 2, 64)
    assert (plan.n_images, plan.data, plan.out) == (64, str(tiny.parent), str(tmp_path / "runs"))
    assert plan.image_bytes is not None
    images = [p for p in tiny.parent.rglob("*") if p.suffix == ".jpg"]
    assert plan.image_bytes == pytest.approx(sum(p.stat().st_size for p in images), rel=0.2)
    assert plan_of(question, 2).batch_per_gpu == 4
    assert question.machine.data is not None


def test_a_fit_machine_is_warned_of_nothing(tiny: Path, tmp_path: Path) -> None:
    host = fabricate(tmp_path / "root")
    assert refuse_if_unfit(on(asked(tiny, tmp_path / "runs"), host), host) == ()


def test_what_fails_stops_the_search_and_names_the_remedy(tiny: Path, tmp_path: Path) -> None:
    host = fabricate(tmp_path / "root", limits=LIMITS | {"nofile": 128}, env={"CUDA_LAUNCH_BLOCKING": "1"})
    with pytest.raises(MachineError) as e:
        refuse_if_unfit(on(asked(tiny, tmp_path / "runs"), host), host)
    assert e.value.exit_code == 3
    assert "limits: 128 open files allowed" in e.value.message
    assert "ulimit -n 65536" in e.value.hint
    assert "--force" in e.value.hint


def test_force_turns_what_fails_into_a_warning(tiny: Path, tmp_path: Path) -> None:
    host = fabricate(tmp_path / "root", limits=LIMITS | {"nofile": 128}, env={"CUDA_LAUNCH_BLOCKING": "1"})
    first, second = refuse_if_unfit(on(asked(tiny, tmp_path / "runs", force=True), host), host)
    assert first.startswith("limits: 128 open files allowed")
    assert second.startswith("environment: left over: CUDA_LAUNCH_BLOCKING=1")
    assert "(remedy: unset CUDA_LAUNCH_BLOCKING" in second


def test_a_simulated_search_asks_nothing_of_the_machine(tiny: Path, tmp_path: Path) -> None:
    host = fabricate(tmp_path / "root", limits=LIMITS | {"nofile": 128})
    assert refuse_if_unfit(on(asked(tiny, tmp_path / "runs", dry_run=True), host), host) == ()


def test_a_real_limit_stops_a_real_search_before_a_folder_is_made(tiny: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "autotune", "search", "--budget", "60s", f"data={tiny}", "imgsz=64", "device=cpu"]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = subprocess.run(
        argv,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard)),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 3, done
    assert done.stderr.startswith("error: this machine cannot run the search: limits: 200 open files allowed")
    assert "hint: ulimit -n 65536" in done.stderr
    assert not (tmp_path / "results").exists()
