"""Studies of the structured strategy on a fake job that says what real trials say."""

from dataclasses import replace

from search_world import BASELINE, DOMAIN, N_IMAGES, FakeClock, FakeSpace, FakeTrainer, make_info, make_plan

from autotune.machine.memory import MemoryLimit
from autotune.search.in_memory import study_in_memory
from autotune.search.situation import situation_of

GIB = 2**30
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
LARGE = {**DOMAIN, "batch_per_gpu": BATCHES, "amp": (True, False), "compile": (False, "default", "max-autotune"),
         "prefetch_factor": (2, 4, 8, 16), "cache": (False, "ram", "disk")}  # fmt: skip
"""More combinations than are listed."""
LISTED = {**DOMAIN, "batch_per_gpu": BATCHES, "amp": (True, False)}
FREE = {"budget_s": 1e6}


class WideSpace(FakeSpace):
    """A space of any knobs; the user's own settings are each knob's first value."""

    def __init__(self, domain, seeds=(), baseline=None):
        super().__init__(domain, seeds)
        self.first = {name: values[0] for name, values in domain.items()} | (baseline or {})

    def prepare(self, effective, n_images, train_args=None, transport=None):
        prepared = super().prepare(effective, n_images, train_args, transport)
        self.baseline = {**prepared.baseline, **self.first}
        return replace(prepared, domain=dict(self.domain), baseline=dict(self.baseline))

    def materialise(self, params):
        return replace(super().materialise({k: v for k, v in params.items() if k in BASELINE}), env={})


class Trainer(FakeTrainer):
    """With what a real trial says of its step, and Joules; `waits(params)` is the share of waiting."""

    def __init__(self, clock, *, waits=lambda params: 0.001, watts=lambda params: 100.0, **kwargs):
        super().__init__(clock, **kwargs)
        self.waits, self.watts = waits, watts

    def __call__(self, spec, directory, **kwargs):
        result = super().__call__(spec, directory, **kwargs)
        if not result.images_per_s:
            return result
        result = replace(result, job={**result.job, "n_images": 100 * N_IMAGES})  # hours: no trial is too dear for it
        joules = self.watts(spec.params) / result.images_per_s
        return replace(result, wait_frac=self.waits(spec.params), energy_j_per_image=joules)


def studied(tmp_path, n_trials, *, strategy="structured", domain=None, space=None, objective="job_time", seed=0,
            limit_bytes=None, seen=None, **trainer):  # fmt: skip
    """A session of so many trials."""
    clock = FakeClock()
    info = make_info(strategy=strategy, objective=objective, seed=seed, **FREE)
    space = space or FakeSpace(LARGE if domain is None else domain)
    memory = MemoryLimit(per_rank_bytes=limit_bytes)
    plan = make_plan(tmp_path / "none", clock, space=space, info=info, max_trials=n_trials, memory=memory, **FREE)
    answer = Trainer(clock, **trainer)
    session = study_in_memory(replace(plan, run_dir=None), answer, [seen.append] if seen is not None else [])
    assert not list((tmp_path / "none").iterdir())
    return session


def trials(session):
    return [r for r in session.ran if r.result.role == "trial"]


def needs(params):
    """Bytes: half a gigabyte and 100 MB an image, twice that without amp."""
    return int(0.5 * GIB + params["batch_per_gpu"] * (0.2 if params["amp"] is False else 0.1) * GIB)


def at(session, n):
    """The situation after n trials."""
    ends = [i for i, r in enumerate(session.ran) if r.result.role == "trial"]
    return replace(situation_of(session), ran=session.ran[: ends[n - 1] + 1])
