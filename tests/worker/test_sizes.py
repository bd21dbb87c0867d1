"""What autograd saves is counted to the byte, against operations whose saved tensors are known."""

from __future__ import annotations

import pytest
import torch

from autotune.worker.sizes import extrapolated, saved_bytes


def test_each_storage_is_counted_once_and_weights_not_at_all() -> None:
    weight = torch.randn(8, 4, requires_grad=True)
    x = torch.randn(16, 8)
    with saved_bytes({weight.untyped_storage().data_ptr()}) as total:
        y = x @ weight  # keeps x, and the weight's storage if x had a gradient
        z = y.sigmoid()  # keeps z
        z.square().sum()  # keeps z again
    assert total == [x.nbytes + z.nbytes]


def test_storages_at_the_address_of_a_dropped_one_are_counted() -> None:
    x = torch.randn(1000, requires_grad=True)
    with saved_bytes() as total:
        y = x
        for _ in range(20):
            y = y.sigmoid()  # keeps its result, of which only the last lives on
    assert total == [20 * x.nbytes]


def test_the_counted_tensors_are_gone() -> None:
    x = torch.randn(4, requires_grad=True)
    with saved_bytes():
        y = x.sigmoid().sum()
    with pytest.raises(RuntimeError, match="counted and dropped"):
        y.backward()


def test_a_large_image_is_computed_from_two_smaller_ones() -> None:
    def law(side: int) -> float:
        return 550.0 * side**2 + 1e-5 * side**4

    assert extrapolated((640, 1280), [law(640), law(1280)], 3840) == pytest.approx(law(3840))
