"""Which change of the winner mattered, by runs that lacked it?"""

from __future__ import annotations

import pandas as pd

from autotune.report import words
from autotune.report.cards import BEST, Card, base_figure, make_card, no_card, plain
from autotune.report.cards_result import gain_words, matters
from autotune.report.load import RunData

_UNCERTAIN = "#8a93a3"


def ablation(run: RunData) -> Card:
    """Each change of the winner set back to yours alone, in fresh runs beside the winner's: gains with intervals."""
    title = "What each change gives"
    found = run.summary.ablation if run.summary else ()
    columns = ["knob", "yours", "best", "gain", "ci95_lo", "ci95_hi", "runs", "note"]
    rows = [
        (a.knob, words.value(a.baseline), words.value(a.value), a.gain, a.ci95_lo, a.ci95_hi, len(a.numbers), a.note)
        for a in found
    ]
    df = pd.DataFrame(rows, columns=columns)
    known = [a for a in found if a.gain is not None]
    reasons = dict.fromkeys(a.note for a in found if a.gain is None)
    left_out = [f"{', '.join(a.knob for a in found if a.gain is None and a.note == why)} ({why})" for why in reasons]
    if not known:
        why = ", ".join(left_out) or "it is measured for a winner whose gain is proven"
        return no_card(run, title, f"No change of the winner was set back alone: {why}", df)
    figure = base_figure(80 + 34 * len(known))
    figure.add_scatter(
        x=[a.gain for a in known],
        y=[plain(f"{a.knob}={words.value(a.value)}") for a in known],
        mode="markers",
        marker={
            "size": 11,
            "color": [BEST if matters(a) else _UNCERTAIN for a in known],
            "symbol": ["circle" if matters(a) else "circle-open" for a in known],
        },
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [(a.ci95_hi or a.gain or 0.0) - (a.gain or 0.0) for a in known],
            "arrayminus": [(a.gain or 0.0) - (a.ci95_lo or a.gain or 0.0) for a in known],
            "color": "#8a93a3",
            "thickness": 2.5,
            "width": 7,
        },
        customdata=[
            plain(f"{gain_words(a)}; {words.plural(len(a.numbers), 'run')} with {words.value(a.baseline)}")
            for a in known
        ],
        hovertemplate="%{y}: %{customdata}<extra></extra>",
    )
    figure.add_vline(x=1.0, line={"color": "#8a93a3", "dash": "dot", "width": 1})
    figure.update_layout(showlegend=False)
    energy = run.info.objective == "energy"
    times = "times as many images per joule" if energy else "times as fast"
    figure.update_xaxes(title_text=f"{times} with it as without it (95 % CI; open: not shown to matter)")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    helps = [f"{a.knob} {gain_words(a)}" for a in known if matters(a)]
    unsure = [a.knob for a in known if not matters(a)]
    note = f"Measured, each alone set back to your value: {', '.join(helps)}." if helps else ""
    if unsure:
        note += f" Not shown to matter: {', '.join(unsure)}."
    if left_out:
        note += f" Not measured: {', '.join(left_out)}."
    return make_card(run, title, note.strip(), df, figure=figure)
