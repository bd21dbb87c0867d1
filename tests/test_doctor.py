"""`autotune doctor` on a real job, and every wrong input it can be given."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli import autotune

TINY = Path(__file__).parent / "models" / "tiny-detect.yaml"


@pytest.mark.slow
def test_a_real_job_is_weighed(tiny: Path) -> None:
    before = sorted(tiny.parent.rglob("*"))
    # 64 images in batches of 4, 1000 epochs: 16,000 updates, so `auto` becomes MuSGD, though 16 images are looked at.
    pairs = [f"model={TINY}", f"data={tiny}", "imgsz=64", "batch=4", "nbs=2", "epochs=1000"]
    said = autotune("doctor", "--json", "--ranks", "2", "--gpu-mem", "8GiB", *pairs)
    assert said.code == 0, said
    [check] = json.loads(said.out)["checks"]
    assert list(check) == ["name", "verdict", "evidence", "remedy"]
    assert (check["name"], check["verdict"]) == ("model parallel", "ok")
    mib = {name: float(x) for name, x in re.findall(r"(\w+) ([\d.]+) MiB", check["evidence"])}
    assert mib["parameters"] == mib["gradients"] == mib["EMA"] > 0.5
    # MuSGD keeps two momenta of a matrix, one of the rest.
    assert mib["parameters"] < mib["MuSGD"] <= 2.1 * mib["parameters"]
    fp32, half = re.search(
        r"image ([\d.]+) MiB in fp32, taken as half of it in 16 bit: ([\d.]+)", check["evidence"]
    ).groups()  # type: ignore[union-attr]
    assert float(half) == pytest.approx(float(fp32) / 2, abs=0.1)
    assert "8.0 GiB (--gpu-mem" in check["evidence"]
    assert "the job asks for 2 a rank" in check["evidence"]
    assert "activation_memory_budget" in check["remedy"]
    assert sorted(tiny.parent.rglob("*")) == before, "nothing is left beside the user's images"


@pytest.mark.slow
def test_a_job_that_cannot_run_there_is_exit_code_3(tiny: Path) -> None:
    said = autotune("doctor", f"model={TINY}", f"data={tiny}", "imgsz=64", "batch=1", "--gpu-mem", "512MiB")
    assert said.code == 3, said
    assert said.out.startswith("fail  model parallel: not one image fits")
    assert "remedy: " in said.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--gpu-mem", "24"], ["--gpu-mem '24'", "24GiB"]),
        (["--gpu-mem", "0G"], ["--gpu-mem"]),
        (["--ranks", "0"], ["--ranks 0"]),
        (["--ranks", "3", "batch=16"], ["batch=16", "3 ranks", "batch=15"]),
        (["--gpus", "9"], ["--gpus 9: there", "GPU"]),
        (["model=yolo11q.yaml"], ["yolo11q.yaml"]),
        (["imgsz=0"], ["imgsz"]),
        (["epohcs=1"], ["epohcs", "epochs"]),
    ],
)
def test_bad_input(args: list[str], said: list[str], tiny: Path) -> None:
    answer = autotune("doctor", f"data={tiny}", *args)
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err
    for word in said:
        assert word in answer.err


@pytest.mark.slow
def test_a_model_that_ultralytics_refuses(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "broken.yaml"
    model.write_text("nc: 6\nbackbone:\n  - [-1, 1, NoSuchLayer, [8]]\nhead:\n  - [[0], 1, Detect, [nc]]\n")
    answer = autotune("doctor", f"data={tiny}", f"model={model}")
    assert answer.code in (2, 3), answer
    assert answer.err.startswith("error: this job cannot be built: ")
    assert "NoSuchLayer" in answer.err
