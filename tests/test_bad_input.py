"""Every wrong input: one line, a hint, exit code 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import autotune

NOT_THERE = "no GPU here|visible GPU"
"""One of the two, as there is none or too few."""
SPACES = {
    "unknown knob": ("name: s\ndoc: d\nknobs:\n  wrokers: {low: 1, high: 4}\n", ["s.yaml:4", "wrokers", "workers"]),
    "low above high": ("name: s\ndoc: d\nknobs:\n  workers: {low: 8, high: 2}\n", ["s.yaml:4", "low", "high"]),
    "empty choices": ("name: s\ndoc: d\nknobs:\n  cache: {choices: []}\n", ["s.yaml:4", "cache"]),
    "not YAML": ("name: [s\nknobs: }\n", ["s.yaml", "not YAML"]),
}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["epohcs=3"], ["epohcs", "epochs"]),
        (["batch_per_gpu=3"], ["batch_per_gpu"]),
        (["data=nowhere.yaml"], ["nowhere.yaml"]),
        (["model=nowhere.pt"], ["nowhere.pt"]),
        (["model=yolo11q.yaml"], ["yolo11q.yaml"]),
        (["resume=true"], ["resume"]),
        (["batch=-1"], ["batch"]),
        (["epochs=0"], ["epochs"]),
        (["just words"], ["just words"]),
        (["--budget", "0"], ["budget", "0"]),
        (["--budget", "soon"], ["budget", "soon"]),
        (["--gpus", "9"], ["--gpus 9: there", NOT_THERE]),
        (["--gpus", "2"], ["--gpus 2: there", NOT_THERE]),
        (["--gpus", "1000000000"], ["--gpus 1000000000: there", NOT_THERE]),
        (["--gpus", "1000000000", "--dry-run"], ["--gpus 1000000000", "1024"]),
        (["--gpus", "3", "--dry-run"], ["batch=16", "3 ranks", "batch=15", "batch=18"]),
        (["--gpus", "0,1", "device=0,1"], ["device=0,1", "--gpus 0,1"]),
        (["--ranks", "0"], ["--ranks 0"]),
        (["--ranks", "4096", "batch=4096"], ["4096 ranks", "CPU core"]),
        (["--ranks", "2", "batch=7"], ["batch=7", "2 ranks", "batch=6", "batch=8"]),
        (["--gpus", "some"], ["some"]),
        (["--gpus", "1", "device=0"], ["device", "--gpus"]),
        (["--space", "nonesuch"], ["nonesuch"]),
        (["--strategy", "magic"], ["magic"]),
        (["--objective", "beauty"], ["beauty"]),
        (["--training", "other"], ["other"]),
        (["--mem-limit", "3"], ["--mem-limit", "24GiB"]),
        (["--mem-limit", "3gb"], ["3gb"]),
        (["--mem-limit", "900TiB"], ["900TiB", "more than a rank can have"]),
        (["--gpu", "1"], ["--gpu"]),
        (["--resume", "nowhere"], ["nowhere", "run.json"]),
        (["--resume", "/proc"], ["/proc", "run.json"]),
    ],
)
def test_search_refuses(args: list[str], said: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = autotune("search", "--out", out, *args)
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err
    for word in said:
        assert any(w in answer.err for w in word.split("|")), answer.err
    assert not out.exists()


@pytest.mark.parametrize("fault", SPACES)
def test_search_refuses_space_files(fault: str, tmp_path: Path) -> None:
    text, said = SPACES[fault]
    space = tmp_path / "s.yaml"
    space.write_text(text)
    answer = autotune("search", "--out", tmp_path / "out", "--space", space)
    assert answer.code == 2, answer
    for word in said:
        assert word in answer.err
    assert space.read_text() == text
    assert not (tmp_path / "out").exists()


def test_dataset_without_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    data = tmp_path / "empty.yaml"
    data.write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [a]\n")
    answer = autotune("search", "--out", tmp_path / "out", f"data={data}")
    assert answer.code == 2
    assert str(tmp_path / "images") in answer.err
    assert not (tmp_path / "out").exists()


def test_unwritable_out(tmp_path: Path) -> None:
    blocker = tmp_path / "a file"
    blocker.write_text("mine")
    answer = autotune("search", "--out", blocker / "results")
    assert answer.code == 2
    assert "--out" in answer.err
    assert blocker.read_text() == "mine"
    assert autotune("search", "--out", "/proc/results").code == 2


@pytest.mark.parametrize("verb", ["report", "export", "train", "trial", "recheck"])
def test_not_one_of_our_folders(verb: str, tmp_path: Path) -> None:
    answer = autotune(verb, tmp_path)
    assert answer.code == 2
    assert answer.err.startswith("error: ")
    assert str(tmp_path) in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 99}')
    answer = autotune("report", tmp_path)
    assert answer.code == 2
    assert "format 99" in answer.err


def test_resume_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 99}')
    answer = autotune("search", "--resume", tmp_path)
    assert answer.code == 2
    assert "format 99" in answer.err
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_no_verb_is_help_and_a_wrong_verb_has_a_near_match() -> None:
    assert "search" in autotune().out
    wrong = autotune("serach")
    assert wrong.code == 2
    assert "search" in wrong.err
