import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from rich.console import Console

from autotune.contract import (
    Event,
    NotTried,
    Outcome,
    PhaseStarted,
    RunEnded,
    RunStarted,
    TrialEnded,
    TrialProgress,
    TrialSkipped,
    TrialStarted,
    to_dict,
)
from autotune.report.panel import LiveView
from autotune.report.terminal import make_view

from .conftest import BASE, probe_of, result_of

COMMANDS = ("yolo train cfg=results/x/best/best.yaml", "open results/x/report.html")


def story() -> Iterator[Event]:
    """A short search: 7 trials (one OOM, one crash), one skipped, one running, the end."""
    yield RunStarted(t_s=0.0, headline="CPU, demo set [all of it]", folder="results/x", budget_s=300)
    yield PhaseStarted(t_s=1, phase="setup", note="making the demo set")
    yield PhaseStarted(t_s=5, phase="search")
    for n, outcome in enumerate(("ok", "ok", "oom", "ok", "crash", "ok", "ok")):
        r = result_of(n, Outcome(outcome))
        if outcome == "crash":
            r = replace(r, log_tail=("Traceback [red]", "boom"))
        changes = {k: v for k, v in r.params.items() if BASE[k] != v}
        yield TrialStarted(t_s=r.started_s, number=n, role=r.role, changes=changes, price_s=20)
        yield TrialEnded(t_s=r.started_s + r.took_s, changes=changes, result=r)
    skipped = NotTried(params={**BASE, "batch_per_gpu": 512}, price_s=90, reason="dearer than what is left")
    yield TrialSkipped(t_s=145, not_tried=skipped)
    yield TrialStarted(t_s=150, number=7, role="trial", changes={"batch_per_gpu": 64}, price_s=20)
    yield TrialProgress(t_s=160, number=7, phase="measuring", n_steps=12, images_per_s=75.25)
    yield RunEnded(t_s=299, exit_code=0, sentence="75.6 +- 3.8 images/s, 1.89 x the baseline", next_commands=COMMANDS)


def console(width: int = 80, *, terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, legacy_windows=False, _environ={}
    )


def output(c: Console) -> str:
    assert isinstance(c.file, io.StringIO)
    return c.file.getvalue()


def shown(c: Console, view: LiveView) -> list[str]:
    with c.capture() as capture:
        c.print(view.render())
    return capture.get().splitlines()


def live(width: int, seconds_later: float = 4.0) -> tuple[Console, LiveView, list[str]]:
    """A live view before the run's end, and its panel some seconds after the last event."""
    c, now = console(width, terminal=True), [0.0]
    view = make_view(c, clock=lambda: now[0])
    assert isinstance(view, LiveView)
    for event in story():
        if not isinstance(event, RunEnded):
            view(event)
    now[0] = seconds_later
    lines = shown(Console(file=io.StringIO(), width=width, color_system=None), view)
    return c, view, lines


def test_elsewhere_it_is_one_line_a_trial() -> None:
    c = console(width=40)
    view = make_view(c)
    for event in story():
        view(event)
    view.close()
    assert output(c).splitlines() == [
        "CPU, demo set [all of it]",
        "0:00 results in results/x",
        "0:01 setup: making the demo set",
        "0:23 trial 0 baseline ok 39.6 +-0.79 img/s 1.00x 18 s",
        "0:43 trial 1 ok 66.0 +-1.32 img/s 1.67x 18 s batch_per_gpu=32 torch_threads=2 channels_last=True",
        "0:52 trial 2 oom 7.0 s batch_per_gpu=64 cache=ram: oom happened",
        "1:23 trial 3 ok 62.4 +-1.25 img/s 1.57x 18 s workers=1 torch_threads=2 cache=ram",
        "1:32 trial 4 crash 7.0 s batch_per_gpu=32 workers=1: crash happened",
        "    hint: do something about it",
        "    | Traceback [red]",
        "    | boom",
        "    log: results/x/trials/0004/log.txt",
        "2:03 trial 5 ok 72.7 +-1.45 img/s 1.84x 18 s batch_per_gpu=64 workers=1 torch_threads=2",
        "2:23 trial 6 ok 41.6 +-0.83 img/s 1.05x 18 s workers=2 cache=ram channels_last=True",
        "2:25 not tried: batch_per_gpu=512: dearer than what is left",
        "75.6 +- 3.8 images/s, 1.89 x the baseline",
        *(f"  {command}" for command in COMMANDS),
    ]


def test_json_is_one_object_an_event() -> None:
    c = console(width=40)
    view = make_view(c, mode="json")
    for event in story():
        view(event)
    assert [json.loads(line) for line in output(c).splitlines()] == [
        json.loads(json.dumps(to_dict(event))) for event in story()
    ]


def test_quiet_says_the_product_only() -> None:
    c = console(terminal=True)
    view = make_view(c, mode="quiet")
    for event in story():
        view(event)
    view.close()
    assert output(c).splitlines() == [
        "75.6 +- 3.8 images/s, 1.89 x the baseline",
        *(f"  {command}" for command in COMMANDS),
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_panel_keeps_its_numbers_at_any_width(width: int) -> None:
    _, view, lines = live(width)
    text = "\n".join(lines)
    assert {len(line) for line in lines} == {width - 2}, "room for the echo of Ctrl-C"
    for whole in (
        "39.6",
        "1.00x",
        "72.7",
        "1.84x",
        "75.2",
        "1.90x",
        "14 s",
        "55 %",
        "2:44 of 5:00",
        "5 ok  1 oom  1 crash",
    ):
        assert whole in text, whole
    view.close()


def test_the_panel_has_baseline_best_last_three_and_running() -> None:
    _, view, lines = live(120)
    rows = [line[2:22].split() for line in lines[3:-2]]
    assert rows == [["0", "baseline"], ["4", "crash"], ["5", "best"], ["6", "ok"], ["7", "measuring"]]
    assert "3.00 GiB" in lines[5]
    assert "batch_per_gpu=64 workers=1 torch_threads=2" in lines[5]
    assert "results/x" in lines[-2]
    view.close()


def test_at_the_end_the_panel_stays_and_the_product_follows() -> None:
    c = console(100, terminal=True)
    view = make_view(c)
    for event in story():
        view(event)
    view.close()
    view.close()
    lines = output(c).replace("\x1b[?25h", "").splitlines()
    assert lines[0].endswith("CPU, demo set [all of it]")
    assert lines[-3:] == ["75.6 +- 3.8 images/s, 1.89 x the baseline", *(f"  {command}" for command in COMMANDS)]
    assert "    | boom" in output(c), "a crash shows its log"
    assert "Ctrl-C" not in "".join(lines[-8:])


def test_best_follows_the_objective() -> None:
    slow_start = replace(result_of(1), images_per_s=100.0, job_s=9000.0)
    for objective, best in (("job_time", "0"), ("images_per_s", "1")):
        view = make_view(console(120, terminal=True), objective=objective)
        assert isinstance(view, LiveView)
        view(PhaseStarted(t_s=0.0, phase="search"))
        for r in (result_of(0), slow_start):
            view(TrialEnded(t_s=30.0, changes={}, result=r))
        text = shown(Console(file=io.StringIO(), width=120, color_system=None), view)
        labels = {line[2:22].split()[0]: line[2:22].split()[1] for line in text[3:-2]}
        assert labels == {"0": "baseline", "1": "best" if best == "1" else "ok"}


def test_before_any_trial_the_panel_says_so() -> None:
    view = make_view(console(80, terminal=True))
    assert isinstance(view, LiveView)
    text = "\n".join(shown(Console(file=io.StringIO(), width=80, color_system=None), view))
    assert "no trial yet" in text


def test_a_probe_has_a_line_of_its_own_and_wins_nothing() -> None:
    c, view = console(), make_view(console(120, terminal=True))
    assert isinstance(view, LiveView)
    lines = make_view(c)
    crash = probe_of(2, "compute", 0.0, dict(BASE), outcome=Outcome.CRASH, error="boom", log_tail=("Traceback",))
    events: list[Event] = [PhaseStarted(t_s=0.0, phase="search")]
    results = (result_of(0), probe_of(1, "data", 610.0, dict(BASE)), crash)
    events += [TrialEnded(t_s=30.0, changes={}, result=r) for r in results]
    events.append(TrialStarted(t_s=31.0, number=3, role="probe", changes={}, price_s=None))
    events.append(TrialProgress(t_s=32.0, number=3, phase="measuring", n_steps=12, images_per_s=600.0))
    for event in events:
        view(event)
        lines(event)
    assert output(c).splitlines()[1:] == [
        "0:30 trial 1 loader only 610 +-18.3 img/s 6.0 s",
        "0:30 trial 2 step only crash: boom 6.0 s",
    ]
    text = shown(Console(file=io.StringIO(), width=120, color_system=None), view)
    rows = [line[2:].split() for line in text[3:-2]]
    assert rows[0][:2] == ["0", "baseline"]
    assert rows[1][:5] == ["1", "loader", "only", "610", "18.3"]
    assert not any(word.endswith("x") for word in (*rows[1], *rows[3])), "no ratio to the baseline"
    assert "1 ok " in text[1], "neither is counted as a trial"
    view.close()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_the_machine_is_warned_of_stands_at_the_start(terminal: bool) -> None:
    c = console(120, terminal=terminal)
    warnings = ("pressure: processes wait for [cpu]", "limits: 128 open files")
    with contextlib.closing(make_view(c, clock=lambda: 0.0)) as view:
        view(RunStarted(t_s=0.0, headline="a search", folder="results/x", budget_s=300, warnings=warnings))
    lines = [line.rstrip() for line in output(c).splitlines()]
    start = next(i for i, line in enumerate(lines) if line.endswith("a search"))
    assert lines[start + 1 : start + 3] == [f"warning: {warning}" for warning in warnings]
