"""The patches apply, and revert."""

from __future__ import annotations

import pytest
import torch
import ultralytics.data.build as build
from torch.utils.data import TensorDataset

from autotune.worker.patches import TuneMixin, is_channels_last, prefetch


def test_prefetch_reaches_the_loader_and_reverts() -> None:
    stock = build.InfiniteDataLoader
    dataset = TensorDataset(torch.zeros(64, 1))
    with prefetch(7):
        loader = build.build_dataloader(dataset, batch=4, workers=1, device="cpu")
        without = build.build_dataloader(dataset, batch=4, workers=0, device="cpu")
    assert loader.prefetch_factor == 7
    assert without.prefetch_factor is None, "torch allows none without workers"
    assert build.InfiniteDataLoader is stock
    assert build.build_dataloader(dataset, batch=4, workers=1, device="cpu").prefetch_factor == 4, "Ultralytics' own"


def test_prefetch_reverts_after_an_error() -> None:
    stock = build.InfiniteDataLoader
    with pytest.raises(RuntimeError), prefetch(3):
        raise RuntimeError
    assert build.InfiniteDataLoader is stock


def test_channels_last_is_read_from_the_weights() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 8, 3))
    assert not is_channels_last(model)
    assert is_channels_last(model.to(memory_format=torch.channels_last))
    assert not is_channels_last(torch.nn.Conv2d(3, 8, 1)), "a 1x1 kernel cannot tell"


def test_an_unknown_patch_is_refused() -> None:
    class Stock:
        def __init__(self) -> None:
            self.args = None

    trainer = type("T", (TuneMixin, Stock), {"patches": {"nonesuch": 1}})
    with pytest.raises(ValueError, match="nonesuch"):
        trainer()
