from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.space.config import canonical
from autotune.space.knobs import KNOBS
from autotune.space.space import Choices, Range, SearchSpace, dump_space, list_spaces, load_space, prepare

BAD = """\
name: bad
docs: what
knobs:
  batch_per_gpu: {choices: [8]}
  workers: {low: 8, high: 2}
  cach: {choices: [false, ram]}
  amp: {choices: [true, fp8]}
  prefetch_factor: {choices: []}
  compile: [false, default]
  torch_threads: {low: 1, high: 1e1, stepp: 2}
  deterministic: {low: 0, high: 1}
  alloc_conf: {choices: [null, "max_split_size_mb:5", [1]]}
  omp_num_threads: {choices: [1, 2, 2]}
  cudnn_benchmark: {choices: [off, 1]}
  nccl_socket: {choices: [4x4, 16x16]}
  workers: {low: 1, high: 4}
budget: 2h
seeds:
  - {batch_per_gpu: 8, workrs: 3}
  - {torch_threads: 2, channels_last: true}
  - {amp: bf16}
"""
FAULTS = """\
FILE:1: doc: is missing
FILE:2: docs: no such key; did you mean 'doc'?
FILE:4: knobs.batch_per_gpu.choices: needs at least 2 values, not 1
FILE:6: knobs.cach: no such knob; did you mean 'cache'?
FILE:7: knobs.amp.choices[1]: must be one of true, false, fp16, bf16, fp32, not 'fp8'
FILE:8: knobs.prefetch_factor.choices: needs at least 2 values, not 0
FILE:9: knobs.compile: must be {choices: [a, b]} or {low: 1, high: 16}
FILE:10: knobs.torch_threads.high: must be a whole number, not 10.0
FILE:10: knobs.torch_threads.stepp: no such key; did you mean 'step'?
FILE:11: knobs.deterministic: takes choices, not a range
FILE:12: knobs.alloc_conf.choices[1]: max_split_size_mb must be a whole number of at least 20, not 'max_split_size_mb:5'
FILE:12: knobs.alloc_conf.choices[2]: must be a single value, not a list
FILE:13: knobs.omp_num_threads.choices[2]: 2 stands there twice
FILE:14: knobs.cudnn_benchmark.choices[1]: must be one of true, false, not 1
FILE:15: knobs.nccl_socket.choices[1]: NCCL_SOCKET_NTHREADS x NCCL_NSOCKS_PERTHREAD must be 1 to 64, not '16x16'
FILE:16: knobs.workers: is given twice, first in line 5
FILE:17: budget: no such key
FILE:19: seeds[0].workrs: no such knob; did you mean 'workers'?
FILE:20: seeds[1].channels_last: is not among this space's knobs
FILE:21: seeds[2].amp: 'bf16' is not among the values of the knob"""


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my space ä.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_all_faults_at_once(tmp_path):
    path = _write(tmp_path, BAD)
    with pytest.raises(InputError) as e:
        load_space(str(path))
    assert e.value.message.replace(str(path), "FILE") == FAULTS
    assert e.value.hint
    assert e.value.exit_code == 2


@pytest.mark.parametrize(
    ("knob", "fault"),
    [
        ("workers: {low: 8, high: 2}", ":4: knobs.workers: low (8) must be below high (2)"),
        ("workers: {low: 2, high: 8, step: 0}", ":4: knobs.workers.step: must be at least 1, not 0"),
        ("workers: {low: 0, high: 8, log: true}", ":4: knobs.workers: log needs low to be at least 1"),
        ("workers: {low: -1, high: 8}", ":4: knobs.workers.low: must be a whole number of at least 0, not -1"),
        ("workers: {low: 1e-3, high: 8}", ":4: knobs.workers.low: must be a whole number, not 0.001"),
        ("workers: {low: 1}", ":4: knobs.workers.high: is missing"),
        ("workers: 8", ":4: knobs.workers: must be {choices: [a, b]} or {low: 1, high: 16}"),
        ("workers: {choices: 8}", ":4: knobs.workers.choices: must be a list, not 8"),
        ("workers: {choices: [1, 2], low: 3}", ":4: knobs.workers.low: no such key"),
        ("1: {choices: [1, 2]}", ":4: knobs[1]: no such knob"),
    ],
)
def test_one_fault(tmp_path, knob, fault):
    path = _write(tmp_path, f"name: x\ndoc: y\nknobs:\n  {knob}\n")
    with pytest.raises(InputError) as e:
        load_space(str(path))
    assert e.value.message.splitlines()[0] == f"{path}{fault}"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name: x\nknobs: {a: [1, 2\ndoc: y\n", ":3: not YAML: "),
        ("name: x\n\tdoc: y\n", ":2: not YAML: "),
        ("a: b: c", ":1: not YAML: "),
        ("just words", ":1: must be a mapping with name, doc and knobs"),
        ("", ":1: must be a mapping with name, doc and knobs"),
        ("- 1", ":1: must be a mapping with name, doc and knobs"),
        ("name: x\ndoc: y\nknobs:\n", ":3: knobs: must be a mapping, not null"),
        ("name: x\ndoc: y\nknobs: {}\n", ":3: knobs: needs at least 1 value, not 0"),
        ("name: 5\ndoc: y\nknobs: {workers: {low: 1, high: 2}}\n", ":1: name: must be a text, not 5"),
        ("a: &a [*a]\nname: x", ":1: a: no such key"),
        ("name: \x07", ": not YAML: "),
    ],
)
def test_not_a_space(tmp_path, text, fault):
    path = _write(tmp_path, text)
    with pytest.raises(InputError) as e:
        load_space(str(path))
    assert str(path) + fault in e.value.message


def test_not_even_text(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(InputError, match="not YAML"):
        load_space(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        load_space(str(tmp_path))


def test_yaml_1_1_traps(tmp_path):
    path = _write(
        tmp_path,
        "name: x\ndoc: y\nknobs:\n  cache: {choices: [off, ram]}\n  compile: {choices: [no, default]}\n"
        "  workers: {choices: [01, 2]}\n",
    )
    space = load_space(str(path))
    assert space.knobs["cache"] == Choices((False, "ram"))
    assert space.knobs["compile"] == Choices((False, "default"))
    assert space.knobs["workers"] == Choices((1, 2))


def test_unknown_name():
    with pytest.raises(InputError, match="did you mean 'quick'") as e:
        load_space("quik")
    assert e.value.hint == "spaces: cpu, ddp, default, full, loader, quick"


def test_the_spaces_that_come_with_autotune(context):
    docs = list_spaces()
    assert set(docs) == {"quick", "default", "full", "loader", "cpu", "ddp"}
    assert all(docs.values())
    for name in docs:
        space = load_space(name)
        assert space.name == name
        assert space.seeds
        assert space.knobs
    assert set(load_space("full").knobs) == set(KNOBS)
    cpu = prepare(load_space("cpu"), context("cpu"), "same")
    assert set(cpu.domain) == set(load_space("cpu").knobs)
    assert "compile" not in cpu.domain
    assert len(load_space("quick").knobs) == 5


@pytest.mark.parametrize("name", ["quick", "default", "full", "loader", "cpu", "ddp"])
def test_dump_and_load(name, tmp_path):
    space = load_space(name)
    again = load_space(str(_write(tmp_path, dump_space(space))))
    assert (again.name, again.doc, again.knobs, again.seeds) == (space.name, space.doc, space.knobs, space.seeds)
    assert list(again.knobs) == list(space.knobs)


def test_dump_of_an_awkward_space(tmp_path):
    space = SearchSpace(
        name="1e3", doc="a: b # c", knobs={"workers": Range(1, 9, 2), "torch_threads": Range(1, 64, log=True)}
    )
    again = load_space(str(_write(tmp_path, dump_space(space))))
    assert (again.name, again.doc, again.knobs, again.seeds) == ("1e3", "a: b # c", space.knobs, ())


@given(st.integers(1, 50), st.integers(1, 5000), st.integers(1, 7), st.booleans())
def test_ranges_are_thinned_and_keep_their_ends(low, width, step, log):
    values = Range(low, low + width, 1 if log else step, log).values()
    assert 1 <= len(values) <= 64
    assert list(values) == sorted(set(values))
    assert values[0] == low
    assert values[-1] == (low + width if log else range(low, low + width + 1, step)[-1])


def _space(*seeds, **knobs):
    return SearchSpace(name="x", doc="y", knobs={k: Choices(tuple(v)) for k, v in knobs.items()}, seeds=seeds)


def test_batches_that_change_the_training_are_dropped(context):
    space = _space(batch_per_gpu=[8, 24, 64, 128, 256])
    assert prepare(space, context(), "same").domain == {"batch_per_gpu": (8, 16, 64)}
    assert prepare(space, context(), "bounded").domain == {"batch_per_gpu": (8, 16, 24, 64, 128)}
    done = prepare(space, context(n_images=100), "any")
    assert done.domain == {"batch_per_gpu": (8, 16, 24, 64)}
    assert done.frozen == {"batch_per_gpu=128,256": "the training set has images for a batch of 100"}
    two = prepare(space, context("cuda", n_ranks=2, args={"batch": 32}), "same")  # totals: 16, 48, 128
    assert two.domain == {"batch_per_gpu": (8, 16)}
    assert "batch_per_gpu=24,64,128,256" in two.frozen


def test_the_baseline_is_always_there(context):
    done = prepare(_space(batch_per_gpu=[8, 32]), context(args={"batch": 20}), "same")
    assert done.domain == {"batch_per_gpu": (20,)} or done.frozen["batch_per_gpu"] == "only 20 is possible here"
    assert done.baseline == {"batch_per_gpu": 20}
    host = context(n_cores=2, n_cores_host=64)  # a container: Ultralytics takes 8 threads, two cores are ours
    assert prepare(_space(torch_threads=[1, 2, 4]), host, "same").domain == {"torch_threads": (1, 2, 8)}


def test_frozen_says_why(context):
    done = prepare(load_space("default"), context("cuda", n_cores=6, ram_bytes=1 << 30, n_images=5000), "same")
    assert done.frozen == {
        "batch_per_gpu=128": "does not divide the job's effective batch of 64 (--training same)",
        "workers=7..16": "Ultralytics caps workers here at 6",
        "cache=ram": "needs 11.4 GiB of memory, 1.0 GiB there",
        "nccl_socket": "one rank: there is no NCCL traffic",
        "nccl_backend": "one rank: there are no gradients to reduce",
        "find_unused_parameters": "one rank: there are no gradients to reduce",
    }
    assert done.domain["workers"] == (1, 2, 3, 4, 5, 6)
    assert done.domain["cache"] == (False, "disk")
    assert done.baseline["nccl_socket"] is None


def test_a_number_above_its_cap_is_tried_at_the_cap(context):
    assert prepare(_space(workers=[2, 16]), context("cuda", n_cores=12), "same").domain == {"workers": (2, 8, 12)}


def test_seeds_fit_the_machine(context):
    space = _space(
        {"torch_threads": 64, "batch_per_gpu": 64},
        {"torch_threads": 4, "batch_per_gpu": 64, "workers": 0, "prefetch_factor": 8},  # the same, spelled otherwise
        {"batch_per_gpu": 128},  # becomes 64
        {"torch_threads": 2},  # the baseline, see below
        {"workers": 1},
        torch_threads=[1, 2, 4, 64],
        batch_per_gpu=[16, 64, 128],
        workers=[0, 1],
        prefetch_factor=[2, 8],
        amp=[True, False],
    )
    done = prepare(space, context(n_cores=4, n_cores_host=3), "same")
    assert done.baseline == {
        "torch_threads": 2,
        "batch_per_gpu": 16,
        "workers": 0,
        "prefetch_factor": None,
        "amp": False,
    }
    start = {k: v for k, v in done.baseline.items() if k != "amp"}
    assert done.seeds == (
        start | {"torch_threads": 4, "batch_per_gpu": 64},
        start | {"batch_per_gpu": 64},
        start | {"workers": 1, "prefetch_factor": 4},
    )


def test_prefetch_without_any_worker_is_not_sampled(context):
    done = prepare(_space(prefetch_factor=[2, 8]), context("cpu"), "same")
    assert done.frozen == {"prefetch_factor": "there are no loader workers here"}
    after = prepare(_space(prefetch_factor=[2, 8], workers=[0, 1]), context("cpu"), "same")
    assert after.domain["prefetch_factor"] == (2, 4, 8, None)
    assert prepare(_space(prefetch_factor=[2, 8]), context("cuda"), "same").domain == {"prefetch_factor": (2, 4, 8)}


@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_domain_is_closed_under_canonical(device, n_ranks, context):
    """What a combination comes down to can itself be sampled: a study can be told of it."""
    ctx = context(device, n_cores=2, n_images=1280, image_hw=(480, 640), n_ranks=n_ranks)
    for name in ("quick", "default", "cpu", "loader", "ddp"):
        done = prepare(load_space(name), ctx, "same")
        assert all(len(v) >= 2 for v in done.domain.values())
        assert all(done.baseline[k] in v for k, v in done.domain.items())
        for values in itertools.islice(itertools.product(*done.domain.values()), 0, 7 * 2000, 7):
            whole = canonical(done.baseline | dict(zip(done.domain, values, strict=True)), ctx)
            assert all(whole[k] in v for k, v in done.domain.items())
            assert canonical(whole, ctx) == whole
