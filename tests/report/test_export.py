import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autotune.contract import (
    Finalist,
    Gpu,
    Machine,
    Numerics,
    Outcome,
    RunDir,
    RunInfo,
    Summary,
    TrialResult,
    TrialSpec,
    Verdict,
    Winner,
    read_json,
    write_json,
)
from autotune.errors import AutotuneError, InputError
from autotune.report.export import export
from autotune.report.shell import env_sh, launch_sh
from autotune.report.yolo_yaml import check_with_yolo, winner_args, yolo_defaults, yolo_yaml
from autotune.run.demo import demo_dataset
from autotune.run.transport import LOGGING

SENTENCE = "1.80 x faster than your settings (95 % interval 1.70 to 1.90)"
JOB = {"model": "yolo11n.yaml", "data": "/sets/my set/data.yaml", "imgsz": 128, "epochs": 100, "batch": 16}
TRIAL_ONLY = {"plots": False, "val": False, "save": False, "warmup_epochs": 0, "exist_ok": True, "workers": 8}
AUTO = {"optimizer": "AdamW", "lr0": 0.001, "momentum": 0.9, "warmup_bias_lr": 0.0}


def make_info(**changes) -> RunInfo:
    base = RunInfo(
        name="run-1",
        command="python -m autotune search --budget 5m",
        started="2026-11-23T14:05:00+00:00",
        budget_s=300.0,
        objective="job_time",
        strategy="tpe",
        space="cpu",
        training="same",
        seed=0,
        backend="yolo",
        simulated=False,
        task="detect",
        device="cpu",
        train_args=dict(JOB),
        user_args={"imgsz": 128},
        resolved=dict(AUTO),
        versions={"ultralytics": "8.4.190", "torch": "2.15.0"},
    )
    return dataclasses.replace(base, **changes)


def make_spec(number: int, *, env=None, patches=None, **args) -> TrialSpec:
    common = {"task": "detect", "mode": "train", "device": "cpu", "data": f"/farm/{number}/data.yaml"}
    common |= {"project": f"/run/trials/{number:04d}", "name": "yolo", "nbs": 64, "weight_decay": 0.0005}
    return TrialSpec(
        number=number,
        role="trial" if number else "baseline",
        backend="yolo",
        task="detect",
        params={"batch_per_gpu": args.get("batch", 16)},
        changes={},
        train_args=yolo_defaults() | JOB | TRIAL_ONLY | (AUTO if number else {}) | common | args,
        env=env or {},
        patches=patches or {},
    )


def make_run(
    folder: Path, specs: list[TrialSpec], info: RunInfo, best: int | None, status="gain", speeds=None
) -> RunDir:
    run = RunDir(folder)
    run.trials.mkdir(parents=True)
    write_json(run.info, info)
    machine = Machine(
        hostname="h", cpu="Xeon", n_cores=2, n_cores_host=2, ram_bytes=1, shm_bytes=None, fingerprint="7f3a91"
    )
    write_json(run.machine, machine)
    speeds = speeds or {}
    for spec in specs:
        directory = run.trial(spec.number)
        directory.path.mkdir()
        write_json(directory.spec, spec)
        speed = speeds.get(spec.number, 100.0 + spec.number)
        result = TrialResult(
            number=spec.number,
            role=spec.role,
            outcome=Outcome.OK if speed else Outcome.OOM,
            params=spec.params,
            started_s=0.0,
            took_s=9.0,
            images_per_s=speed or None,
            job_s=10000 / speed if speed else None,
            ci95_lo=(speed and speed - 1) or None,
            ci95_hi=(speed and speed + 1) or None,
            error=None if speed else "asked 3 GiB, had 2",
        )
        write_json(directory.result, result)
    finalists = (
        Finalist(name="baseline", params={}, numbers=(7,), images_per_s=101.25, speedup=1.0),
        Finalist(name="best", params={}, numbers=(8,), images_per_s=182.5, speedup=1.8, ci95_lo=1.7, ci95_hi=1.9),
        Finalist(name="best_yaml", params={}, numbers=(9,), images_per_s=121.5, speedup=1.2, ci95_lo=1.1, ci95_hi=1.3),
    )
    verdict = Verdict(status=status, sentence=SENTENCE, n_blocks=3, finalists=finalists)
    numerics = Numerics(
        within=True, sentence="the loss goes as yours", changes={}, numbers=(10, 11, 12, 13), n_steps=50
    )
    summary = Summary(
        stopped_because="budget", elapsed_s=290.0, ledger_s={}, best_number=best, verdict=verdict, numerics=numerics
    )
    write_json(run.summary, summary)
    return run


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


BASE = make_spec(0, optimizer="auto")
PATCHED = make_spec(1, batch=32, patches={"torch_threads": 2, "workers": 1}, env={"OMP_NUM_THREADS": "2"})
BIG = make_spec(2, batch=128, cache="ram")


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("run") / "a b'c", [BASE, PATCHED], make_info(), 1)
    return run, export(run)


@pytest.fixture(scope="module")
def bounded(tmp_path_factory):
    """The chosen trial sees 128 images a step; of the others, 1 keeps the training and 3 ran out of memory."""
    info = make_info(training="any", simulated=True)
    specs = [BASE, make_spec(1, batch=32), BIG, make_spec(3, batch=64), make_spec(4, batch=8)]
    run = make_run(tmp_path_factory.mktemp("run") / "r", specs, info, 2, speeds={3: 0})
    return run, export(run, out=run.path / "elsewhere")


def test_the_files(patched):
    run, best = patched
    assert best == run.best
    names = {p.name for p in best.iterdir()}
    container = {"Dockerfile", "compose.yaml", "k8s.yaml", "constraints.txt"}
    assert names == {"winner.json", "best.yaml", "env.sh", "launch.sh", "receipt.json", "README.md"} | container
    assert not [p for p in run.path.iterdir() if p.name.startswith(".")], "no temporary folder is left"
    assert stat.S_IMODE(best.stat().st_mode) & 0o055 == 0o055
    assert os.access(best / "launch.sh", os.X_OK)
    readme = (best / "README.md").read_text()
    assert all(f"`{n}`" in readme for n in names - {"README.md"})
    assert SENTENCE in readme
    assert "| speed-up of the whole job |" in readme.split("##")[0], "the table comes first"
    for command in ("bash launch.sh", "yolo train cfg=best.yaml", "autotune recheck", "docker build", "docker compose"):
        assert command in readme, command


def test_winner_carries_the_users_job_and_what_the_winner_changed(patched):
    winner = read_json(patched[1] / "winner.json", Winner)
    assert winner.train_args == JOB | AUTO | {"task": "detect", "device": "cpu", "batch": 32}
    assert winner.patches == {"torch_threads": 2, "workers": 1}
    assert winner.env == {"OMP_NUM_THREADS": "2"}
    assert (winner.images_per_s, winner.fingerprint, winner.sentence) == (182.5, "7f3a91", SENTENCE)


def test_best_yaml_on_cpu_is_the_projection_with_its_own_figure(patched):
    text = (patched[1] / "best.yaml").read_text()
    expected = JOB | AUTO | {"task": "detect", "mode": "train", "device": "cpu", "batch": 32}
    assert yaml.safe_load(text) == expected
    head = [line for line in text.splitlines() if line.startswith("# ")]
    assert SENTENCE in head[0]
    assert "182.5 images/s (1.8 x, 95 % interval 1.7 to 1.9); your baseline 101.25 images/s" in text
    assert "ultralytics 8.4.190, torch 2.15.0" in text
    assert "fingerprint 7f3a91" in text
    assert "This file alone: 121.5 images/s (1.2 x, 95 % interval 1.1 to 1.3), from fresh runs." in text
    assert "torch_threads=2" in text
    assert "batch: 32           # was 16" in text
    assert "CHANGES THE TRAINING" not in text
    assert "what 'auto' chose" in text


def test_receipt(patched):
    receipt = json.loads((patched[1] / "receipt.json").read_text())
    assert (receipt["confirmed"], receipt["simulated"], receipt["number"]) == (True, False, 1)
    assert receipt["claim"] == SENTENCE
    assert (receipt["numerics"]["within"], receipt["numerics"]["n_steps"]) == (True, 50)
    assert "numerics: **holds**. the loss goes as yours." in (patched[1] / "README.md").read_text()
    assert receipt["commands"]["search"] == "python -m autotune search --budget 5m"
    assert [f["name"] for f in receipt["verdict"]["finalists"]] == ["baseline", "best", "best_yaml"]
    assert set(receipt["files"]) == {p.name for p in patched[1].iterdir()}


def test_two_files_when_the_best_changes_the_training(bounded):
    _, best = bounded
    text = (best / "best.yaml").read_text()
    assert "# CHANGES THE TRAINING: batch 16 -> 128, so one optimizer step sees 128 images, not 64 (nbs)." in text
    assert load(best / "best.yaml")["cache"] == "ram"
    assert "cache: ram          # was false" in text
    keep = load(best / "keep-training.yaml")
    assert keep["batch"] == 8, "the fastest of those with 64 images a step that ran: trial 4"
    head = (best / "keep-training.yaml").read_text().splitlines()[0]
    assert "not confirmed by finalist runs" in head


def test_simulated_is_said_everywhere(bounded):
    _, best = bounded
    for path in best.iterdir():
        assert path.name == "constraints.txt" or "simulated" in path.read_text().lower(), path.name
    assert read_json(best / "winner.json", Winner).simulated


def test_a_trial_by_number_is_labelled_and_replaces_the_export_before(bounded):
    run, best = bounded
    stamp = (best / "receipt.json").stat().st_ino
    assert export(run, number=1, out=best) == best
    assert (best / "receipt.json").stat().st_ino != stamp
    for name in ("best.yaml", "env.sh", "launch.sh", "README.md", "winner.json", "receipt.json"):
        assert "search measurement, not confirmed by finalist runs" in (best / name).read_text(), name
    assert read_json(best / "winner.json", Winner).images_per_s is None
    assert json.loads((best / "receipt.json").read_text())["verdict"] is None
    assert not (best / "keep-training.yaml").exists()
    (best / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not ours: notes\.txt"):
        export(run, out=best)


def test_the_logging_of_the_baseline_is_nobodys_setting(tmp_path):
    base = make_spec(0, env=dict(LOGGING))
    best = export(make_run(tmp_path / "run", [base, make_spec(1)], make_info(), 1), number=0, out=tmp_path / "own")
    assert read_json(best / "winner.json", Winner).env == {}
    assert "NCCL" not in (best / "env.sh").read_text()


def test_the_batch_after_a_baseline_that_was_halved(tmp_path):
    """Asked 64, which ran out of memory; the baseline is 32, as run.json says; the best has the 64 that was asked."""
    asked, best, same = make_spec(0, batch=64), make_spec(2, batch=64, cache="ram"), make_spec(3, cache="ram", batch=32)
    halved = dataclasses.replace(make_spec(1, batch=32), role="baseline")
    info = make_info(train_args={**JOB, "batch": 32}, training="any")
    run = make_run(tmp_path / "run", [asked, halved, best, same], info, 2, speeds={0: 0, 1: 100, 2: 190, 3: 180})
    folder = export(run)
    assert load(folder / "best.yaml")["batch"] == 64
    assert "was 32" in (folder / "best.yaml").read_text()
    assert read_json(folder / "winner.json", Winner).train_args["batch"] == 64
    assert load(export(run, number=3, out=tmp_path / "same") / "best.yaml")["batch"] == 32


def test_refused(tmp_path):
    run = make_run(tmp_path / "r", [BASE, PATCHED], make_info(), None, speeds={1: 0})
    with pytest.raises(InputError, match="no best trial"):
        export(run)
    with pytest.raises(InputError, match="no trial 9") as e:
        export(run, number=9)
    assert "0 to 1" in e.value.hint
    with pytest.raises(InputError, match="oom: asked 3 GiB"):
        export(run, number=1)
    full = tmp_path / "full"
    full.mkdir()
    (full / "theirs").write_text("x")
    with pytest.raises(InputError, match="not an export of this run"):
        export(run, number=0, out=full)
    with pytest.raises(InputError, match="is a file"):
        export(run, number=0, out=full / "theirs")
    assert [p.name for p in full.iterdir()] == ["theirs"]
    assert not run.best.exists()


def test_yolo_refuses_a_key_of_ours(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("mode: train\nprefetch_factor: 8\n")
    with pytest.raises(AutotuneError, match="prefetch_factor"):
        check_with_yolo([bad])


# The rules of PRODUCT B6, on the text alone.


def text_of(info: RunInfo, spec: TrialSpec = PATCHED) -> str:
    return yolo_yaml(winner_args(info, spec, BASE), info, [])


def test_only_yolo_keys_and_none_of_the_trials_own():
    keys = set(yaml.safe_load(text_of(make_info())))
    assert keys <= set(yolo_defaults())
    assert not keys & {"save_dir", "resume", "time", "cfg", "project", "name", "exist_ok", "plots", "val", "save"}
    assert not keys & {"warmup_epochs", "nbs", "weight_decay", "workers"}, "not changed against YOLO's defaults"


def test_a_job_spelled_with_all_defaults_is_the_same_files():
    short, full = make_info(), make_info(train_args=yolo_defaults() | JOB)
    assert winner_args(short, PATCHED, BASE) == winner_args(full, PATCHED, BASE)
    assert text_of(short) == text_of(full)


def test_a_change_back_to_yolos_default_is_written():
    info = make_info(train_args=JOB | {"cache": "ram"})
    found = yaml.safe_load(yolo_yaml(winner_args(info, PATCHED, make_spec(0, cache="ram")), info, []))
    assert found["cache"] is False


def test_project_and_name_only_when_the_user_gave_them():
    args = JOB | {"project": "mine", "name": "n", "time": 2, "resume": True, "save_dir": "/x", "cfg": "y", "val": False}
    assert not {"project", "name"} & set(yaml.safe_load(text_of(make_info(train_args=args))))
    found = yaml.safe_load(text_of(make_info(train_args=args, user_args={"project": "mine", "val": False})))
    assert found["project"] == "mine"
    assert found["val"] is False, "the user's own"
    assert not {"name", "time", "resume", "save_dir", "cfg"} & set(found)


def test_auto_is_pinned_and_the_users_own_optimizer_is_kept():
    found = yaml.safe_load(text_of(make_info()))
    assert {k: found[k] for k in AUTO} == AUTO
    own = JOB | {"optimizer": "SGD", "lr0": 0.02, "momentum": 0.8}
    found = yaml.safe_load(text_of(make_info(train_args=own)))
    assert (found["optimizer"], found["lr0"], found["momentum"]) == ("SGD", 0.02, 0.8)


def test_nbs_and_decay_that_keep_the_training_are_written_with_why():
    text = text_of(make_info(), make_spec(1, batch=48, nbs=48, weight_decay=0.000375))
    assert yaml.safe_load(text)["weight_decay"] == 0.000375
    assert "keeps the effective batch; was 64" in text


@pytest.mark.parametrize(
    ("device", "n_ranks", "last"),
    [
        ("0,1", 2, 'exec yolo train cfg="$here/best.yaml" "$@"'),
        ("2", 1, 'exec yolo train cfg="$here/best.yaml" "$@"'),
        ("2,0", 2, 'exec yolo train cfg="$here/best.yaml" device=0,1 "$@"'),
        ("cpu", 2, 'exec "${PYTHON:-python}" -m autotune train "$here/winner.json" "$@"'),
    ],
)
def test_launch_on_the_gpus_that_were_measured(device, n_ranks, last):
    winner = Winner(task="detect", train_args={"device": device}, n_ranks=n_ranks)
    lines = launch_sh(winner, "x", ["GPU-a", "GPU-b"]).splitlines()
    assert lines[-1] == last
    assert ("gpus=GPU-a,GPU-b" in lines) == (device == "2,0")
    assert ('export CUDA_VISIBLE_DEVICES="${AUTOTUNE_GPUS:-$gpus}"' in lines) == (device == "2,0")


@pytest.mark.parametrize(("device", "value"), [("0,1,2,3", "0,1,2,3"), ("0", 0), ("cpu", "cpu")])
def test_device(device, value):
    ranks = len(device.split(","))
    text = text_of(make_info(device=device, n_ranks=ranks), make_spec(1, batch=64, workers=12, device=0))
    assert yaml.safe_load(text)["device"] == value
    if ranks == 4:
        assert "device: 0,1,2,3\n" in text
        assert "total over 4 GPUs, 16 each; was 16" in text
        assert "# per GPU; was 8" in text


def test_header_names_the_gpus(tmp_path):
    info = make_info(device="0", gpus=("u",))
    run = make_run(tmp_path / "r", [BASE, make_spec(1, batch=32)], info, 1)
    machine = read_json(run.machine, Machine)
    write_json(run.machine, dataclasses.replace(machine, gpus=(Gpu(index=0, uuid="u", name="H100", mem_bytes=1),)))
    assert "on 1 x H100." in (export(run) / "best.yaml").read_text()


def test_yolo_for_plain_winners_and_autotune_for_patches():
    plain, patched = Winner(task="detect", train_args={}), Winner(task="detect", train_args={}, patches={"workers": 1})
    assert 'exec yolo train cfg="$here/best.yaml" "$@"' in launch_sh(plain, "x")
    assert 'exec "${PYTHON:-python}" -m autotune train "$here/winner.json" "$@"' in launch_sh(patched, "x")


def launch(folder: Path, winner: Winner, tool: str) -> list[str]:
    """Arguments that a stand-in for the tool gets from launch.sh, started from another folder."""
    (folder / "bin").mkdir(parents=True)
    fake = folder / "bin" / tool
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$OMP_NUM_THREADS" "$@"\n')
    fake.chmod(0o755)
    (folder / "env.sh").write_text(env_sh(winner, "x\n$(touch hacked)"))
    (folder / "launch.sh").write_text(launch_sh(winner, "x\n$(touch hacked)"))
    env = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    argv = ["bash", str(folder / "launch.sh"), "epochs=300", "name=a b"]
    return subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True, check=True).stdout.splitlines()


def test_launch_passes_arguments_on_from_any_folder(tmp_path):
    folder = tmp_path / "a 'b' $(x) ü"
    winner = Winner(task="detect", train_args={}, env={"OMP_NUM_THREADS": "4"})
    assert launch(folder / "1", winner, "yolo") == ["4", "train", f"cfg={folder}/1/best.yaml", "epochs=300", "name=a b"]
    winner = dataclasses.replace(winner, patches={"workers": 1})
    expected = ["4", "-m", "autotune", "train", f"{folder}/2/winner.json", "epochs=300", "name=a b"]
    assert launch(folder / "2", winner, "python") == expected


HOSTILE = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=40)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=HOSTILE, claim=HOSTILE)
def test_env_survives_bash(tmp_path, value, claim):
    file = tmp_path / "env.sh"
    winner = Winner(task="detect", train_args={}, env={"SOME_PATH": value, "EMPTY": ""})
    file.write_text(env_sh(winner, claim), encoding="utf-8", newline="")
    script = 'set -euo pipefail; source "$1"; printf %s "${SOME_PATH-}"; test -z "${EMPTY+set}"'
    argv = ["bash", "-c", script, "_", str(file)]
    done = subprocess.run(argv, capture_output=True, check=True, env={"EMPTY": "x", "LC_ALL": "C.UTF-8"})
    assert done.stdout.decode() == value


@example(data="\x85", names=["\u2028, ]"], claim="\x85a: b", number=1e-5)
@given(data=HOSTILE, names=st.lists(HOSTILE, max_size=3), claim=HOSTILE, number=st.floats(allow_nan=False))
def test_yaml_survives_parsing(data, names, claim, number):
    info = make_info(train_args=JOB | {"data": data, "freeze": names, "lrf": number})
    text = yolo_yaml(winner_args(info, PATCHED, BASE), info, [claim])
    found = yaml.safe_load(text)
    assert found["data"] == data
    assert found.get("freeze") == names
    assert found.get("lrf", 0.01) == number


def test_env_sh_is_valid_when_empty(tmp_path):
    (tmp_path / "env.sh").write_text(env_sh(Winner(task="detect", train_args={}), "x"))
    subprocess.run(["bash", "-euc", 'source "$1"', "_", str(tmp_path / "env.sh")], check=True)


@pytest.mark.slow
def test_the_real_yolo_trains_with_the_files_as_they_are(tmp_path):
    data = demo_dataset(tmp_path / "größe 'x'", n_train=16, n_val=4)
    info = make_info(train_args=JOB | {"data": str(data), "imgsz": 64, "epochs": 3, "close_mosaic": 0})
    run = make_run(tmp_path / "run folder", [BASE, make_spec(1, batch=8, env={"OMP_NUM_THREADS": "2"})], info, 1)
    best = export(run)
    (tmp_path / "home").mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "YOLO_CONFIG_DIR": str(tmp_path / "config"), "YOLO_OFFLINE": "true"}
    argv = ["bash", str(best / "launch.sh"), "epochs=1", f"project={tmp_path / 'home'}", "name=n"]
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    used = load(tmp_path / "home" / "n" / "args.yaml")
    assert (used["epochs"], used["batch"], used["imgsz"], used["optimizer"]) == (1, 8, 64, "AdamW")
    assert len((tmp_path / "home" / "n" / "results.csv").read_text().splitlines()) == 2


@pytest.mark.system
@pytest.mark.parametrize("patches", [{}, {"workers": 1}])
@pytest.mark.parametrize("env", [{}, {"OMP_NUM_THREADS": "2", "A": "$(x) 'y'\nz", "B": ""}])
def test_shellcheck_is_clean(tmp_path, env, patches):
    assert shutil.which("shellcheck"), "apt-get install shellcheck"
    winner = Winner(task="detect", train_args={}, env=env, patches=patches)
    for name, text in {"env.sh": env_sh(winner, SENTENCE), "launch.sh": launch_sh(winner, SENTENCE)}.items():
        (tmp_path / name).write_text(text)
        done = subprocess.run(["shellcheck", name], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
