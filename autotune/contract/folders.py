"""Where does everything of a trial and of a run lie? One object owns every path."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LONGEST_TMPDIR: Final = 60
"""Loader workers hand tensors over through sockets in TMPDIR, and the path of a socket has at most 107 bytes."""
SHORT_TMP: Final = Path("/tmp")


@dataclass(frozen=True, slots=True)
class TrialDir:
    """One object owns every path of a trial."""

    path: Path

    @property
    def spec(self) -> Path:
        """TrialSpec, written by the controller."""
        return self.path / "spec.json"

    @property
    def result(self) -> Path:
        """TrialResult, written by the controller."""
        return self.path / "result.json"

    @property
    def log(self) -> Path:
        """Stdout and stderr of all ranks."""
        return self.path / "log.txt"

    @property
    def tmp(self) -> Path:
        """TMPDIR of its processes: in the folder, or in /tmp where that path is too long for a socket.

        Always the same for the same folder, so that the trial itself, and whoever goes on after a kill -9, finds it;
        not $TMPDIR, which differs between shells and is this very folder inside the trial.
        """
        own = self.path.resolve() / "tmp"
        if len(os.fsencode(own)) <= LONGEST_TMPDIR:
            return own
        return SHORT_TMP / f"autotune-{hashlib.sha256(os.fsencode(own)).hexdigest()[:12]}"

    @property
    def shm_before(self) -> Path:
        """Names in shared memory when it started, a JSON list; there until it has a result."""
        return self.path / "shm_before.json"

    @property
    def stop(self) -> Path:
        """The controller makes this file to end the segment at the next step; its text is the reason."""
        return self.path / "stop"

    @property
    def stop_at(self) -> Path:
        """Rank 0 of several writes `n_steps measured_from` here: after so many steps all ranks end."""
        return self.path / "stop_at"

    @property
    def trace(self) -> Path:
        """Chrome trace of a few steps, for chrome://tracing or ui.perfetto.dev."""
        return self.path / "trace.json.gz"

    @property
    def trace_summary(self) -> Path:
        """TraceSummary, written by rank 0 of a traced trial."""
        return self.path / "trace_summary.json"

    @property
    def epochs(self) -> Path:
        """Rank 0 of a full training writes a line an epoch: `seconds steps_s val_s closed`."""
        return self.path / "epochs.txt"

    @property
    def samples(self) -> Path:
        """What the machine did meanwhile: HOST_COLUMNS and GPU_COLUMNS, written by the controller."""
        return self.path / "samples.csv"

    def rank(self, rank: int) -> Path:
        """RankRecord of one rank, written once by it at its end."""
        return self.path / f"rank{rank}.json"

    def stream(self, rank: int) -> Path:
        """The rank's heartbeat: `# pid N` first, `# PHASE` when a phase of Deadlines begins (import, build,
        first_step), and one line a step, `end_s wait_s step_s images ready measuring(0|1)`, space separated.
        """
        return self.path / f"steps{rank}.txt"


@dataclass(frozen=True, slots=True)
class RunDir:
    """One object owns every path of a run."""

    path: Path

    @property
    def info(self) -> Path:
        """RunInfo."""
        return self.path / "run.json"

    @property
    def space(self) -> Path:
        """The space as used."""
        return self.path / "space.yaml"

    @property
    def machine(self) -> Path:
        """Machine."""
        return self.path / "machine.json"

    @property
    def study(self) -> Path:
        """Optuna's SQLite file."""
        return self.path / "study.db"

    @property
    def events(self) -> Path:
        """One event a line."""
        return self.path / "events.jsonl"

    @property
    def trials_csv(self) -> Path:
        """One row a trial that was run."""
        return self.path / "trials.csv"

    @property
    def summary(self) -> Path:
        """Summary."""
        return self.path / "summary.json"

    @property
    def best(self) -> Path:
        """The exported files."""
        return self.path / "best"

    @property
    def rechecks(self) -> Path:
        """Folder of the folders that `autotune recheck` writes."""
        return self.path / "rechecks"

    @property
    def promises(self) -> Path:
        """One line a full training: what was promised, what came."""
        return self.path / "promises.jsonl"

    @property
    def report(self) -> Path:
        """The one HTML file."""
        return self.path / "report.html"

    @property
    def trials(self) -> Path:
        """Folder of the trial folders."""
        return self.path / "trials"

    def trial(self, number: int) -> TrialDir:
        """Folder of one trial."""
        return TrialDir(self.trials / f"{number:04d}")

    def numbered(self) -> list[tuple[int, TrialDir]]:
        """The trial folders there are, by number; a copy that somebody made (0003-mine) is none."""
        names = (path.name for path in self.trials.glob("[0-9]*"))
        return [(n, self.trial(n)) for n in sorted(int(m) for m in names if m.isdecimal() and m == f"{int(m):04d}")]


TRIALS_CSV_COLUMNS: Final = (
    "number",
    "role",
    "outcome",
    "job_s",
    "images_per_s",
    "ci95_lo",
    "ci95_hi",
    "wait_frac",
    "peak_mem_bytes",
    "energy_j",
    "took_s",
    "error",
)
"""Then one column a knob (PRODUCT B6); peak_mem_bytes is the largest rank's."""
