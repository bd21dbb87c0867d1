"""autotune.tune(...), autotune.load(...): the search from Python, with the names of the flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.contract import Machine, Observer, RunInfo, Summary, Winner, read_json

if TYPE_CHECKING:
    import pandas as pd

    from autotune.report.load import RunData


class Run:
    """A run folder.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def data(self) -> RunData:
        """Everything in the folder, loaded."""
        from autotune.report.load import load_run

        return load_run(self.path)

    @property
    def info(self) -> RunInfo:
        """run.json."""
        return self.data.info

    @property
    def machine(self) -> Machine | None:
        """machine.json."""
        return self.data.machine

    @property
    def summary(self) -> Summary | None:
        """summary.json; None when the search died before it was written."""
        return self.data.summary

    @property
    def trials(self) -> pd.DataFrame:
        """One row a trial, as trials.csv."""
        return self.data.trials

    @property
    def best(self) -> Winner:
        """The exported configuration: `YOLO(run.best.train_args.pop("model")).train(**run.best.train_args)`."""
        return read_json(self.path / "best" / "winner.json", Winner)

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Plotly figures of the report by name; None for one that could not be drawn."""
        from autotune.report.figures import FIGURES

        return {name: make(self.data).figure for name, make in FIGURES.items()}

    def __repr__(self) -> str:
        verdict = self.summary.verdict.sentence if self.summary else "unfinished"
        return f"Run({str(self.path)!r}: {verdict})"

    def _repr_html_(self) -> str:
        from html import escape

        drawn = [f for f in self.figures.values() if f is not None][:3]
        return f"<p>{escape(repr(self))}</p>" + "".join(f.to_html(full_html=False) for f in drawn)


def tune(
    *,
    gpus: int | str | None = None,
    ranks: int | None = None,
    force: bool = False,
    budget: str = "30m",
    space: str | None = None,
    objective: str = "job_time",
    strategy: str = "structured",
    training: str = "same",
    mem_limit: str | None = None,
    verify_accuracy: str | None = None,
    seed: int = 0,
    name: str | None = None,
    out: str | Path = "results",
    resume: str | Path | None = None,
    replay: str | Path | None = None,
    dry_run: bool = False,
    assume_transport: str | None = None,
    track: str | None = None,
    atlas: bool = True,
    observers: Sequence[Observer] = (),
    **yolo: Any,
) -> Run:
    """Search, prove, export, report; blocks until done. Ctrl-C returns the run so far.

    Args:
        gpus: how many (4), which ("0,2"), or "all"; None: one, or the CPU.
        ranks: on the CPU, with gloo; None: one.
        force: measure on a GPU that another process uses, or on a machine that failed a check.
        budget: "90s", "30m", "2h", from the call to the report.
        space: name or file of a search space.
        objective: "job_time", "images_per_s" or "energy" (joules per image).
        strategy: "structured", "tpe", "gp", "random", "simple" or "grid".
        training: "same", "bounded" or "any".
        mem_limit: memory of one rank, such as "3GiB"; None: what the machine has.
        verify_accuracy: "10m": then train your settings and the best for real, half of this time each.
        seed: of the sampler and of the order of finalists.
        name: label of the run folder.
        out: folder for run folders.
        resume: go on with this run folder, for `budget` more; what is given beside the two must agree with it, and an
            argument that has its default here counts as not given.
        replay: a run folder or a table of measurements that answers in place of this machine.
        dry_run: simulate.
        assume_transport: "socket", "ib", "shm" or "p2p": search NCCL's settings of it, whatever NCCL's log says.
        track: "wandb", "mlflow" or "wandb,mlflow": each trial becomes a run there too.
        atlas: start from the winners of earlier runs on such machines and jobs, and become one of them.
        observers: called with every event (autotune.contract.Event) as it happens, in this process: what one of them
            does while a trial runs, it does beside a measurement.
        **yolo: YOLO's own arguments: model, data, epochs, imgsz, batch, ...

    Raises:
        AutotuneError: wrong input, or no trial succeeded; with `resume`, another question or machine.
    """
    from rich.console import Console

    from autotune.app import search
    from autotune.question import Request
    from autotune.report.terminal import make_view

    request = Request(
        user_args=yolo,
        gpus=None if gpus is None else str(gpus),
        ranks=ranks,
        force=force,
        budget=budget,
        space=space,
        objective=objective,
        strategy=strategy,
        training=training,
        mem_limit=mem_limit,
        verify_accuracy=verify_accuracy,
        seed=seed,
        name=name,
        out=str(out),
        resume=None if resume is None else str(resume),
        replay=None if replay is None else str(replay),
        dry_run=dry_run,
        assume_transport=assume_transport,
        track=track,
        atlas=atlas,
        command="autotune.tune(...)" if resume is None else f"autotune.tune(resume={str(resume)!r}, ...)",
    )
    names = ("objective", "strategy", "training", "seed", "out", "dry_run", "assume_transport")
    request = replace(request, given=frozenset(n for n in names if getattr(request, n) != getattr(Request(), n)))
    view = make_view(Console(), mode="auto", objective=objective)
    try:
        folder, _ = search(request, [view, *observers])
    finally:
        view.close()
    return Run(folder)


def load(path: str | Path) -> Run:
    """A run folder made before.

    Raises:
        InputError: not a run folder.
    """
    from autotune.folders import run_folder

    return Run(run_folder(str(path)).path)
