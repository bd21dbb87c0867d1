"""`autotune batch`: wrong input, and two real gloo ranks from the first probe to the proof."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.batch import BatchAnswer
from autotune.contract import RunDir, TrialDir, TrialResult, TrialSpec, read_json
from autotune.run.demo import demo_dataset
from autotune.run.launch import RUN_TAG
from autotune.run.supervise import find_tagged
from autotune.run.trial import run_trial
from autotune.search.memory import HEADROOM_FRAC
from tests.cli import autotune
from tests.run.trials import spec

MIB = 2**20


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--mem-limit", "3G"], ["--mem-limit", "24GiB"]),
        (["--mem-limit", "900TiB"], ["more than a rank can have"]),
        (["--ranks", "0"], ["--ranks 0"]),
        (["--ranks", "5000"], ["5000", "cores"]),
        (["batch=16"], ["batch=16", "leave out"]),
        (["--gpus", "9"], ["--gpus 9: there", "GPU"]),
        (["--budget", "soon"], ["soon"]),
        (["epohcs=3"], ["epochs"]),
        (["data=nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_batch_refuses(args: list[str], said: list[str], tmp_path: Path, tiny: Path) -> None:
    data = [] if any(a.startswith("data=") for a in args) else [f"data={tiny}"]
    answer = autotune("batch", "--out", tmp_path / "out", *data, *args)
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err
    for word in said:
        assert word in answer.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_ranks_from_the_first_probe_to_the_proof(tmp_path: Path) -> None:
    data = demo_dataset(tmp_path / "set", n_train=96, n_val=4)
    small = run_trial(replace(spec(data, batch=8), n_ranks=2), TrialDir(tmp_path / "t"), started_s=0.0)
    # Room for some ten images more, whatever torch itself needs here: yolo11n takes 2 to 3 MiB each at 64 pixels.
    limit = round((max(small.peak_mem_bytes) + 30 * MIB) / (1 - HEADROOM_FRAC))
    job = [f"data={data}", "imgsz=64", "--ranks", "2", "--budget", "150s", "--out", tmp_path / "out"]
    answer = autotune("batch", *job, "--mem-limit", f"{limit}B")
    assert answer.code == 0, answer
    folder = next((tmp_path / "out").iterdir())
    assert folder.name.endswith("-batch")
    found = BatchAnswer(**json.loads((folder / "batch.json").read_text()))
    results = {n: read_json(d.result, TrialResult) for n, d in RunDir(folder).numbered()}
    specs = [read_json(d.spec, TrialSpec) for _, d in RunDir(folder).numbered()]
    assert all((s.n_ranks, s.mem_limit_bytes, s.certify) == (2, limit, True) for s in specs)
    assert all(s.train_args["batch"] == 2 * s.params["batch_per_gpu"] for s in specs)

    measured = [r for r in results.values() if r.outcome.measured]
    assert len(measured) >= 2
    largest = next(r for r in measured if r.params["batch_per_gpu"] == found.largest_safe)
    assert len(largest.peak_mem_bytes) == 2, "each rank was measured"
    assert max(largest.peak_mem_bytes) <= (1 - HEADROOM_FRAC) * limit
    assert found.largest_safe < 48, "the memory was the limit, not the dataset"
    assert found.fastest in {r.params["batch_per_gpu"] for r in measured}
    assert found.largest_safe >= found.fastest
    predicted = {r["number"]: r["predicted_bytes"] for r in found.rungs if r["predicted_bytes"]}
    for number, n_bytes in predicted.items():
        if results[number].outcome.measured:
            assert max(results[number].peak_mem_bytes) == pytest.approx(n_bytes, rel=0.15)

    lines = answer.out.splitlines()
    last = re.fullmatch(r"batch=(\d+)  # total over 2 ranks \((\d+) each\)", lines[-1])
    assert last, answer.out
    assert int(last[1]) == 2 * int(last[2]) == 2 * found.fastest
    assert sum(re.match(r" +\d+ +\d+ ", line) is not None for line in lines) == len(results)
    assert find_tagged(str(folder), RUN_TAG) == []
    assert not (folder / ".data").exists()
