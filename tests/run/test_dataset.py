import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autotune.errors import InputError, MachineError
from autotune.run.dataset import DatasetView, decode_rate, inspect_dataset
from autotune.run.demo import demo_dataset
from autotune.run.sources import label_of

TASKS = ("detect", "segment", "pose", "obb", "classify")

# What Ultralytics itself sees in a dataset, and whether it left the user's folder alone.
PROBE = """
import hashlib, json, os, sys
from pathlib import Path
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import ClassificationDataset, YOLODataset
from ultralytics.data.utils import check_cls_dataset, check_det_dataset

def tree(folder):
    h = hashlib.sha256()
    for p in sorted(Path(folder).rglob("*")):
        s = p.lstat()
        h.update(f"{p} {s.st_mtime_ns} {s.st_size} {s.st_mode}".encode() + (p.read_bytes() if p.is_file() else b""))
    return h.hexdigest()

def look(data, task, cache):
    if task == "classify":
        found = check_cls_dataset(data)
        out = []
        for split in ("train", "val"):
            d = ClassificationDataset(found[split], get_cfg(overrides=dict(cache=cache, imgsz=32)), prefix=split)
            [d[i] for i in range(len(d))]
            out.append([len(d), sorted(s[1] for s in d.samples)])
        return out
    found = check_det_dataset(data)
    out = []
    for split in ("train", "val"):
        d = YOLODataset(img_path=found[split], data=found, task=task, imgsz=32, cache=cache, augment=True, batch_size=2)
        d[0]
        rows = [[Path(x["im_file"]).name, x["cls"].ravel().tolist(), len(x["segments"])] for x in d.labels]
        out.append([len(d), rows])
    return [out, found["names"], found.get("kpt_shape")]

answers = []
for case in json.load(sys.stdin):
    os.chdir(case["cwd"])
    before = tree(case["user"])
    farm = {c: look(p, case["task"], c) for c, p in case["farms"].items()}
    answers.append([before == tree(case["user"]), farm, look(case["data"], case["task"], False)])
print(json.dumps(answers))
"""


def jpegs(folder: Path, names: list[str], labels: Path | None = None) -> None:
    """Small images with one box each."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (64, 48), (40 * i % 255, 90, 120)).save(folder / name)
        if labels is not None:
            labels.mkdir(parents=True, exist_ok=True)
            (labels / Path(name).with_suffix(".txt")).write_text(f"{i % 2} 0.5 0.5 0.2 0.2\n")


def simple(root: Path, **more: object) -> Path:
    """A detection set with a data.yaml without `path`."""
    jpegs(root / "images" / "train", ["a.jpg", "b.jpg", "c.jpg"], root / "labels" / "train")
    jpegs(root / "images" / "val", ["d.jpg"], root / "labels" / "val")
    config = {"train": "images/train", "val": "images/val", "names": ["x", "y"]} | more
    data = root / "data.yaml"
    data.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return data


def lists(root: Path) -> Path:
    """Splits as lists of files: absolute and ./relative lines, a path given twice, two lists for one split."""
    data = simple(root)
    train = root / "images" / "train"
    (root / "one.txt").write_text(f"./images/train/a.jpg\n{train}/b.jpg\n{train}/b.jpg\n", encoding="utf-8")
    (root / "two.txt").write_text("./images/train/c.jpg\n", encoding="utf-8")
    config = {"path": str(root), "train": ["one.txt", "two.txt"], "val": "images/val", "nc": 2, "download": "exit 1"}
    data.write_text(yaml.safe_dump(config))
    return data


def beside(root: Path) -> Path:
    """Labels beside images, in folders not called images; one of them hidden."""
    for split in ("train", "val"):
        jpegs(root / ".hidden" / split, [f"{split}1.jpg", f"{split}2.jpg"], root / ".hidden" / split)
    data = root / "set.yaml"
    data.write_text("path: .hidden\ntrain: train\nval: val\nnames: {0: x, 1: y}\n")
    data.write_text(data.read_text().replace(".hidden", str(root / ".hidden")))
    return data


def leftovers(root: Path) -> Path:
    """A set in which an earlier run left caches, and an image without a label."""
    import numpy as np

    data = simple(root)
    np.save(root / "images" / "train" / "a.npy", np.zeros((48, 64, 3), np.uint8))
    (root / "labels" / "train.cache").write_bytes(b"old")
    (root / "labels" / "train" / "c.txt").unlink()
    return data


BUILDERS = {
    "plain": lambda root: simple(root),
    "spaces and letters": lambda root: simple(root / "Bilder größe 図 'q' $(x) #1", names=["größe", "図"]),
    "images twice in the path": lambda root: simple(root / "images" / "set"),
    "lists": lists,
    "beside": beside,
    "leftovers": leftovers,
    "same folder for both": lambda root: simple(root, val="images/train"),
    "folder as data": lambda root: simple(root).parent,
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Name of a dataset -> (user's folder untouched, what YOLO sees in the farms, what it sees in the original)."""
    base = tmp_path_factory.mktemp("all")
    cases, names = [], []
    for name, build in BUILDERS.items():
        names.append((name, build(base / name.replace(" ", "-") / "user"), "detect"))
    for task in TASKS:
        names.append((task, demo_dataset(base / task / "user", n_train=8, n_val=2, task=task), task))
    for name, data, task in names:
        home = base / name.replace(" ", "-")
        # our own folder below a folder called images: the last /images/ of a path decides where labels are
        view = DatasetView(str(data), task, home / "images" / "farm")
        farms = {str(c).lower(): view.path(c) for c in (False, "disk", "ram")}
        cases.append({"data": str(data), "task": task, "farms": farms, "user": str(home / "user"), "cwd": str(home)})
    env = os.environ | {"YOLO_CONFIG_DIR": str(base / "config"), "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], input=json.dumps(cases), env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    return {name: (case, *a) for (name, _, _), case, a in zip(names, cases, answers, strict=True)}


@pytest.mark.parametrize("name", [*BUILDERS, *TASKS])
def test_yolo_sees_the_same_through_the_farm_and_touches_nothing(seen, name):
    case, untouched, farms, original = seen[name]
    assert untouched
    assert original[0], "Ultralytics found images in the original"
    for cache, found in farms.items():
        assert found == original, cache
    disk, plain = Path(case["farms"]["disk"]), Path(case["farms"]["false"])
    assert case["farms"]["ram"] == str(plain)
    assert list(disk.parent.rglob("*.npy")), "cache=disk really decoded into our folder"
    assert not list(plain.parent.rglob("*.npy"))
    DatasetView(case["data"], case["task"], disk.parents[1]).close()
    assert not list(disk.parent.rglob("*.npy"))


def test_number_of_images_and_boxes_is_the_users(seen):
    _, _, farms, _ = seen["lists"]
    (train, val), names, _ = farms["false"]
    assert train[0] == 4, "b.jpg is listed twice"
    assert val[0] == 1
    assert names == {"0": "class_0", "1": "class_1"}


def test_inspect_counts_and_measures(tmp_path):
    data = demo_dataset(tmp_path, n_train=6, n_val=2)
    info = inspect_dataset(str(data), "detect")
    assert (info.n_train, info.n_val, info.nc, info.median_shape) == (6, 2, 6, (480, 640))
    assert 100_000 < info.mean_image_bytes < 200_000
    assert info.data_yaml == data
    assert info.root == data.parent


def test_inspect_classify(tmp_path):
    folder = demo_dataset(tmp_path, n_train=12, n_val=3, task="classify")
    info = inspect_dataset(str(folder), "classify")
    assert (info.n_train, info.n_val, info.nc, info.data_yaml, info.data) == (12, 3, 6, None, str(folder))


def test_a_relative_argument_becomes_one_that_works_from_any_folder(tmp_path, monkeypatch):
    simple(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    info = inspect_dataset("set/data.yaml", "detect")
    monkeypatch.chdir("/")
    assert inspect_dataset(info.data, "detect").n_train == 3


def test_farm_is_reused_for_the_same_files_and_made_anew_for_others(tmp_path):
    data = simple(tmp_path / "user")
    farm = Path(DatasetView(str(data), "detect", tmp_path / "farm").path(False)).parent
    (farm / "kept").write_text("")
    assert DatasetView(str(data), "detect", tmp_path / "farm").path(None) == str(farm / "data.yaml")
    assert (farm / "kept").exists()
    jpegs(tmp_path / "user" / "images" / "train", ["z.jpg"], tmp_path / "user" / "labels" / "train")
    DatasetView(str(data), "detect", tmp_path / "farm").path("ram")
    assert not (farm / "kept").exists()
    assert len((farm / "train.txt").read_text().splitlines()) == 4


def test_farms_are_made_when_asked_for_and_close_keeps_the_links(tmp_path):
    data = simple(tmp_path / "user")
    with DatasetView(str(data), "detect", tmp_path / "farm") as view:
        assert not (tmp_path / "farm").exists()
        view.path("disk")
        assert [p.name for p in (tmp_path / "farm").iterdir()] == ["disk"]
    assert len([p for p in (tmp_path / "farm").rglob("*") if p.is_symlink()]) == 8


def test_unwritable_folder(tmp_path):
    data = simple(tmp_path / "user")
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot link the dataset"):
        DatasetView(str(data), "detect", tmp_path / "file").path(False)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/a/images/b.jpg", "/a/labels/b.txt"),
        ("/images/a/images/b.x.png", "/images/a/labels/b.x.txt"),
        ("/a/b.jpg", "/a/b.txt"),
        ("/a/myimages/b.jpg", "/a/myimages/b.txt"),
    ],
)
def test_label_of(image, label):
    assert label_of(image) == label


def test_missing_yaml_names_a_near_match(tmp_path):
    data = simple(tmp_path)
    with pytest.raises(InputError, match="no such file") as e:
        inspect_dataset(str(data.with_name("dat.yaml")), "detect")
    assert str(data) in e.value.hint
    with pytest.raises(InputError) as e:
        inspect_dataset("coco88.yaml", "detect")
    assert "coco8.yaml" in e.value.hint


@pytest.mark.parametrize("name", ["coco8.yaml", "coco8"])
def test_builtin_set_that_is_not_on_disk(tmp_path, monkeypatch, name):
    settings = tmp_path / "Ultralytics" / "settings.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"datasets_dir": str(tmp_path / "sets")}))
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    where = tmp_path / "sets" / "coco8" / "images" / "train"
    with pytest.raises(InputError, match=f"dataset {name} has no images at {where}") as e:
        inspect_dataset(name, "detect")
    assert "download coco8.yaml first" in e.value.hint
    for split in ("train", "val"):
        jpegs(where.parent / split, ["1.jpg"], where.parents[1] / "labels" / split)
    assert inspect_dataset(name, "detect").n_train == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a\ntrain: x", "is not YAML"),
        ("just words", "is not a dataset file"),
        ("val: images/val\nnames: [x]", "has no `train:`"),
        ("train: images/train\nnames: [x]", "has no `val:`"),
        ("train: images/train\nval: images/val", "neither `names:` nor `nc:`"),
        ("train: images/train\nval: images/val\nnames: [x]\nnc: 2", "1 names, but nc: 2"),
        ("train: 7\nval: images/val\nnames: [x]", "`train` cannot be a int"),
        ("train: gone\nval: images/val\nnames: [x, y]", "has no images at .*gone"),
        ("train: labels\nval: images/val\nnames: [x, y]", "has no train images at .*labels"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, message):
    data = simple(tmp_path)
    data.write_text(text)
    with pytest.raises(InputError, match=message) as e:
        inspect_dataset(str(data), "detect")
    assert "\n" not in e.value.message
    assert str(data) in e.value.message


def test_a_list_that_is_not_text(tmp_path):
    data = simple(tmp_path, train="list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        inspect_dataset(str(data), "detect")


def test_names_of_files_that_a_list_cannot_hold(tmp_path):
    data = simple(tmp_path / "user")
    names = ["a\nb.jpg", "a%0Ab.jpg", "\udcff.jpg"]
    jpegs(tmp_path / "user" / "images" / "train", names, tmp_path / "user" / "labels" / "train")
    farm = Path(DatasetView(str(data), "detect", tmp_path / "farm").path(False)).parent
    lines = (farm / "train.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 6
    assert {Path(line).readlink().name for line in lines} == {"a.jpg", "b.jpg", "c.jpg", *names}
    assert all(Path(label_of(line)).is_file() for line in lines)


def test_no_labels_at_all(tmp_path):
    data = simple(tmp_path)
    for label in (tmp_path / "labels" / "train").iterdir():
        label.unlink()
    with pytest.raises(InputError, match="has no labels") as e:
        inspect_dataset(str(data), "detect")
    assert str(tmp_path / "labels" / "train" / "a.txt") in e.value.hint


def test_images_that_are_none(tmp_path):
    data = simple(tmp_path)
    for image in (tmp_path / "images" / "train").iterdir():
        image.write_text("not an image")
    with pytest.raises(InputError, match="none of 3 images looked at can be opened"):
        inspect_dataset(str(data), "detect")


@pytest.mark.parametrize("data", ["https://example.com/x.zip", "set.zip"])
def test_nothing_is_downloaded_or_unpacked(data):
    with pytest.raises(InputError):
        inspect_dataset(data, "detect")


def test_classify_without_splits(tmp_path):
    jpegs(tmp_path / "cat", ["a.jpg"])
    with pytest.raises(InputError, match="no folder"):
        inspect_dataset(str(tmp_path), "classify")
    jpegs(tmp_path / "train" / "cat", ["a.jpg"])
    with pytest.raises(InputError, match="has no val images"):
        inspect_dataset(str(tmp_path), "classify")
    with pytest.raises(InputError, match="must be a folder"):
        inspect_dataset(str(tmp_path / "data.yaml"), "classify")


def test_decode_rate_is_measured_on_the_users_images(tmp_path: Path) -> None:
    data = demo_dataset(tmp_path, n_train=16, n_val=4)
    rate = decode_rate(str(data), "detect", 128)
    assert rate is not None
    assert 10 < rate < 100_000
    for image in (data.parent / "images" / "train").iterdir():
        image.write_bytes(b"not an image")
    assert decode_rate(str(data), "detect", 128) is None
