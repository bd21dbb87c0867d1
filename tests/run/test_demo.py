import hashlib
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from autotune.errors import MachineError
from autotune.run.demo import HEIGHT, NAMES, WIDTH, cache_home, demo_dataset


def tree(folder: Path) -> dict[str, str]:
    """Relative name -> hash of the bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def detect(tmp_path_factory):
    return demo_dataset(tmp_path_factory.mktemp("cache"), n_train=48, n_val=8)


def test_images_are_like_cocos(detect):
    from PIL import Image

    files = sorted((detect.parent / "images" / "train").iterdir())
    assert len(files) == 48
    assert len(list((detect.parent / "images" / "val").iterdir())) == 8
    sizes = [f.stat().st_size for f in files]
    assert 100_000 < min(sizes) <= max(sizes) < 200_000
    with Image.open(files[0]) as image:
        assert (image.width, image.height, image.format) == (WIDTH, HEIGHT, "JPEG") == (640, 480, "JPEG")


def test_about_seven_boxes_an_image_all_inside_and_of_every_class(detect):
    counts, classes = [], set()
    for label in (detect.parent / "labels" / "train").iterdir():
        rows = [[float(v) for v in line.split()] for line in label.read_text().splitlines()]
        counts.append(len(rows))
        for cls, x, y, w, h in rows:
            classes.add(int(cls))
            assert 0 <= x - w / 2 < x + w / 2 <= 1
            assert 0 <= y - h / 2 < y + h / 2 <= 1
    assert 5.5 < statistics.mean(counts) < 9
    assert classes == set(range(len(NAMES)))


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    made = [demo_dataset(tmp_path / str(k), n_train=6, n_val=2, seed=s).parent for k, s in enumerate((3, 3, 4))]
    trees = [tree(m) for m in made]
    assert trees[0] == trees[1]
    assert trees[0] != trees[2]


def test_drawn_once_and_then_found(tmp_path):
    calls: list[tuple[int, int]] = []
    first = demo_dataset(tmp_path, n_train=6, n_val=2, progress=lambda done, n: calls.append((done, n)))
    stamp = first.stat().st_mtime_ns
    second = demo_dataset(tmp_path, n_train=6, n_val=2, progress=lambda done, n: calls.append((done, n)))
    assert (first, stamp) == (second, second.stat().st_mtime_ns)
    assert calls == [(8, 8)]


def test_callers_at_once_get_one_whole_set(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: demo_dataset(tmp_path, n_train=6, n_val=2), range(4)))
    assert len(found) == 1
    assert len(list(found.pop().parent.rglob("*.jpg"))) == 8
    assert not list(tmp_path.glob(".*tmp*"))


def test_an_error_half_way_leaves_nothing_and_the_next_call_succeeds(tmp_path):
    def fail(done: int, n: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        demo_dataset(tmp_path, n_train=6, n_val=2, progress=fail)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []
    left = tmp_path / ".demo-v1-detect-6-2-0.tmp-killed"  # what a killed process would leave
    left.mkdir()
    assert demo_dataset(tmp_path, n_train=6, n_val=2).is_file()
    assert not left.exists()


def test_unwritable_cache_is_one_line_with_a_hint(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write the demo dataset") as e:
        demo_dataset(tmp_path / "file", n_train=2, n_val=1)
    assert "AUTOTUNE_CACHE" in e.value.hint


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"AUTOTUNE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/autotune")),
        ({}, Path.home() / ".cache" / "autotune"),
    ],
)
def test_where_it_lives(monkeypatch, env, expected):
    for name in ("AUTOTUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cache_home() == expected


def rows(data: Path) -> list[list[float]]:
    labels = sorted((data.parent / "labels" / "train").iterdir())
    return [[float(v) for v in line.split()] for p in labels for line in p.read_text().splitlines()]


def test_segment_labels_are_polygons(tmp_path):
    found = rows(demo_dataset(tmp_path, n_train=6, n_val=2, task="segment"))
    assert all(len(r) >= 7 and len(r) % 2 == 1 and all(0 <= v <= 1 for v in r[1:]) for r in found)


def test_obb_labels_are_four_corners(tmp_path):
    found = rows(demo_dataset(tmp_path, n_train=6, n_val=2, task="obb"))
    assert all(len(r) == 9 and all(0 <= v <= 1 for v in r[1:]) for r in found)


def test_pose_labels_follow_kpt_shape(tmp_path):
    data = demo_dataset(tmp_path, n_train=6, n_val=2, task="pose")
    n, dims = yaml.safe_load(data.read_text())["kpt_shape"]
    for row in rows(data):
        assert len(row) == 5 + n * dims
        x, y, w, h = row[1:5]
        for k in range(n):  # the middles of the sides lie in the box, give or take the turn
            px, py, visible = row[5 + k * dims : 5 + (k + 1) * dims]
            assert abs(px - x) <= 0.8 * w
            assert abs(py - y) <= 0.8 * h
            assert visible == 2


def test_classify_is_a_folder_of_class_folders(tmp_path):
    folder = demo_dataset(tmp_path, n_train=16, n_val=4, task="classify")
    assert sorted(p.name for p in (folder / "train").iterdir()) == sorted(NAMES)
    assert len(list((folder / "train").rglob("*.jpg"))) == 16
    assert len(list((folder / "val").rglob("*.jpg"))) == 4
