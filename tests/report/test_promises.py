"""Is a promise judged right? Epochs of a full training against the receipt's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import Comparison, Winner, to_dict, write_json
from autotune.machine.facts import read_machine
from autotune.report.promises import TOLERANCE_FRAC, Epoch, all_promises, changed, check_promise, judge, read_epochs
from autotune.report.receipt import Promise
from tests.receipts import receipt_for

PROMISE = Promise(
    epochs=100,
    mosaic_epoch_s=10.0,
    closed_epoch_s=8.0,
    val_s=1.5,
    save_s=0.3,
    epoch_end_s=0.2,
    half_width_frac=0.04,
)


def epochs(*seconds: float, closed: bool = False) -> list[Epoch]:
    return [Epoch(seconds=s, steps_s=s - 2.0, val_s=1.5, closed=closed) for s in seconds]


def test_kept() -> None:
    kept = judge(PROMISE, epochs(19.0, 12.1, 12.0, 12.4))
    assert kept.status == "kept"
    assert (kept.promised_s, kept.real_s, kept.n_epochs, kept.what) == (12.0, 12.1, 3, "epoch")
    assert kept.sentence == (
        "promise kept: 12.0 s an epoch promised (+-4 %), 12.1 s real "
        "(median of 3; the first left out: it carries the start)"
    )


@pytest.mark.parametrize(
    ("ratio", "status"),
    [
        (1 + 0.04 + TOLERANCE_FRAC - 0.001, "kept"),
        (1 + 0.04 + TOLERANCE_FRAC + 0.001, "not_kept"),
        (1 - 0.04 - TOLERANCE_FRAC + 0.001, "kept"),
        (1 - 0.04 - TOLERANCE_FRAC - 0.001, "not_kept"),
    ],
)
def test_the_border_is_the_interval_and_the_tolerance(ratio: float, status: str) -> None:
    kept = judge(PROMISE, epochs(0.0, *[12.0 * ratio] * 5))
    assert kept.status == status
    assert kept.ratio == pytest.approx(ratio)


def test_one_disturbed_epoch_breaks_no_promise() -> None:
    assert judge(PROMISE, epochs(19.0, 12.0, 12.1, 80.0, 11.9)).status == "kept"


def test_epochs_without_mosaic_have_a_promise_of_their_own() -> None:
    real = [*epochs(19.0, 12.0, 12.0), *epochs(10.0, 10.0, 10.0, 10.0, closed=True)]
    kept = judge(PROMISE, real)
    assert (kept.status, kept.promised_s, kept.real_s, kept.n_epochs) == ("kept", 10.0, 10.0, 6)
    assert judge(PROMISE, [*real[:1], *epochs(12.0, 12.0, closed=True)]).status == "not_kept"
    open_only = replace(PROMISE, closed_epoch_s=None)
    assert judge(open_only, real).n_epochs == 2, "those without mosaic are not held against anything"
    none = judge(open_only, epochs(10.0, 10.0, 10.0, closed=True))
    assert (none.status, none.sentence) == ("not_judged", "promise not judged: none without mosaic was promised")


def test_without_a_promised_epoch_end_the_steps_are_compared() -> None:
    kept = judge(replace(PROMISE, val_s=None, missing=("val_s",)), epochs(19.0, 12.1, 12.0, 12.2))
    assert (kept.status, kept.what, kept.promised_s) == ("kept", "steps", 10.0)
    assert kept.real_s == pytest.approx(10.1)
    assert "10.0 s for the steps of an epoch promised" in kept.sentence
    assert judge(PROMISE, epochs(19.0, 12.1, 12.0), whole=False).what == "steps"


def test_warm_up_epochs_are_left_out_where_enough_others_are() -> None:
    slow_start = epochs(19.0, 15.0, 15.0, 12.0, 12.0, 12.0)
    kept = judge(PROMISE, slow_start, warmup_epochs=3)
    assert (kept.status, kept.n_epochs) == ("kept", 3)
    assert "the first 3 left out: start and warm-up" in kept.sentence
    assert judge(PROMISE, slow_start[:4], warmup_epochs=3).n_epochs == 3, "but one is too few to go by"
    mostly_closed = [*slow_start[:4], *epochs(*[9.0] * 9, closed=True)]
    assert judge(replace(PROMISE, closed_epoch_s=None), mostly_closed, warmup_epochs=3).n_epochs == 3


def test_not_judged() -> None:
    assert judge(PROMISE, epochs(19.0)).sentence == "promise not judged: 1 epoch ended"
    unsure = judge(replace(PROMISE, half_width_frac=None), epochs(19.0, 12.0))
    assert unsure.status == "not_judged"
    assert "12.0 s an epoch promised, 12.0 s real" in unsure.sentence


def test_not_comparable_says_why_and_both_figures() -> None:
    kept = judge(PROMISE, epochs(19.0, 6.0), ["batch=32", "imgsz=64"])
    assert kept.status == "not_comparable"
    assert kept.sentence.startswith("promise not comparable, batch=32, imgsz=64: 12.0 s an epoch promised")


def test_an_override_that_says_the_same_changes_nothing() -> None:
    args = {"batch": 16, "cache": "ram"}
    assert changed(args, {"batch": "16", "imgsz": 640, "epochs": 3}) == {"epochs": 3}
    assert changed(args, {"cache": False}) == {"cache": False}


def test_a_torn_line_is_no_epoch(tmp_path: Path) -> None:
    path = tmp_path / "epochs.txt"
    assert read_epochs(path) == []
    path.write_text("19.0 17.0 1.5 0\n12.0 10.0 1.5 1\n12.0 10.0 1.5 0")
    assert read_epochs(path) == [Epoch(19.0, 17.0, 1.5, False), Epoch(12.0, 10.0, 1.5, True)]
    path.write_text("19.0 17.0 1.5 0\n12.0 1")
    assert len(read_epochs(path)) == 1


def check(best: Path, overrides: dict[str, object], n_nodes: int = 1) -> str:
    path = best.parent / "epochs.txt"
    path.write_text("19 17 1.5 0\n12 10 1.5 0\n12 10 1.5 0\n")
    kept = check_promise(best, Winner(task="detect", train_args={"batch": 8}), overrides, path, n_nodes=n_nodes)
    assert kept is not None
    return kept.status


def test_what_is_written_down(tmp_path: Path) -> None:
    best = tmp_path / "run" / "best"
    best.mkdir(parents=True)
    receipt = receipt_for("data.yaml", promise=PROMISE)
    write_json(best / "receipt.json", {"format": 1, **to_dict(receipt)})
    assert check(best, {}) == "kept"
    assert not list(best.parent.glob("promises*")), "a copy of best/ stands in no run folder"
    (best.parent / "run.json").write_text("{}")
    assert check(best, {"epochs": 3, "batch": 8, "project": "x"}) == "kept"
    assert check(best, {"batch": 4}) == "not_comparable"
    assert check(best, {}, n_nodes=2) == "not_comparable"
    assert receipt.machine is not None
    other = replace(receipt.machine, fingerprint="0", driver="1.2")
    write_json(best / "receipt.json", {"format": 1, **to_dict(replace(receipt, machine=other))})
    assert check(best, {}) == "not_comparable"
    with (best.parent / "promises.jsonl").open("a") as f:
        f.write('{"half a line')
    lines = all_promises(best.parent / "promises.jsonl")
    assert [k.status for k in lines] == ["kept", "not_comparable", "not_comparable", "not_comparable"]
    assert lines[0].overrides == {"epochs": 3, "batch": 8, "project": "x"}
    assert f"NVIDIA driver 1.2, now {read_machine().driver or 'none'}" in lines[3].sentence
    assert [p.name for p in best.iterdir()] == ["receipt.json"], "nothing is written into best/"


def test_a_copy_without_a_readable_receipt_promises_nothing(tmp_path: Path) -> None:
    path = tmp_path / "epochs.txt"
    path.write_text("19 17 1.5 0\n12 10 1.5 0\n")
    winner = Winner(task="detect", train_args={})
    assert check_promise(tmp_path, winner, {}, path) is None
    (tmp_path / "receipt.json").write_text(json.dumps({"format": 1}))
    assert check_promise(tmp_path, winner, {}, path) is None
    unpromised = receipt_for("data.yaml", ratio=Comparison(**to_dict(receipt_for("x").ratio)))
    write_json(tmp_path / "receipt.json", {"format": 1, **to_dict(unpromised)})
    assert check_promise(tmp_path, winner, {}, path) is None
