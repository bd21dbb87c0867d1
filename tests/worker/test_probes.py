"""The loader alone and the step alone, on real Ultralytics trainings and on the formula."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autotune.contract import Outcome, Probe, RankRecord, SegmentSettings, TrialDir, TrialResult, read_json
from autotune.run.trial import run_trial
from autotune.worker.machines import draw
from autotune.worker.probes import Replay, load_only, no_sync, replay
from autotune.worker.recorder import Recorder
from autotune.worker.segment import Segment
from tests.run.trials import spec


def probe(data: Path | str, folder: Path, what: Probe, **args: object) -> TrialResult:
    asked = replace(spec(data, **args), role="probe", probe=what)  # type: ignore[arg-type]
    return run_trial(asked, TrialDir(folder), started_s=0.0)


def test_loader_only_counts_images_and_takes_no_step(tiny: Path, tmp_path: Path) -> None:
    changes = {"workers": 1, "prefetch_factor": 2, "cache": "ram"}
    patches = {"workers": 1, "prefetch_factor": 2}
    result = probe(tiny, tmp_path / "t", "data", changes=changes, patches=patches, cache="ram")
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), result.error
    assert (result.role, result.probe) == ("probe", "data")
    assert {k: result.effective[k] for k in changes} == changes
    assert result.effective["loss"] is None, "no step was taken"
    record = read_json(tmp_path / "t" / "rank0.json", RankRecord)
    assert set(record.steps.images) == {8}
    lines = (tmp_path / "t" / "steps0.txt").read_text().splitlines()
    assert len(record.steps.end_s) == sum(not line.startswith("#") for line in lines), "a heartbeat"


@pytest.mark.slow
def test_step_only_replays_batches_and_waits_for_none(tiny: Path, tmp_path: Path) -> None:
    patches = {"workers": 1, "torch_threads": 1}
    result = probe(tiny, tmp_path / "t", "compute", changes=dict(patches), patches=patches, close_mosaic=0)
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), result.error
    assert result.probe == "compute"
    assert result.wait_frac is not None
    assert result.wait_frac < 0.05
    assert result.effective["loss"], "it trains"
    assert result.effective["workers"] == 1, "the settings are those of the loader that it stands for"
    assert result.resolved["optimizer"] == "AdamW"
    assert result.n_steps % 8 == 0, "whole accumulate cycles"
    assert result.parts_s["optimizer"] > 0


def test_only_the_loaders_time_is_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.worker.probes.ready_batches", lambda _: time.sleep(0.05) or 0)
    monkeypatch.setattr("autotune.worker.probes.effective", lambda *_: {})
    steps = on_stand_in(load_only, FakeTrainer(), tmp_path).steps
    assert sum(steps.wait_s) < 0.5 * sum(steps.step_s), "the batches are at hand, our hooks take 50 ms"


def on_stand_in(what: Callable[..., None], trainer: SimpleNamespace, folder: Path) -> Segment:
    settings = SegmentSettings(warmup_cap_s=0.0, measure_s=0.0, measure_steps=5)
    recorder = Recorder(replace(spec("d", segment=settings), role="probe"), TrialDir(folder))
    what(trainer, recorder)
    recorder.write()
    return recorder.segment


class FakeTrainer(SimpleNamespace):
    """What a probe touches of a trainer; `said` is what happened to its loader, in order."""

    def __init__(self, *, epochs: int = 100, close_mosaic: int = 10) -> None:
        self.said: list[str] = []
        said = self.said

        class Loader(list[dict[str, torch.Tensor]]):
            num_workers, batch_size, dataset = 0, 8, SimpleNamespace()

            def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
                said.append("drawn")
                return super().__iter__()

            def reset(self) -> None:
                said.append("reset")

        super().__init__(
            train_loader=Loader([{"img": torch.zeros(8, 3, 4, 4)}] * 4),
            args=SimpleNamespace(close_mosaic=close_mosaic),
            epochs=epochs,
            start_epoch=0,
            world_size=1,
            device=torch.device("cpu"),
            _setup_train=lambda: None,
            run_callbacks=lambda _: None,
            _close_dataloader_mosaic=lambda: said.append("closed"),
        )


@pytest.mark.parametrize(
    ("epochs", "close_mosaic", "closes"), [(10, 10, True), (8, 10, True), (11, 10, False), (5, 0, False)]
)
def test_a_job_that_never_opens_its_mosaic_is_probed_without(
    tmp_path: Path, epochs: int, close_mosaic: int, closes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.worker.probes.effective", lambda *_: {})
    before = ["closed", "reset"] if closes else []
    for what in (load_only, replay):
        trainer = FakeTrainer(epochs=epochs, close_mosaic=close_mosaic)
        on_stand_in(what, trainer, tmp_path)
        assert trainer.said[: trainer.said.index("drawn")] == before


@pytest.mark.slow
def test_a_short_job_is_probed_as_it_runs(tiny: Path, tmp_path: Path) -> None:
    result = probe(tiny, tmp_path / "t", "data", epochs=8, close_mosaic=10)
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), result.error
    assert result.effective["mosaic_open"] is False


def test_replay_gives_whole_epochs_of_untouched_batches() -> None:
    kept = [{"img": torch.full((2, 1), i)} for i in range(2)]
    replay = Replay(torch.utils.data.DataLoader([0] * 10, batch_size=2), kept)
    for _ in range(2):
        batches = list(replay)
        assert [int(batch["img"][0]) for batch in batches] == [0, 1, 0, 1, 0]
        for batch in batches:
            batch["img"] = batch["img"].float() / 255  # as preprocess_batch does
    assert [batch["img"].dtype for batch in kept] == [torch.int64] * 2
    assert (len(replay), replay.batch_size) == (5, 2)


def test_the_formula_answers_probes_from_its_two_terms(tmp_path: Path) -> None:
    changes = {"workers": 2, "torch_threads": 1}
    rates = {}
    for what in ("data", "compute"):
        asked = spec("demo", backend="synthetic", changes=changes, batch=16)
        result = run_trial(
            replace(asked, role="probe", probe=what),  # type: ignore[arg-type]
            TrialDir(tmp_path / what),
            started_s=0.0,
        )
        assert result.outcome is Outcome.OK, result.error
        rates[what] = result.images_per_s
    assert rates["data"] == pytest.approx(2 / 0.0035, rel=0.05)
    assert rates["compute"] == pytest.approx(16 / (0.03 + 16 * 0.008), rel=0.05)


def test_no_sync_finds_ddp_also_inside_a_compiled_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeDDP:
        require_backward_grad_sync = True

    monkeypatch.setattr("autotune.worker.probes.DistributedDataParallel", FakeDDP)
    for wrap in (lambda m: m, lambda m: SimpleNamespace(_orig_mod=m)):
        ddp = FakeDDP()
        no_sync(SimpleNamespace(model=wrap(ddp)))
        assert ddp.require_backward_grad_sync is False
    with pytest.raises(RuntimeError, match="no DDP here"):
        no_sync(SimpleNamespace(model=torch.nn.Linear(1, 1)))


@pytest.mark.slow
def test_simulated_ranks_go_in_step_and_pay_for_what_they_exchange(tmp_path: Path) -> None:
    rates = {}
    for what in ("no_sync", None):
        asked = replace(spec("demo", backend="synthetic", changes={"workers": 8}, batch=16), n_ranks=2, probe=what)
        result = run_trial(asked, TrialDir(tmp_path / str(what)), started_s=0.0)  # type: ignore[arg-type]
        assert result.outcome is Outcome.OK, result.error
        rates[what] = result.images_per_s
    step_s = 0.03 + 8 * 0.008
    assert rates["no_sync"] == pytest.approx(16 / step_s, rel=0.05)
    assert rates[None] == pytest.approx(16 / (step_s + draw("dry_run").link_latency_s), rel=0.05)
