"""What does the user see where there is no terminal? Lines: for nohup, Slurm, CI, and machines."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.text import Text

from autotune.contract import (
    Event,
    Outcome,
    Params,
    PhaseStarted,
    RunDir,
    RunEnded,
    RunStarted,
    TrialEnded,
    TrialResult,
    TrialSkipped,
    to_dict,
)
from autotune.report import words
from autotune.report.progress import State


def say(console: Console, text: str) -> None:
    """A line as it is: no markup, no wrapping, no colours of rich's own choice."""
    console.print(Text(text), soft_wrap=True)


def say_end(console: Console, event: RunEnded) -> None:
    """The product: what was won, and the commands to use next."""
    for line in (event.sentence, *event.also):
        say(console, line)
    for command in event.next_commands:
        say(console, f"  {command}")


def say_warnings(console: Console, event: RunStarted) -> None:
    """What of this machine costs speed or trust, a line each."""
    for warning in event.warnings:
        say(console, f"warning: {warning}")


def is_trouble(result: TrialResult) -> bool:
    """True where the user must act; other failures are what a search is for; probes and ablations may fail."""
    if result.role in ("probe", "ablation"):
        return False
    return result.outcome is Outcome.CRASH or (result.role == "baseline" and not result.outcome.measured)


def say_trouble(console: Console, state: State, result: TrialResult) -> None:
    """The hint, the last log lines, and where the rest is."""
    if result.hint:
        say(console, f"    hint: {result.hint}")
    if result.log_tail:
        for line in result.log_tail[-20:]:
            say(console, f"    | {line}")
        log = RunDir(Path(state.folder)).trial(result.number).log
        say(console, f"    log: {log}")


def trial_line(state: State, event: TrialEnded) -> str:
    """`trial 3 ok 1131 +-19 img/s 2.75x 58 s batch_per_gpu=64 workers=2`."""
    r = event.result
    if r.role == "probe":
        rate = words.rate(r.images_per_s, r.ci95_lo, r.ci95_hi) if r.outcome.measured else f"{r.outcome}: {r.error}"
        rate = f"of {words.plural(len(r.losses), 'step')}" if r.losses else rate
        if (end := r.epoch_end) is not None:
            rate = f"validation {words.seconds(end.val_s)}, checkpoint {words.seconds(end.save_s)}, then {rate}"
        what = words.PROBES.get(r.probe or "", "probe")
        parts = [f"trial {r.number} {what} {rate}", words.seconds(r.took_s)]
        return " ".join([*parts, words.assignments(event.changes)] if event.changes else parts)
    role = "" if r.role == "trial" else f"{r.role} "
    parts = [f"trial {r.number} {role}{r.outcome.value}"]
    if r.outcome.measured:
        parts += [words.rate(r.images_per_s, r.ci95_lo, r.ci95_hi), words.times(state.ratio(r.images_per_s))]
        parts += [f"{words.number(r.energy_j_per_image)} J/image"] if state.objective == "energy" else []
    parts += [words.seconds(r.took_s)]
    parts += [words.assignments(event.changes)] if event.changes else []
    return " ".join(parts) + (f": {r.error}" if r.error else "")


class JsonView:
    """One JSON object an event, on one line."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, event: Event) -> None:
        """Show an event."""
        self._console.out(json.dumps(to_dict(event), ensure_ascii=False), highlight=False)

    def close(self) -> None:
        """Nothing is held."""


class QuietView:
    """The product, and nothing before it."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, RunEnded):
            say_end(self._console, event)

    def close(self) -> None:
        """Nothing is held."""


class LineView:
    """One line a trial: for nohup, Slurm and CI."""

    def __init__(self, console: Console, state: State) -> None:
        self._console, self._state = console, state

    def __call__(self, event: Event) -> None:
        """Show an event."""
        self._state.add(event)
        at = words.clock(event.t_s)
        match event:
            case RunStarted():
                say(self._console, event.headline)
                say_warnings(self._console, event)
                say(self._console, f"{at} results in {event.folder}")
            case PhaseStarted() if event.note:
                say(self._console, f"{at} {event.phase}: {event.note}")
            case TrialEnded():
                say(self._console, f"{at} {trial_line(self._state, event)}")
                if is_trouble(event.result):
                    say_trouble(self._console, self._state, event.result)
            case TrialSkipped():
                changes = words.differences(event.not_tried.params, self._baseline_params())
                say(self._console, f"{at} not tried: {words.assignments(changes)}: {event.not_tried.reason}")
            case RunEnded():
                say_end(self._console, event)

    def _baseline_params(self) -> Params:
        return self._state.baseline.params if self._state.baseline else {}

    def close(self) -> None:
        """Nothing is held."""
