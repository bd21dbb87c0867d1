"""`autotune doctor --measure`: suspects, blocks, prices with a fake run function; a real job with a real fault."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.contract import Outcome, TrialDir, TrialResult, TrialSpec
from autotune.doctor import prices
from autotune.doctor.pricelist import Price, Priced, prices_of
from autotune.doctor.prices import measure, run_verb
from autotune.doctor.suspects import (
    Suspect,
    Unpriced,
    of_cache,
    of_cold_reads,
    of_environment,
    of_threads,
    of_workers,
    worker_counts,
)
from autotune.errors import InputError, NoTrialError
from autotune.question import Question, Request, understand
from autotune.run.page_cache import drop_page_cache
from autotune.search.budget import Budget
from autotune.search.verdict import BASELINE
from tests.cli import autotune
from tests.machine.fakes import fabricate
from tests.receipts import MODEL

FAULT = "ONEDNN_MAX_CPU_ISA"
"""With SSE41 convolutions on a CPU lose what AVX2 and newer give: a leftover that really slows a training."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the shell of whoever runs the tests has set."""
    import os

    from autotune.machine.environment import speed_environment

    for name in speed_environment(os.environ):
        monkeypatch.delenv(name)


def asked(tiny: Path, *pairs: str, budget: str = "10m") -> Request:
    return Request(pairs=(f"model={MODEL}", f"data={tiny}", "imgsz=64", "batch=8", "device=cpu", *pairs), budget=budget)


class FakeRun:
    """Answers from rates; 2 % of noise, and every run takes so long that the budget counts."""

    def __init__(self, rate: Callable[[TrialSpec], float | Outcome], took_s: float = 1.0) -> None:
        self.rate, self.took_s, self.rng = rate, took_s, random.Random(1)
        self.specs: list[TrialSpec] = []

    def __call__(self, spec: TrialSpec, directory: TrialDir, *, started_s: float, **_: Any) -> TrialResult:
        self.specs.append(spec)
        what = self.rate(spec)
        if isinstance(what, Outcome):
            outcome, rate = what, None
        else:
            outcome, rate = Outcome.OK, what * math.exp(self.rng.gauss(0, 0.02))
        return TrialResult(
            number=spec.number,
            role=spec.role,
            outcome=outcome,
            params={},
            started_s=started_s,
            took_s=self.took_s,
            images_per_s=rate,
            wait_frac=0.3,
            effective={"workers": spec.train_args.get("workers", 2)},
            phases_s={"warmup": 0.1, "measure": 0.2},
            error=None if rate else "it broke",
        )


def rate_of(spec: TrialSpec) -> float:
    """A job that loses a third with one worker and a fifth to a variable; threads change nothing."""
    workers = int(spec.train_args.get("workers", 2))
    if spec.probe == "data":
        return 100.0 * min(workers, 2)
    if spec.probe == "compute":
        return 150.0
    return 120.0 * (2 / 3 if workers == 1 else 1.0) * (1.0 if FAULT in spec.env else 0.8)


def test_prices_of_a_job_with_two_faults(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAULT, "SSE41")
    assert len(worker_counts(understand(asked(tiny)))) > 1, "this test needs two cores"
    run, said = FakeRun(rate_of), list[str]()
    found = measure(asked(tiny, "workers=1"), run=run, say=said.append)
    by_name = {p.name: p for p in found.prices}
    own = 120.0 * 2 / 3 * 0.8
    workers, variable = by_name["workers=1"], by_name[f"{FAULT}=SSE41"]
    assert workers.ci95_lo < own * 0.5 < workers.ci95_hi
    assert workers.ci95_lo > 0
    assert workers.of == pytest.approx(own * 1.5, rel=0.1)
    assert variable.ci95_lo < own * 0.25 < variable.ci95_hi
    assert variable.ci95_lo > 0
    healthy = [p for p in found.prices if p not in (workers, variable)]
    assert {"cache=False"} <= {p.name for p in healthy}
    assert all(abs(p.lost) < 0.05 * own for p in healthy)
    assert found.advice is not None
    assert "the loader is the limit" in found.advice.says
    blocks = [s for s in run.specs[1:] if s.probe is None]
    assert len(blocks) == 8 * (1 + len(found.prices)), "every one in every block"
    cleaned = [s for s in blocks if s.env]
    assert all(s.env == {FAULT: ""} for s in cleaned), "an empty value unsets"
    assert len(said) == len(run.specs)
    assert found.lines[0].startswith("price    ")


def test_a_budget_that_holds_less(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAULT, "SSE41")
    run = FakeRun(rate_of, took_s=20.0)
    found = measure(asked(tiny, "workers=1", budget="150s"), run=run)
    assert [p.name for p in found.prices] == [f"{FAULT}=SSE41"], "three blocks of two runs of 20 s"
    late = [u for u in found.unpriced if "no time for 3 blocks" in u.why]
    assert "cache=False" in {u.name for u in late}
    assert "--budget " in late[0].why
    slow_start = measure(asked(tiny, "workers=1", budget="90s"), run=FakeRun(rate_of, took_s=20.0))
    assert [p.name for p in slow_start.prices] == [f"{FAULT}=SSE41"], "the first run reads all libraries from disk"
    nothing = measure(asked(tiny, "workers=1", budget="30s"), run=FakeRun(rate_of, took_s=20.0))
    assert nothing.prices == []


def test_runs_that_take_longer_than_the_first_leave_the_first_suspect_its_price(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a CI run: three suspects had two blocks each, and nothing had a price."""
    monkeypatch.setenv(FAULT, "SSE41")

    now_s = 0.0

    class Slowing(FakeRun):
        def __call__(self, spec: TrialSpec, directory: TrialDir, **kwargs: Any) -> TrialResult:
            nonlocal now_s
            self.took_s = 8.0 if len(self.specs) < 5 else 10.5
            now_s += self.took_s
            return super().__call__(spec, directory, **kwargs)

    monkeypatch.setattr(prices, "Budget", lambda total_s, started: Budget(total_s, clock=lambda: now_s))
    found = measure(asked(tiny, "workers=1", budget="3m"), run=Slowing(rate_of))
    assert f"{FAULT}=SSE41" in {p.name for p in found.prices}
    assert [u for u in found.unpriced if "fewer than 3 blocks" in u.why], "some were given up for it"
    assert now_s < 180.0


def test_a_job_that_does_not_run_is_said(tiny: Path) -> None:
    with pytest.raises(NoTrialError, match="does not run as it is: oom"):
        measure(asked(tiny), run=FakeRun(lambda spec: Outcome.OOM))


def test_the_other_run_that_fails_has_no_price(tiny: Path) -> None:
    def rate(spec: TrialSpec) -> float | Outcome:
        return Outcome.OOM if spec.train_args.get("cache") == "ram" else rate_of(spec)

    found = measure(asked(tiny), run=FakeRun(rate))
    assert [u.why for u in found.unpriced if u.name == "cache=False"] == ["cache=ram did not run: oom: it broke"]
    assert "cache=False" not in {p.name for p in found.prices}


def test_an_interrupt_keeps_what_three_blocks_have_shown(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAULT, "SSE41")

    def after(n: int) -> FakeRun:
        def rate(spec: TrialSpec) -> float:
            if spec.number >= n:
                raise KeyboardInterrupt
            return rate_of(spec)

        return FakeRun(rate)

    late = measure(asked(tiny, "workers=1"), run=after(30))
    assert late.interrupted
    assert late.prices
    early = measure(asked(tiny, "workers=1"), run=after(8))
    assert early.interrupted
    assert early.prices == []
    assert {u.why for u in early.unpriced} >= {"interrupted"}


def test_prices_have_the_interval_of_the_ratio() -> None:
    rng = random.Random(3)
    noise = [[math.exp(rng.gauss(0, 0.01)) for _ in range(3)] for _ in range(5)]
    blocks = [{BASELINE: a / 100, "slow": b / 125, "cold": c / 80} for a, b, c in noise]
    slow, cold = prices_of(blocks, [Suspect(name="slow", other="x"), Suspect(name="cold", other="y", cold=True)])
    assert slow.lost == pytest.approx(25, abs=3)
    assert slow.of == pytest.approx(125, rel=0.02)
    assert cold.lost == pytest.approx(20, abs=3)
    assert cold.of == pytest.approx(100, rel=0.02)
    for price in (slow, cold):
        assert 0 < price.ci95_lo < price.lost < price.ci95_hi
    assert prices_of(blocks[:2], [Suspect(name="slow", other="x")]) == [], "two blocks prove nothing"


def test_healthy_things_seldom_get_a_price() -> None:
    """Four suspects that change nothing, three blocks: all intervals hold together in 95 % of 300 examinations."""
    rng, suspects = random.Random(0), [Suspect(name=name, other="x") for name in "abcd"]
    n_false = 0
    for _ in range(300):
        blocks = [{name: math.exp(rng.gauss(0, 0.03)) / 100 for name in (BASELINE, *"abcd")} for _ in range(3)]
        n_false += any(p.ci95_lo > 0 or p.ci95_hi < 0 for p in prices_of(blocks, suspects))
    assert n_false <= 24, "binomial: more than 24 of 300 has a probability of 1 %"


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((38.0, 30.0, 45.0), "38.0 img/s lost (95 % CI 30.0 to 45.0), of 120; without it: workers=2"),
        ((1.0, -2.0, 4.0), "no loss found against workers=2: 1.00 img/s (95 % CI -2.00 to 4.00), of 120"),
        ((-5.0, -8.0, -2.0), "nothing lost: workers=2 would be 5.00 img/s slower (95 % CI -8.00 to -2.00), of 120"),
    ],
)
def test_how_a_price_is_said(interval: tuple[float, float, float], said: str) -> None:
    lost, lo, hi = interval
    price = Price(name="workers=1", other="workers=2", lost=lost, ci95_lo=lo, ci95_hi=hi, of=120.0, n_blocks=3)
    assert price.sentence == said
    assert Priced(prices=[price]).lines == [f"price    workers=1: {said}"]


def test_workers_by_what_the_loader_delivers() -> None:
    fewest = of_workers(1, {1: 100.0, 2: 190.0, 4: 192.0}, None, False)
    assert fewest == Suspect(name="workers=1", other="workers=2", args={"workers": 2}), "that deliver as much"
    on_cpu = of_workers(0, {0: 100.0, 2: 190.0}, None, True)
    assert isinstance(on_cpu, Suspect)
    assert on_cpu.patches == {"workers": 2}
    assert "autotune train" in on_cpu.note
    enough = of_workers(1, {1: 100.0, 2: 190.0}, 90.0, False)
    assert isinstance(enough, Unpriced), "a GPU that takes 90 img/s gains nothing from 190"
    assert isinstance(of_workers(1, {1: 100.0, 2: 190.0}, 90.0, True), Suspect), "on a CPU only the job can tell"
    assert isinstance(of_workers(2, {1: 100.0, 2: 101.0}, None, True), Unpriced)
    assert isinstance(of_workers(2, {2: 101.0}, None, True), Unpriced)


def with_ctx(question: Question, **fields: Any) -> Question:
    return replace(question, ctx=replace(question.ctx, **fields))


def test_only_what_applies_is_suspected(tiny: Path) -> None:
    question = understand(asked(tiny))
    leftover = with_ctx(question, env={FAULT: "SSE41", "CUDA_HOME": "/usr/local/cuda", "OMP_NUM_THREADS": "4"})
    found = of_environment(leftover)
    assert found is not None
    assert found.env == {FAULT: "", "OMP_NUM_THREADS": "1"}
    assert of_environment(with_ctx(question, env={"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0"})) is None
    assert of_threads(with_ctx(question, device="cuda")) is None
    machine = question.ctx.machine
    threads = of_threads(with_ctx(question, machine=replace(machine, n_cores=8, n_cores_host=8)))
    assert threads is not None
    assert threads.patches == {"torch_threads": 8}
    assert of_threads(with_ctx(question, machine=replace(machine, n_cores=8, n_cores_host=64))) is None
    ram = of_cache(question)
    assert isinstance(ram, Suspect)
    assert ram.args == {"cache": "ram"}
    disk = of_cache(with_ctx(question, free_ram_bytes=1000))
    assert isinstance(disk, Suspect)
    assert disk.args == {"cache": "disk"}
    neither = of_cache(with_ctx(question, free_ram_bytes=1000, free_disk_bytes=1000))
    assert isinstance(neither, Unpriced)
    assert "cache=ram needs" in neither.why
    assert of_cache(with_ctx(question, train_args={**question.ctx.train_args, "cache": "ram"})) is None
    assert isinstance(of_cold_reads(question, True, None, 10.0), Suspect)
    assert "so small" in str(of_cold_reads(question, True, None, 1e6))
    assert "it delivers 55.0 img/s" in str(of_cold_reads(question, False, 55.0, 10.0))


def test_images_that_the_kernel_forgets_can_still_be_read(tiny: Path) -> None:
    drop_page_cache(str(tiny), "detect")
    assert next((tiny.parent / "images" / "train").iterdir()).read_bytes()


def test_a_wrong_budget_is_refused(tiny: Path) -> None:
    said = autotune("doctor", "--measure", "--budget", "soon", f"data={tiny}", f"model={MODEL}")
    assert said.code == 2
    assert "soon" in said.err


def test_prices_for_machines(tiny: Path) -> None:
    found = measure(asked(tiny), run=FakeRun(rate_of))
    told = json.loads(json.dumps(found.json))
    assert set(told) == {"prices", "not_priced", "loader_alone", "limit"}
    assert {p["name"] for p in told["prices"]} == {p.name for p in found.prices}
    assert told["limit"]["limit"] == "loader"


def test_a_wrong_budget_is_told_before_anything_else() -> None:
    said: list[str] = []
    with pytest.raises(InputError, match="not a time"):
        run_verb(Request(budget="1"), as_json=False, say=said.append)
    assert said == []


@pytest.mark.parametrize("as_json", [False, True])
def test_the_users_home_is_not_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    """What is said is pasted into issues; a check fails, so that nothing is measured."""
    home = tmp_path / "alice"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    said: list[str] = []
    (tmp_path / "root" / str(home).lstrip("/")).mkdir(parents=True)
    host = fabricate(tmp_path / "root", read_only=frozenset({str(home)}))
    code = run_verb(Request(), as_json=as_json, say=said.append, host=host)
    assert code == 3
    assert "~ is not writable" in "".join(said)
    assert "alice" not in "".join(said)


@pytest.mark.slow
def test_a_real_leftover_has_a_price(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real job with a variable that slows convolutions to a third."""
    pairs = (f"model={MODEL}", f"data={tiny}", "imgsz=128", "batch=8", "device=cpu", "cache=ram")
    monkeypatch.setenv(FAULT, "SSE41")
    found = measure(Request(pairs=pairs, budget="3m"), say=print)
    print("\n".join(found.lines))
    slow = next(p for p in found.prices if p.name == f"{FAULT}=SSE41")
    assert slow.ci95_lo > 0, slow
    assert slow.lost > 0.2 * slow.of, slow
