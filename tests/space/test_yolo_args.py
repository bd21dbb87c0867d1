from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile

import pytest

from autotune.errors import InputError
from autotune.space.yolo_args import job_args, parse_pairs, resolve_model, task_of, yolo_defaults


def test_defaults_without_importing_ultralytics():
    code = (
        "import sys; from autotune.space.yolo_args import yolo_defaults as d; print(d()['batch'], d()['nbs']); "
        "print([m for m in ('ultralytics', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split("\n")[:2] == ["16 64", "[]"]


def test_defaults_are_a_copy():
    yolo_defaults()["batch"] = 99
    assert yolo_defaults()["batch"] == 16


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("lr0=1e-3", 0.001),
        ("lr0=.01", 0.01),
        ("epochs=5", 5),
        ("seed=010", 10),
        ("data=/a b/ä=c.yaml", "/a b/ä=c.yaml"),
        ("name=2026", "2026"),
        ("name=1e-3", "1e-3"),
        ("name=off", "off"),
        ("project=none", None),
        ("pretrained=False", False),
        ("pretrained=w.pt", "w.pt"),
        ("optimizer=SGD", "SGD"),
        ("cache=ram", "ram"),
        ("cache=off", False),
        ("amp=bf16", "bf16"),
        ("val=True", True),
        ("time=None", None),
        ("device=0,1", "0,1"),
        ("device=0", 0),
        ("classes=[0, 2]", [0, 2]),
        ("freeze=23.cv2", "23.cv2"),
        ("scale=(0.5,1.5)", (0.5, 1.5)),
        ("data=", ""),
    ],
)
def test_pairs(pair, value):
    if pair.startswith("time"):
        with pytest.raises(InputError, match="time="):
            parse_pairs([pair])
        return
    (got,) = parse_pairs([pair]).values()
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("pairs", "message", "hint"),
    [
        (["epoch=5"], "no argument 'epoch'; did you mean 'epochs'?", ""),
        (["prefetch_factor=4"], "no argument 'prefetch_factor'", "--space"),
        (["epochs"], "'epochs' is not key=value", "epochs=100"),
        (["=5"], "is not key=value", ""),
        (["epochs=5", "epochs=6"], "epochs is given twice", ""),
        (["mode=val"], "mode= cannot be given", "trains"),
        (["resume=True"], "resume= cannot be given", "checkpoint"),
        (["save_dir=x"], "save_dir= cannot be given", "--out"),
        (["cfg=x.yaml"], "cfg= cannot be given", "key=value"),
        (["time=1"], "time= cannot be given", "depend on its speed"),
        (["scale=(0.5"], "cannot be read", ""),
    ],
)
def test_bad_pairs(pairs, message, hint):
    with pytest.raises(InputError) as e:
        parse_pairs(pairs)
    assert message in e.value.message
    assert hint in e.value.hint


def test_job_is_over_the_defaults():
    args = job_args({"batch": 8, "mode": "train"})
    assert (args["batch"], args["epochs"], args["nbs"]) == (8, 100, 64)
    assert set(args) == set(yolo_defaults())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"batch": -1}, "batch=-1 must be a whole number"),
        ({"batch": 0.6}, "batch=0.6 must be a whole number"),
        ({"batch": True}, "batch=True must be a whole number"),
        ({"epochs": 0}, "epochs=0 must be a whole number of at least 1"),
        ({"epochs": None}, "epochs=None"),
        ({"imgsz": 16}, "imgsz=16 must be a whole number of at least 32"),
        ({"imgsz": [640, 480]}, "imgsz="),
        ({"nbs": 0}, "nbs=0"),
        ({"workers": -1}, "workers=-1"),
        ({"cache": "rom"}, "cache=rom must be one of"),
        ({"amp": "fp8"}, "amp=fp8 must be one of"),
        ({"weight_decay": "high"}, "weight_decay=high"),
        ({"batchs": 4}, "did you mean 'batch'?"),
    ],
)
def test_bad_jobs(args, message):
    with pytest.raises(InputError) as e:
        job_args(args)
    assert message in e.value.message


def test_autobatch_has_its_own_hint():
    with pytest.raises(InputError) as e:
        job_args({"batch": -1})
    assert "autotune searches the batch itself" in e.value.hint


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("yolo11n.yaml", "detect"),
        ("yolo11.yaml", "detect"),
        ("yolo26n-seg.yaml", "segment"),
        ("yolo26x-pose.yaml", "pose"),
        ("yolo11s-obb.yaml", "obb"),
        ("yolo11m-cls.yaml", "classify"),
        ("yolov8l-p6.yaml", "detect"),
        ("rtdetr-l.yaml", "detect"),
    ],
)
def test_config_names(name, task):
    assert resolve_model(name) == name
    assert task_of({}, name) == task


def test_weights(tmp_path, monkeypatch):
    (tmp_path / "config" / "Ultralytics").mkdir(parents=True)
    weights = tmp_path / "weights ä"
    weights.mkdir()
    settings = tmp_path / "config" / "Ultralytics" / "settings.json"
    settings.write_text(json.dumps({"weights_dir": str(weights)}))
    (weights / "yolo11n.pt").touch()
    (tmp_path / "best.pt").touch()
    env = {"YOLO_CONFIG_DIR": str(tmp_path / "config")}
    assert resolve_model("yolo11n.pt", env) == str(weights / "yolo11n.pt")
    assert resolve_model("yolo11n", env) == str(weights / "yolo11n.pt")
    assert resolve_model(str(tmp_path / "best.pt"), env) == str(tmp_path / "best.pt")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("best.pt", env) == str(tmp_path / "best.pt")
    settings.write_text("{")
    with pytest.raises(InputError):
        resolve_model("yolo11n.pt", env)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("yolo11n.pt", "there is no file yolo11n.pt", "model=yolo11n.yaml"),
        ("yolo11n", "there is no file yolo11n.pt", "downloads nothing"),
        ("yolo12n-sge.yaml", "did you mean 'yolo12n-seg'?", ""),
        ("/no/where.pt", "there is no model /no/where.pt", ""),
        ("model.onnx", "must be a .pt or .yaml file", ""),
    ],
)
def test_no_such_model(name, message, hint, tmp_path):
    with pytest.raises(InputError) as e:
        resolve_model(name, {"HOME": str(tmp_path)})
    assert message in e.value.message
    assert hint in e.value.hint


def test_own_model_yaml(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("nc: 3\nbackbone: []\nhead:\n  - [[16, 19, 22], 1, Segment26, [nc, 32, 256]]\n")
    assert resolve_model(str(mine)) == str(mine)
    assert task_of({}, str(mine)) == "segment"
    assert task_of({"task": "pose"}, str(mine)) == "pose"
    mine.write_text("nc: 3\n")
    with pytest.raises(InputError, match="not a model of Ultralytics"):
        task_of({}, str(mine))


def test_task_of_a_checkpoint(tmp_path):
    best = tmp_path / "best.pt"
    words = ["segment", {"epoch": -1, "task": None}]  # the task's text may have been seen before
    state = {"epoch": 3, "words": words, "train_args": {"mode": "train", "task": "segment"}}
    with zipfile.ZipFile(best, "w") as archive:
        archive.writestr("best/data.pkl", pickle.dumps(state, protocol=2))  # the layout of torch.save
    assert task_of({}, str(best)) == "segment"
    assert task_of({"task": "pose"}, str(best)) == "pose"
    best.write_bytes(b"PK no zip")
    assert task_of({}, str(best)) == "detect"
    best.write_bytes(b"")
    assert task_of({}, str(best)) == "detect"


def test_tasks_that_are_not_ours():
    with pytest.raises(InputError, match="task=depth is not supported"):
        task_of({}, "yolo26n-depth.yaml")
    with pytest.raises(InputError, match="did you mean 'detect'"):
        task_of({"task": "detct"}, "yolo11n.yaml")
    assert task_of({}, "/runs/train/weights/best.pt") == "detect"
