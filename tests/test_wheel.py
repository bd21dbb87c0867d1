"""A wheel built from the checkout works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def test_wheel_carries_the_spaces_and_runs(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(argv, check=True, timeout=300, cwd=tmp_path)
    wheel = next(tmp_path.glob("yolo_autotune-*.whl"))
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        z.extractall(site)
    assert {f"autotune/search_spaces/{n}.yaml" for n in ("quick", "default", "full", "loader", "cpu", "ddp")} <= set(
        names
    )
    assert any(n.endswith("LICENSE") for n in names)
    assert not any(n.startswith("tests/") for n in names)
    env = {**os.environ, "PYTHONPATH": str(site)}
    code = "import autotune; print(autotune.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert where.stdout.startswith(str(site))
    argv = [sys.executable, "-m", "autotune", "search", "--dry-run", "--budget", "10m"]
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "results" / "latest" / "report.html").exists()
