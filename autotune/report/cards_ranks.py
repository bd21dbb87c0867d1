"""What do several ranks give, and what does it cost that they train together?"""

from __future__ import annotations

from typing import Final

import pandas as pd

from autotune.contract import Probe, TrialResult
from autotune.report import words
from autotune.report.cards import BASELINE, BEST, BEST_YAML, Card, base_figure, make_card, no_card
from autotune.report.load import RunData
from autotune.run.scaling import scaling_of

_COLOURS: Final = {"step": BASELINE, "local": BEST, "alone": BEST_YAML}


def ranks(run: RunData) -> Card:
    """The step of several ranks, of the same ranks exchanging nothing, and of one rank alone; with your arguments."""
    title = "What several ranks give and cost"
    n_ranks, several = run.info.n_ranks, run.baseline
    if n_ranks == 1:
        return no_card(run, title, "this job has one rank, which exchanges nothing")
    if several is None:
        return no_card(run, title, "your own arguments were not measured")
    s = scaling_of(several, _probe(run, "no_sync"), _probe(run, "one_rank"), n_ranks)
    rows = [
        ("step", f"{n_ranks} ranks", s.step_s),
        ("local", f"{n_ranks} ranks, nothing exchanged", s.local_step_s),
        ("alone", "one rank", s.one_rank_step_s),
    ]
    df = pd.DataFrame([r for r in rows if r[2] is not None], columns=["kind", "name", "step_s"])
    for name in ("exposed_frac", "efficiency"):
        df[name] = getattr(s, name)
    df["straggler_frac"] = several.straggler_frac
    if len(df) < 2:
        why = "neither the step without communication nor that of one rank was measured"
        return no_card(run, title, why, df)
    figure = base_figure(90 + 44 * len(df))
    figure.add_bar(
        x=[1e3 * x for x in df["step_s"]],
        y=df["name"].tolist(),
        orientation="h",
        width=0.6,
        marker={"color": [_COLOURS[kind] for kind in df["kind"]]},
        text=[f"{words.number(1e3 * x)} ms" for x in df["step_s"]],
        textposition="auto",
        hovertemplate="%{y}: %{x:.4g} ms a step<extra></extra>",
        showlegend=False,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(title_text="milliseconds per step, same images per rank", rangemode="tozero")
    return make_card(
        run, title, _words(s.exposed_frac, s.efficiency, several.straggler_frac, n_ranks), df, figure=figure
    )


def _probe(run: RunData, probe: Probe) -> TrialResult | None:
    return next((r for r in reversed(run.probes) if r.probe == probe and r.outcome.measured), None)


def _words(exposed: float | None, efficiency: float | None, straggler: float | None, n_ranks: int) -> str:
    said = []
    if efficiency is not None:
        times = words.number(n_ranks * efficiency)
        said.append(
            f"{n_ranks} ranks train {times} times as fast as one: a scaling efficiency of {words.percent(efficiency)}."
        )
    if exposed is not None:
        share = words.percent(max(0.0, exposed))
        said.append(
            f"Communication that no computation hides is {share} of the step with your settings: no setting of it can "
            "gain more there."
        )
    else:
        said.append("The step without communication was not measured.")
    if straggler is not None:
        said.append(f"Ranks wait for the slowest one for {words.percent(straggler)} of the step.")
    return " ".join(said)
