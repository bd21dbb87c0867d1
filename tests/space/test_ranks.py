"""How many ranks, and does the batch divide?"""

from __future__ import annotations

import pytest

from autotune.errors import InputError
from autotune.space.ranks import check_batch, count_ranks


@pytest.mark.parametrize(
    ("flag", "gpus", "n_cores", "simulated", "n_ranks"),
    [
        (None, (), 1, False, 1),
        (2, (), 2, False, 2),
        (None, ("a", "b"), 2, False, 2),
        (2, ("a", "b"), 2, False, 2),
        (None, ("a", "b", "c"), 2, True, 3),
    ],
)
def test_ranks(context, flag, gpus, n_cores, simulated, n_ranks):
    assert count_ranks(flag, gpus, context(n_cores=n_cores).machine, simulated=simulated) == n_ranks


@pytest.mark.parametrize(
    ("flag", "gpus", "message"),
    [
        (0, (), "--ranks 0"),
        (3, ("a", "b"), "--ranks 3 and 2 GPUs"),
        (1, ("a", "b"), "--ranks 1 and 2 GPUs"),
        (3, (), "3 ranks on 2 CPU cores"),
        (None, ("a", "b", "c"), "3 ranks on 2 CPU cores"),
    ],
)
def test_ranks_that_cannot_be_had(context, flag, gpus, message):
    with pytest.raises(InputError) as e:
        count_ranks(flag, gpus, context(n_cores=2).machine)
    assert message in e.value.message


@pytest.mark.parametrize(
    ("n_ranks", "batch", "given", "message", "hint"),
    [
        (3, 16, {}, "batch=16 (YOLO's default) does not divide by 3 ranks", "batch=15 (5 each) or batch=18 (6 each)"),
        (3, 16, {"batch": 16}, "batch=16 does not divide by 3 ranks", "batch=15 (5 each) or batch=18 (6 each)"),
        (4, 2, {"batch": 2}, "batch=2 does not divide by 4 ranks", "batch=4 (1 each)"),
    ],
)
def test_a_batch_that_does_not_divide(n_ranks, batch, given, message, hint):
    with pytest.raises(InputError) as e:
        check_batch(n_ranks, {"batch": batch}, given)
    assert (e.value.message, e.value.hint) == (message, hint)


@pytest.mark.parametrize(("n_ranks", "batch"), [(1, 7), (2, 16), (3, 18), (4, 4)])
def test_a_batch_that_divides(n_ranks, batch):
    check_batch(n_ranks, {"batch": batch}, {})
