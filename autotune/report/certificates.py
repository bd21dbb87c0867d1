"""What was checked of the winner beside its speed, does it hold, and on what evidence? In words, for page and files."""

from __future__ import annotations

from typing import Any, Final

from autotune.contract import MemoryCertificate, RunInfo, Summary
from autotune.report import words
from autotune.report.semantics import semantics
from autotune.report.shell import one_line

EVIDENCE: Final = {
    "n_images": "images in the most crowded batch",
    "n_objects": "objects in it",
    "n_objects_of_one": "most objects in one image",
    "n_objects_ordinary": "objects in an ordinary batch",
    "imgsz": "largest side in training",
    "n_optimizer_steps": "optimizer steps with EMA",
    "n_val_images": "images validated at once",
    "val_imgsz": "largest side in validation",
}
"""Evidence of the memory certificate, in words."""
PARTS: Final = {"steps_bytes": "after ordinary steps", "crowded_bytes": "after the most crowded ones"}
HOLDS: Final[dict[bool | None, str]] = {True: "holds", False: "FAILS", None: "not known"}


def certificate_rows(
    summary: Summary, info: RunInfo, args: dict[str, Any] | None
) -> list[tuple[str, bool | None, str]]:
    """(certificate, whether it holds, evidence in words) of a run's winner.

    Args:
        summary: of the run.
        info: of the run.
        args: YOLO arguments of the winner; None: it is the user's own settings.
    """
    rows: list[tuple[str, bool | None, str]] = []
    if summary.memory:
        rows.append(("memory", summary.memory.holds, _memory(summary.memory)))
    if summary.numerics:
        rows.append(("numerics", summary.numerics.within, summary.numerics.sentence))
    if args is not None:
        found = semantics(info, args)
        rows.append(("semantics", found["same"] or found["allowed"], found["sentence"]))
    if summary.accuracy:
        rows.append(("accuracy", None, summary.accuracy.sentence))
    return rows


def verdict_word(name: str, holds: bool | None) -> str:
    """How it came out; of the accuracy there are curves, and no verdict."""
    return "measured" if name == "accuracy" else HOLDS[holds]


def readme_lines(summary: Summary, info: RunInfo, args: dict[str, Any] | None) -> list[str]:
    """The certificates as lines of Markdown, for the export's README; none where nothing was certified."""
    rows = certificate_rows(summary, info, args)
    return [f"- {name}: **{verdict_word(name, holds)}**. {one_line(evidence)}." for name, holds, evidence in rows]


def _memory(memory: MemoryCertificate) -> str:
    """The sentence, the head-room of every rank, and what was run."""
    parts = [memory.sentence]
    limit = memory.limit_bytes
    if limit and len(memory.peak_bytes) > 1:
        free = (
            f"rank {rank} {words.size(abs(limit - peak))} ({words.percent(1 - peak / limit)})"
            for rank, peak in enumerate(memory.peak_bytes)
            if peak <= limit
        )
        parts.append(f"head-room: {', '.join(free)}")
    what = [f"{label} {memory.evidence[key]}" for key, label in EVIDENCE.items() if key in memory.evidence]
    what += [
        f"{label} {words.size(float(n))}"
        for key, label in PARTS.items()
        if isinstance(n := memory.evidence.get(key), int | float)
    ]
    return "; ".join([*parts, ", ".join(what)] if what else parts)
