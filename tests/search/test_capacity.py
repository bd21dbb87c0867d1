"""The search's first step: how memory grows with the batch, when the baseline alone does not tell."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from test_predicted_oom import MIB, needs, run, tried

from autotune.contract import Outcome
from autotune.search.capacity import _smaller

DOMAIN = {"batch_per_gpu": (4, 8, 16, 32, 64), "torch_threads": (1, 2)}


def probed(trainer):
    return [s.params["batch_per_gpu"] for s in trainer.specs if s.probe == "memory"]


def test_smaller_batches_tell_which_of_the_space_fit(tmp_path):
    summary, trainer, _ = run(tmp_path / "run", batch=16)
    assert probed(trainer) == [4, 8]
    assert [b for b in tried(trainer) if needs({"batch_per_gpu": b}) > 3 * 1024 * MIB] == [], "all were predicted"
    assert summary.n_predicted_oom == 4
    (note,) = (n for n in summary.notes if n.startswith("with your settings a rank needs"))
    assert "needs 200 MiB, and 150 MiB an image: up to 17 a rank are safe in 3.0 GiB, 8% of it kept free" in note


@pytest.mark.parametrize(
    "case",
    [
        {"batch": 16, "has_bytes": 20 * 1024 * MIB},  # 64 images in proportion to 16: they fit
        {"batch": 64, "has_bytes": 20 * 1024 * MIB},  # nothing larger is in the space
        {"batch": 16, "limit": False},
    ],
)
def test_no_probe_where_there_is_no_doubt(tmp_path, case):
    _, trainer, _ = run(tmp_path / "run", **case)
    assert probed(trainer) == []


def test_a_baseline_of_the_smallest_batch_is_halved(tmp_path):
    _, trainer, _ = run(tmp_path / "run", batch=4)
    assert probed(trainer) == [1, 2]


@pytest.mark.parametrize(("outcome", "left"), [(Outcome.INTERRUPTED, [4, 8]), (Outcome.OK, [8]), (Outcome.CRASH, [8])])
def test_what_was_interrupted_is_run_again(outcome, left):
    done = SimpleNamespace(probe="memory", outcome=outcome, params={"batch_per_gpu": 4})
    study = SimpleNamespace(domain={"batch_per_gpu": (4, 8, 16, 32)})
    session = SimpleNamespace(ran=[SimpleNamespace(result=done)], study=study)
    assert _smaller(session, {"batch_per_gpu": 16}) == left
