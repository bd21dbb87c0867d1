"""Run folders made of the contract's own dataclasses, as the search writes them."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.contract import (
    TRIALS_CSV_COLUMNS,
    Finalist,
    Gpu,
    Guess,
    Machine,
    NotTried,
    Outcome,
    Params,
    Probe,
    RunDir,
    RunEnded,
    RunInfo,
    RunStarted,
    Summary,
    TrialEnded,
    TrialResult,
    TrialSpec,
    TrialStarted,
    Verdict,
    to_dict,
    write_json,
)

GIB = 2**30
BASE: Params = {"batch_per_gpu": 16, "workers": 0, "torch_threads": 1, "cache": False, "channels_last": False}
N_IMAGES = 1280 * 100


def params_of(number: int) -> Params:
    """A small deterministic walk through the space; number 0 is the baseline."""
    if number == 0:
        return dict(BASE)
    return {
        "batch_per_gpu": (16, 32, 64)[number % 3],
        "workers": (0, 1, 2)[number // 3 % 3],
        "torch_threads": 1 + number % 2,
        "cache": (False, "ram")[number // 2 % 2],
        "channels_last": number % 5 == 1,
    }


def speed_of(params: Params) -> float:
    """Images/s without noise: baseline 40, best 40 * 1.5 * 1.2 * 1.05."""
    threads = 1.5 if params["torch_threads"] == 2 else 1.0
    batch = {16: 1.0, 32: 1.1, 64: 1.2}[int(params["batch_per_gpu"] or 16)]
    return 40.0 * threads * batch * (1.05 if params["cache"] == "ram" else 1.0)


def result_of(number: int, outcome: Outcome = Outcome.OK, **fields: Any) -> TrialResult:
    """One trial as the search judges it."""
    params = fields.pop("params", params_of(number))
    base = TrialResult(
        number=number,
        role=fields.pop("role", "baseline" if number == 0 else "trial"),
        outcome=outcome,
        params=params,
        started_s=5.0 + 20 * number,
        took_s=18.0,
    )
    speed = speed_of(params) * (1 + 0.01 * (number % 3 - 1))
    if outcome.measured:
        base = replace(
            base,
            images_per_s=speed,
            ci95_lo=speed * 0.98,
            ci95_hi=speed * 1.02,
            job_s=30 + N_IMAGES / speed,
            job_terms={"start_s": 8.0, "mosaic_epochs_s": N_IMAGES / speed, "val_s": None},
            peak_mem_bytes=(int((1 + int(params["batch_per_gpu"] or 0) / 32) * GIB),),
            wait_frac=0.1,
            n_steps=40,
            parts_s=parts_of(speed, int(params["batch_per_gpu"] or 16)),
            steady=outcome is Outcome.OK,
        )
    else:
        base = replace(base, took_s=7.0, error=f"{outcome.value} happened", hint="do something about it")
    return replace(base, **fields)


def parts_of(speed: float, batch: int) -> dict[str, float]:
    """Anatomy of a step of this batch: a tenth of it waits, half of it is backward."""
    shares = {"wait": 0.1, "prepare": 0.02, "forward": 0.3, "backward": 0.5, "optimizer": 0.05, "rest": 0.03}
    return {part: share * batch / speed for part, share in shares.items()}


def probe_of(number: int, probe: Probe, images_per_s: float, params: Params, **fields: Any) -> TrialResult:
    """One probe as the search writes it: a rate, and no time of the job."""
    base = result_of(number, role="probe", params=params, images_per_s=images_per_s, probe=probe, took_s=6.0)
    ci = {"ci95_lo": images_per_s * 0.97, "ci95_hi": images_per_s * 1.03}
    effective = {"workers": params["workers"]}
    return replace(base, **{"job_s": None, "job_terms": {}, "effective": effective, **ci, **fields})


def with_probes(results: list[TrialResult]) -> list[TrialResult]:
    """The results and four probes after them: of the baseline and of the best, whose loader is the limit."""
    n = len(results)
    best = max((r for r in results if r.role == "trial"), key=lambda r: r.images_per_s or 0.0).params
    return [
        *results,
        probe_of(n, "compute", 55.0, dict(BASE)),
        probe_of(n + 1, "data", 140.0, dict(BASE)),
        probe_of(n + 2, "compute", 148.0, {**best, "cache": False}),
        probe_of(n + 3, "data", 80.0, best),
    ]


def with_losses(results: list[TrialResult]) -> list[TrialResult]:
    """The results and four runs of the numerics check after them."""
    n = len(results)
    untimed = {"images_per_s": None, "ci95_lo": None, "ci95_hi": None, "job_s": None, "parts_s": {}, "n_steps": 0}
    return [
        *results,
        *(
            replace(
                result_of(n + i, role="probe", probe="losses", params=dict(BASE)),
                **untimed,
                losses=(3.0,) * 50,
                batch_ids=("0a",) * 50,
            )
            for i in range(4)
        ),
    ]


def default_results(n_trials: int, failures: dict[int, Outcome]) -> list[TrialResult]:
    """Baseline, trials (some failing), a sentinel each 8."""
    results = [result_of(0)]
    for n in range(1, n_trials):
        if n % 8 == 0:
            results.append(result_of(n, role="sentinel", params=dict(BASE)))
        else:
            results.append(result_of(n, failures.get(n, Outcome.OK)))
    return results


def tried_rows(run: RunDir) -> int:
    """Rows of trials.csv that are whole trainings."""
    with run.trials_csv.open(encoding="utf-8", newline="") as f:
        return sum(row["role"] != "probe" for row in csv.DictReader(f))


def add_finalists(results: list[TrialResult], best: Params, n_blocks: int = 3) -> tuple[Finalist, ...]:
    """Appends A B B A A B runs; returns the finalists of the verdict."""
    numbers: dict[str, list[int]] = {"baseline": [], "best": []}
    for block in range(n_blocks):
        for name in ("baseline", "best") if block % 2 == 0 else ("best", "baseline"):
            n = len(results)
            results.append(result_of(n, role="finalist", params=dict(BASE) if name == "baseline" else best))
            numbers[name].append(n)
    gain = speed_of(best) / speed_of(BASE)
    ips = {"baseline": speed_of(BASE), "best": speed_of(best)}
    return (
        Finalist(
            name="baseline",
            params=dict(BASE),
            numbers=tuple(numbers["baseline"]),
            images_per_s=ips["baseline"],
            job_s=30 + N_IMAGES / ips["baseline"],
            speedup=1.0,
        ),
        Finalist(
            name="best",
            params=best,
            numbers=tuple(numbers["best"]),
            images_per_s=ips["best"],
            job_s=30 + N_IMAGES / ips["best"],
            speedup=gain,
            ci95_lo=gain * 0.95,
            ci95_hi=gain * 1.05,
        ),
    )


def write_trials_csv(path: Path, results: Sequence[TrialResult]) -> None:
    knobs = list(dict.fromkeys(k for r in results for k in r.params))
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow([*TRIALS_CSV_COLUMNS, *knobs])
        for r in results:
            row = to_dict(r) | {"peak_mem_bytes": max(r.peak_mem_bytes, default=None)}
            writer.writerow([*(row[c] for c in TRIALS_CSV_COLUMNS), *(r.params.get(k) for k in knobs)])


def make_run(
    folder: Path,
    n_trials: int = 12,
    *,
    failures: dict[int, Outcome] | None = None,
    finalists: bool = True,
    summary: bool = True,
    simulated: bool = False,
    gpu: bool = False,
    results: list[TrialResult] | None = None,
    info: dict[str, Any] | None = None,
    ended: bool = True,
    guesses: dict[int, Guess] | None = None,
) -> RunDir:
    """A run folder; `failures` maps a trial's number to how it failed, `guesses` to what a model expected of it."""
    run = RunDir(folder)
    run.trials.mkdir(parents=True)
    gpus = (Gpu(index=0, uuid="GPU-1", name="H100 80GB", mem_bytes=80 * GIB),) if gpu else ()
    results = default_results(n_trials, failures or {}) if results is None else list(results)
    feasible = [r for r in results if r.outcome.measured]
    best = max((r for r in feasible if r.role == "trial"), key=lambda r: r.images_per_s or 0, default=None)
    chosen = add_finalists(results, best.params) if finalists and best else ()
    for r in results:
        trial = run.trial(r.number)
        trial.path.mkdir()
        write_json(trial.result, r)
        spec = TrialSpec(
            number=r.number,
            role=r.role,
            backend="yolo",
            task="detect",
            params=r.params,
            changes={k: v for k, v in r.params.items() if BASE.get(k) != v},
            train_args={"model": "yolo11n.yaml", "imgsz": 128},
        )
        write_json(trial.spec, spec)
    write_trials_csv(run.trials_csv, results)
    run_info = RunInfo(
        name="2026-11-23_1405_yolo11n_demo_cpu",
        command="python -m autotune search --budget 5m",
        started="2026-11-23T14:05:00+00:00",
        budget_s=300.0 + 20 * len(results),
        objective="job_time",
        strategy="tpe",
        space="cpu",
        training="same",
        seed=0,
        backend="synthetic" if simulated else "yolo",
        simulated=simulated,
        task="detect",
        device="0" if gpu else "cpu",
        gpus=tuple(g.uuid for g in gpus),
        train_args={"model": "yolo11n.yaml", "data": "/home/me/demo/data.yaml", "imgsz": 128, "epochs": 100},
        user_args={"imgsz": 128},
        baseline_params=dict(BASE),
        resolved={"optimizer": "MuSGD", "lr0": 0.01},
        versions={"autotune": "0.1.0"},
    )
    write_json(run.info, replace(run_info, **(info or {})))
    machine = Machine(
        hostname="box",
        cpu="Example CPU @ 2.5 GHz",
        n_cores=2,
        n_cores_host=4,
        ram_bytes=16 * GIB,
        shm_bytes=8 * GIB,
        gpus=gpus,
        versions={"torch": "2.15.0", "ultralytics": "8.4.190"},
        fingerprint="7f3a91",
    )
    write_json(run.machine, machine)
    sentence = "75.6 +- 3.8 images/s, 1.89 x the baseline (95 % CI 1.80-1.98), confirmed in 3 paired runs."
    if summary:
        verdict = Verdict(
            status="gain" if chosen else "unconfirmed",
            sentence=sentence if chosen else "No configuration was confirmed.",
            n_blocks=3 if chosen else 0,
            finalists=chosen,
            sigma_run_frac=0.033 if chosen else None,
            df=4,
            smallest_effect_frac=0.06 if chosen else None,
        )
        concluded = Summary(
            stopped_because="the budget has no time for another trial",
            elapsed_s=max((r.started_s + r.took_s for r in results), default=0.0) + 6,
            ledger_s={"setup": 5.0, "baseline": 18.0, "trials_ok": 150.0, "trials_lost": 20.0, "finalists": 110.0},
            best_number=best.number if best else None,
            verdict=verdict,
            importance={"torch_threads": 0.7, "batch_per_gpu": 0.25, "cache": 0.05} if len(feasible) >= 4 else {},
            importance_note="" if len(feasible) >= 4 else "needs 4 trials that gave a number",
            n_feasible=len(feasible),
            not_tried=(
                NotTried(params={**BASE, "batch_per_gpu": 512}, price_s=90.0, reason="dearer than what is left"),
            ),
            frozen={"compile": "no compiler on CPU in this space"},
            notes=("asked amp=True, runs without: CPU",),
        )
        write_json(run.summary, concluded)
    events: list[Any] = [RunStarted(t_s=0.0, headline="a demo", folder=str(folder), budget_s=300.0)]
    for number, guess in (guesses or {}).items():
        events.append(TrialStarted(t_s=5.0, number=number, role="trial", changes={}, price_s=18.0, guess=guess))
    events += [TrialEnded(t_s=r.started_s + r.took_s, changes={}, result=r) for r in results]
    if ended:
        events.append(
            RunEnded(
                t_s=299.0, exit_code=0, sentence=sentence, next_commands=("yolo train cfg=results/x/best/best.yaml",)
            )
        )
    run.events.write_text("".join(json.dumps(to_dict(e)) + "\n" for e in events), encoding="utf-8")
    return run


def guesses_of(results: Sequence[TrialResult]) -> dict[int, Guess]:
    """What a model that is 5 % off, and knows it, expected of the search trials: seconds of the job."""
    found = {}
    for r in results:
        if r.role == "trial":
            job_s = 30 + N_IMAGES / speed_of(r.params) * 1.05
            found[r.number] = Guess(value=job_s, lo=job_s * 0.9, hi=job_s * 1.1, mem_bytes=2.2 * GIB)
    return found


ALL_FAILURES = {
    2: Outcome.OOM,
    4: Outcome.CRASH,
    5: Outcome.PRUNED,
    6: Outcome.TIMEOUT,
    7: Outcome.UNSTABLE,
    9: Outcome.INVALID,
    10: Outcome.MISMATCH,
    11: Outcome.INTERRUPTED,
}

EDGE_RUNS: dict[str, Callable[[Path], RunDir]] = {
    "whole": make_run,
    "every_outcome": lambda p: make_run(p, 20, failures=ALL_FAILURES),
    "gpu": lambda p: make_run(p, 14, gpu=True, failures={3: Outcome.OOM}),
    "no_ok": lambda p: make_run(p, results=[result_of(0, Outcome.CRASH), result_of(1, Outcome.OOM)]),
    "only_baseline": lambda p: make_run(p, 1),
    "baseline_failed": lambda p: make_run(p, results=[result_of(0, Outcome.CRASH), *map(result_of, (1, 2, 3))]),
    "no_finalists": lambda p: make_run(p, finalists=False),
    "no_summary": lambda p: make_run(p, 5, summary=False, ended=False, failures={4: Outcome.INTERRUPTED}),
    "no_trials": lambda p: make_run(p, results=[], summary=False, ended=False),
    "simulated": lambda p: make_run(p, simulated=True),
    "probes": lambda p: make_run(p, results=with_probes(default_results(11, {2: Outcome.OOM}))),
    "failed_probes": lambda p: make_run(
        p, results=[*default_results(6, {}), result_of(6, Outcome.CRASH, role="probe", probe="data")]
    ),
    "losses": lambda p: make_run(p, results=with_losses(default_results(6, {}))),
    "images_per_s": lambda p: make_run(p, info={"objective": "images_per_s"}),
    "guesses": lambda p: make_run(p, 20, failures=ALL_FAILURES, guesses=guesses_of(default_results(20, {}))),
    "no_job_time": lambda p: make_run(p, results=[replace(result_of(n), job_s=None) for n in range(6)]),
    "no_intervals": lambda p: make_run(
        p, results=[replace(result_of(n), ci95_lo=None, ci95_hi=None, peak_mem_bytes=()) for n in range(4)]
    ),
}


@pytest.fixture(params=EDGE_RUNS)
def edge_run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDir:
    """Each of the runs that a report must survive."""
    return EDGE_RUNS[request.param](tmp_path / "run")
