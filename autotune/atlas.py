"""What did earlier searches find, here and elsewhere? Winners of finished runs, from which a new search starts.

A file a run in $AUTOTUNE_DATA/atlas. What stands in one is tried, never believed: other work on the machine, a new
driver or another dataset may have made it slow, so a winner enters as a seed of the space does, and is measured again.

Which are tried first? Those whose cell (machine and job) is nearest. The distance is a sum:

    machine    0 the same fingerprint; 1 the same model of GPU, on a CPU the same CPU and cores; 3 another
    ranks      1 a doubling
    task       2 another
    model      1 another size (yolo11n, yolo11s), 2 another family
    imgsz      1 a doubling; batch of a rank, pixels of a stored image: a half
    dataset    1 for ten times the images
    objective  1 another

What --training allows, and what this machine can do, is the space's to say: it drops what it does not have. Between
equals a proven gain goes first, then the newest. A CPU teaches a GPU nothing, nor what is farther than FAR.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path
from typing import Any, Final, Literal

from autotune.contract import (
    FORMAT,
    AtlasSeed,
    Machine,
    Params,
    RunDir,
    RunInfo,
    Summary,
    TrialResult,
    read_json,
    write_json,
)
from autotune.errors import FormatError
from autotune.machine.facts import describe, fingerprint_facts
from autotune.search.proposals import changes_of, key_of
from autotune.space.context import Context
from autotune.space.knobs import KNOBS
from autotune.space.space import SearchSpace, prepare

MOST_SEEDS: Final = 3
"""Each costs a trial: one that is far off is paid for by the sampler."""
FAR: Final = 6.0
NEWEST: Final = 500
"""Files that are looked at."""
_MODEL: Final = re.compile(r"(?P<family>yolo[a-z-]*\d+|rtdetr)-?(?P<size>[a-z])?(-.*)?")
"""yolo11n-seg is a yolo11, of size n; a name without a size is n, as Ultralytics reads it."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A job on a machine: what the distance looks at."""

    fingerprint: str
    facts: dict[str, Any]
    """What the fingerprint is made of."""
    hostname: str
    where: str
    """In words: 2 x H100 80GB."""
    device: Literal["cpu", "cuda"]
    gpus: tuple[str, ...] = ()
    """Models of the ranks' GPUs."""
    n_ranks: int
    task: str
    model: str
    """Its name, without path and suffix."""
    data: str
    """The dataset's, likewise."""
    imgsz: Any = None
    batch: Any = None
    """Of one rank, as the user had it."""
    n_images: int | None = None
    image_hw: tuple[int, int] | None = None
    """Median height and width of the images as stored."""
    training: str
    objective: str
    space: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one run found."""

    format: int = FORMAT
    run: str
    folder: str
    started: str
    """ISO 8601."""
    autotune: str
    cell: Cell
    params: Params
    """The winner's."""
    baseline: Params
    status: str
    """Of the verdict: gain, no_gain (the winner is the baseline) or unconfirmed."""
    speedup: float | None = None
    """On the objective, with its interval; None: no fresh runs were compared."""
    ci95_lo: float | None = None
    ci95_hi: float | None = None

    @property
    def changes(self) -> Params:
        """What the winner changed in its user's settings."""
        return changes_of(self.params, self.baseline)

    def said(self, here: Cell) -> str:
        """`2026-11-20 yolo11n demo on this machine (1.93x)`."""
        where = f"on {self.cell.where}"
        if (self.cell.fingerprint, self.cell.hostname) == (here.fingerprint, here.hostname):
            where = "on this machine"
        proven = self.status == "gain" and isinstance(self.speedup, float)
        less = " fewer J per image" if self.cell.objective == "energy" else ""
        gain = f"{self.speedup:.2f}x{less}" if proven else "unconfirmed"
        return f"{self.started[:10]} {self.cell.model} {self.cell.data} {where} ({gain})"


def data_home() -> Path:
    """Where what is learned stays: $AUTOTUNE_DATA, else $XDG_DATA_HOME/autotune, else ~/.local/share/autotune."""
    if own := os.environ.get("AUTOTUNE_DATA"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_DATA_HOME"):
        return Path(xdg) / "autotune"
    return Path.home() / ".local" / "share" / "autotune"


def cell_of(info: RunInfo, machine: Machine, image_hw: tuple[int, int] | None) -> Cell:
    """The cell of a run."""
    args, batch, data = info.train_args, info.train_args.get("batch"), Path(str(info.train_args.get("data")))
    return Cell(
        fingerprint=machine.fingerprint,
        facts=fingerprint_facts(machine),
        hostname=machine.hostname,
        where=describe(machine, info.gpus),
        device="cpu" if info.device == "cpu" else "cuda",
        gpus=tuple(g.name for g in machine.gpus if g.uuid in info.gpus),
        n_ranks=info.n_ranks,
        task=info.task,
        model=Path(str(args.get("model"))).stem,
        data=data.parent.name if data.stem == "data" and data.parent.name else data.stem,
        imgsz=args.get("imgsz"),
        batch=batch / info.n_ranks if isinstance(batch, int | float) else None,
        n_images=info.n_images,
        image_hw=image_hw,
        training=info.training,
        objective=info.objective,
        space=info.space,
    )


def remember(run_dir: RunDir, image_hw: tuple[int, int] | None) -> None:
    """Put a finished run into the atlas; where that cannot be done, a line of the log says so and nothing else.

    A simulated run is not remembered, nor one that has no winner.
    """
    try:
        entry = _entry_of(run_dir, image_hw)
        if entry is None:
            return
        home = data_home() / "atlas"
        home.mkdir(parents=True, exist_ok=True)
        # The date first, so that the newest are found by name; a resumed run has the same name, two runs never have.
        mark = hashlib.sha256(f"{entry.cell.hostname} {entry.folder} {entry.started}".encode()).hexdigest()[:8]
        write_json(home / f"{re.sub('[^0-9T]', '', entry.started[:19])}-{mark}.json", entry)
    except (OSError, RuntimeError, FormatError) as e:  # RuntimeError: there is no home
        log.warning("this run is not in the atlas, from which later searches start: %s", e)


def _entry_of(run_dir: RunDir, image_hw: tuple[int, int] | None) -> Entry | None:
    info, summary = read_json(run_dir.info, RunInfo), read_json(run_dir.summary, Summary)
    if info.simulated or summary.best_number is None:
        return None
    best = next((f for f in summary.verdict.finalists if f.name == "best"), None)
    return Entry(
        run=info.name,
        folder=str(run_dir.path.resolve()),
        started=info.started,
        autotune=info.versions.get("autotune", ""),
        cell=cell_of(info, read_json(run_dir.machine, Machine), image_hw),
        params=read_json(run_dir.trial(summary.best_number).result, TrialResult).params,
        baseline=info.baseline_params,
        status=summary.verdict.status,
        speedup=best.speedup if best else None,
        ci95_lo=best.ci95_lo if best else None,
        ci95_hi=best.ci95_hi if best else None,
    )


def recall() -> list[Entry]:
    """What is remembered, the newest first; a damaged file, or one of a newer autotune, is left out."""
    found = []
    try:
        files = sorted((data_home() / "atlas").glob("*.json"), reverse=True)[:NEWEST]
    except (OSError, RuntimeError) as e:
        log.debug("the atlas cannot be read: %s", e)
        return []
    for path in files:
        try:
            entry = read_json(path, Entry)
            entry.said(entry.cell), distance(entry.cell, entry.cell), entry.changes  # what it is for
            found.append(entry)
        except (FormatError, AttributeError, TypeError, ValueError) as e:
            log.debug("left out of the atlas: %s: %s", path, e)
    return found


def distance(a: Cell, b: Cell) -> float | None:
    """How far two cells are from each other, by the table above; None: one teaches the other nothing."""
    if a.device != b.device:
        return None
    far = _machine(a, b) + _doublings(a.n_ranks, b.n_ranks) + 2 * (a.task != b.task) + _models(a.model, b.model)
    far += _doublings(a.imgsz, b.imgsz) + _doublings(a.batch, b.batch) / 2 + _doublings(_pixels(a), _pixels(b)) / 2
    far += _doublings(a.n_images, b.n_images) / log2(10) + (a.objective != b.objective)
    return far if far <= FAR else None


def seeds_for(here: Cell, space: SearchSpace, ctx: Context, training: str) -> tuple[AtlasSeed, ...]:
    """From which winners this search starts, the nearest first: at most MOST_SEEDS, each another configuration.

    Of a winner only what it changed is taken, and of that only what the space has here; a value between two of the
    space's becomes the smaller one. What comes to the user's own settings then is left out.
    """
    ranked = [(far, e) for e in recall() if e.status != "no_gain" and (far := distance(here, e.cell)) is not None]
    own = prepare(space, ctx, training)
    start = {name: own.baseline[name] for name in own.domain}
    chosen: dict[str, AtlasSeed] = {}
    for far, entry in sorted(ranked, key=lambda item: (item[0], item[1].status != "gain")):
        if len(chosen) == MOST_SEEDS:
            break
        kept = {k: v for k, v in entry.changes.items() if k in own.domain and _legal(k, v)}
        for whole in prepare(replace(space, seeds=(kept,)), ctx, training).seeds:
            params = changes_of(whole, start)
            seed = AtlasSeed(
                run=entry.run, folder=entry.folder, said=entry.said(here), distance=round(far, 2), params=params
            )
            chosen.setdefault(key_of(params), seed)
    return tuple(chosen.values())


def with_seeds(space: SearchSpace, seeds: Sequence[AtlasSeed]) -> SearchSpace:
    """The space with these tried before its own."""
    return replace(space, seeds=(*(seed.params for seed in seeds), *space.seeds))


def note(seeds: Sequence[AtlasSeed]) -> tuple[str, ...]:
    """What the user is told."""
    if not seeds:
        return ()
    winners = "1 winner" if len(seeds) == 1 else f"{len(seeds)} winners"
    return (f"starts from {winners} of the atlas, measured anew: {', '.join(seed.said for seed in seeds)}",)


def _legal(name: str, value: Any) -> bool:
    return (value is None or isinstance(value, bool | int | float | str)) and KNOBS[name].legal(value) is None


def _machine(a: Cell, b: Cell) -> float:
    if set(a.gpus) != set(b.gpus):
        return 3.0
    if a.fingerprint == b.fingerprint:
        return 0.0
    alike = a.device == "cuda" or all(a.facts.get(fact) == b.facts.get(fact) for fact in ("CPU", "cores"))
    return 1.0 if alike else 3.0


def _models(a: str, b: str) -> float:
    if a == b:
        return 0.0
    one, other = _MODEL.fullmatch(a.lower()), _MODEL.fullmatch(b.lower())
    if one is None or other is None or one["family"] != other["family"]:
        return 2.0
    return float((one["size"] or "n") != (other["size"] or "n"))  # what the suffix says is the task's term


def _pixels(cell: Cell) -> int:
    """Of a stored image."""
    height, width = cell.image_hw or (0, 0)
    return height * width


def _doublings(a: Any, b: Any) -> float:
    """From one number to the other; 0 where one is not known (or AutoBatch's -1)."""
    return abs(log2(a / b)) if all(isinstance(x, int | float) and x > 0 for x in (a, b)) else 0.0
