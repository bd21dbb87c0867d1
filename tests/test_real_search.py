"""The whole job on real training, in a path with a space: search, files, full training, Ctrl-C. Minutes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from autotune.atlas import Entry
from autotune.contract import Deadlines, Outcome, RunInfo, Summary, TrialDir, Winner, read_json
from autotune.run.demo import demo_dataset
from autotune.run.trial import run_trial
from autotune.search.past import DIED
from tests.cli import rows as csv_rows
from tests.receipts import MODEL
from tests.run.trials import spec

pytestmark = pytest.mark.slow
BUDGET_S = 200
FEW = ("plots=False", "fraction=0.25")
"""For a full training that only has to run."""
YOLO = shutil.which("yolo") or str(Path(sys.executable).with_name("yolo"))


def hashes(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def left_over(folder: Path) -> list[psutil.Process]:
    """Processes of ours that know the folder: forked trials have their parent's command line and environment."""
    found = psutil.process_iter(["cmdline", "environ"])
    return [p for p in found if str(folder) in " ".join((*(p.info["cmdline"] or ()), str(p.info["environ"])))]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a job é")


@pytest.fixture(scope="module")
def data(home: Path) -> Path:
    return demo_dataset(home / "data sets", n_train=320, n_val=32)


@pytest.fixture(scope="module")
def run(home: Path, data: Path) -> Path:
    before = hashes(data.parent)
    argv = [sys.executable, "-m", "autotune", "search", "--budget", f"{BUDGET_S}s", f"data={data}"]
    began = time.monotonic()
    env = os.environ | {"AUTOTUNE_DATA": str(home / "learned")}
    env["CUDA_LAUNCH_BLOCKING"] = "1"  # a CPU does not care, the checks of the machine do
    done = subprocess.run(
        [*argv, "imgsz=96", "epochs=60"], cwd=home, capture_output=True, text=True, timeout=600, env=env
    )
    took = time.monotonic() - began
    assert done.returncode == 0, done.stdout + done.stderr
    assert took <= BUDGET_S + 10
    assert hashes(data.parent) == before, "the user's dataset is as it was"
    assert left_over(home) == []
    (home / "stdout.txt").write_text(done.stdout)
    return (home / "results" / "latest").resolve()


def test_what_the_machine_was_warned_of_is_shown_and_kept(run: Path, home: Path) -> None:
    warned = "environment: left over: CUDA_LAUNCH_BLOCKING=1 (every kernel is waited for)"
    info = read_json(run / "run.json", RunInfo)
    assert any(warning.startswith(warned) for warning in info.warnings)
    before, _, _ = (home / "stdout.txt").read_text().partition("results in ")
    assert f"warning: {warned}" in before, "at the start"
    assert warned in (run / "report.html").read_text()


def test_search_found_something_real(run: Path) -> None:
    rows = csv_rows(run / "trials.csv")
    tried = [r for r in rows if r["role"] == "trial" and r["outcome"] in ("ok", "unstable", "pruned")]
    knobs = list(rows[0])[12:]
    assert len({tuple(r[k] for k in knobs) for r in tried}) >= 2
    summary = read_json(run / "summary.json", Summary)
    assert summary.verdict.status in ("gain", "no_gain", "unconfirmed")
    assert summary.best_number is not None
    finalists = {f.name: f for f in summary.verdict.finalists}
    assert set(finalists) >= {"baseline", "best"}
    assert all(f.images_per_s and f.images_per_s > 0 for f in finalists.values())
    roles = {n: r["role"] for r in rows for n in [int(r["number"])]}
    for finalist in finalists.values():
        assert {roles[n] for n in finalist.numbers} == {"finalist"}, "search runs are never part of the verdict"
    info = read_json(run / "run.json", RunInfo)
    assert info.resolved["optimizer"] == "AdamW"


def test_it_is_in_the_atlas(run: Path, home: Path) -> None:
    (path,) = (home / "learned" / "atlas").iterdir()
    kept, summary = read_json(path, Entry), read_json(run / "summary.json", Summary)
    assert (kept.folder, kept.status, kept.cell.n_images) == (str(run), summary.verdict.status, 320)
    assert bool(kept.changes) == (summary.best_number != 0)


def test_plain_yolo_trains_from_best_yaml(run: Path, tmp_path: Path) -> None:
    argv = [YOLO, "train", f"cfg={run / 'best' / 'best.yaml'}", "epochs=1", *FEW, f"project={tmp_path}"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert list(tmp_path.rglob("last.pt"))


def test_launch_sh_trains_the_winner_from_any_folder(run: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHON": sys.executable, "PATH": f"{Path(YOLO).parent}:{os.environ['PATH']}"}
    argv = ["bash", str(run / "best" / "launch.sh"), "epochs=1", *FEW, f"project={tmp_path}"]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert list(tmp_path.rglob("last.pt")), "ordinary Ultralytics results"
    winner = read_json(run / "best" / "winner.json", Winner)
    if winner.patches:
        assert "asked -> in effect" in done.stderr
        assert "differs" not in done.stderr


def test_train_resumes_a_checkpoint(run: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "autotune", "train", str(run)]
    first = subprocess.Popen([*argv, "epochs=5", *FEW, f"project={tmp_path}"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (found := list(tmp_path.rglob("last.pt"))) and time.monotonic() < deadline:
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert left_over(tmp_path) == []
    checkpoint, table = found[0], next(tmp_path.rglob("results.csv"))
    n_saved = torch.load(checkpoint, weights_only=False)["epoch"] + 1

    def epochs() -> list[int]:
        return [int(float(r["epoch"])) for r in csv_rows(table)]

    # Ultralytics writes an epoch's row before its checkpoint, so Ctrl-C between the two leaves a row to repeat.
    assert (rows := epochs()) in ([*range(1, n_saved + 1)], [*range(1, n_saved + 2)])
    assert n_saved < 5, "stopped in the middle"
    done = subprocess.run([*argv, f"resume={checkpoint}"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert epochs() == [*rows, *range(n_saved + 1, 6)]
    done = subprocess.run([*argv, f"resume={checkpoint}"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    assert "nothing to resume" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_trial_again_with_its_log_on_screen(run: Path) -> None:
    argv = [sys.executable, "-m", "autotune", "trial", str(run / "trials" / "0000")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Starting training for" in done.stdout + done.stderr, "Ultralytics' own output"
    assert "in effect" in done.stdout
    assert re.search(r"^limit: cores \d+ % busy, waiting for data", done.stdout, re.MULTILINE), done.stdout[-2000:]


def signalled_in_a_trial(argv: list[str], out: Path, number: signal.Signals) -> tuple[int, str]:
    """A search that gets the signal while the first configuration that it tries trains: exit code, output."""
    earlier = set(out.glob("2*/trials/*"))
    search = subprocess.Popen(
        [sys.executable, "-m", "autotune", "search", "--budget", "10m", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200

    def in_a_trial() -> bool:
        return any(
            steps.stat().st_size > 0 and json.loads((steps.parent / "spec.json").read_text())["role"] == "trial"
            for steps in out.glob("2*/trials/*/steps0.txt")
            if steps.parent not in earlier
        )

    with contextlib.ExitStack() as stack:
        stack.callback(search.kill)
        while not in_a_trial():
            assert time.monotonic() < deadline
            assert search.poll() is None
            time.sleep(0.2)
        search.send_signal(number)
        output, _ = search.communicate(timeout=90)
    return search.returncode, output


def test_kill_nine_resume_and_ctrl_c_lose_nothing(data: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "out", hashes(data.parent)
    job = ["--out", str(out), f"data={data}", "imgsz=96"]
    assert signalled_in_a_trial(job, out, signal.SIGKILL)[0] == -signal.SIGKILL
    run = next(p for p in out.iterdir() if not p.is_symlink())
    baseline = (run / "trials" / "0000" / "result.json").read_bytes()
    code, output = signalled_in_a_trial(["--resume", str(run)], out, signal.SIGINT)
    assert code == 130, output
    assert "Traceback" not in output
    assert left_over(out) == []
    assert hashes(data.parent) == before
    assert (run / "trials" / "0000" / "result.json").read_bytes() == baseline, "a finished trial is kept"
    rows = csv_rows(run / "trials.csv")
    assert (rows[0]["role"], rows[0]["outcome"]) in (("baseline", "ok"), ("baseline", "unstable"))
    (killed,) = (r for r in rows if r["outcome"] == "interrupted" and r["error"] == DIED)
    columns = ["role", *list(rows[0])[12:]]
    again = [r for r in rows if r is not killed and all(r[c] == killed[c] for c in columns)]
    assert killed["role"] == "trial"
    assert [r["outcome"] for r in again] == ["interrupted"], "what was killed ran once more, until Ctrl-C"
    assert again == rows[-1:]
    summary = read_json(run / "summary.json", Summary)
    assert summary.stopped_because == "interrupted"
    assert summary.verdict.status == "unconfirmed"
    assert (run / "report.html").stat().st_size > 1_000_000
    assert (run / "best" / "best.yaml").exists()


def test_compile_is_in_effect(tmp_path: Path, data: Path) -> None:
    asked = spec(data, changes={"compile": "default"}, compile="default", imgsz=32, batch=4, model=str(MODEL))
    asked = replace(asked, deadlines=Deadlines(first_step_s=800.0, total_s=900.0))
    result = run_trial(asked, TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), (result.error, result.log_tail)
    assert result.effective["compile"] == "default"
    assert result.phases_s["first_step"] > 2.0, "the first step carries the compile"


def test_no_trial_succeeded_is_exit_4(tmp_path: Path, data: Path) -> None:
    argv = [sys.executable, "-m", "autotune", "search", "--budget", "2m", "--out", str(tmp_path / "out")]
    argv += [f"data={data}", "imgsz=64", "optimizer=Nonesuch"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "Nonesuch" in done.stderr
    assert (done.stdout + done.stderr).count("error: ") == 1
    assert "Traceback" not in done.stderr
    run = next(p for p in (tmp_path / "out").iterdir() if not p.is_symlink())
    assert (run / "report.html").exists()
    kinds = [json.loads(line)["kind"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert kinds[-1] == "run_ended"
