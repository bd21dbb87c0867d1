"""How does a run become one page? RUN/report.html: offline, plotly.js inlined once, written whole or not at all."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from autotune.report import words
from autotune.report.cards import OUTCOME_COLOURS, Card
from autotune.report.figures import FIGURES, LATER
from autotune.report.load import RunData, load_run

_STATUS_WORDS = {"gain": "gain confirmed", "no_gain": "no gain", "unconfirmed": "not confirmed"}


def write_report(folder: Path) -> Path:
    """Make report.html of a run folder, from the folder alone.

    Raises:
        InputError: not a run folder.
        FormatError: a file in it is damaged or too new.
    """
    run = load_run(folder)
    path = run.folder.report
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        tmp.write_text(render(run), encoding="utf-8")
        tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)
    return path


def render(run: RunData) -> str:
    """The page as text."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cards = {name: draw(run) for name, draw in FIGURES.items()}
    cards |= {name: card for name, later in LATER.items() if (card := later(run))}
    return env.get_template("page.html.jinja").render(
        run=run,
        cards=cards,
        figures={name: _script_json(card) for name, card in cards.items() if card.figure is not None},
        data_links={name: _data_link(card) for name, card in cards.items() if not card.df.empty},
        status=run.summary.verdict.status if run.summary else "interrupted",
        status_words=_STATUS_WORDS[run.summary.verdict.status] if run.summary else "interrupted",
        sentence=_sentence(run),
        facts=_facts(run),
        commands=_commands(run),
        colours=OUTCOME_COLOURS,
        plotly_js=Markup(get_plotlyjs()),
    )


def _sentence(run: RunData) -> str:
    """The verdict's words, set well: no number is parted from its unit."""
    text = run.summary.verdict.sentence if run.summary else "The run was interrupted before it had a verdict."
    for ascii_, typeset in ((" %", "\u00a0%"), (" x ", "\u00a0x "), ("+- ", "±\u00a0"), ("+-", "±")):
        text = text.replace(ascii_, typeset)
    return text


def _script_json(card: Card) -> Markup:
    """A figure as JSON that cannot end its <script> element, whatever stands in its labels."""
    text = str(card.figure.to_json()) if card.figure is not None else "null"
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def _data_link(card: Card) -> str:
    return "data:text/csv;charset=utf-8," + quote(card.df.to_csv(index=False))


def _dataset(data: str) -> str:
    """A short name; `data.yaml` alone would name nothing."""
    path = Path(data)
    return f"{path.parent.name}/{path.name}" if path.stem == "data" and path.parent.name else path.name


def _facts(run: RunData) -> list[tuple[str, str]]:
    """The line of small numbers under the headline."""
    info, baseline = run.info, run.baseline
    n_ok = int(run.tried["outcome"].isin(["ok", "unstable"]).sum())
    facts = [
        ("model", Path(str(info.train_args.get("model", words.DASH))).name),
        ("data", _dataset(str(info.train_args.get("data", words.DASH)))),
        (
            "machine",
            ", ".join(g.name for g in run.machine.gpus if not info.gpus or g.uuid in info.gpus) or run.machine.cpu,
        ),
        ("your arguments", words.rate(baseline.images_per_s, baseline.ci95_lo, baseline.ci95_hi, pm="±"))
        if baseline
        else ("your arguments", "no number"),
        ("trials", f"{n_ok} of {len(run.tried)} gave a number"),
    ]
    if run.summary:
        facts.append(("time", f"{words.seconds(run.summary.elapsed_s)} of {words.seconds(info.budget_s)}"))
    return facts


def _commands(run: RunData) -> list[str]:
    """What to type next: the run's own last lines, or what the folder holds when they are not written yet."""
    for event in reversed(run.events):
        if event.get("kind") == "run_ended":
            return [str(c).strip() for c in event.get("next_commands", ())]
    best, commands = run.folder.best, []
    if (best / "best.yaml").exists():
        commands.append(f"yolo train cfg={shlex.quote(str(best / 'best.yaml'))}")
    if (best / "launch.sh").exists():
        commands.append(f"bash {shlex.quote(str(best / 'launch.sh'))}")
    return commands
