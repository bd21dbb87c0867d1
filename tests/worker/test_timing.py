"""Do 50 ms in one part of a real training step show in that part, and nowhere else?"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest
import torch

from autotune.contract import PARTS, StepColumns
from autotune.worker import cut_short
from autotune.worker.cut_short import SegmentMixin
from autotune.worker.timing import HostStamp, StepClock
from tests.worker.trainers import DELAY_S, DelayedTrainer, RangesTrainer, train

INJECTED = ("wait", "prepare", "forward", "backward", "optimizer")
EACH = tuple(x for part in INJECTED for x in (None, part))


def parts_of(steps: StepColumns) -> dict[str, list[float]]:
    parts = {part.removesuffix("_s"): getattr(steps, part) for part in PARTS}
    assert {len(column) for column in parts.values()} == {len(steps.step_s)}
    return parts | {"rest": [s - sum(p) for s, *p in zip(steps.step_s, *parts.values(), strict=True)]}


def moved(steps: StepColumns, schedule: tuple[str | None, ...], where: str) -> dict[str, float]:
    """Median seconds by which a part of a delayed step exceeds the mean of its undelayed neighbours'."""
    n = len(steps.step_s)
    delayed = [i for i in range(5, n - 1) if schedule[i % len(schedule)] == where]
    assert len(delayed) >= 10
    return {
        part: median(column[i] - (column[i - 1] + column[i + 1]) / 2 for i in delayed)
        for part, column in parts_of(steps).items()
    }


def misplaced(steps: StepColumns, schedule: tuple[str | None, ...], where: str) -> dict[str, float]:
    """Parts that moved by something else than they should; empty: the delay is where it was put."""
    due = {where: (DELAY_S, 0.1 * DELAY_S)}
    return {
        part: s
        for part, s in moved(steps, schedule, where).items()
        if abs(s - due.get(part, (0.0, 0.0))[0]) > due.get(part, (0.0, 0.005))[1]
    }


@pytest.fixture(scope="module")
def measure_delayed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], StepColumns]:
    stock = type("D", (DelayedTrainer,), {"schedule": EACH})
    return lambda: train(tmp_path_factory.mktemp("delays"), tiny, 15 * len(EACH), stock)[0].segment.steps


@pytest.fixture(scope="module")
def delayed(measure_delayed: Callable[[], StepColumns]) -> StepColumns:
    return measure_delayed()


@pytest.mark.parametrize("where", INJECTED)
def test_a_delay_moves_its_own_part_only(
    delayed: StepColumns, measure_delayed: Callable[[], StepColumns], where: str
) -> None:
    # Five milliseconds are little on a busy machine: measured once more before it counts.
    assert not misplaced(delayed, EACH, where) or not misplaced(measure_delayed(), EACH, where)


@pytest.mark.slow
def test_a_delay_in_a_loader_worker_is_wait(tiny: Path, tmp_path: Path) -> None:
    # The worker needs longer for any batch than the step does, so that its queue is empty and hides nothing.
    schedule = (None, "wait")
    stock = type("D", (DelayedTrainer,), {"schedule": schedule, "loader_base_s": 0.08})
    patches = {"workers": 1, "prefetch_factor": 2}

    def measured(folder: str) -> dict[str, float]:
        steps = train(tmp_path / folder, tiny, 36, stock, patches=patches)[0].segment.steps
        return misplaced(steps, schedule, "wait")

    assert not measured("once") or not measured("again")


def test_our_own_hooks_are_rest_and_no_wait(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.worker.cut_short.ready_batches", lambda _: time.sleep(DELAY_S) or 0)
    recorder, _ = train(tmp_path, tiny, 12)
    parts = parts_of(recorder.segment.steps)
    assert min(parts["rest"][1:]) >= 0.99 * DELAY_S, "the step after the hooks has their time"
    assert median(parts["wait"][1:]) < DELAY_S, "four images of 32 pixels"


class ReadLoss:
    """Counts how often somebody reads its value, which on a GPU waits for the device."""

    def __init__(self, value: float) -> None:
        self.value, self.n_read = value, 0

    def detach(self) -> ReadLoss:
        return self

    def __float__(self) -> float:
        self.n_read += 1
        return self.value


@pytest.mark.parametrize(("rank", "due", "n_read"), [(0, True, 1), (0, False, 0), (1, True, 0)])
def test_only_the_rank_that_waits_anyway_reads_the_loss(rank: int, due: bool, n_read: int) -> None:
    def trainer(loss: ReadLoss) -> SimpleNamespace:
        recorder = SimpleNamespace(rank=rank, step=lambda **_: False)
        clock = StepClock(StepColumns(), HostStamp)
        more = {"train_loader": None, "loss_is_read": lambda: due}
        return SimpleNamespace(loss=loss, recorder=recorder, _clock=clock, _images=4, **more)

    fine, nan = ReadLoss(1.0), ReadLoss(math.nan)
    SegmentMixin._on_batch_end(trainer(fine))  # type: ignore[arg-type]
    assert fine.n_read == n_read
    if n_read:
        with pytest.raises(FloatingPointError):
            SegmentMixin._on_batch_end(trainer(nan))  # type: ignore[arg-type]


@pytest.mark.slow
def test_agrees_with_the_profiler(tiny: Path, tmp_path: Path) -> None:
    # An optimizer step takes milliseconds, a turn of another process as well: measured once more before it counts.
    assert not disagreements(tiny, tmp_path / "once") or not disagreements(tiny, tmp_path / "again")


def disagreements(tiny: Path, folder: Path) -> dict[str, float]:
    """Parts that differ by more than a tenth from what the profiler says, and a rest of more than that."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        recorder, _ = train(folder, tiny, 12, RangesTrainer, imgsz=256, batch=8, nbs=8)
    events = profiler.events()
    assert events is not None
    steps = recorder.segment.steps
    parts = parts_of(steps)

    def ranges(name: str) -> list[tuple[float, float]]:
        found = [(e.time_range.start / 1e6, e.time_range.end / 1e6) for e in events if e.name == name]
        return sorted(found)[: len(steps.step_s)]

    forward, optimizer = ranges("test forward"), ranges("test optimizer")
    assert len(forward) == len(optimizer) == len(steps.step_s)
    # Backward has no range of ours in it: autograd's own events between the forward pass and the optimizer.
    engine = [
        (e.time_range.start / 1e6, e.time_range.end / 1e6)
        for e in events
        if e.name.startswith("autograd::engine::evaluate_function")
    ]
    backward = []
    for (_, began), (ended, _) in zip(forward, optimizer, strict=True):
        own = [(a, b) for a, b in engine if began <= a < ended]
        backward.append((min(a for a, _ in own), max(b for _, b in own)))
    off = {"rest": sum(parts["rest"][2:]) / sum(steps.step_s[2:])}
    for name, spans in {"forward": forward, "backward": backward, "optimizer": optimizer}.items():
        off[name] = abs(sum(parts[name][2:]) / sum(b - a for a, b in spans[2:]) - 1)
    return {name: x for name, x in off.items() if x > 0.1}


def test_a_border_that_a_version_lacks_falls_into_rest() -> None:
    columns = StepColumns()
    clock = StepClock(columns, HostStamp)
    clock.follow_backward(SimpleNamespace())  # no scale() to follow: the end of forward is unknown
    clock.batch_start()
    with clock.part("prepare_s"):
        pass
    clock.begin("forward_s")
    with clock.part("optimizer_s"):
        pass
    clock.batch_end()
    clock.finish()
    assert columns.forward_s == columns.backward_s == [0.0]
    assert columns.prepare_s[0] > 0
    assert columns.optimizer_s[0] > 0


class FakeDeviceStamp:
    """A device that is always behind the host: a moment comes when the test says so, or when somebody waits."""

    n = 0
    reached = 0
    waited = 0

    def __init__(self) -> None:
        FakeDeviceStamp.n += 1
        self.at = FakeDeviceStamp.n

    def past(self) -> bool:
        return self.at <= FakeDeviceStamp.reached

    def wait(self) -> None:
        FakeDeviceStamp.waited += 1
        FakeDeviceStamp.reached = max(self.at, FakeDeviceStamp.reached)

    def since(self, earlier: FakeDeviceStamp) -> float:
        assert self.past()
        assert earlier.past()
        return float(self.at - earlier.at)


def test_events_are_read_late_and_never_waited_for_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("n", "reached", "waited"):
        monkeypatch.setattr(FakeDeviceStamp, name, 0)
    columns = StepColumns()
    clock = StepClock(columns, FakeDeviceStamp)
    for _ in range(5):
        clock.batch_start()
        with clock.part("prepare_s"):
            pass
        clock.batch_end()
    assert columns.prepare_s == [], "nothing has passed on the device"
    FakeDeviceStamp.reached = 6
    clock.batch_end()
    assert columns.prepare_s == [1.0, 1.0, 1.0]
    FakeDeviceStamp.reached = 100
    clock.batch_end()
    assert len(columns.prepare_s) == 5, "two steps stay unread"
    assert FakeDeviceStamp.waited == 0
    clock.finish()
    assert columns.prepare_s == [1.0] * 5 + [0.0] * 2
    assert FakeDeviceStamp.waited == 0, "the last steps recorded nothing"


def test_backward_of_a_scaled_loss_is_followed_and_left_as_it_was() -> None:
    columns = StepColumns()
    clock = StepClock(columns, HostStamp)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    clock.follow_backward(scaler)
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * 2).sum()
    clock.begin("forward_s")
    pause = threading.Event()
    weight.register_hook(lambda g: g if pause.wait(0.02) else g * 1)
    scaled = scaler.scale(loss)
    scaled.backward()
    clock.batch_end()
    clock.finish()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0] * 3
    assert columns.backward_s[0] >= 0.02
    assert columns.forward_s[0] > 0
    assert "backward" not in vars(scaled)


@pytest.mark.slow
def test_the_parts_of_a_compiled_step(tiny: Path, tmp_path: Path) -> None:
    recorder, _ = train(tmp_path, tiny, 12, compile=True, wait_steady=True)
    assert recorder.effective["compile"] == "default"
    start = recorder.segment.measured_from
    assert start is not None
    assert start >= 4
    parts = parts_of(recorder.segment.steps)
    for part in ("wait", "prepare", "forward", "backward", "optimizer"):
        assert median(parts[part][start:]) > 0, part
    assert sum(parts["rest"][start:]) <= 0.1 * sum(recorder.segment.steps.step_s[start:])


def test_a_held_host_is_never_more_than_two_steps_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several ranks none may pass the step that all end after, whatever its loss reads back."""
    for name in ("n", "reached", "waited"):
        monkeypatch.setattr(FakeDeviceStamp, name, 0)
    columns = StepColumns()
    clock = StepClock(columns, FakeDeviceStamp, held=True)
    for n_steps in range(1, 8):
        clock.batch_start()
        with clock.part("prepare_s"):
            pass
        clock.batch_end()
        assert FakeDeviceStamp.reached >= 2 * (n_steps - 2), "two stamps a step"
    assert columns.prepare_s == [1.0] * 5


def test_a_nan_between_two_lines_ends_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """With log_every=50 no line may be due any more before the segment is over."""
    monkeypatch.setattr(cut_short, "effective", lambda trainer, n_ranks: {"loss": None})
    recorder = SimpleNamespace(rank=0, step=lambda **_: True, spec=SimpleNamespace(n_ranks=1, certify=False))
    more = {"train_loader": None, "loss_is_read": lambda: False}
    trainer = SimpleNamespace(
        loss=1.0, recorder=recorder, _clock=StepClock(StepColumns(), HostStamp), _images=4, **more
    )
    with pytest.raises(FloatingPointError):
        SegmentMixin._on_batch_end(trainer)  # type: ignore[arg-type]
