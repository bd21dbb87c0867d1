"""What earlier runs found: what is kept of them, which of them are near, and what a new search makes of it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from autotune import atlas
from autotune.atlas import Cell, Entry, cell_of, data_home, distance, recall, remember, seeds_for
from autotune.contract import Outcome, RunDir, RunInfo, Summary, read_json, to_dict, write_json
from autotune.job import info_of
from autotune.question import Request, understand
from autotune.report.figures import FIGURES
from autotune.report.load import load_run
from autotune.space.space import Choices, SearchSpace
from tests.cli import autotune
from tests.report.conftest import BASE, make_run, result_of

CPU = Cell(
    fingerprint="aaaaaaaa",
    facts={"CPU": "Example", "cores": 8},
    hostname="box",
    where="CPU, 8 cores",
    device="cpu",
    n_ranks=1,
    task="detect",
    model="yolo11n",
    data="demo",
    imgsz=640,
    batch=16,
    n_images=1000,
    image_hw=(480, 640),
    training="same",
    objective="job_time",
    space="cpu",
)
GPUS = replace(CPU, device="cuda", gpus=("H100", "H100"), n_ranks=2, where="2 x H100")
BASELINE = {"workers": 0, "cache": False, "torch_threads": 1, "batch_per_gpu": 16}


def entry(cell: Cell = CPU, *, started: str = "2026-11-20T10:00:00+00:00", **fields: Any) -> Entry:
    changes = fields.pop("changes", {"workers": 2})
    return Entry(
        **{
            "run": f"run of {started}",
            "folder": "/home/me/results/run",
            "started": started,
            "autotune": "0.1.0",
            "cell": cell,
            "params": {**BASELINE, **changes},
            "baseline": BASELINE,
            "status": "gain",
            "speedup": 1.93,
            **fields,
        }
    )


def put(*entries: Entry) -> None:
    folder = data_home() / "atlas"
    folder.mkdir(parents=True, exist_ok=True)
    for i, e in enumerate(entries):
        write_json(folder / f"{e.started[:10]}-{i}.json", e)


def asked(out: Path, *pairs: str, **fields: Any) -> tuple[Cell, Any]:
    """The cell of a question on this machine, and its context."""
    question = understand(Request(pairs=("device=cpu", *pairs), dry_run=True, out=str(out), **fields))
    info = info_of(question, "mine")
    return cell_of(info, question.machine, question.ctx.image_hw), question.ctx


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"AUTOTUNE_DATA": "/a", "XDG_DATA_HOME": "/b"}, Path("/a")),
        ({"XDG_DATA_HOME": "/b"}, Path("/b/autotune")),
        ({}, Path.home() / ".local" / "share" / "autotune"),
    ],
)
def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], expected: Path) -> None:
    for name in ("AUTOTUNE_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert data_home() == expected


def test_what_is_kept_of_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", gpu=True, info={"n_images": 1280})
    remember(run, (480, 640))
    (kept,) = recall()
    summary = read_json(run.summary, Summary)
    best = summary.verdict.finalists[1]
    assert (kept.run, kept.status, kept.folder) == (read_json(run.info, RunInfo).name, "gain", str(run.path))
    assert (kept.speedup, kept.ci95_lo, kept.ci95_hi) == (best.speedup, best.ci95_lo, best.ci95_hi)
    assert (kept.params, kept.baseline) == (best.params, BASE)
    cell = kept.cell
    assert (cell.model, cell.data, cell.imgsz, cell.n_images, cell.image_hw) == (
        "yolo11n",
        "demo",
        128,
        1280,
        (480, 640),
    )
    assert (cell.device, cell.gpus, cell.where, cell.fingerprint) == ("cuda", ("H100 80GB",), "H100 80GB", "7f3a91")
    assert (cell.facts["cores"], cell.facts["torch"]) == (2, "2.15.0")
    assert kept.said(cell) == "2026-11-23 yolo11n demo on this machine (1.89x)"
    assert kept.said(CPU) == "2026-11-23 yolo11n demo on H100 80GB (1.89x)"
    assert len(json.dumps(to_dict(kept))) < 4000


def test_each_run_has_one_file_however_often_it_ends(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", 8)
    for run in (first, first, make_run(tmp_path / "b", 8)):
        remember(run, None)
    files = [p.name for p in (data_home() / "atlas").iterdir()]
    assert len(files) == 2, "a resumed run is the same one; and nothing half-written is left"


def test_what_nobody_can_learn_from_is_not_kept(tmp_path: Path) -> None:
    remember(make_run(tmp_path / "simulated", simulated=True), None)
    remember(make_run(tmp_path / "failed", results=[result_of(0, Outcome.CRASH)]), None)
    assert recall() == []
    assert not data_home().exists()


def test_where_it_cannot_be_written_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOTUNE_DATA", str(tmp_path / "file"))
    remember(make_run(tmp_path / "r", 5), None)
    (line,) = caplog.messages
    assert "not in the atlas" in line
    assert recall() == []


def test_what_cannot_be_read_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    put(entry())
    whole = to_dict(entry())
    broken: dict[str, Any] = {
        "newer": {**whole, "format": 99},
        "a_field_more": {**whole, "colour": "red"},
        "a_field_less": {k: v for k, v in whole.items() if k != "cell"},
        "a_list": [whole],
        "params": {**whole, "params": [1, 2]},
        "started": {**whole, "started": 7},
        "image": {**whole, "cell": {**whole["cell"], "image_hw": ["a", "b"]}},
    }
    for name, data in broken.items():
        (data_home() / "atlas" / f"{name}.json").write_text(json.dumps(data))
    (data_home() / "atlas" / "cut.json").write_text('{"format": 1, "run"')
    (data_home() / "atlas" / "binary.json").write_bytes(b"\xff\xfe\x00")
    with caplog.at_level(logging.DEBUG, "autotune.atlas"):
        assert recall() == [entry()]
    assert {r.levelname for r in caplog.records} == {"DEBUG"}
    assert len(caplog.records) == len(broken) + 2


@pytest.mark.parametrize(
    ("a", "other", "expected"),
    [
        (CPU, {}, 0.0),
        (CPU, {"hostname": "twin", "training": "any", "space": "loader", "data": "coco"}, 0.0),
        (CPU, {"fingerprint": "b"}, 1.0),
        (CPU, {"fingerprint": "b", "facts": {"CPU": "Example", "cores": 4}}, 3.0),
        (GPUS, {"fingerprint": "b"}, 1.0),
        (GPUS, {"fingerprint": "b", "gpus": ("A100", "A100")}, 3.0),
        (GPUS, {"n_ranks": 4, "gpus": ("H100",) * 4}, 1.0),
        (GPUS, {"n_ranks": 4, "batch": 8, "gpus": ("H100",) * 4}, 1.5),
        (CPU, {"task": "segment", "model": "yolo11n-seg"}, 2.0),
        (CPU, {"model": "yolo11x"}, 1.0),
        (CPU, {"model": "yolov8n"}, 2.0),
        (CPU, {"model": "mine"}, 2.0),
        (CPU, {"imgsz": 320}, 1.0),
        (CPU, {"imgsz": [640, 480]}, 0.0),
        (CPU, {"batch": 32}, 0.5),
        (CPU, {"batch": -1}, 0.0),
        (CPU, {"n_images": 100_000}, 2.0),
        (CPU, {"n_images": None, "image_hw": None}, 0.0),
        (CPU, {"image_hw": (1920, 2560)}, 2.0),
        (CPU, {"objective": "energy"}, 1.0),
        (CPU, {"device": "cuda"}, None),
        (CPU, {"fingerprint": "b", "facts": {}, "model": "yolov8n", "imgsz": 160}, None),
    ],
)
def test_how_far_two_cells_are(a: Cell, other: dict[str, Any], expected: float | None) -> None:
    b = replace(a, **other)
    assert distance(a, b) == (None if expected is None else pytest.approx(expected))
    assert distance(b, a) == distance(a, b)


SPACE = SearchSpace(
    name="mine",
    doc="Of the tests.",
    knobs={
        "workers": Choices((0, 1, 2)),
        "torch_threads": Choices((1, 2, 4)),
        "cache": Choices((False, "disk")),
        "channels_last": Choices((False, True)),
    },
)


def chosen(out: Path, *entries: Entry, space: SearchSpace = SPACE) -> list[dict[str, Any]]:
    """What the search would start from, given these winners of this very cell."""
    here, ctx = asked(out, "workers=0")
    put(*(replace(e, cell=replace(here, imgsz=here.imgsz * e.cell.imgsz / 640)) for e in entries))
    return [seed.params for seed in seeds_for(here, space, ctx, "same")]


def test_the_nearest_then_the_proven_then_the_newest_at_most_three(tmp_path: Path) -> None:
    far = replace(CPU, imgsz=320)
    assert chosen(
        tmp_path,
        entry(far, changes={"workers": 1}, started="2026-11-23"),
        entry(changes={"torch_threads": 2}, started="2026-11-22", status="unconfirmed", speedup=None),
        entry(changes={"workers": 2}, started="2026-11-20"),
        entry(changes={"channels_last": True}, started="2026-11-21"),
        entry(changes={"channels_last": True}, started="2026-11-19"),
    ) == [{"channels_last": True}, {"workers": 2}, {"torch_threads": 2}]


def test_what_the_space_does_not_have_is_left_out_or_becomes_the_next_smaller(tmp_path: Path) -> None:
    assert chosen(
        tmp_path,
        entry(changes={"workers": 2, "amp": "bf16", "no_such_knob": 1}, started="2026-11-23"),
        entry(changes={"torch_threads": 3}, started="2026-11-22"),
        entry(changes={"workers": "many", "cache": "ram", "torch_threads": True}, started="2026-11-21"),
        entry(changes={"amp": True}, started="2026-11-20"),
    ) == [{"workers": 2}, {"torch_threads": 2}]


def test_a_run_without_a_gain_teaches_nothing(tmp_path: Path) -> None:
    assert chosen(tmp_path, entry(status="no_gain"), entry(changes={})) == []


def test_a_winner_that_the_space_tries_anyway_is_tried_once(tmp_path: Path) -> None:
    here, ctx = asked(tmp_path, "workers=0")
    put(entry(replace(here)))
    own = replace(SPACE, seeds=({"torch_threads": 2}, {"workers": 2}))
    merged = atlas.with_seeds(own, seeds_for(here, own, ctx, "same"))
    assert merged.seeds == ({"workers": 2}, {"torch_threads": 2}, {"workers": 2})
    seeds = atlas.prepare(merged, ctx, "same").seeds
    assert [(s["workers"], s["torch_threads"]) for s in seeds] == [(2, 1), (0, 2)]


def test_a_search_starts_from_the_winner_and_says_so(tmp_path: Path) -> None:
    here, _ = asked(tmp_path)
    put(entry(here, changes={"torch_threads": 2, "workers": 1}))
    said = autotune("search", "--dry-run", "--budget", "100s", "--out", tmp_path / "out", "device=cpu")
    assert said.code == 0, said
    line = "starts from 1 winner of the atlas, measured anew: 2026-11-20 yolo11n demo on this machine (1.93x)"
    assert line in said.out
    run = RunDir((tmp_path / "out" / "latest").resolve())
    (seed,) = read_json(run.info, RunInfo).atlas
    assert (seed.run, seed.distance) == ("run of 2026-11-20T10:00:00+00:00", 0.0)
    assert seed.params == {"torch_threads": 2, "workers": 1}
    first = next(r for r in load_run(run.path).results if r.role == "trial")
    assert (first.params["torch_threads"], first.params["workers"]) == (2, 1)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{run.study}")
    assert study.trials[first.number].system_attrs["fixed_params"]["workers"] == 1, "enqueued, as the space's seeds are"
    table = FIGURES["environment"](load_run(run.path)).df.set_index("name")["value"]
    assert table["starts from"].endswith(f"; trial {first.number}: ok, {first.images_per_s:.0f} img/s")
    assert len(recall()) == 1, "a simulated run is never kept"


def test_no_atlas(tmp_path: Path) -> None:
    here, _ = asked(tmp_path)
    put(entry(here))
    assert info_of(understand(Request(dry_run=True, pairs=("device=cpu",), out=str(tmp_path))), "mine").atlas
    asked_not = understand(Request(dry_run=True, pairs=("device=cpu",), out=str(tmp_path), atlas=False))
    assert info_of(asked_not, "mine").atlas == ()


def test_a_seed_that_was_not_tried_says_so_in_the_report(tmp_path: Path) -> None:
    seed = atlas.AtlasSeed(run="r", folder="/r", said="2026-11-20 a run (1.93x)", distance=0.0, params={"workers": 7})
    df = FIGURES["environment"](load_run(make_run(tmp_path / "r", 3, info={"atlas": (seed,)}).path)).df
    assert df.set_index("name")["value"]["starts from"] == "2026-11-20 a run (1.93x): workers=7; not tried"
