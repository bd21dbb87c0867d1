"""The verdict on a trial: from synthetic figures whose limit is known, each by construction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.contract import Gpu, GpuMeanwhile, Machine, Meanwhile, Outcome, TrialResult
from autotune.report.advice import Advice, advise, ceiling
from autotune.report.cards_limits import limits
from autotune.report.limits import Rates
from autotune.report.load import load_run
from tests.report.conftest import BASE, make_run, probe_of, result_of

GIB = 2**30
GPU = "GPU-synthetic"
MACHINE = Machine(
    hostname="synthetic",
    cpu="synthetic",
    n_cores=16,
    n_cores_host=16,
    ram_bytes=64 * GIB,
    shm_bytes=None,
    gpus=(Gpu(index=0, uuid=GPU, name="synthetic GPU", mem_bytes=24 * GIB),),
)
PARTS = {"wait": 0.0, "prepare": 0.01, "forward": 0.03, "backward": 0.05, "optimizer": 0.01, "rest": 0.0}


def trial(
    *, rate: float = 610.0, wait: float = 0.0, parts: dict[str, float] | None = None, **fields: Any
) -> TrialResult:
    return TrialResult(
        number=0,
        role="baseline",
        outcome=Outcome.OK,
        params={"workers": 8, "cache": False},
        started_s=0.0,
        took_s=20.0,
        images_per_s=rate,
        wait_frac=wait,
        parts_s=PARTS if parts is None else parts,
        **fields,
    )


def gpu(busy: float | None, *, cpu: float | None = None, mem: float = 0.4, read: float | None = None) -> Meanwhile:
    one = GpuMeanwhile(uuid=GPU, util_frac=busy, mem_peak_bytes=round(24 * GIB * mem))
    return Meanwhile(n_samples=50, gpus=(one,), cpu_frac=cpu, disk_read_bytes_per_s=read)


def on_gpu(result: TrialResult, rates: Rates | None = None, n_ranks: int = 1) -> Advice:
    found = advise(result, MACHINE, gpus=(GPU,), n_ranks=n_ranks, rates=rates)
    assert found is not None
    return found


def on_cpu(result: TrialResult, rates: Rates | None = None) -> Advice:
    found = advise(result, MACHINE, rates=rates)
    assert found is not None
    return found


def most(advice: Advice, name: str) -> float | None:
    return next(r.most for r in advice.resources if r.name == name)


def test_a_loader_that_is_the_limit() -> None:
    found = on_gpu(trial(wait=0.52, meanwhile=gpu(0.41)), Rates(data=610.0, compute=1480.0))
    assert found.limit == "loader"
    assert found.says == (
        "GPU 41 % busy, waiting for data 52 %: the loader is the limit; 8 workers give 610 img/s, the step could do "
        "1480 img/s"
    )
    assert found.most == pytest.approx(1480 / 610)
    assert most(found, "more cores") == pytest.approx(1480 / 610)
    assert most(found, "a faster GPU") == 1.0
    assert found.lifts[0] == "workers=16 (now 8; 16 cores a rank)"
    assert found.resources_say.startswith("more cores: at most 2.4x; a faster GPU: next to nothing; ")
    assert found.unknown == ()


def test_without_probes_amdahl_says_how_far() -> None:
    """The step without its wait; nobody looked at the GPU."""
    found = on_gpu(trial(rate=100.0, wait=0.5))
    assert (found.limit, found.most) == ("loader", pytest.approx(2.0))
    assert "the step could do 200 img/s" in found.says
    assert any("nobody looked" in u for u in found.unknown)


def test_workers_that_use_every_core_and_those_that_wait_for_the_disk() -> None:
    full = trial(wait=0.4, effective={"workers": 16, "cache": False})
    assert not any("workers=" in lift for lift in on_gpu(full).lifts)
    idle = on_gpu(replace(full, meanwhile=gpu(0.5, cpu=0.2, read=80e6)))
    assert "faster disk" in idle.lifts[0]
    assert most(idle, "a local NVMe") == pytest.approx(1 / 0.6)
    in_memory = on_gpu(replace(full, meanwhile=gpu(0.5, cpu=0.9, read=0.0)))
    assert most(in_memory, "a local NVMe") == 1.0
    cached = on_gpu(replace(full, effective={"workers": 16, "cache": "ram"}))
    assert most(cached, "RAM for cache=ram") == most(cached, "a local NVMe") == 1.0
    assert not any("cache" in lift for lift in cached.lifts)


def test_both_alone_do_more_than_together_on_full_cores() -> None:
    rates = Rates(data=900.0, compute=1000.0)
    assert on_gpu(trial(wait=0.3, meanwhile=gpu(0.5, cpu=0.97)), rates).limit == "cores"
    assert on_gpu(trial(wait=0.3, meanwhile=gpu(0.5, cpu=0.50)), rates).limit == "loader"


def test_a_step_that_is_the_limit() -> None:
    found = on_gpu(trial(meanwhile=gpu(0.97)), Rates(data=1220.0, compute=615.0))
    assert found.limit == "compute"
    assert most(found, "a faster GPU") == pytest.approx(2.0), "then the loader is the limit"
    assert most(found, "more cores") == pytest.approx(615 / 610)
    assert found.most == pytest.approx(2.0)
    alone = on_gpu(trial(parts=PARTS))
    assert most(alone, "a faster GPU") == pytest.approx(10.0), "nine tenths of the step are the device's"
    assert most(on_gpu(trial(parts={})), "a faster GPU") is None
    assert any("parts of the step" in u for u in on_gpu(trial(parts={})).unknown)


def test_a_gpu_that_waits_for_launches() -> None:
    found = on_gpu(trial(wait=0.02, meanwhile=gpu(0.45)))
    assert found.limit == "host"
    assert found.most == pytest.approx(1 / 0.45)
    assert found.lifts[:2] == ("a larger batch", "compile=default or reduce-overhead")
    full = on_gpu(trial(wait=0.02, meanwhile=gpu(0.45, mem=0.96)))
    assert full.limit == "memory"
    assert "memory 96 % full" in full.says
    assert most(full, "a GPU with more memory") == pytest.approx(1 / 0.45)
    unseen = on_gpu(trial(parts={**PARTS, "rest": 0.1}))
    assert unseen.limit == "host", "where nobody looked, the parts tell"


def test_ranks_that_wait_for_each_other() -> None:
    slow = on_gpu(trial(straggler_frac=0.2, meanwhile=gpu(0.9)), Rates(no_sync=800.0), n_ranks=2)
    assert (slow.limit, slow.most) == ("straggler", pytest.approx(1.25))
    wire = on_gpu(trial(straggler_frac=0.02, meanwhile=gpu(0.9)), Rates(no_sync=800.0), n_ranks=2)
    assert (wire.limit, wire.most) == ("communication", pytest.approx(800 / 610))
    assert "lost to the other ranks 24 %" in wire.says
    untold = on_gpu(trial(meanwhile=gpu(0.9)), n_ranks=2)
    assert any("communication" in u for u in untold.unknown)


def test_on_a_cpu_cores_lift_both() -> None:
    busy = Meanwhile(n_samples=50, cpu_frac=0.98)
    found = on_cpu(trial(rate=30.0, wait=0.2, meanwhile=busy), Rates(data=120.0, compute=50.0))
    assert found.limit == "cores"
    assert most(found, "twice the cores") == 2.0
    assert most(found, "a GPU") == pytest.approx(4.0), "then the loader is alone with the cores"
    blind = on_cpu(trial(rate=30.0, wait=0.2))
    assert (blind.limit, blind.most) == ("loader", None), "a loader less would free cores as well"
    assert any("step could do without the loader" in u for u in blind.unknown)


def test_on_a_cpu_without_workers_they_take_turns() -> None:
    alone = {"effective": {"workers": 0}}
    loader = on_cpu(trial(rate=30.0, wait=0.6, **alone))
    assert (loader.limit, loader.most) == ("loader", pytest.approx(2.5))
    step = on_cpu(trial(rate=30.0, wait=0.2, **alone))
    assert step.limit == "compute"
    assert most(step, "a GPU") == pytest.approx(5.0)
    idle = on_cpu(trial(rate=30.0, wait=0.2, meanwhile=Meanwhile(n_samples=9, cpu_frac=0.5), **alone))
    assert "idle" in idle.lifts[0]


def test_no_verdict_without_figures() -> None:
    assert advise(replace(trial(), images_per_s=None), MACHINE) is None
    assert advise(replace(trial(), wait_frac=None), MACHINE) is None


SHARE = st.none() | st.floats(0.0, 1.0)
RATE = st.none() | st.floats(1.0, 1e5)


@given(
    wait=st.floats(0.0, 1.0),
    straggler=st.none() | st.floats(0.0, 0.99),
    busy=SHARE,
    cpu=SHARE,
    mem=st.floats(0.0, 1.0),
    rates=st.builds(Rates, data=RATE, compute=RATE, no_sync=RATE),
    workers=st.none() | st.integers(0, 64),
    n_ranks=st.integers(1, 8),
    gpus=st.sampled_from([(), (GPU,)]),
    looked=st.booleans(),
)
def test_no_ceiling_is_below_what_was_measured(
    wait: float,
    straggler: float | None,
    busy: float | None,
    cpu: float | None,
    mem: float,
    rates: Rates,
    workers: int | None,
    n_ranks: int,
    gpus: tuple[str, ...],
    looked: bool,
) -> None:
    result = trial(
        wait=wait,
        straggler_frac=straggler,
        effective={} if workers is None else {"workers": workers},
        meanwhile=gpu(busy, cpu=cpu, mem=mem) if looked else None,
    )
    found = advise(result, MACHINE, gpus=gpus, n_ranks=n_ranks, rates=rates)
    assert found is not None
    assert found.lifts
    assert all(r.most is None or r.most >= 1.0 for r in found.resources)
    assert found.most is None or found.most >= 1.0
    assert ceiling(found.most)


def test_the_card_of_yours_and_the_best(tmp_path: Any) -> None:
    first = result_of(0, wait_frac=0.5)
    probes = [probe_of(2, "data", 44.0, dict(BASE)), probe_of(3, "compute", 88.0, dict(BASE))]
    run = load_run(make_run(tmp_path / "r", results=[first, result_of(1), *probes], finalists=False).path)
    card = limits(run)
    assert card.df["name"].unique().tolist() == ["your arguments", "best"]
    assert card.note.startswith("Your arguments: waiting for data 50 %: ")
    assert "the step could do 88.0 img/s" in card.note
    assert len(card.table.rows) == 2  # type: ignore[union-attr]
    old = replace(first, wait_frac=None)
    bare = load_run(make_run(tmp_path / "old", results=[old], finalists=False).path)
    assert limits(bare).reason == "No trial has recorded how long its steps waited for data."
