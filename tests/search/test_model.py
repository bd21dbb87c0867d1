"""Does the surrogate find out what a machine is like, and does it know how far it may be believed?"""

import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from autotune.search.effects import encode
from autotune.search.formula import N_OWN, Formula, Setting, V
from autotune.search.least_squares import maximise
from autotune.search.model import Surrogate
from autotune.search.observations import Observation

GIB = 2**30
DOMAIN = {
    "batch_per_gpu": (4, 8, 16, 32, 64),
    "workers": (0, 2, 4, 8),
    "amp": (True, False),
    "compile": (False, "default"),
    "channels_last": (False, True),
    "cudnn_benchmark": (False, True),
    "cache": (False, "ram", "disk"),
    "log_every": (1, 10, 50),
    "nobody_knows_it": ("a", "b", "c"),
}
BASELINE = {name: values[0] for name, values in DOMAIN.items()} | {"batch_per_gpu": 16, "workers": 4}
RANKS = {1: frozenset(), 4: frozenset({"nobody_knows_it"})}


class FormulaWorld:
    """A machine that is exactly what the formula says, but for noise, and for what `broken` adds."""

    def __init__(self, seed, *, n_ranks=1, noise=0.02, broken=0.0, image_bytes=GIB // 8):
        self.rng = np.random.default_rng(seed)
        self.encoding = encode(DOMAIN, BASELINE, RANKS[n_ranks])
        self.setting = Setting(n_ranks=n_ranks, n_cores=8.0, limit_bytes=64 * GIB)
        self.formula = Formula(self.encoding, replace(self.setting, batch=16.0, workers=4.0))
        own = [4e-3, 8.0, 2.0, 8e-3, math.exp(0.85), 6.0, 0.02, 2 * GIB, image_bytes, math.exp(0.2), 0.02, 0.45]
        effects = self.encoding.mean + 0.7 * self.encoding.sd * self.rng.standard_normal(len(self.encoding.mean))
        self.theta = np.concatenate([np.log(own), effects])
        self.noise, self.broken, self.seed = noise, broken, seed

    def draw(self, n):
        rows = self.rng.integers(0, [len(v) for v in self.encoding.values], (n, len(self.encoding.values)))
        return [self.encoding.params(row) for row in np.unique(rows, axis=0)]

    def outputs(self, configurations):
        x = self.formula.see(self.encoding.rows(configurations))
        return self.formula.outputs(self.theta[None], x)[:, 0], x

    def truth(self, configurations):
        """Log seconds per image."""
        out, x = self.outputs(configurations)
        odd = [np.random.default_rng(zlib.crc32(repr((p, self.seed)).encode())).normal() for p in configurations]
        return out[0] - x.log_batch - math.log(self.setting.n_ranks) + self.broken * np.array(odd)

    def observe(self, configurations):
        out, _ = self.outputs(configurations)
        y = self.truth(configurations) + self.noise * self.rng.standard_normal(len(configurations))
        wait = 1 - np.exp(out[1] - out[0])
        share = np.exp(out[4] - out[0]) if self.setting.n_ranks > 1 else [None] * len(y)
        return [
            Observation(params=p, image_s=math.exp(v), wait_frac=w, mem_bytes=math.exp(m), exchange_frac=e)
            for p, v, w, m, e in zip(configurations, y, wait, out[3], share, strict=True)
        ]

    def fitted(self, n, *, extra=()):
        seen = self.observe([BASELINE, *self.draw(n - 1)])
        return Surrogate(self.encoding, self.setting, [*seen, *extra])


@pytest.mark.parametrize("n_ranks", [1, 4])
def test_recovers_a_world_that_is_as_the_formula_says(n_ranks):
    errors, z, memory, spread = [], [], [], []
    for seed in range(4):
        world = FormulaWorld(seed, n_ranks=n_ranks)
        model = world.fitted(30)
        held_out = world.draw(200)
        truth, forecast = world.truth(held_out), model.forecast(held_out)
        errors.append(np.sqrt(np.mean((truth - forecast.log_image_s) ** 2)))
        z.append(np.mean(((truth - forecast.log_image_s) / forecast.sd) ** 2))
        memory.append(np.abs(world.outputs(held_out)[0][3] - forecast.log_mem_bytes).mean())
        spread.append(truth.std())
        assert model.knows_memory
    assert np.mean(errors) < 0.08, errors
    assert np.mean(errors) < 0.2 * np.mean(spread), "the prior alone does not do that"
    assert 0.2 < np.mean(z) < 2.5, "its intervals are as wide as it is wrong"
    assert np.mean(memory) < 0.03


def test_more_trials_leave_less_open():
    world = FormulaWorld(5)
    few, many = world.fitted(6), world.fitted(40)
    held_out = world.draw(100)
    error = [np.abs(m.forecast(held_out).log_image_s - world.truth(held_out)).mean() for m in (few, many)]
    assert error[1] < error[0]
    assert many.forecast(held_out).sd.mean() < 0.7 * few.forecast(held_out).sd.mean()


def test_an_oom_raises_what_is_expected_of_memory_to_the_limit():
    """The peaks that were seen, all with amp, promise that it fits without as well; it does not."""
    world = FormulaWorld(2, image_bytes=GIB // 4)
    seen = world.observe([{**BASELINE, "batch_per_gpu": b} for b in (16, 8, 32)])
    big = {**BASELINE, "batch_per_gpu": 64, "amp": False}
    expected = Surrogate(world.encoding, world.setting, seen).forecast([big]).log_mem_bytes[0]
    setting = replace(world.setting, limit_bytes=math.exp(expected + 0.25))
    before = Surrogate(world.encoding, setting, seen).forecast([big])
    assert before.log_mem_bytes[0] == pytest.approx(expected, abs=0.01)
    lost = [*seen, Observation(params=big, oom=True)]
    after = Surrogate(world.encoding, setting, lost).forecast([big, {**big, "batch_per_gpu": 32}])
    assert after.log_mem_bytes[0] > math.log(0.98 * setting.limit_bytes)
    assert after.log_mem_bytes[1] < after.log_mem_bytes[0] - 0.3, "half of it may still fit"
    unlimited = Surrogate(world.encoding, replace(setting, limit_bytes=None), lost).forecast([big])
    assert unlimited.log_mem_bytes[0] == pytest.approx(expected, abs=0.01), "where no limit is known it says nothing"


def test_images_kept_in_memory_are_the_jobs_own_on_a_cpu():
    """One OOM with cache=ram says what the images need: the same batch fits without them, and no more with them."""
    domain = {"batch_per_gpu": (16, 32, 64), "cache": (False, "ram", "disk"), "channels_last": (False, True)}
    base = {name: values[0] for name, values in domain.items()}
    setting = Setting(on_cpu=True, n_cores=2.0, limit_bytes=6 * GIB)
    fits = [(16, False, 1.8), (32, False, 3.0), (64, "disk", 5.4)]
    seen = [
        Observation(params={**base, "batch_per_gpu": b, "cache": c}, image_s=0.1, mem_bytes=g * GIB) for b, c, g in fits
    ]
    ram = {**base, "batch_per_gpu": 64, "cache": "ram"}
    asked = [ram, {**ram, "channels_last": True}, {**ram, "cache": "disk", "channels_last": True}]

    def forecast(*, on_cpu, extra=()):
        model = Surrogate(encode(domain, base, frozenset(), on_cpu=on_cpu), setting, [*seen, *extra])
        found = model.forecast(asked)
        return norm.cdf((math.log(6 * GIB) - found.log_mem_bytes) / found.mem_sd)

    lost = Observation(params=ram, oom=True)
    assert forecast(on_cpu=True)[0] < 0.9, "it is not launched"
    after = forecast(on_cpu=True, extra=[lost])
    assert (after[:2] < 0.5).all()
    assert after[2] > 0.9
    assert forecast(on_cpu=False)[0] > 0.9, "on a GPU the host keeps them"


def test_one_outlier_moves_it_little():
    world = FormulaWorld(3)
    seen = world.observe([BASELINE, *world.draw(24)])
    odd = [*seen[:-1], replace(seen[-1], image_s=3 * (seen[-1].image_s or 1.0))]
    held_out = world.draw(200)
    sane, moved = (Surrogate(world.encoding, world.setting, s).forecast(held_out).log_image_s for s in (seen, odd))
    assert np.median(np.abs(moved - sane)) < 0.1 * math.log(3)


def test_its_misfit_grows_where_the_truth_is_no_formula():
    off = {}
    for broken in (0.0, 0.2):
        models = [FormulaWorld(seed, broken=broken).fitted(40) for seed in range(3)]
        off[broken] = np.mean([m.misfit_frac for m in models])
        sd = np.mean([m.forecast(m.encoding and [BASELINE | {"batch_per_gpu": 64}]).sd for m in models])
        off[broken, "sd"] = sd
    assert off[0.2] > 2 * off[0.0]
    assert off[0.2, "sd"] > 2 * off[0.0, "sd"], "and so do its intervals"


def reversed_world(seed, **kwargs):
    """All that is believed of settings is wrong: three times as strong, and the other way."""
    world = FormulaWorld(seed, **kwargs)
    world.theta[N_OWN:] = -3 * world.encoding.mean
    return world


def test_the_parameters_are_fitted_with_the_doubt_that_is_used():
    """Fitting them changes what is likeliest of the doubt, and that the fit."""
    world = reversed_world(3, broken=0.03)
    model = world.fitted(20)
    held_out = world.draw(200)
    assert np.sqrt(np.mean((world.truth(held_out) - model.forecast(held_out).log_image_s) ** 2)) < 0.1


def test_where_beliefs_prove_wrong_the_others_are_doubted_too():
    world = reversed_world(0)
    configurations = [p for p in world.draw(40) if p["nobody_knows_it"] != "c"][:16]
    model = Surrogate(world.encoding, world.setting, world.observe([BASELINE, *configurations]))
    assert model.wider > 1.0
    untried = N_OWN + world.encoding.labels.index(("nobody_knows_it", "c", "compute"))
    drawn = model.draw(np.random.default_rng(0), 400)[:, untried]
    assert drawn.std() > 1.4 * world.encoding.sd[untried - N_OWN]


@pytest.mark.parametrize("seed", range(3))
def test_where_folklore_is_reversed_it_is_dropped(seed):
    """But not what is believed of memory, of which seconds say nothing."""
    assert FormulaWorld(seed).fitted(16).trust == 1.0
    world = FormulaWorld(seed)
    world.theta[N_OWN:] = -world.encoding.mean
    model = world.fitted(16)
    assert model.trust == 0.0
    for i, (name, value, resource) in enumerate(world.encoding.labels):
        mean = model._mean_of(0.0)[N_OWN + i]
        assert mean == (world.encoding.mean[i] if resource in ("memory", "kept") else 0.0), (name, value, resource)


def test_a_setting_that_runs_the_same_kernels_leaves_less_open():
    world = FormulaWorld(4, broken=0.2)
    model = world.fitted(40)
    here = {**BASELINE, "batch_per_gpu": 64}
    rows = model.encoding.rows([{**here, "log_every": 50}, {**here, "compile": "default"}])
    sd = model.against(model.encoding.rows([here])[0], rows, model.theta[None])[2]
    assert sd[0] < 0.7 * sd[1]


def test_a_job_that_is_compiled_hides_less_of_its_exchange():
    domain = {"batch_per_gpu": (8, 16), "compile": (False, "default"), "no_sync": (False, True)}
    base = {name: values[0] for name, values in domain.items()}
    whole, cut = {**base, "compile": "default"}, {**base, "compile": "default", "ddp_wrap": "compiled_ddp"}
    setting = Setting(n_ranks=4, gradient_bytes=1e8)

    def hidden(params):
        seen = [Observation(params=params, image_s=0.01, noise_frac=10.0)]
        return Surrogate(encode(domain, params, RANKS[4]), setting, seen).theta[V]

    assert hidden(whole) < hidden(base) - 1
    assert hidden(cut) == pytest.approx(hidden(base), abs=0.1)
    labels = {(n, r) for n, v, r in encode(domain, base, RANKS[4]).labels if v == "default"}
    assert ("compile", "hide") in labels, "where the order of wrapping is not searched"
    searched = {**domain, "ddp_wrap": (None, "ddp_of_compiled", "compiled_ddp")}
    assert {n for n, _, r in encode(searched, base, RANKS[4]).labels if r == "hide"} == {"ddp_wrap"}
    assert "hide" not in {r for _, _, r in encode(domain, base, frozenset()).labels}, "one rank exchanges nothing"


def test_what_was_measured_is_believed_more_than_the_formula():
    world = FormulaWorld(4, broken=0.2)
    configurations = [BASELINE, *world.draw(39)]
    model = Surrogate(world.encoding, world.setting, world.observe(configurations))
    x = world.encoding.rows(configurations)
    formula = model.by_formula(model.theta[None], x)[0][0]
    truth = world.truth(configurations)
    by_all = np.abs(model.forecast(configurations).log_image_s - truth).mean()
    assert by_all < 0.7 * np.abs(formula - truth).mean()


def test_samples_of_the_parameters_are_as_uncertain_as_the_fit():
    model = FormulaWorld(6).fitted(20)
    thetas = model.draw(np.random.default_rng(0), 400)
    held_out = FormulaWorld(6).draw(50)
    drawn = model.by_formula(thetas, model.encoding.rows(held_out))[0]
    spread, said = drawn.std(axis=0), model.forecast(held_out).sd
    assert thetas.shape == (400, N_OWN + len(model.encoding.mean))
    assert 0.3 < np.median(spread / said) < 1.5


def test_nothing_measured_is_no_model():
    world = FormulaWorld(0)
    with pytest.raises(ValueError, match="nothing was measured"):
        Surrogate(world.encoding, world.setting, [Observation(params=BASELINE, oom=True)])


def test_one_trial_is_enough_to_begin_with():
    world = FormulaWorld(0)
    (only,) = world.observe([BASELINE])
    model = Surrogate(world.encoding, world.setting, [only])
    forecast = model.forecast([BASELINE, *world.draw(20)])
    assert forecast.log_image_s[0] == pytest.approx(math.log(only.image_s), abs=0.1)
    assert (forecast.sd[1:] > 1.5 * forecast.sd[0]).all(), "of the others it knows less"
    assert np.isfinite(forecast.log_mem_bytes).all()


def test_no_sample_contradicts_what_was_measured():
    """Nobody has waited for the loader: it may be fast or very fast, but not so slow that they would have waited."""
    world = FormulaWorld(1)
    world.theta[3] = math.log(1e-5)
    tried = [{**BASELINE, "batch_per_gpu": b, "amp": a} for b in (4, 8, 16, 32, 64) for a in (True, False)]
    seen = world.observe(tried)
    assert max(o.wait_frac for o in seen) < 0.01
    model = Surrogate(world.encoding, world.setting, seen)
    rows = model.encoding.rows(tried)
    thetas = model.draw(np.random.default_rng(0), 200)
    fitted, drawn = (model.by_formula(t, rows)[0] for t in (model.theta[None], thetas))
    assert np.quantile(np.abs(drawn - fitted).max(axis=1), 0.9) < 0.15
    assert thetas[:, 3].std() > 0.3, "and how fast it is stays open"


def test_a_difference_is_surer_than_its_two_sides():
    """What is not known of the whole machine is no reason to expect anything of a small change."""
    world = FormulaWorld(7)
    model = world.fitted(12)
    here = {**BASELINE, "batch_per_gpu": 64, "amp": False, "compile": "default", "cache": "ram"}
    there = [{**here, "log_every": 50}, {**here, "amp": True}]
    one, rows = model.encoding.rows([here])[0], model.encoding.rows(there)
    thetas = model.draw(np.random.default_rng(0), 200)
    base, others, sd = model.against(one, rows, thetas)
    assert base.shape == (200, 1)
    assert others.shape == (200, 2)
    spread = np.hypot((others - base).std(axis=0), sd)
    assert spread[0] < 0.5 * model.forecast([here]).sd[0]
    assert spread[0] < 0.5 * spread[1]
    assert (others.mean(axis=0) - base.mean()) == pytest.approx(
        model.forecast(there).log_image_s - model.forecast([here]).log_image_s, abs=0.05
    )
    assert model.against(one, model.encoding.rows([here]), thetas)[2] == pytest.approx([0.0], abs=1e-3)


def test_maximise_is_the_ridge_where_the_model_is_a_line():
    """With small residuals and a line, the maximum has a closed form: (X'X + S)^-1 (X'y + S m)."""
    rng = np.random.default_rng(0)
    x, mean, sd = rng.normal(size=(30, 4)), np.array([1.0, 0.0, -1.0, 2.0]), np.array([0.5, 1.0, 2.0, 0.1])
    y = x @ np.array([1.2, -0.5, 0.3, 2.0]) + rng.normal(0, 0.5, 30)
    theta, covariance = maximise(lambda t: (x @ t - y, x), mean, sd, np.zeros(4))
    precision = np.diag(1 / sd**2)
    inverse = np.linalg.inv(x.T @ x + precision)
    assert theta == pytest.approx(inverse @ (x.T @ y + precision @ mean), abs=1e-3)
    assert covariance == pytest.approx(inverse, rel=1e-6)


def test_maximise_follows_a_gross_outlier_only_so_far():
    """Thirty measurements of one number, and one that is a hundred deviations off: the mean would move by three."""
    y = np.append(np.random.default_rng(0).normal(0, 1, 30), 100.0)
    ones = np.ones((31, 1))
    theta, _ = maximise(lambda t: (t - y, ones), np.zeros(1), np.array([100.0]), np.zeros(1))
    assert abs(theta[0] - y[:-1].mean()) < 0.3
    assert theta[0] > y[:-1].mean(), "it is not thrown away either"
