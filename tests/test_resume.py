"""`autotune search --resume RUN`: what it takes over, what it refuses, and who may be at work at one time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autotune import question
from autotune.contract import Gpu, Machine, RunDir, RunInfo, Summary, TrialResult, read_json, write_json
from autotune.errors import InputError, MachineError
from autotune.job import info_of
from autotune.machine.facts import fingerprint
from autotune.question import Question, Request, understand
from autotune.resume import Earlier, check
from autotune.run.lock import lock_devices, lock_home, lock_run
from autotune.search.past import read_past
from tests.cli import autotune


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in home/out, its data not named; nothing changes it but a resume."""
    folder = tmp_path_factory.mktemp("a home é")
    said = autotune("search", "--dry-run", "--budget", "5m", "--seed", "3", "--out", folder / "out", "epochs=50")
    assert said.code == 0, said
    return folder


@pytest.fixture
def run(home: Path) -> Iterator[Path]:
    """Its folder; whatever a test changes in run.json and machine.json is put back."""
    folder = (home / "out" / "latest").resolve()
    kept = {name: (folder / name).read_bytes() for name in ("run.json", "machine.json")}
    yield folder
    for name, data in kept.items():
        (folder / name).write_bytes(data)


def measured(path: Path) -> TrialResult:
    """A result without its place in the objective, where a later probe may put a measured term for an estimated one."""
    return replace(read_json(path, TrialResult), job_s=None, job_terms={}, job_estimated=())


@pytest.mark.slow
def test_more_time_for_a_finished_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    folder = (home / "out" / "latest").resolve()
    info, summary = read_json(folder / "run.json", RunInfo), read_json(folder / "summary.json", Summary)
    results = {p: measured(p) for p in folder.glob("trials/*/result.json")}
    said = autotune("search", "--resume", "out/latest", "--budget", "5m", "--seed", "3", "epochs=50")
    assert said.code == 0, said
    assert said.out.splitlines()[0].startswith("resumed: SIMULATED")
    assert [p.name for p in (home / "out").iterdir() if not p.is_symlink()] == [folder.name]
    assert {p: measured(p) for p in results} == results
    more, after = read_json(folder / "run.json", RunInfo), read_json(folder / "summary.json", Summary)
    assert more.resumed == (more.resumed[0],)
    assert "--resume out/latest" in more.resumed[0]
    same = {"resumed": (), "budget_s": info.budget_s}
    assert replace(more, **same) == info
    assert more.budget_s == pytest.approx(summary.elapsed_s + 300.0, abs=0.1)
    assert summary.elapsed_s < after.elapsed_s <= more.budget_s
    for purpose in ("baseline", "trials_ok", "sentinels", "finalists"):
        assert after.ledger_s[purpose] >= summary.ledger_s[purpose] - 0.1
    assert after.ledger_s["report"] > summary.ledger_s["report"]
    assert sum(after.ledger_s.values()) == pytest.approx(after.elapsed_s, abs=1.0)
    fresh = {n for f in after.verdict.finalists for n in f.numbers}
    assert fresh.isdisjoint(n for f in summary.verdict.finalists for n in f.numbers)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [e["kind"] for e in events].count("run_started") == 2
    assert [e["t_s"] for e in events] == sorted(e["t_s"] for e in events)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["epochs=51"], ["epochs differs", "epochs=50", "epochs=51"]),
        (["batch=8"], ["batch differs", "16", "8"]),
        (["model=yolo11s.yaml"], ["model differs", "yolo11s.yaml"]),
        (["device=0"], ["device=0"]),
        (["--gpus", "1"], ["device differs", "cpu"]),
        (["--objective", "images_per_s"], ["--objective differs", "job_time"]),
        (["--strategy", "random"], ["--strategy differs", "structured"]),
        (["--seed", "0"], ["--seed differs", "3"]),
        (["--training", "any"], ["--training differs", "same"]),
        (["--space", "quick"], ["space differs", "quick"]),
        (["--mem-limit", "1GiB"], ["--mem-limit differs", "none", "1GiB"]),
        (["--mem-limit", "lots"], ["--mem-limit", "lots"]),
        (["--name", "other"], ["--name differs"]),
        (["--out", "elsewhere"], ["--out differs"]),
        (["--budget", "0"], ["budget"]),
        (["epohcs=3"], ["epohcs"]),
    ],
)
def test_another_question_is_refused(run: Path, args: list[str], said: list[str]) -> None:
    before = {p: p.read_bytes() for p in run.glob("*.json*")}
    answer = autotune("search", "--resume", run, *args)
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert len(answer.err.splitlines()) <= 2
    for word in said:
        assert word in answer.err
    assert {p: p.read_bytes() for p in run.glob("*.json*")} == before


def test_another_machine_is_refused(run: Path) -> None:
    machine = read_json(run / "machine.json", Machine)
    versions = {**machine.versions, "torch": "2.1.0"}
    facts = (machine.gpus, machine.cpu, machine.n_cores + 1, machine.ram_bytes, machine.driver, versions)
    other = replace(machine, n_cores=machine.n_cores + 1, versions=versions, fingerprint=fingerprint(*facts))
    write_json(run / "machine.json", other)
    answer = autotune("search", "--resume", run)
    assert answer.code == 3, answer
    assert f"cores {machine.n_cores + 1} then, {machine.n_cores} now" in answer.err
    assert "torch 2.1.0 then" in answer.err


def test_a_space_that_cannot_be_had_any_more_is_refused(run: Path) -> None:
    info = read_json(run / "run.json", RunInfo)
    write_json(run / "run.json", replace(info, domain={**info.domain, "torch_threads": (1, 2, 4096)}))
    answer = autotune("search", "--resume", run)
    assert answer.code == 2, answer
    assert "the space differs: torch_threads=4096 cannot be had now" in answer.err


def test_another_baseline_is_refused(run: Path) -> None:
    info = read_json(run / "run.json", RunInfo)
    write_json(run / "run.json", replace(info, baseline_params={**info.baseline_params, "workers": 7}))
    answer = autotune("search", "--resume", run)
    assert answer.code == 2, answer
    assert "another baseline" in answer.err


def test_a_dataset_that_has_grown_is_refused(run: Path, tiny: Path) -> None:
    info = read_json(run / "run.json", RunInfo)
    grown = replace(
        info, n_images=63, train_args={**info.train_args, "data": str(tiny)}, user_args={"data": "x", "epochs": 50}
    )
    imgsz = {**grown.train_args, "imgsz": 640}
    write_json(run / "run.json", replace(grown, train_args=imgsz))
    answer = autotune("search", "--resume", run)
    assert answer.code == 2, answer
    assert "63 training images when" in answer.err
    assert "64 now" in answer.err


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Question, Earlier]:
    """A question to two of four GPUs, and the run that began with it: not simulated, nothing measured yet."""
    gpus = tuple(Gpu(index=i, uuid=f"GPU-{i}", name="H100", mem_bytes=80 << 30) for i in range(4))
    machine = replace(question.read_machine(), n_cores=32, gpus=gpus)
    monkeypatch.setattr(question, "read_machine", lambda: machine)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    asked = understand(Request(gpus="2", dry_run=True, out=str(tmp_path)))
    info = replace(info_of(asked, "run-1"), simulated=False)
    return asked, Earlier(run_dir=RunDir(tmp_path / "run-1"), info=info, machine=machine)


def test_other_gpus_are_refused(two_gpus: tuple[Question, Earlier], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, run = two_gpus
    past = read_past(run.run_dir)
    check(asked, run, past)
    for shown, ok in (("1,0", True), ("2,3", False)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        now = understand(asked.request)
        assert now.device == asked.device, "only the variable says which they are"
        if ok:
            check(now, run, past)
            continue
        with pytest.raises(MachineError, match="the GPUs differ: run-1 has GPU-0, GPU-1, now GPU-2, GPU-3"):
            check(now, run, past)
        check(now, replace(run, info=replace(run.info, simulated=True)), past)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("NCCL_ALGO", "Tree", "NCCL_ALGO Ring (environment), now Tree (environment)"),
        ("NCCL_ALGO", "", "NCCL_ALGO Ring (environment), now not set"),
        ("NCCL_PROTO", "LL", "NCCL_PROTO not set, now LL (environment)"),
    ],
)
def test_another_environment_of_nccl_is_refused(
    two_gpus: tuple[Question, Earlier], monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    asked, run = two_gpus
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=re.escape(said)) as e:
        check(understand(asked.request), run, read_past(run.run_dir))
    assert "\n" not in str(e.value)


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOTUNE_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks"


def holder(gpus: tuple[str, ...], folder: str) -> subprocess.Popen[str]:
    """Another process that holds the devices until its stdin is closed."""
    code = (
        "import sys; from pathlib import Path; from autotune.run.lock import lock_devices\n"
        f"with lock_devices({gpus!r}) as sign:\n sign(Path({folder!r})); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_sets_of_gpus_that_overlap(locks: Path) -> None:
    with holder(("GPU-0", "GPU-1"), "/somewhere/else") as other:
        who = f"GPU-1 is in use by pid {other.pid}, which writes /somewhere/else"
        with pytest.raises(MachineError, match=who), lock_devices(("GPU-2", "GPU-1")):
            pass
        with lock_devices(("GPU-2",)), lock_devices(()):
            pass  # what the refused one had taken is free again, and the CPU is another device
        other.kill()
        other.wait()
        with lock_devices(("GPU-1", "GPU-0")):
            pass  # the kernel let go of them
    assert oct(locks.stat().st_mode)[-3:] == "777", "the next one may be another user"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": null}'])
def test_a_holder_that_has_not_signed_yet(locks: Path, text: str) -> None:
    with holder((), "/x") as other:
        (locks / "cpu.lock").write_text(text)
        with pytest.raises(MachineError, match="just starting"), lock_devices(()):
            pass
        other.kill()


def test_a_second_search_is_refused_and_writes_nothing(locks: Path, tmp_path: Path, tiny: Path) -> None:
    with lock_devices(()) as sign:
        sign(Path("/the/first"))
        answer = autotune("search", "--out", tmp_path / "out", f"data={tiny}", "--budget", "60s", "device=cpu")
    assert answer.code == 3, answer
    assert f"the CPU is in use by pid {os.getpid()}, which writes /the/first" in answer.err
    assert not (tmp_path / "out").exists()


def test_a_simulation_disturbs_nobody(locks: Path, tmp_path: Path) -> None:
    with lock_devices(()):
        assert autotune("search", "--dry-run", "--out", tmp_path / "out", "--budget", "60s").code == 0


def test_a_folder_is_written_by_one(run: Path) -> None:
    with lock_run(run):
        answer = autotune("search", "--resume", run)
    assert answer.code == 3, answer
    assert f"{run} is in use by pid {os.getpid()}" in answer.err


def test_the_locks_do_not_move_with_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOTUNE_LOCKS")
    before = lock_home()
    for name in ("TMPDIR", "XDG_RUNTIME_DIR", "HOME", "XDG_CACHE_HOME", "AUTOTUNE_CACHE"):
        monkeypatch.setenv(name, "/elsewhere")
    assert lock_home() == before
