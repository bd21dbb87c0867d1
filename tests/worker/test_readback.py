"""What is read back from a trainer, on stand-ins that hold just what is looked at."""

from __future__ import annotations

import random
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from autotune.worker import yolo
from autotune.worker.readback import BUFFER_TOLERANCE, buffer_steps, compiles
from tests.run.trials import spec


def loader(n: int, batch: int, workers: int, cache: str | None = None, ranks: int = 1) -> SimpleNamespace:
    class Dataset(SimpleNamespace):
        def __len__(self) -> int:
            return n

    class Loader(SimpleNamespace):
        def __len__(self) -> int:
            return -(-n // ranks // batch)

    return Loader(dataset=Dataset(max_buffer_length=min(n, 8 * batch, 1000), cache=cache), num_workers=workers)


@pytest.mark.parametrize(
    ("n", "batch", "workers", "steps"),
    [
        (128, 16, 0, 8),  # the whole set lies in the buffer: one epoch
        (128, 16, 1, 8),
        (256, 16, 0, 16),
        (257, 16, 0, 0),  # an eighth of a quarter of the work and less
        (128, 16, 2, 37),
        (128, 16, 8, 148),
        (512, 16, 8, 42),
        (5000, 16, 8, 0),
        (118_287, 64, 16, 0),  # COCO
    ],
)
def test_buffer_steps(n: int, batch: int, workers: int, steps: int) -> None:
    assert buffer_steps(loader(n, batch, workers)) == steps
    assert buffer_steps(loader(n, batch, workers, cache="ram")) == 0


@pytest.mark.parametrize(
    ("n", "batch", "workers", "ranks"),
    [(128, 16, 2, 1), (256, 8, 4, 1), (512, 16, 8, 1), (400, 25, 3, 1), (128, 16, 0, 2), (256, 16, 2, 4)],
)
def test_after_so_many_steps_the_decodes_are_those_of_the_long_run(
    n: int, batch: int, workers: int, ranks: int
) -> None:
    """Simulation of data/base.py's buffer in each loading process: the formula against many epochs.

    The processes take turns; those of all ranks together take one batch each a turn.
    """
    rng = random.Random(0)
    limit = min(n, 8 * batch, 1000)
    processes = max(workers, 1) * ranks
    buffers: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(processes)]
    decodes: list[int] = []
    while len(decodes) < 400 * processes:
        order = rng.sample(range(n), n)
        for at in range(0, n - batch + 1, batch):
            own = buffers[len(decodes) % processes]
            decodes.append(0)
            for i in order[at : at + batch]:
                if i not in own:
                    decodes[-1] += 1
                    own[i] = None
                    if len(own) >= limit:
                        own.popitem(last=False)
    steps = ranks * buffer_steps(loader(n, batch, workers, ranks=ranks), ranks)
    late = decodes[-200 * processes :]
    steady = sum(late) / len(late) / batch
    window = decodes[steps : steps + 8 * processes]
    assert abs(sum(window) / len(window) / batch - steady) <= BUFFER_TOLERANCE + 0.03
    first = decodes[: 2 * processes]
    assert sum(first) / len(first) / batch > steady + BUFFER_TOLERANCE, "without the rule"


def test_compiles_counts_graphs() -> None:
    before = compiles()
    compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    compiled(torch.zeros(3))
    assert compiles() == before + 1
    compiled(torch.zeros(3))
    assert compiles() == before + 1
    compiled(torch.zeros(4))
    assert compiles() == before + 2, "another shape is a recompile"


@pytest.mark.parametrize("world_size", ["2", None])
def test_a_full_training_looks_at_the_ranks_of_all_machines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], world_size: str | None
) -> None:
    """One rank on each of two machines: the spec says 1, torchrun 2, and so there is a DDP to look at."""

    def effective(_: object, n_ranks: int) -> dict[str, bool]:
        return {"static_graph": True} if n_ranks > 1 else {}

    monkeypatch.setattr(yolo, "effective", effective)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    yolo._Asked(spec("demo", changes={"static_graph": True}))(None)
    assert ("<- differs" in capsys.readouterr().err) == (world_size is None)
