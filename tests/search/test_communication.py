"""Two probes of a search on several ranks, what they freeze, and what is said of it."""

from dataclasses import replace

import pytest
from search_world import FakeClock, FakeSpace, FakeTrainer, make_info, make_plan, rate_of

from autotune.contract import Outcome, RunInfo, TrialResult, TrialSpec, read_json, write_json
from autotune.run.scaling import all_reduce_s, scaling_of
from autotune.run.transport import LOGGING
from autotune.search.communication import MOST_OF_BUDGET, PROBES, SMALL_FRAC
from autotune.search.controller import search
from autotune.search.past import read_past
from autotune.search.plan import on_one_rank
from autotune.search.probes import MOST_OF_BUDGET as MOST_FOR_CEILINGS

FAMILY = ("bucket_cap_mb", "nccl_socket")


class SpaceOfRanks(FakeSpace):
    """Two knobs of communication beside two others."""

    def __init__(self, more=None):
        self.more = more or {}
        super().__init__(domain={"torch_threads": (1, 2), "workers": (0, 1, 2)}, seeds=({"bucket_cap_mb": 50},))
        self.domain |= {"bucket_cap_mb": (25, 50), "nccl_socket": (None, "4x4"), **self.more}
        self.transports = []

    def prepare(self, effective, n_images, train_args=None, transport=None):
        self.transports.append(transport)
        prepared = super().prepare(effective, n_images, train_args)
        self.baseline |= {"bucket_cap_mb": 25, "nccl_socket": None, **{k: v[0] for k, v in self.more.items()}}
        start = dict.fromkeys(self.domain)
        seeds = tuple({**{k: self.baseline[k] for k in start}, **seed} for seed in self.seeds)
        return replace(prepared, baseline=dict(self.baseline), seeds=seeds)


class Ranks(FakeTrainer):
    """`local` times as fast where nothing is exchanged; one rank reaches `alone` of the rate of all."""

    def __init__(self, clock, *, local, alone=0.6, log="", **kwargs):
        super().__init__(clock, noise=0.0, **kwargs)
        self.factor = {None: 1.0, "no_sync": local, "one_rank": alone, "compute": 1.2, "data": 2.0}
        self.log = log

    def __call__(self, spec, directory, *, started_s, watch=None):
        self.rate = lambda params: rate_of(params) * self.factor.get(spec.probe, 1.0)
        write_json(directory.spec, spec)
        directory.log.write_text(self.log if spec.env.get("NCCL_DEBUG") == "INFO" else "")
        result = super().__call__(spec, directory, started_s=started_s, watch=watch)
        return replace(result, job={**result.job, "gradient_bytes": 10 << 20})


def run(tmp_path, *, local=1.2, n_ranks=2, budget_s=3000.0, device="cpu", fails=lambda spec: None, log="", space=None,
        **plan_args):  # fmt: skip
    clock, space = FakeClock(), space or SpaceOfRanks()
    info = make_info(budget_s=budget_s, n_ranks=n_ranks, device=device, simulated=False)
    plan = make_plan(tmp_path / "run", clock, space=space, info=info, budget_s=budget_s, max_trials=4, **plan_args)
    trainer = Ranks(clock, local=local, fails=fails, log=log)
    return search(plan, trainer), trainer, plan, space


def of(trainer):
    return [s.probe for s in trainer.specs if s.probe in PROBES]


def test_each_runs_once_after_the_baseline(tmp_path):
    summary, trainer, *_ = run(tmp_path)
    assert of(trainer) == ["no_sync", "one_rank"]
    assert [s.probe for s in trainer.specs[:3]] == [None, "no_sync", "one_rank"]
    no_sync, alone = trainer.specs[1:3]
    assert no_sync.segment.measure_steps == 20
    assert (no_sync.n_ranks, alone.n_ranks) == (2, 1)
    assert (no_sync.train_args["batch"], alone.train_args["batch"]) == (16, 8)
    assert no_sync.params == trainer.specs[0].params
    assert summary.verdict.status == "gain", "no probe is a trial"


def test_one_rank_has_no_such_probe(tmp_path):
    summary, trainer, *_ = run(tmp_path, n_ranks=1)
    assert of(trainer) == []
    assert not any("communication" in note for note in summary.notes)


def test_below_a_few_percent_the_family_is_frozen_and_it_is_said(tmp_path):
    summary, trainer, plan, _ = run(tmp_path, local=1 / (1 - SMALL_FRAC + 0.01))
    for spec in trainer.specs:
        assert (spec.params["bucket_cap_mb"], spec.params["nccl_socket"]) == (25, None)
    for knob in FAMILY:
        assert "communication is 2.0% of the step of your settings" in summary.frozen[knob]
        assert "no setting of it can gain more" in summary.frozen[knob]
    assert read_json(plan.run_dir.info, RunInfo).domain.keys() == {"torch_threads", "workers"}
    assert any("its settings are not searched" in note for note in summary.notes)
    assert summary.verdict.status == "gain", "the other knobs are searched"


def test_what_acts_under_compile_only_is_not_judged_by_an_eager_step(tmp_path):
    space = SpaceOfRanks({"compile": (False, "default"), "ddp_wrap": (None, "compiled_ddp")})
    summary, *_ = run(tmp_path, local=1.0, space=space)
    assert "bucket_cap_mb" in summary.frozen
    assert "ddp_wrap" not in summary.frozen


def test_above_it_is_searched_and_the_share_is_said(tmp_path):
    summary, trainer, *_ = run(tmp_path, local=1 / (1 - SMALL_FRAC - 0.01))
    assert {spec.params["bucket_cap_mb"] for spec in trainer.specs} == {25, 50}
    assert not summary.frozen.keys() & set(FAMILY)
    (note,) = [n for n in summary.notes if n.startswith("communication is 4.0% of the step")]
    assert "ms with" in note


def test_noise_that_makes_it_negative_is_no_negative_share(tmp_path):
    summary, *_ = run(tmp_path, local=0.98)
    assert "communication is 0.0%" in summary.frozen["bucket_cap_mb"]


def test_a_probe_that_fails_freezes_nothing(tmp_path):
    fails = lambda s: Outcome.CRASH if s.probe == "no_sync" else None  # noqa: E731
    summary, trainer, *_ = run(tmp_path, local=1.0, fails=fails)
    assert of(trainer) == ["no_sync", "one_rank"]
    assert not summary.frozen.keys() & set(FAMILY)
    assert any("was not measured: crash" in note for note in summary.notes)


def test_a_noisy_window_freezes_nothing(tmp_path):
    fails = lambda s: Outcome.UNSTABLE if s.probe == "no_sync" else None  # noqa: E731
    summary, *_ = run(tmp_path, local=1.0, fails=fails)
    assert not summary.frozen.keys() & set(FAMILY)
    assert any("too noisy" in note for note in summary.notes)


def test_their_share_of_the_budget_is_their_own(tmp_path):
    summary, trainer, plan, _ = run(tmp_path, budget_s=600.0)
    took_s = sum(r.took_s for r in read_past(plan.run_dir).results if r.probe in PROBES)
    assert 0 < took_s <= MOST_OF_BUDGET * 600
    fits_s = sum(r.took_s for r in read_past(plan.run_dir).results if r.probe == "certificate")
    ceilings_s = summary.ledger_s["probes"] - took_s - fits_s
    assert 0 < ceilings_s <= MOST_FOR_CEILINGS * 600
    summary, trainer, *_ = run(tmp_path / "short", budget_s=110.0)
    assert of(trainer) == []
    assert any("a longer --budget has the time for it" in note for note in summary.notes)


@pytest.mark.usefixtures("study_on_disk")
def test_a_resumed_search_keeps_what_was_frozen_and_probes_no_more(tmp_path):
    _, _, plan, _ = run(tmp_path, local=1.0)
    info = read_json(plan.run_dir.info, RunInfo)
    past = read_past(plan.run_dir)
    clock = FakeClock()
    again = make_plan(plan.run_dir.path, clock, space=SpaceOfRanks(), info=info, budget_s=9000.0, max_trials=2)
    trainer = Ranks(clock, local=1.5)
    summary = search(replace(again, past=past), trainer)
    assert of(trainer) == []
    assert "communication is 0.0%" in summary.frozen["bucket_cap_mb"]
    assert {spec.params["bucket_cap_mb"] for spec in trainer.specs} == {25}


NVLINK = """NCCL version 2.30.7+cuda13.3
h:1:2 [0] NCCL INFO ncclCommInitRank comm 0x1 rank 0 nranks 2 cudaDev 0 nvmlDev 0 busId 1b000 commId 0x5 - Init START
h:2:3 [1] NCCL INFO ncclCommInitRank comm 0x1 rank 1 nranks 2 cudaDev 1 nvmlDev 1 busId 43000 commId 0x5 - Init START
h:1:2 [0] NCCL INFO GPU/0-1b000 :GPU/0-1b000 (0/5000.0/LOC) GPU/0-43000 (2/200.0/NVL) 
h:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM
"""  # noqa: W291 - as NCCL writes it


def test_only_the_baseline_logs_and_on_nvlink_the_arithmetic_is_given(tmp_path):
    summary, trainer, plan, space = run(tmp_path, device="0,1", log=NVLINK, baseline_env=dict(LOGGING))
    assert [s.role for s in trainer.specs if s.env] == ["baseline"]
    assert trainer.specs[0].env == LOGGING
    assert space.transports[0] is None
    assert space.transports[1].pairs == {"0-1": "P2P/NVLink"}
    assert read_json(plan.run_dir.info, RunInfo).transport == space.transports[1]
    (note,) = [n for n in summary.notes if "NVLink" in n]
    # 2 (N-1)/N x 10 MiB / 200 GB/s = 0.0524 ms of a step of 16 images at 100 images/s.
    assert "all 2 ranks are joined by NVLink: settings of NCCL were not searched, as they cannot matter here" in note
    assert "2 x 1/2 x 10 MiB / 200 GB/s (in NCCL's model of this machine) = 0.052 ms" in note
    assert "your step took 160 ms: 0.03% of it" in note


def test_a_silent_log_is_named(tmp_path):
    summary, *_ = run(tmp_path, device="0,1")
    assert any("does not say over what NCCL's traffic goes" in n and "--assume-transport" in n for n in summary.notes)


def test_scaling_is_arithmetic_on_rates():
    results = {}
    for number, (rate, outcome) in enumerate(((100.0, Outcome.OK), (125.0, Outcome.OK), (40.0, Outcome.UNSTABLE))):
        results[number] = _result(rate, outcome)
    found = scaling_of(results[0], results[1], results[2], 4)
    assert found.exposed_frac == pytest.approx(0.2)
    assert found.efficiency == pytest.approx(100 / 160)
    assert (found.step_s, found.local_step_s) == (pytest.approx(0.64), pytest.approx(0.512))
    assert found.one_rank_step_s == pytest.approx(0.4)
    nothing = scaling_of(results[0], _result(1.0, Outcome.CRASH), None, 4)
    assert (nothing.exposed_frac, nothing.efficiency, nothing.local_step_s) == (None, None, None)
    assert all_reduce_s(8, 100, 100.0) == pytest.approx(2 * 7 / 8)
    assert all_reduce_s(1, 100, 100.0) == 0


def _result(rate, outcome):
    params = {"batch_per_gpu": 16}
    rated = {"images_per_s": rate} if outcome.measured else {}
    return TrialResult(number=0, role="baseline", outcome=outcome, params=params, started_s=0, took_s=1, **rated)


def test_one_rank_accumulates_as_often_as_several():
    args = {"batch": 64, "nbs": 128, "device": "0,1,2,3"}
    common = {"number": 0, "role": "probe", "backend": "b", "task": "detect", "params": {}, "changes": {}}
    spec = TrialSpec(**common, train_args=args, n_ranks=4, gpus=("a", "b", "c", "d"), probe="one_rank")
    alone = on_one_rank(spec)
    assert (alone.n_ranks, alone.gpus) == (1, ("a",))
    assert alone.train_args == {"batch": 16, "nbs": 32, "device": "0"}
    assert spec.train_args == args
