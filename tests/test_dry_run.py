"""The whole job on the synthetic backend: real processes, real study, real files; only the training is simulated."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import autotune as package
from autotune import accuracy, question, simulation
from autotune.contract import (
    TRIALS_CSV_COLUMNS,
    RunDir,
    RunInfo,
    Summary,
    TrialDir,
    TrialResult,
    TrialSpec,
    Winner,
    read_json,
)
from autotune.errors import InputError
from autotune.report import export
from autotune.report.cards import measure_of
from autotune.report.cards_pareto import throughput_memory
from autotune.report.cards_result import before_after
from autotune.report.cards_search import best_so_far
from autotune.report.load import load_run
from autotune.worker.machines import draw
from tests.cli import Said, autotune
from tests.cli import rows as csv_rows


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    out = tmp_path_factory.mktemp("a run é")
    return out, autotune("search", "--dry-run", "--budget", "10m", "--verify-accuracy", "5m", "--out", out, "epochs=50")


def test_it_ends_well_and_says_that_it_is_simulated(searched: tuple[Path, Said]) -> None:
    _, said = searched
    assert said.code == 0, said
    first, *_, last = said.out.splitlines()
    assert first.startswith("SIMULATED")
    assert "demo set" in first
    assert last.strip().startswith("open ")
    assert (
        sum("x faster than your settings" in line and line.startswith("SIMULATED: ") for line in said.out.splitlines())
        == 1
    )
    best = (searched[0] / "latest" / "best" / "best.yaml").read_text()
    assert "SIMULATED" in best
    assert accuracy.DRY in said.out
    assert best.splitlines()[0].count("SIMULATED") == 1


def test_the_run_folder_is_whole(searched: tuple[Path, Said]) -> None:
    out, _ = searched
    run = (out / "latest").resolve()
    assert run.parent == out
    info = read_json(run / "run.json", RunInfo)
    assert (info.simulated, info.objective, info.direction) == (True, "job_time", "minimize")
    assert info.user_args == {"epochs": 50}
    assert info.resolved["optimizer"] == "MuSGD"
    summary = read_json(run / "summary.json", Summary)
    assert summary.verdict.status == "gain"
    assert summary.verdict.n_blocks >= 3
    assert sum(summary.ledger_s.values()) == pytest.approx(summary.elapsed_s, abs=1.0)
    assert list(run.glob("trials/*/samples.csv")) == [], "a simulation has no machine to look at"
    rows = csv_rows(run / "trials.csv")
    assert tuple(rows[0])[: len(TRIALS_CSV_COLUMNS)] == TRIALS_CSV_COLUMNS
    finalists = [n for f in summary.verdict.finalists for n in f.numbers]
    assert [r["role"] for r in rows].count("finalist") == len(finalists)
    assert summary.ablation
    assert {int(r["number"]) for r in rows} == {int(p.name) for p in (run / "trials").iterdir() if p.name.isdigit()}
    assert summary.memory is not None
    assert (summary.memory.holds is None, summary.memory.evidence["simulated"]) == (False, True)
    assert summary.memory.sentence.startswith("simulated: ")
    assert (accuracy.DRY in summary.notes, summary.accuracy) == (True, None)
    assert "memory: **" in (run / "best" / "README.md").read_text()
    events = [json.loads(line)["kind"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events[0] == "run_started"
    assert events[-1] == "run_ended"
    assert {"best.yaml", "winner.json", "env.sh", "launch.sh", "receipt.json", "Dockerfile", "k8s.yaml"} <= {
        p.name for p in (run / "best").iterdir()
    }
    assert "\ntorch==" in (run / "best" / "constraints.txt").read_text()
    assert "SIMULATED" in (run / "report.html").read_text().upper()
    assert not (run / ".data").exists()


def test_report_and_export_are_made_again(searched: tuple[Path, Said], tmp_path: Path) -> None:
    run = (searched[0] / "latest").resolve()
    before = (run / "report.html").stat().st_mtime_ns
    assert autotune("report", run).code == 0
    assert (run / "report.html").stat().st_mtime_ns > before
    first = next(row["number"] for row in csv_rows(run / "trials.csv") if row["role"] == "trial")
    said = autotune("export", run, "--trial", first, "--out", tmp_path / "one")
    assert said.code == 0, said
    winner = read_json(tmp_path / "one" / "winner.json", Winner)
    assert winner.simulated
    again = autotune("export", run, "--trial", first, "--out", searched[0])
    assert again.code == 2, "a folder that holds something else is not overwritten"
    assert autotune("export", run, "--trial", "99").code == 2
    probe = next(row["number"] for row in csv_rows(run / "trials.csv") if row["role"] == "probe")
    refused = autotune("export", run, "--trial", probe)
    assert (refused.code, "is a probe" in refused.err) == (2, True)


def test_a_simulated_winner_is_not_trained(searched: tuple[Path, Said]) -> None:
    said = autotune("train", searched[0] / "latest")
    assert said.code == 2
    assert "simulated" in said.err


def test_a_trial_runs_again_by_hand_and_overwrites_nothing(searched: tuple[Path, Said]) -> None:
    folder = (searched[0] / "latest").resolve() / "trials" / "0001"
    before = (folder / "result.json").read_bytes()
    said = autotune("trial", folder)
    assert said.code == 0, said
    assert "in effect" in said.out
    assert (folder / "result.json").read_bytes() == before
    assert (folder / "again-1" / "result.json").exists()


def test_python_api(searched: tuple[Path, Said]) -> None:
    assert sorted(package.__all__) == ["Run", "__version__", "load", "tune"]
    run = package.load(searched[0] / "latest")
    assert len(run.trials) > 10
    assert run.best.train_args["epochs"] == 50
    assert run.figures["best_so_far"] is not None
    assert "faster" in repr(run)
    assert "<div" in run._repr_html_()


@pytest.mark.slow
def test_tune_takes_the_names_of_the_flags(tmp_path: Path) -> None:
    run = package.tune(dry_run=True, budget="3m", out=tmp_path, seed=3, epochs=20, strategy="random", space="quick")
    assert run.info.train_args["epochs"] == 20
    assert run.summary is not None
    assert run.summary.best_number is not None
    with pytest.raises(InputError, match="--seed differs"):
        package.tune(resume=run.path, seed=4)
    more = package.tune(resume=run.path, budget="1m")  # seed and strategy are not given again: they are the run's
    assert more.path == run.path
    assert (more.info.seed, more.info.strategy, len(more.info.resumed)) == (3, "random", 1)
    assert len(more.trials) > len(run.trials)


def test_one_simulated_gpu(tmp_path: Path) -> None:
    said = autotune("search", "--dry-run", "--gpus", "1", "--budget", "3m", "--out", tmp_path, "epochs=100")
    assert said.code == 0, said
    info = read_json(tmp_path / "latest" / "run.json", RunInfo)
    assert (info.device, info.space) == ("0", "default")


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here, and a shell that would hide them."""
    machine = replace(question.read_machine(), gpus=())
    monkeypatch.setattr(question, "read_machine", lambda: machine)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("hidden")
@pytest.mark.slow
def test_four_simulated_gpus(tmp_path: Path) -> None:
    """One process stands for four ranks, in the search and by hand; what they exchange costs time."""
    said = autotune("search", "--dry-run", "--gpus", "4", "--budget", "90s", "--out", tmp_path, "epochs=50")
    assert said.code == 0, said
    run = (tmp_path / "latest").resolve()
    assert read_json(run / "run.json", RunInfo).n_ranks == 4
    first = RunDir(run).trial(0)
    result = read_json(first.result, TrialResult)
    assert result.images_per_s is not None
    probes = [d for _, d in RunDir(run).numbered() if read_json(d.spec, TrialSpec).probe == "no_sync"]
    alone = read_json(probes[0].result, TrialResult)
    assert alone.images_per_s is not None
    saved_s = 16 / result.images_per_s - 16 / alone.images_per_s
    assert saved_s == pytest.approx(draw("dry_run").link_latency_s, rel=0.4)

    said = autotune("trial", first.path)
    assert said.code == 0, said
    again = TrialDir(first.path / "again-1")
    assert read_json(again.result, TrialResult).images_per_s == result.images_per_s
    assert read_json(again.spec, TrialSpec) == read_json(first.spec, TrialSpec), "nor does a third time differ"
    assert [p.name for p in again.path.glob("rank*.json")] == ["rank0.json"]

    said = autotune("search", "--resume", run, "--budget", "45s")
    assert said.code == 0, said
    said = autotune("export", run, "--trial", "0", "--out", tmp_path / "own")
    assert said.code == 0, said
    assert "total over 4 GPUs, 4 each" in (tmp_path / "own" / "best.yaml").read_text()


@pytest.mark.usefixtures("hidden")
def test_all_simulated_gpus(tmp_path: Path) -> None:
    asked = question.understand(question.Request(gpus="all", dry_run=True, out=str(tmp_path)))
    assert (asked.device, asked.ctx.n_ranks, asked.ctx.n_visible_gpus) == ("0,1,2,3", 4, 4)


def test_json_and_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "TRIALS", 2)
    monkeypatch.setattr(export, "check_with_yolo", lambda _: None)
    said = autotune("search", "--dry-run", "--json", "--budget", "90s", "--out", tmp_path / "a")
    events = [json.loads(line) for line in said.out.splitlines()]
    assert events[0]["kind"] == "run_started"
    assert events[-1]["kind"] == "run_ended"
    quiet = autotune("search", "--dry-run", "-q", "--budget", "90s", "--out", tmp_path / "b")
    assert len(quiet.out.splitlines()) <= 6


def test_spaces() -> None:
    said = autotune("spaces")
    assert said.code == 0
    for name in ("quick", "default", "full", "loader", "cpu", "ddp", "torch_threads", "nccl_socket"):
        assert name in said.out
    here = autotune("spaces", "full", "device=cpu")
    assert here.code == 0, here
    assert "not tried: amp" in here.out
    assert "not tried: nccl_socket" in here.out


def test_the_list_of_verbs_and_flags_is_frozen() -> None:
    verbs = ["search", "report", "export", "trial", "train", "watch", "recheck", "batch", "spaces", "doctor"]
    lines = []
    for verb in verbs:
        said = autotune(verb, "--help")
        assert said.code == 0
        options = said.out.partition("[OPTIONS]")[2]  # the program's name in front of it may hold a `-m`
        flags = sorted({w.strip(",") for w in options.split() if w.startswith("-")} - {"--help", "-", "--"})
        lines.append(f"{verb}: {' '.join(flags)}")
    golden = Path(__file__).parent / "goldens" / "cli.txt"
    assert "\n".join(lines) + "\n" == golden.read_text(), "a new verb or flag belongs into the golden file"


def test_version_and_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autotune", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == package.__version__


@pytest.mark.parametrize("module", ["autotune", "autotune.cli"])
def test_importing_costs_nothing(module: str) -> None:
    heavy = ["torch", "ultralytics", "optuna", "pandas", "plotly", "rich", "scipy", "numpy"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = done.stdout.strip()
    assert loaded in ("[]", "['rich']"), "typer may bring rich"


@pytest.mark.slow
def test_energy_is_the_measure_of_all_that_is_shown(tmp_path: Path) -> None:
    said = autotune(
        "search", "--dry-run", "--gpus", "2", "--objective", "energy", "--budget", "30m", "--out", tmp_path, "epochs=50"
    )
    assert said.code == 0, said
    run = load_run((tmp_path / "latest").resolve())
    assert (run.info.objective, run.info.simulated) == ("energy", True)
    assert run.summary is not None
    assert "J per image" in run.summary.verdict.sentence
    assert "fast" not in run.summary.verdict.sentence
    assert "SIMULATED: " + run.summary.verdict.sentence.removeprefix("SIMULATED: ") in said.out
    assert all(" J/image" in line for line in said.out.splitlines() if " finalist ok " in line)
    measured = run.tried[run.tried["outcome"] == "ok"]
    assert (measured["energy_j"] > 0).all()
    measure = measure_of(run)
    assert (measure.unit, measure.lower_is_better) == ("J/image", True)
    assert "fewer joules per image than your arguments" in before_after(run).note
    assert throughput_memory(run).title == "Speed against memory and energy (simulated)"
    card = best_so_far(run)
    assert card.drawn
    assert (card.df["value"] - measured["energy_j_per_image"]).abs().max() == 0


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_energy_on_a_cpu_is_refused_before_anything_is_made(tmp_path: Path, flags: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    said = autotune("search", *flags, "--objective", "energy", "--out", out, "device=cpu")
    assert (said.code, out.exists()) == (2, False)
    assert said.err.startswith("error: --objective energy needs a GPU")
