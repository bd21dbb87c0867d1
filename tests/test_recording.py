"""Tables and run folders as recordings; what is no recording is refused in a line."""

from __future__ import annotations

import json
import lzma
from math import exp, log
from pathlib import Path

import pytest

from autotune.contract import Outcome, StepColumns, TrialDir, TrialResult, TrialSpec
from autotune.errors import FormatError, InputError
from autotune.recording import Recorded, read_recording, steadied
from autotune.replay import Replay
from autotune.search.proposals import NOT_RECORDED, key_of
from tests.cli import autotune
from tests.recorded_table import BASELINE, DOMAIN, N_STEPS, NO_MEMORY, line, rate_of, write_table

SLOW = {"torch_threads": 1, "batch_per_gpu": 8, "workers": 2}
NOWHERE = TrialDir(Path("/dev/null/0"))


def spec(params, role="trial", probe=None, **fields) -> TrialSpec:
    return TrialSpec(
        number=7, role=role, backend="replay", task="detect", params=params, changes={}, train_args={}, probe=probe,
        **fields,
    )  # fmt: skip


def test_a_table_is_read_whole(tmp_path: Path) -> None:
    recording = read_recording(str(write_table(tmp_path / "t")))
    assert (recording.name, recording.simulated, recording.n_images) == ("formula", True, 640)
    assert len(recording.cells) == 18 == len(recording.configs)
    assert recording.domain == {name: tuple(values) for name, values in DOMAIN.items()}
    own = recording.runs_of(BASELINE)
    assert sorted(r.result.role for r in own) == ["sentinel", "sentinel", "trial", "trial"]
    assert recording.truth(BASELINE) == pytest.approx(rate_of(BASELINE), rel=0.01)
    assert recording.truth(NO_MEMORY) is None
    assert recording.truth({"torch_threads": 3}) is None
    best = max(recording.configs, key=lambda params: recording.truth(params) or 0.0)
    assert best == {"torch_threads": 2, "batch_per_gpu": 32, "workers": 1}
    # The step before the window starts its clock.
    assert {len(r.steps.end_s) for r in own} == {N_STEPS + 1}


def test_runs_of_a_configuration_answer_in_turn(tmp_path: Path) -> None:
    recording = read_recording(str(write_table(tmp_path / "t", n_blocks=3)))
    orders = set()
    for seed in range(12):
        charged: list[float] = []
        replay = Replay(recording, charged.append, seed)
        got = [replay(spec(SLOW), NOWHERE, started_s=5.0) for _ in range(4)]
        assert [(r.number, r.role, r.started_s) for r in got] == [(7, "trial", 5.0)] * 4
        rates = [r.images_per_s for r in got]
        assert len(set(rates[:3])) == 3
        assert rates[3] == rates[0], "and then from the first on"
        assert charged == [r.took_s for r in got]
        orders.add(tuple(rates[:3]))
    assert len(orders) > 1, "the seed draws the order"


def test_a_finalist_is_answered_by_another_run_than_the_trial_was(tmp_path: Path) -> None:
    replay = Replay(read_recording(str(write_table(tmp_path / "t"))), lambda s: None, 0)
    first = replay(spec(SLOW), NOWHERE, started_s=0.0)
    fresh = replay(spec(SLOW, "finalist"), NOWHERE, started_s=0.0)
    assert (fresh.role, fresh.outcome) == ("finalist", Outcome.OK)
    assert fresh.images_per_s != first.images_per_s


def test_failures_are_replayed_as_what_they_were(tmp_path: Path) -> None:
    charged: list[float] = []
    replay = Replay(read_recording(str(write_table(tmp_path / "t", without=(SLOW,)))), charged.append, 0)
    oom = replay(spec(NO_MEMORY), NOWHERE, started_s=0.0)
    assert (oom.outcome, oom.error, charged) == (Outcome.OOM, "out of memory", [4.0])
    for asked in (spec(SLOW), spec(BASELINE, "probe", "epoch_end")):
        none = replay(asked, NOWHERE, started_s=0.0)
        assert (none.outcome, none.error, none.took_s, none.probe) == (
            *(Outcome.INVALID, NOT_RECORDED),
            *(0.0, asked.probe),
        )
    short = spec(BASELINE).deadlines.__class__(total_s=5.0)
    late = replay(spec(BASELINE, deadlines=short), NOWHERE, started_s=0.0)
    assert (late.outcome, late.took_s, late.images_per_s) == (Outcome.TIMEOUT, 5.0, None)


def test_racing_stops_a_recorded_trial_and_charges_its_share(tmp_path: Path) -> None:
    recording = read_recording(str(write_table(tmp_path / "t")))
    charged: list[float] = []
    seen = []

    def watch(live):
        seen.append(live.n_steps)
        return "hopeless" if live.n_steps >= 12 else None

    stopped = Replay(recording, charged.append, 0)(spec(SLOW), NOWHERE, started_s=0.0, watch=watch)
    whole = Replay(recording, charged.append, 0)(spec(SLOW), NOWHERE, started_s=0.0)
    assert (stopped.outcome, stopped.error, whole.outcome) == (Outcome.PRUNED, "hopeless", Outcome.OK)
    assert seen == sorted(seen)
    assert stopped.images_per_s == pytest.approx(whole.images_per_s, rel=1e-3)
    assert stopped.n_steps == seen[-1] - 1
    missed_s = (N_STEPS - stopped.n_steps) * whole.step_p50_s
    assert charged == [stopped.took_s, whole.took_s]
    assert whole.took_s - stopped.took_s == pytest.approx(missed_s, rel=1e-3)
    seen.clear()
    Replay(recording, charged.append, 0)(spec(SLOW, "finalist"), NOWHERE, started_s=0.0, watch=watch)
    assert seen == [], "only search trials race"


def damage(folder: Path, how: str) -> None:
    table = json.loads((folder / "table.json").read_text())
    part = folder / "part-001.jsonl.xz"
    if how == "newer":
        (folder / "table.json").write_text(json.dumps({**table, "format": 2}))
    elif how == "lacks":
        (folder / "table.json").write_text(json.dumps({k: v for k, v in table.items() if k != "domain"}))
    elif how == "no json":
        (folder / "table.json").write_text("{")
    elif how == "cut":
        part.write_bytes(part.read_bytes()[:-20])
    elif how == "other machine":
        with lzma.open(part, "wt") as f:
            f.write(json.dumps(line(0, 0, "cell", BASELINE, fingerprint="another")) + "\n")
    elif how == "empty":
        for path in folder.glob("part-*"):
            path.unlink()


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("newer", FormatError, "format 2"),
        ("lacks", FormatError, "domain"),
        ("no json", FormatError, "cannot be read"),
        ("cut", FormatError, "part-001"),
        ("other machine", InputError, "another machine"),
        ("empty", InputError, "baseline was not measured"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, how: str, error: type[Exception], says: str) -> None:
    folder = write_table(tmp_path / "t")
    damage(folder, how)
    with pytest.raises(error, match=says):
        read_recording(str(folder))


@pytest.mark.parametrize("kind", ["no folder", "no run", "newer run", "damaged"])
def test_wrong_input_is_one_line_and_exit_code_2(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "given"
    if kind != "no folder":
        folder.mkdir()
    if kind == "newer run":
        (folder / "run.json").write_text('{"format": 99}')
    elif kind == "damaged":
        (folder / "run.json").write_text("nonsense")
    said = autotune("search", "--replay", folder, "--out", tmp_path / "out")
    assert (said.code, said.out, (tmp_path / "out").exists()) == (2, "", False)
    first, *hint = said.err.splitlines()
    assert first.startswith("error: ")
    assert len(hint) <= 1
    assert "Traceback" not in said.err


def test_keys_are_those_of_the_search(tmp_path: Path) -> None:
    recording = read_recording(str(write_table(tmp_path / "t")))
    assert set(recording.cells) == {key_of(params) for params in recording.configs}


def test_a_drift_that_the_sentinels_saw_is_taken_out() -> None:
    """The machine became twice as fast meanwhile; a lucky sentinel is no drift."""
    n_runs, slow, fast = 60, {"workers": 1}, {"workers": 2}

    def run(i: int) -> Recorded:
        sentinel = i % 6 == 0
        params = BASELINE if sentinel else slow if i % 2 else fast
        speed = exp(log(2.0) * i / n_runs) * (1.4 if i == 30 else 1.0)
        rate = speed * {0: 100.0, 1: 50.0, 2: 150.0}[params["workers"]]
        result = TrialResult(
            number=i, role="sentinel" if sentinel else "trial", outcome=Outcome.OK, params=params, started_s=0.0,
            took_s=5.0, images_per_s=rate, ci95_lo=0.9 * rate, step_p50_s=16 / rate, parts_s={"wait": 4 / rate},
        )  # fmt: skip
        return Recorded(result, StepColumns(end_s=[0.0, 16 / rate], wait_s=[0.0, 0.0], step_s=[16 / rate] * 2))

    raw = [run(i) for i in range(n_runs)]
    steady = steadied(raw)
    for params, rate in ((slow, 50.0), (fast, 150.0)):
        mine = [r.result for r in steady if r.result.params == params]
        rates = [r.images_per_s or 0.0 for r in mine]
        assert max(rates) / min(rates) < 1.15
        assert max(r.images_per_s or 0.0 for r in (x.result for x in raw) if r.params == params) / rate > 1.8
        for r in mine:
            assert r.images_per_s is not None
            assert r.step_p50_s == pytest.approx(16 / r.images_per_s)
            assert r.ci95_lo == pytest.approx(0.9 * r.images_per_s)
            assert r.parts_s["wait"] == pytest.approx(4 / r.images_per_s)
    first = steady[1]
    assert first.steps.step_s[0] == pytest.approx(16 / (first.result.images_per_s or 0.0))
    assert steadied(raw[:3]) == raw[:3], "nothing ran more than once"
