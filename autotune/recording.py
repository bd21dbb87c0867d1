"""What was measured before? A run folder, or a table of measured configurations, becomes one Recording.

A table is a folder: `table.json` (job, machine, space, domain, baseline, ...) and parts `part-000.jsonl.xz`, one run a
line, written by tests/bench/search/record.py.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from autotune.contract import (
    FORMAT,
    AtlasSeed,
    Machine,
    Outcome,
    Params,
    Probe,
    RankRecord,
    RunDir,
    RunInfo,
    SegmentSettings,
    StepColumns,
    Transport,
    TrialResult,
    Value,
    from_dict,
    read_json,
)
from autotune.drift import drift_of
from autotune.errors import FormatError, InputError
from autotune.search.past import read_past
from autotune.search.proposals import key_of
from autotune.space.space import SearchSpace, load_space

TABLE: Final = "table.json"
RATES: Final = ("images_per_s", "ci95_lo", "ci95_hi")
TIMES: Final = ("step_p50_s", "step_p90_s", "step_p99_s")
COLUMNS: Final = ("end_s", "wait_s", "step_s", "images")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One run that was measured, or failed."""

    result: TrialResult
    steps: StepColumns = field(default_factory=StepColumns)
    """The step before its window and those in it, the images of all ranks together; empty where they were not kept."""


Cells = dict[str, tuple[Recorded, ...]]
"""key_of a configuration -> its runs, in the order in which they were recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The question that was asked, and every answer."""

    name: str
    simulated: bool
    """The recorded runs were no real trainings either."""
    machine: Machine
    task: str
    device: str
    gpus: tuple[str, ...] = ()
    n_ranks: int
    space: SearchSpace
    training: str
    job: dict[str, Any]
    """YOLO arguments of the job."""
    user_args: dict[str, Any]
    domain: dict[str, tuple[Value, ...]]
    baseline: Params
    seeds: tuple[Params, ...] | None = None
    """None: those of the space."""
    n_images: int | None
    segment: SegmentSettings
    mem_limit_bytes: int | None = None
    transport: Transport | None = None
    assume_transport: str | None = None
    atlas: tuple[AtlasSeed, ...] = ()
    cells: Cells
    probes: dict[tuple[Probe, str], tuple[Recorded, ...]] = field(default_factory=dict)
    """By the key of the configuration that was probed."""

    @property
    def configs(self) -> tuple[Params, ...]:
        """Every configuration that there is an answer for."""
        return tuple(runs[0].result.params for runs in self.cells.values())

    def runs_of(self, params: Params) -> tuple[Recorded, ...]:
        """The runs of a configuration; empty: it was not recorded."""
        return self.cells.get(key_of(params), ())

    def truth(self, params: Params) -> float | None:
        """Images/s of a configuration, the mean over its measured runs; None: none was, or it is not recorded."""
        runs = self.runs_of(params)
        rates = [r.result.images_per_s for r in runs if r.result.outcome.measured and r.result.images_per_s]
        return fmean(rates) if rates else None


def read_recording(path: str) -> Recording:
    """A run folder or a table.

    Raises:
        InputError: it is neither, or holds no measured baseline.
        FormatError: a file of it is damaged, or newer than this autotune.
    """
    folder = Path(path).expanduser()
    if (folder / TABLE).is_file():
        recording = _of_table(folder)
    elif (folder / "run.json").is_file():
        recording = _of_run(RunDir(folder.resolve()))
    else:
        raise InputError(
            f"{path} is neither a run folder (run.json) nor a table of measured configurations ({TABLE})",
            "give results/latest, results/NAME, or the folder of a table",
        )
    if recording.truth(recording.baseline) is None:
        raise InputError(f"{path} cannot be replayed: its baseline was not measured", "give a run that got so far")
    return recording


def _of_run(run_dir: RunDir) -> Recording:
    info, machine = read_json(run_dir.info, RunInfo), read_json(run_dir.machine, Machine)
    runs = []
    for _, directory in run_dir.numbered():
        if directory.result.is_file():  # one that was killed answered nothing
            result = read_json(directory.result, TrialResult)
            record = read_json(directory.rank(0), RankRecord) if directory.rank(0).is_file() else None
            steps = _window(record.steps, record.measured_from, info.n_ranks) if record else StepColumns()
            runs.append(Recorded(result, steps))
    cells, probes = _by_key(runs)
    return Recording(
        name=f"{info.name} (simulated)" if info.simulated else info.name,
        simulated=info.simulated,
        machine=machine,
        task=info.task,
        device=info.device,
        gpus=info.gpus,
        n_ranks=info.n_ranks,
        space=load_space(str(run_dir.space)),
        training=info.training,
        job=dict(info.train_args),
        user_args=dict(info.user_args),
        domain=dict(info.domain),
        baseline=dict(info.baseline_params),
        n_images=info.n_images,
        segment=read_past(run_dir).segment or SegmentSettings(),
        mem_limit_bytes=info.mem_limit_bytes,
        transport=info.transport,
        assume_transport=info.assume_transport,
        atlas=info.atlas,
        cells=cells,
        probes=probes,
    )


def _of_table(folder: Path) -> Recording:
    path = folder / TABLE
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        version = table["format"]
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise FormatError(f"{path} cannot be read: {e!r}", "the file is damaged or not one of autotune's") from e
    if version != FORMAT:
        raise FormatError(f"{path} has format {version}, this autotune reads {FORMAT}", "update autotune")
    try:
        cells, probes = _by_key(steadied(list(_lines(folder, table["fingerprint"]))))
        return Recording(
            name=table["name"],
            simulated=bool(table.get("simulated", False)),
            machine=from_dict(Machine, table["machine"]),
            task=table["job"].get("task", "detect"),
            device=table["device"],
            gpus=tuple(table.get("gpus", ())),
            n_ranks=table["n_ranks"],
            space=load_space(table["space"]),
            training=table.get("training", "same"),
            job=dict(table["job"]),
            user_args=dict(table["job"]),
            domain={name: tuple(values) for name, values in table["domain"].items()},
            baseline=dict(table["baseline"]),
            seeds=tuple(table["seeds"]),
            n_images=table["n_images"],
            segment=from_dict(SegmentSettings, table["segment"]),
            cells=cells,
            probes=probes,
        )
    except (KeyError, TypeError, AttributeError) as e:
        raise FormatError(f"{path} lacks something: {e!r}", "the file is damaged or not one of autotune's") from e


def _lines(folder: Path, fingerprint: str) -> Iterator[Recorded]:
    """The runs of all parts, in order."""
    for part in sorted(folder.glob("part-*.jsonl.xz")):
        try:
            with lzma.open(part, "rt", encoding="utf-8") as f:
                lines = [json.loads(line) for line in f]
            for line in lines:
                result = from_dict(TrialResult, line["result"])
                if line["fingerprint"] != fingerprint:
                    raise InputError(f"{part} was recorded on another machine than {TABLE}", "tables are not mixed")
                # A sentinel repeats the baseline between the cells.
                result = replace(result, role="sentinel") if line["role"] == "sentinel" else result
                columns = StepColumns(**{name: line["steps"].get(name, []) for name in COLUMNS})
                yield Recorded(result, _window(columns, line.get("measured_from"), 1))
        except (OSError, EOFError, lzma.LZMAError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise FormatError(f"{part} cannot be read: {e!r}", "the file is damaged or not one of autotune's") from e


def steadied(runs: list[Recorded]) -> list[Recorded]:
    """The runs of a table as they would be, had the machine not drifted while it was recorded (drift.py)."""
    timed = [r for r in runs if r.result.outcome.measured and r.result.images_per_s]
    speeds = drift_of([key_of(r.result.params) for r in timed], [log(r.result.images_per_s or 1.0) for r in timed])
    scales = {id(run): exp(-speed) for run, speed in zip(timed, speeds, strict=True)}
    return [_scaled(run, scales[id(run)]) if id(run) in scales else run for run in runs]


def _scaled(run: Recorded, factor: float) -> Recorded:
    """A run on a machine that is `factor` times as fast."""
    r, steps = run.result, run.steps
    rates = {name: x * factor for name in RATES if (x := getattr(r, name)) is not None}
    times = {name: x / factor for name in TIMES if (x := getattr(r, name)) is not None}
    parts = {name: x / factor for name, x in r.parts_s.items()}
    end_s, wait_s, step_s = ([x / factor for x in xs] for xs in (steps.end_s, steps.wait_s, steps.step_s))
    columns = replace(steps, end_s=end_s, wait_s=wait_s, step_s=step_s)
    return Recorded(replace(r, **rates, **times, parts_s=parts), columns)


def _window(steps: StepColumns, measured_from: int | None, n_ranks: int) -> StepColumns:
    """The step before the window and the measured ones, as a watcher sees them (run/watch.py)."""
    if not measured_from:
        return StepColumns()
    end_s, wait_s, step_s, images = (getattr(steps, name)[measured_from - 1 :] for name in COLUMNS)
    return StepColumns(
        end_s=end_s, wait_s=wait_s, step_s=step_s, images=[n * n_ranks for n in images], ready=[0] * len(end_s)
    )


def _by_key(runs: list[Recorded]) -> tuple[Cells, dict[tuple[Probe, str], tuple[Recorded, ...]]]:
    """Runs of the same configuration, or of the same probe of it, together; an interrupted one answered nothing."""
    cells: Cells = {}
    probes: dict[tuple[Probe, str], tuple[Recorded, ...]] = {}
    for run in runs:
        result, key = run.result, key_of(run.result.params)
        if result.outcome is Outcome.INTERRUPTED:
            continue
        if result.probe is not None:  # a part of the step, no training
            probes[result.probe, key] = (*probes.get((result.probe, key), ()), run)
        else:
            cells[key] = (*cells.get(key, ()), run)
    return cells, probes
