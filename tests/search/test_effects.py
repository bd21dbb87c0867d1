"""A configuration becomes numbers and comes back; what the formula says of its slopes is true."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.search.effects import RESOURCES, encode
from autotune.search.formula import EXCHANGE, LOADING, MEMORY, N_OWN, WHOLE, Formula, Setting

DOMAIN = {
    "batch_per_gpu": (4, 16, 64, 100),
    "workers": (0, 2, 8),
    "torch_threads": (1, 2, 4),
    "amp": (True, "bf16", False),
    "compile": (False, "default", "max-autotune"),
    "cache": (False, "ram", "disk"),
    "prefetch_factor": (None, 2, 4),
    "activation_memory_budget": (0.5, 1.0),
    "bucket_cap_mb": (None, 1, 16),
    "no_sync": (False, True),
    "ddp_wrap": (None, "ddp_of_compiled", "compiled_ddp"),
    "val_workers": (0, 4),
    "nobody_knows_it": ("a", "b", None),
}
BASELINE = {name: values[0] for name, values in DOMAIN.items()} | {"batch_per_gpu": 16}
EXCHANGING = frozenset({"bucket_cap_mb", "no_sync"})
VALUES = st.one_of(st.booleans(), st.none(), st.integers(0, 64), st.floats(0.1, 9.0), st.sampled_from(["1", "ram", ""]))
NAMES = st.sampled_from([*DOMAIN, "omp_num_threads", "pin_memory", "another"])


def distinct(values):
    return tuple({repr(v): v for v in values}.values())


@st.composite
def domains(draw):
    domain = draw(st.dictionaries(NAMES, st.lists(VALUES, min_size=1, max_size=4).map(distinct), min_size=1))
    baseline = {name: draw(st.one_of(st.sampled_from(values), VALUES)) for name, values in domain.items()}
    return domain, {name: value for name, value in baseline.items() if draw(st.booleans()) or value is not None}


@given(domains(), st.randoms(use_true_random=False))
def test_every_configuration_comes_back_as_it_was(given_, rng):
    domain, baseline = given_
    encoding = encode(domain, baseline, EXCHANGING)
    tried = [{name: rng.choice(values) for name, values in domain.items()} for _ in range(5)]
    back = [encoding.params(row) for row in encoding.rows(tried)]
    assert [[repr(v) for v in p.values()] for p in back] == [[repr(v) for v in p.values()] for p in tried]
    assert [list(p) for p in back] == [list(domain)] * 5


@given(domains())
def test_the_baseline_differs_from_itself_in_nothing(given_):
    domain, baseline = given_
    encoding = encode(domain, baseline, EXCHANGING)
    (row,) = encoding.rows([baseline])
    assert not row.any()
    assert all(not features.any() for features in encoding.features(row[None]).values())
    assert len(encoding.mean) == len(encoding.sd) == len(encoding.labels) == sum(map(len, encoding.columns.values()))
    assert (encoding.sd > 0).all(), "or nothing could be learned of it"


def test_true_one_and_its_spellings_are_different_values():
    values = (True, 1, "1", 1.0)
    encoding = encode({"odd": values}, {"odd": 1}, frozenset())
    rows = encoding.rows([{"odd": v} for v in values])
    assert len({int(row[0]) for row in rows}) == 4
    assert [repr(encoding.params(row)["odd"]) for row in rows] == ["True", "1", "'1'", "1.0"]
    features = encoding.features(rows)["compute"]
    assert len(np.unique(features, axis=0)) == 4, "an effect of its own for each"


def test_a_known_effect_is_not_taken_for_that_of_its_double():
    """channels_last=1 is not what is believed of channels_last=True."""
    encoding = encode({"channels_last": (False, True, 1)}, {"channels_last": False}, frozenset())
    believed = {(repr(v), r): m for (_, v, r), m in zip(encoding.labels, encoding.mean, strict=True)}
    assert believed["True", "compute"] < 0
    assert believed["1", "compute"] == 0


@pytest.mark.parametrize("value", [None, 3, "who knows"])
def test_what_the_domain_does_not_hold_counts_as_the_baseline(value):
    encoding = encode(DOMAIN, BASELINE, EXCHANGING)
    (row,) = encoding.rows([{**BASELINE, "workers": value}])
    assert not row.any()
    (missing,) = encoding.rows([{}])
    assert missing[encoding.names.index("workers")] == 0


def test_numbers_of_a_knob():
    encoding = encode({"workers": (0, 4, None), "amp": (True, "bf16")}, {"workers": 0, "amp": True}, frozenset())
    rows = encoding.rows([{"workers": 4}, {"workers": None}, {"workers": 0}])
    assert encoding.numbers(rows, "workers", 7.0).tolist() == [4.0, 7.0, 0.0]
    assert encoding.numbers(rows, "batch_per_gpu", 16.0).tolist() == [16.0] * 3


def test_only_several_ranks_have_what_acts_between_them():
    alone, together = (encode(DOMAIN, BASELINE, names) for names in (frozenset(), EXCHANGING))
    resources = {(name, r) for name, _, r in together.labels}
    assert ("no_sync", "exchange") in resources
    assert len(together.columns["exchange"]) > 0
    assert {name for name, _, _ in together.labels} == {name for name, _, _ in alone.labels}
    assert "val_workers" not in {name for name, _, _ in together.labels}, "it acts on none of these"


def all_rows(encoding, n=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, [len(v) for v in encoding.values], (n, len(encoding.values)))


def random_theta(encoding, rng):
    own = np.array(
        [math.log(2e-3), math.log(8), math.log(2), math.log(4e-3), 0.85, math.log(6), math.log(5e-3), 20, 18]
    )
    own = np.append(own, [0.2, math.log(0.02), math.log(0.45)]) + rng.normal(0, 0.3, N_OWN)
    return np.concatenate([own, encoding.mean + rng.normal(0, 0.3, len(encoding.mean))])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "setting",
    [
        Setting(),
        Setting(n_ranks=4, gradient_bytes=1e8),
        Setting(n_ranks=4),
        Setting(on_cpu=True, n_cores=4.0),
        Setting(n_ranks=2, on_cpu=True, n_cores=2.0, gradient_bytes=1e7),
    ],
    ids=["one GPU", "four GPUs", "gradients of unknown size", "CPU", "two ranks on a CPU"],
)
def test_slopes_are_those_of_the_outputs(setting, seed):
    exchanging = EXCHANGING if setting.n_ranks > 1 else frozenset()
    encoding = encode(DOMAIN, BASELINE, exchanging, on_cpu=setting.on_cpu)
    formula = Formula(encoding, setting)
    theta = random_theta(encoding, np.random.default_rng(seed))
    x = formula.see(all_rows(encoding, seed=seed))
    values, slopes = formula.slopes(theta, x)
    assert values == pytest.approx(formula.outputs(theta[None], x)[:, 0])
    assert slopes.shape == (len(values), x.n, len(theta))
    step = 1e-5
    for i in range(len(theta)):
        shift = step * np.eye(len(theta))[i]
        there = formula.outputs(np.array([theta - shift, theta + shift]), x)
        assert slopes[:, :, i] == pytest.approx((there[:, 1] - there[:, 0]) / (2 * step), rel=5e-3, abs=5e-3), i
    assert np.abs(slopes).max(axis=(0, 1)).min() >= 0
    moved = {i for i in range(len(theta)) if np.abs(slopes[:, :, i]).max() > 1e-6}
    acting = {i for i, label in enumerate(encoding.labels) if setting.n_ranks > 1 or label[2] != "hide"}
    assert {N_OWN + i for i in acting} <= moved, "every coefficient does something to some configuration"


def test_thousands_of_parameters_at_once_are_as_one_by_one():
    encoding = encode(DOMAIN, BASELINE, EXCHANGING)
    formula = Formula(encoding, Setting(n_ranks=4))
    rng = np.random.default_rng(1)
    thetas = np.array([random_theta(encoding, rng) for _ in range(4)])
    x = formula.see(all_rows(encoding))
    together = formula.outputs(thetas, x)
    assert together.shape == (5, 4, x.n)
    for i, theta in enumerate(thetas):
        assert together[:, i] == pytest.approx(formula.outputs(theta[None], x)[:, 0])


def test_what_the_formula_says_of_a_machine():
    """The longer of loader and step decides; without workers the one waits for the other; ranks exchange."""
    encoding = encode(DOMAIN, BASELINE, EXCHANGING)
    theta = random_theta(encoding, np.random.default_rng(2))
    tried = [{**BASELINE, "workers": w, "batch_per_gpu": b} for b in (16, 64) for w in (0, 2, 8)]
    one, four = (
        Formula(encoding, Setting(n_ranks=n)).outputs(
            theta[None], Formula(encoding, Setting()).see(encoding.rows(tried))
        )
        for n in (1, 4)
    )
    step, computing, loading = (np.exp(one[i, 0]) for i in (0, 1, 2))
    assert step[[0, 3]] == pytest.approx((computing + loading)[[0, 3]]), "no workers: one after the other"
    for i in (1, 2, 4, 5):
        assert max(computing[i], loading[i]) <= step[i] <= computing[i] + loading[i]
    assert loading[1] > loading[2], "more workers"
    assert np.exp(four[1, 0]) == pytest.approx(computing + np.exp(four[EXCHANGE, 0])), (
        "with ranks what is exposed comes on top"
    )
    bytes_ = np.exp(one[MEMORY, 0])
    assert bytes_[3] - bytes_[0] == pytest.approx(48 * (bytes_[0] - math.exp(theta[7])) / 16), "affine in the batch"
    assert one[LOADING, 0][3] - one[LOADING, 0][0] == pytest.approx(math.log(4))
    assert one[WHOLE, 0][3] > one[WHOLE, 0][0]


def exposed(tried, *, gradient_bytes=2e8, exchange_s=0.2, latency=0.02):
    """(exposed exchange, computing) in seconds on four ranks, with no effects of settings but those of the formula."""
    encoding = encode(DOMAIN, BASELINE, EXCHANGING)
    formula = Formula(encoding, Setting(n_ranks=4, gradient_bytes=gradient_bytes))
    hidden = [m if r == "hide" else 0.0 for m, (_, _, r) in zip(encoding.mean, encoding.labels, strict=True)]
    own = [math.log(2e-3), math.log(8), math.log(2), -9.0, 0.85, math.log(6), math.log(exchange_s), 20, 18, 0.0]
    theta = np.array([*own, math.log(latency), math.log(0.6), *hidden])
    x = formula.see(encoding.rows([{**BASELINE, **params} for params in tried]))
    out = formula.outputs(theta[None], x)[:, 0]
    return np.exp(out[EXCHANGE]), np.exp(out[1]) - np.exp(out[EXCHANGE])


def test_a_longer_step_hides_more_of_the_exchange_but_never_its_last_bucket():
    seen, computing = exposed([{"batch_per_gpu": b} for b in (4, 16, 64, 100)])
    assert (np.diff(seen) < 0).all()
    last = 0.2 * (25 * 2**20 / 2e8 + 0.02)
    assert seen[-1] > last
    everything = 0.2 * (1 + 8 * 0.02)
    assert seen[0] == pytest.approx(everything - 0.6 * computing[0], rel=0.02), "all but what the backward pass hides"


def test_a_small_bucket_leaves_less_to_the_end_and_pays_more_latency():
    sizes = [{"bucket_cap_mb": mb, "batch_per_gpu": 100} for mb in (1, 16, None)]
    quick, _ = exposed(sizes, exchange_s=0.08, latency=1e-4)
    assert quick[0] < quick[1] < quick[2]
    slow, _ = exposed(sizes, latency=0.05)
    assert slow[0] > slow[1], "two hundred times the latency"
    unknown, _ = exposed(sizes, gradient_bytes=None)
    assert np.ptp(unknown) == 0.0, "of gradients of unknown size it says nothing"
    tiny, _ = exposed(sizes, gradient_bytes=1e5)
    assert np.ptp(tiny) == 0.0, "one bucket holds them all"


def test_a_compiled_graph_hides_less_unless_it_is_cut_where_buckets_end():
    plain, cut, whole = exposed([{"ddp_wrap": w} for w in (None, "compiled_ddp", "ddp_of_compiled")])[0]
    assert plain == cut < whole


def test_loaders_beside_a_gpu_hardly_touch_its_step():
    def doubt(*, on_cpu):
        encoding = encode(DOMAIN, BASELINE, frozenset(), on_cpu=on_cpu)
        return {
            (n, r): sd for sd, (n, _, r) in zip(encoding.sd, encoding.labels, strict=True) if n in ("workers", "cache")
        }

    beside, shared = doubt(on_cpu=False), doubt(on_cpu=True)
    for knob in ("workers", "cache"):
        assert beside[knob, "compute"] < shared[knob, "compute"]
        assert beside[knob, "data"] == shared[knob, "data"]


def test_loaders_and_step_share_the_cores_of_a_cpu():
    encoding = encode(DOMAIN, BASELINE, frozenset())
    rows = encoding.rows([{**BASELINE, "torch_threads": t, "workers": w} for t, w in ((1, 0), (4, 0), (4, 8))])
    busy = Formula(encoding, Setting(on_cpu=True, n_cores=4.0)).see(rows).busy
    assert busy.tolist() == [0.0, 0.0, 2.0]
    assert not Formula(encoding, Setting(n_cores=4.0)).see(rows).busy.any(), "a GPU does not mind"


def test_resources_are_all_there():
    encoding = encode(DOMAIN, BASELINE, EXCHANGING, on_cpu=True)
    assert {r for _, _, r in encoding.labels} == set(RESOURCES)
    beside_a_gpu = encode(DOMAIN, BASELINE, EXCHANGING)
    assert {r for _, _, r in beside_a_gpu.labels} == set(RESOURCES) - {"kept"}, "a GPU does not keep the host's images"
