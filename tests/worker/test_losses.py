"""Probe `losses` on real Ultralytics trainings: which runs see the same batches, and what they lose on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autotune.contract import Outcome, TrialDir, TrialResult
from autotune.run.trial import run_trial
from autotune.worker.losses import checksum
from tests.run.trials import spec

MODEL = str(Path(__file__).parents[1] / "models" / "tiny-detect.yaml")


def losses(data: Path, folder: Path, n_ranks: int = 1, **args: object) -> TrialResult:
    asked = replace(spec(data, model=MODEL, **args), role="probe", probe="losses", loss_steps=12, n_ranks=n_ranks)  # type: ignore[arg-type]
    result = run_trial(asked, TrialDir(folder), started_s=0.0)
    assert result.outcome is Outcome.OK, (result.error, result.log_tail)
    assert len(result.losses) == len(result.batch_ids) == 12
    assert (result.images_per_s, result.n_steps) == (None, 0), "nothing is timed"
    return result


@pytest.mark.slow
def test_a_repeat_is_equal_to_the_bit_and_a_seed_is_not(tiny: Path, tmp_path: Path) -> None:
    first, again = losses(tiny, tmp_path / "first"), losses(tiny, tmp_path / "again")
    assert (first.losses, first.batch_ids) == (again.losses, again.batch_ids)
    seed = losses(tiny, tmp_path / "seed", seed=1)
    assert set(seed.batch_ids).isdisjoint(first.batch_ids)


@pytest.mark.slow
def test_two_ranks_end_at_the_same_step(tiny: Path, tmp_path: Path) -> None:
    result = losses(tiny, tmp_path / "t", n_ranks=2)
    assert all("-" in batch for batch in result.batch_ids), "of both ranks"
    assert result.effective["world_size"] == 2


def test_a_checksum_tells_batches_apart() -> None:
    images = torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4)
    other = images.clone()
    other[0, 0, 0, 0] += 1
    assert checksum(images) == checksum(images.to(memory_format=torch.channels_last)) != checksum(other)
