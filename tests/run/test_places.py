import os
from pathlib import Path

from autotune.run.dataset import inspect_dataset
from autotune.run.demo import demo_dataset
from autotune.run.places import outermost


def yaml_of(folder: Path, path: str) -> Path:
    """A dataset file that is not in the dataset's folder."""
    folder.mkdir()
    file = folder / "mine.yaml"
    file.write_text(f"path: {path}\ntrain: images/train\nval: images/val\nnames: [a, b, c]\nnc: 3\n")
    return file


def test_the_root_holds_an_ordinary_dataset(tmp_path):
    data = demo_dataset(tmp_path / "set", n_train=2, n_val=2)
    info = inspect_dataset(str(data), "detect")
    assert info.folders == (str(data.parent),)
    assert info.datasets_dir is None


def test_images_behind_links_are_found_with_their_labels(tmp_path):
    real = demo_dataset(tmp_path / "big", n_train=2, n_val=2).parent
    front = tmp_path / "front"
    front.mkdir()
    (front / "images").symlink_to(real / "images")
    info = inspect_dataset(str(yaml_of(tmp_path / "y", str(front))), "detect")
    assert set(info.folders) == {str(front), str(real / "images"), str(real / "labels")}


def test_a_relative_path_starts_where_the_search_began_or_in_the_datasets_folder(tmp_path, monkeypatch):
    mine = demo_dataset(tmp_path / "sets" / "mine", n_train=2, n_val=2).parent
    data = yaml_of(tmp_path / "y", str(mine.relative_to(tmp_path)))
    monkeypatch.chdir(tmp_path)
    info = inspect_dataset("y/mine.yaml", "detect")
    assert info.data == str(data)
    assert info.datasets_dir == str(tmp_path)
    config = tmp_path / "config" / "Ultralytics"
    config.mkdir(parents=True)
    (config / "settings.json").write_text(f'{{"datasets_dir": "{tmp_path}"}}')
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert inspect_dataset(str(data), "detect").datasets_dir == str(tmp_path)


def test_outermost():
    assert outermost(["/a/b", "/a", "/ab", "/c/d", "/c/d"]) == ("/a", "/ab", "/c/d")
    assert os.sep in outermost(["/", "/a"])
