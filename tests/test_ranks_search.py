"""`--ranks 2`: search, files and full training on two gloo ranks, for real. Minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autotune.contract import RankRecord, RunInfo, Summary, TrialDir, TrialResult, TrialSpec, read_json
from autotune.run.demo import demo_dataset
from tests.cli import rows as csv_rows

pytestmark = pytest.mark.slow
BUDGET_S = 120
SPACE = """
name: two ranks
doc: What two ranks on two cores can turn.
knobs:
  batch_per_gpu: {choices: [4, 8, 16]}
  channels_last: {choices: [false, true]}
seeds:
  - {batch_per_gpu: 16}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("two ranks é")
    data = demo_dataset(home / "data sets", n_train=160, n_val=8)
    (home / "space.yaml").write_text(SPACE)
    argv = [sys.executable, "-m", "autotune", "search", "--ranks", "2", "--space", "space.yaml"]
    argv += ["--budget", f"{BUDGET_S}s", "device=cpu", f"data={data}", "imgsz=64", "epochs=40"]
    done = subprocess.run(argv, cwd=home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks" in done.stdout
    assert "launch.sh" in done.stdout
    assert "yolo train" not in done.stdout, "which would train in one process, at another speed"
    return (home / "results" / "latest").resolve()


def test_every_trial_ran_on_two_ranks(run: Path) -> None:
    assert read_json(run / "run.json", RunInfo).n_ranks == 2
    measured = [r for r in csv_rows(run / "trials.csv") if r["role"] != "probe" and r["outcome"] in ("ok", "unstable")]
    roles = {r["role"] for r in measured}
    assert "baseline" in roles
    assert "finalist" in roles or not read_json(run / "summary.json", Summary).verdict.n_blocks
    for row in measured:
        trial = TrialDir(run / "trials" / f"{int(row['number']):04d}")
        spec, result = read_json(trial.spec, TrialSpec), read_json(trial.result, TrialResult)
        ranks = [read_json(trial.rank(r), RankRecord) for r in range(2)]
        assert spec.n_ranks == 2
        assert [r.effective["world_size"] for r in ranks] == [2, 2]
        assert ranks[0].effective["params"] == ranks[1].effective["params"]
        assert ranks[0].effective["batch_per_gpu"] == result.params["batch_per_gpu"] == spec.train_args["batch"] // 2
        assert len(result.peak_mem_bytes) == 2


def test_the_answer(run: Path) -> None:
    summary = read_json(run / "summary.json", Summary)
    assert summary.verdict.status in ("gain", "no_gain", "unconfirmed")
    best = yaml.safe_load((run / "best" / "best.yaml").read_text())
    assert best["batch"] % 2 == 0
    assert "total over 2 ranks" in (run / "best" / "best.yaml").read_text()
    assert "one process on a CPU" in (run / "best" / "best.yaml").read_text()


def test_the_exported_launcher_trains_on_two_ranks(run: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHON": sys.executable, "YOLO_CONFIG_DIR": str(tmp_path / "yolo")}
    bash = shutil.which("bash")
    assert bash
    argv = [bash, str(run / "best" / "launch.sh"), "epochs=1", "plots=False", f"project={tmp_path}"]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert len(list(tmp_path.rglob("last.pt"))) == 1, "one training of two ranks, not two trainings"
    assert "in effect" in done.stderr + done.stdout
