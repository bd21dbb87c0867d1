"""What of the exported training differs from the user's, and is it said?"""

from typing import Any

import pytest

from autotune.contract import RunInfo
from autotune.report.semantics import DECAY, EFFECTIVE, semantics
from autotune.report.yolo_yaml import job_args

RESOLVED = {"optimizer": "MuSGD", "lr0": 0.01, "momentum": 0.937, "warmup_bias_lr": 0.0}


def info(training: str = "same", n_ranks: int = 1, **job: Any) -> RunInfo:
    return RunInfo(
        name="r",
        command="autotune search",
        started="2026-11-23T14:05:00+00:00",
        budget_s=300.0,
        objective="job_time",
        strategy="tpe",
        space="cpu",
        training=training,
        seed=0,
        backend="yolo",
        simulated=False,
        task="detect",
        device="cpu",
        n_ranks=n_ranks,
        n_images=1000,
        train_args={"model": "yolo11n.yaml", "data": "mine.yaml", "epochs": 100, "imgsz": 640, "batch": 16, **job},
        resolved=RESOLVED,
    )


def of(changes: dict[str, Any], training: str = "same", **more: Any) -> dict[str, Any]:
    asked = info(training, **more)
    return semantics(asked, job_args(asked) | changes)


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, {}),
        # Neutral and numerics: another question's.
        ({"workers": 4, "amp": "bf16", "channels_last": True, "deterministic": False}, {}),
        # A divisor of the effective batch of 64, with the pins that training.pins makes of it.
        ({"batch": 32, "nbs": 64, "weight_decay": 0.0005}, {}),
        ({"batch": 64, "nbs": 64, "weight_decay": 0.0005}, {}),
        # 16 images four times, or 128 at once: twice the images, twice the decay.
        ({"batch": 128}, {EFFECTIVE: (64, 128), DECAY: (0.0005, 0.001)}),
        ({"batch": 128, "nbs": 64, "weight_decay": 0.00025}, {EFFECTIVE: (64, 128)}),
        ({"nbs": 128}, {EFFECTIVE: (64, 128)}),
        ({"weight_decay": 0.001}, {DECAY: (0.0005, 0.001)}),
        # `auto` became MuSGD in the user's job: every pin of it counts.
        ({"optimizer": "AdamW"}, {"optimizer": ("MuSGD", "AdamW")}),
        ({"lr0": 0.02}, {"lr0": (0.01, 0.02)}),
        ({"momentum": 0.9}, {"momentum": (0.937, 0.9)}),
        ({"warmup_bias_lr": 0.1}, {"warmup_bias_lr": (0.0, 0.1)}),
        ({"mosaic": 0.5}, {"mosaic": (1.0, 0.5)}),
        ({"imgsz": 320, "epochs": 50}, {"epochs": (100, 50), "imgsz": (640, 320)}),
    ],
)
def test_what_differs(changes: dict[str, Any], differs: dict[str, tuple[Any, Any]]) -> None:
    found = of(changes)
    assert {d["what"]: (d["yours"], d["tuned"]) for d in found["differs"]} == {
        name: pytest.approx(both) if name == DECAY else both for name, both in differs.items()
    }
    assert (found["same"], found["allowed"]) == (not differs, not differs)
    assert found["sentence"].startswith("CHANGES THE TRAINING, more than --training same" if differs else "the same")
    assert all(name in found["sentence"] for name in differs)


@pytest.mark.parametrize(
    ("training", "changes", "allowed"),
    [
        ("bounded", {"batch": 128, "nbs": 64, "weight_decay": 0.00025}, True),
        ("bounded", {"batch": 256, "nbs": 64, "weight_decay": 0.000125}, False),
        ("bounded", {"batch": 128}, False),  # the decay was not kept
        ("bounded", {}, True),
        ("any", {"batch": 512}, True),
        ("same", {"batch": 128}, False),
    ],
)
def test_against_what_was_allowed(training: str, changes: dict[str, Any], allowed: bool) -> None:
    found = of(changes, training)
    assert (found["training"], found["allowed"]) == (training, allowed)
    if changes:
        assert ("allows" in found["sentence"], "more than" in found["sentence"]) == (True, not allowed)


@pytest.mark.parametrize(
    ("changes", "job", "lightly"),
    [
        ({"cache": "ram"}, {}, {"mosaic draws from": ("the last images that were loaded", "all images")}),
        ({"cache": True}, {"mosaic": 0.0}, {}),
        ({"cache": "disk"}, {}, {}),
        ({"cache": False}, {"cache": "ram"}, {"mosaic draws from": ("all images", "the last images that were loaded")}),
        ({"compile": "default"}, {}, {"left out of an epoch": ("none", "8 of 1000 images")}),
        ({"compile": True}, {"batch": 20}, {}),
        ({"compile": True}, {"batch": 1024}, {}),
        ({"batch": 32}, {}, {"images a forward pass": (16, 32)}),
    ],
)
def test_light_ones_are_listed_and_no_difference(
    changes: dict[str, Any], job: dict[str, Any], lightly: dict[str, tuple[Any, Any]]
) -> None:
    found = of(changes, **job)
    assert {d["what"]: (d["yours"], d["tuned"]) for d in found["lightly"]} == lightly
    assert found["same"]
    assert ("lightly" in found["sentence"]) == bool(lightly)


def test_figures_stand_beside_each_other() -> None:
    found = of({"batch": 64, "nbs": 64, "weight_decay": 0.0005}, n_ranks=2)
    assert found["figures"][EFFECTIVE] == [64, 64]
    assert found["figures"][DECAY] == pytest.approx([0.0005, 0.0005])
    assert found["figures"]["optimizer"] == ["MuSGD", "MuSGD"]
    assert found["lightly"][0]["tuned"] == 32, "of one rank"
    assert "64 images an optimizer step, weight decay 0.0005 in effect, MuSGD with lr0 0.01" in found["sentence"]


def test_an_optimizer_that_the_user_named() -> None:
    asked = info(optimizer="SGD", lr0=0.02)
    assert semantics(asked, job_args(asked))["same"]
    assert semantics(asked, {**job_args(asked), "optimizer": "MuSGD"})["differs"][0]["yours"] == "SGD"
