"""What was run, what failed and why, on which machine, and how do I repeat it?"""

from __future__ import annotations

import shlex

import pandas as pd

from autotune.contract import RunInfo, TrialResult
from autotune.report import words
from autotune.report.cards import Card, Cell, Table, make_card, no_card, rows_of
from autotune.report.load import RunData

CUT_SHORT = "its warm-up ended at the time limit, before two windows in a row agreed"
"""Of an ok trial whose record says steady=False: its interval holds, and so does the outcome."""


def trials(run: RunData) -> Card:
    """All trials; what failed says what happened and what to do."""
    title = "All trials"
    if run.trials.empty:
        return no_card(run, title, "Not one trial was run.", run.trials)
    base = run.baseline.images_per_s if run.baseline else None
    best_number = run.summary.best_number if run.summary else None
    rows = []
    for number, role, outcome in rows_of(run.trials, "number", "role", "outcome"):
        r = run.result(number)
        if r is None:  # trials.csv has it, its folder is gone
            rows.append((Cell(str(number), number), Cell(role), _outcome(outcome), *[Cell(words.DASH)] * 7))
            continue
        ips, peak = r.images_per_s, max(r.peak_mem_bytes, default=None)
        shown = ips if r.outcome.measured or r.outcome == "pruned" else None
        ratio = shown / base if shown and base and role != "probe" else None
        half = words.half_width(r.ci95_lo, r.ci95_hi) if shown else None
        changed = words.assignments(words.differences(r.params, run.baseline_params))
        rows.append(
            (
                Cell(str(number), number),
                Cell("best" if number == best_number else words.PROBES.get(r.probe or "", role), css="name"),
                _outcome(outcome),
                Cell(words.number(shown), shown),
                Cell(words.number(half), half),
                Cell(words.times(ratio), ratio),
                Cell(words.size(peak), peak),
                Cell(words.percent(r.wait_frac), r.wait_frac),
                Cell(words.seconds(r.took_s), r.took_s),
                Cell(changed, css="code", remark=trouble(r), more=_log(run, r), more_title="its last log lines"),
            )
        )
    table = Table(
        (
            "#",
            "role",
            "outcome",
            "img/s",
            "±",
            "x yours",
            "peak",
            "wait",
            "took",
            "differs from your arguments in",
        ),
        tuple(rows),
        numeric=("#", "img/s", "±", "x yours", "peak", "wait", "took"),
        sortable=True,
    )
    counts = run.tried["outcome"].value_counts()
    note = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
    n_losses = sum(r.probe == "losses" for r in run.probes)
    n_probes = len(rows) - len(run.tried) - n_losses
    probes = f" And {words.plural(n_probes, 'probe')}." if n_probes else ""
    probes += f" And {words.plural(n_losses, 'run')} to compare the loss." if n_losses else ""
    if any(r.meanwhile and r.meanwhile.energy_from == "power" for r in run.results):
        probes += " Energy is summed up from readings of power: a GPU here does not count it."
    return make_card(run, title, f"{words.plural(len(run.tried), 'trial')}: {note}.{probes}", run.trials, table=table)


def _outcome(outcome: str) -> Cell:
    return Cell(outcome, outcome, css=f"outcome o-{outcome}")


def trouble(r: TrialResult) -> str:
    """What happened, and what to do about it."""
    unsteady = CUT_SHORT if r.outcome == "ok" and r.steady is False else None
    said = [text.rstrip(".") for text in (r.error, r.hint, unsteady) if text]
    return ". ".join(text[0].upper() + text[1:] for text in said if text) + "." if said else ""


def _log(run: RunData, r: TrialResult) -> tuple[str, ...]:
    """The last lines of a failed trial's log, and where the others are."""
    if not r.log_tail:
        return ()
    return (*r.log_tail, f"(all of it: {run.folder.trial(r.number).log.relative_to(run.folder.path)})")


def _ranks(info: RunInfo) -> list[tuple[str, str, str]]:
    """Over what the ranks talk, and what the user had set of NCCL."""
    rows = [("question", "your NCCL settings", ", ".join(f"{k}={v}" for k, v in info.nccl_set.items()))]
    if info.transport is not None:
        by_kind: dict[str, list[str]] = {}
        for pair, kind in info.transport.pairs.items():
            by_kind.setdefault(kind, []).append(pair)
        said = "; ".join(f"{kind} (ranks {', '.join(pairs)})" for kind, pairs in by_kind.items())
        rows += [("question", "transport between ranks", said), ("question", "NCCL", info.transport.nccl or "")]
    rows.append(("question", "transport assumed", info.assume_transport or ""))
    return [row for row in rows if row[2]]


def _atlas(run: RunData) -> list[tuple[str, str, str]]:
    """From whose winners the search started, and what each was worth here."""
    rows = []
    for seed in run.info.atlas:
        tried = (r for r in run.results if r.role == "trial")
        ran = next((r for r in tried if words.differences(r.params, run.baseline_params) == seed.params), None)
        here = "not tried" if ran is None else f"trial {ran.number}: {ran.outcome.value}"
        here += f", {words.rate(ran.images_per_s)}" if ran and ran.outcome.measured else ""
        rows.append(("question", "starts from", f"{seed.said}: {words.assignments(seed.params)}; {here}"))
    return rows


def environment(run: RunData) -> Card:
    """Can I repeat it? Machine, versions, exact commands, and what was not tried."""
    info, m = run.info, run.machine
    folder = shlex.quote(str(run.folder.path))
    cores = f"{m.n_cores} usable" + (f" of {m.n_cores_host}" if m.n_cores_host != m.n_cores else "")
    rows: list[tuple[str, str, str]] = [
        ("commands", "this run", info.command),
        ("commands", "this report again", f"python -m autotune report {folder}"),
        ("commands", "one trial again", f"python -m autotune trial {folder}/trials/0000"),
        ("commands", "the study in Optuna's words", f"optuna-dashboard sqlite:///{folder}/study.db"),
        ("question", "started", info.started),
        ("question", "budget", words.seconds(info.budget_s)),
        ("question", "objective", f"{info.objective} ({info.direction})"),
        ("question", "strategy, seed", f"{info.strategy}, {info.seed}"),
        ("question", "space", info.space),
        ("question", "training", info.training),
        ("question", "backend", f"{info.backend}{f' ({info.label.lower()})' if info.label else ''}"),
        *([("question", "replayed", f"{info.replayed}: nothing was measured anew")] if info.replayed else []),
        ("question", "device", f"{info.device}, {words.plural(info.n_ranks, 'rank')}"),
        *_ranks(info),
        ("question", "your arguments", words.assignments(info.user_args)),
        *_atlas(run),
        ("question", "resolved", words.assignments(info.resolved)),
        ("machine", "host", m.hostname),
        ("machine", "cpu", m.cpu),
        ("machine", "cores", cores),
        ("machine", "memory", f"{words.size(m.ram_bytes)}, shared {words.size(m.shm_bytes)}"),
        *(("machine", f"gpu {g.index}", f"{g.name}, {words.size(g.mem_bytes)}, {g.uuid}") for g in m.gpus),
        *([("machine", "driver", m.driver)] if m.driver else []),
        *(("machine", "warning", warning) for warning in info.warnings),
        ("machine", "fingerprint", m.fingerprint or words.DASH),
        *(("versions", name, version) for name, version in {**m.versions, **info.versions}.items()),
        *([("versions", "autotune's git", info.git)] if info.git else []),
    ]
    frozen = run.summary.frozen if run.summary else {}
    rows += [("not varied", knob, why) for knob, why in frozen.items()]
    for skipped in run.not_tried:
        price = "" if skipped.price_s is None else f" (price {words.seconds(skipped.price_s)})"
        name = words.assignments(words.differences(skipped.params, run.baseline_params))
        rows.append(("not tried", name, f"{skipped.reason}{price}"))
    if run.summary:
        rows += [("notes", "", note) for note in run.summary.notes]
        rows.append(("notes", "stopped because", run.summary.stopped_because))
    df = pd.DataFrame(rows, columns=["section", "name", "value"])
    cells = tuple(
        (
            Cell(section if i == 0 or rows[i - 1][0] != section else "", css="section"),
            Cell(name, css="code" if section in ("not tried", "not varied") else "name"),
            Cell(text, css="code" if section == "commands" or name == "your arguments" else ""),
        )
        for i, (section, name, text) in enumerate(rows)
    )
    left = words.plural(len(run.not_tried), "configuration")
    gpus = ", ".join(g.name for g in m.gpus) or "no GPU"
    note = f"{m.cpu}, {gpus}; {words.plural(len(frozen), 'knob')} not varied and {left} not tried."
    return make_card(run, "Environment and how to repeat it", note, df, table=Table(("", "", ""), cells))
