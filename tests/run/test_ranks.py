"""Real training of Ultralytics on two gloo ranks, started as a trial is: by torchrun."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from autotune.contract import Deadlines, Outcome, RankRecord, SegmentSettings, TrialDir, TrialResult, read_json
from autotune.run.demo import demo_dataset
from autotune.run.trial import run_trial
from autotune.search.plan import on_one_rank
from tests.run.trials import spec

REPOSITORY = Path(__file__).parents[2]
BATCH_LOG = """
import importlib.abc, json, os, sys
class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "autotune.worker.memory":
            from ultralytics.models.yolo.detect import DetectionTrainer
            stock = DetectionTrainer.preprocess_batch
            log = open(f"batches{os.environ['RANK']}.txt", "w", buffering=1)
            def logged(self, batch):
                if os.environ.get("TEST_NO_SYNC"):
                    self.model.require_backward_grad_sync = False
                loss = None if self.loss is None else float(self.loss.detach())
                log.write(json.dumps({"epoch": self.epoch, "loss": loss, "images": list(batch["im_file"])}) + chr(10))
                return stock(self, batch)
            DetectionTrainer.preprocess_batch = logged
sys.meta_path.insert(0, Hook())
"""
"""The trainer's own method is wrapped below our mixins, so that what the test sees is what it trains on."""


def train(tmp_path: Path, *, sync: bool = True) -> tuple[TrialResult, list[RankRecord], list[list[dict[str, object]]]]:
    """About 30 steps of 8 images; the result, the ranks' records, and what each rank did batch by batch."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BATCH_LOG)
    data = demo_dataset(tmp_path / "set", n_train=16, n_val=4)
    env = {"PYTHONPATH": f"{tmp_path / 'site'}:{REPOSITORY}", **({} if sync else {"TEST_NO_SYNC": "1"})}
    model = str(REPOSITORY / "tests/models/tiny-detect.yaml")
    learning = {"batch": 8, "nbs": 8, "imgsz": 128, "mosaic": 0.0, "optimizer": "AdamW", "lr0": 0.01}
    asked = replace(
        spec(data, model=model, env=env, **learning),
        n_ranks=2,
        segment=SegmentSettings(warmup_steps=10, warmup_s=0.1, warmup_cap_s=2.0, measure_s=1.0, measure_steps=20),
        deadlines=Deadlines(stall_s=20.0, total_s=120.0),
    )
    directory = TrialDir(tmp_path / "t")
    result = run_trial(asked, directory, started_s=0.0)
    records = [read_json(directory.rank(r), RankRecord) for r in range(2)]
    logs = [(tmp_path / "t" / f"batches{r}.txt").read_text().splitlines() for r in range(2)]
    return result, records, [[json.loads(line) for line in log] for log in logs]


@pytest.mark.slow
def test_two_ranks_train_together(tmp_path: Path) -> None:
    result, records, batches = train(tmp_path)
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), (result.error, result.log_tail)
    assert result.images_per_s
    assert result.straggler_frac is not None
    assert 0 <= result.straggler_frac < 1
    first, second = (r.effective for r in records)
    assert (first["world_size"], first["dist_backend"], first["ddp"], first["device"]) == (2, "gloo", True, "cpu")
    assert first["batch_per_gpu"] == second["batch_per_gpu"] == 4
    # Started alike, moved, and still alike to the bit.
    assert first["params_at_start"] == second["params_at_start"] != first["params"] == second["params"]
    # Left after the same step, with the same window.
    assert len(records[0].steps.end_s) == len(records[1].steps.end_s) == len(batches[0]) == len(batches[1])
    assert records[0].measured_from == records[1].measured_from is not None
    for epoch in range(3):
        mine, theirs = ([name for b in log if b["epoch"] == epoch for name in b["images"]] for log in batches)
        assert len(mine) == len(theirs) == 8
        assert set(mine).isdisjoint(theirs)
        assert len({*mine, *theirs}) == 16, "together the ranks read every image once an epoch"
    losses = [b["loss"] for b in batches[0][1:]]
    assert len(losses) >= 29
    assert mean(losses[-5:]) < 0.8 * mean(losses[:5])


@pytest.mark.slow
def test_without_gradient_sync_the_trial_fails(tmp_path: Path) -> None:
    result, records, _ = train(tmp_path, sync=False)
    assert records[0].effective["params_at_start"] == records[1].effective["params_at_start"]
    assert records[0].effective["params"] != records[1].effective["params"]
    assert result.outcome is Outcome.CRASH
    assert "parameters differ" in (result.error or "")


def probe(tmp_path: Path, what: str, n_ranks: int) -> TrialResult:
    """A probe of a job of two ranks, as the search asks for it (Plan.probing)."""
    data = demo_dataset(tmp_path / "set", n_train=16, n_val=4)
    model = str(REPOSITORY / "tests/models/tiny-detect.yaml")
    asked = replace(
        spec(data, model=model, batch=8, nbs=16, imgsz=64, mosaic=0.0, patches={"torch_threads": 1}),
        n_ranks=2,
        role="probe",
        probe=what,  # type: ignore[arg-type]
        segment=SegmentSettings(warmup_steps=4, warmup_s=0.1, warmup_cap_s=2.0, measure_s=0.5, measure_steps=20),
        deadlines=Deadlines(stall_s=20.0, total_s=120.0),
    )
    if what == "one_rank":
        asked = on_one_rank(asked)
    assert asked.n_ranks == n_ranks
    directory = TrialDir(tmp_path / what)
    result = run_trial(asked, directory, started_s=0.0)
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), (result.error, result.log_tail)
    assert result.n_steps >= 20
    return result


@pytest.mark.slow
def test_gradients_that_stay_on_their_rank(tmp_path: Path) -> None:
    """Two steps an epoch: every second one ends in the loop's own broadcast, which no rank may be left alone in."""
    result = probe(tmp_path, "no_sync", 2)
    records = [read_json(TrialDir(tmp_path / "no_sync").rank(r), RankRecord) for r in range(2)]
    first, second = (r.effective for r in records)
    assert first["params_at_start"] == second["params_at_start"]
    assert len({first["params"], second["params"], first["params_at_start"]}) == 3, "each trained on by itself"
    slowest = min(r.steps.throughput(r.measured_from or 1).images_per_s for r in records)  # type: ignore[union-attr]
    assert result.images_per_s == pytest.approx(2 * slowest)
    assert result.straggler_frac is None, "nobody waits for anybody"
    assert result.job["gradient_bytes"] > 1000


@pytest.mark.slow
def test_one_rank_with_its_share(tmp_path: Path) -> None:
    result = probe(tmp_path, "one_rank", 1)
    [record] = [read_json(path, RankRecord) for path in (tmp_path / "one_rank").glob("rank*.json")]
    assert set(record.steps.images) == {4}
    assert (result.job["batch"], result.job["nbs"], result.job["accumulate"]) == (4, 8, 2)
    assert "world_size" not in result.effective
