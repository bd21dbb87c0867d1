"""python tests/bench/memory_model.py OUT.json [--ranks 2] [--imgsz 128]: how far off is a predicted peak, and is it safe?

Run by hand. Real trials of yolo11n on gloo ranks, as `autotune batch` runs them. The line is fitted on two, then on
three small batches, and asked for larger ones that it has not seen: prediction error of each, and, over many limits,
how often a batch that was called safe needed more than the limit (false safe), or was called hopeless and fitted (false
hopeless). One batch is repeated for the noise of a peak. The least head-room that would have had no false safe, without
the interval, is what the noise alone asks for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from cells import Cell, dataset, machine, save, trial_spec

from autotune.contract import Deadlines, SegmentSettings, TrialDir
from autotune.machine.memory import spell_size
from autotune.run.dataset import DatasetView
from autotune.run.trial import run_trial
from autotune.search.memory import BATCH, HEADROOM_FRAC, MemoryModel

FITTED = (4, 8, 16)
HELD_OUT = (12, 24, 32, 48)
REPEATED = 8
N_LIMITS = 40
SHORT = SegmentSettings(
    warmup_steps=2, warmup_s=0.5, warmup_cap_s=3.0, measure_s=1.5, measure_steps=4, measure_cap_s=6.0
)
"""A peak is reached in the first optimizer cycle: throughput is not asked here."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--imgsz", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    runs: list[dict[str, Any]] = []
    results = {}
    with tempfile.TemporaryDirectory(prefix="memory-model-") as tmp:
        view = DatasetView(str(dataset("vga")), "detect", Path(tmp) / "view")
        data = view.path(False)
        # The very first trial scans the labels, which the later ones find cached.
        for i, batch in enumerate((REPEATED, *FITTED, *HELD_OUT, *[REPEATED] * given.repeats)):
            total = batch * given.ranks
            cell = Cell(f"batch {batch}", args={"imgsz": given.imgsz, "batch": total, "nbs": total})
            spec = replace(
                trial_spec(cell, data, i, SHORT),
                params={BATCH: batch}, n_ranks=given.ranks, certify=True, deadlines=Deadlines(total_s=120.0),
            )  # fmt: skip
            result = run_trial(spec, TrialDir(Path(tmp) / str(i)), started_s=0.0)
            if not result.peak_mem_bytes:
                sys.exit(f"batch {batch}: {result.outcome}: {result.error}\n" + "\n".join(result.log_tail))
            runs.append({"batch": batch, "peak_bytes": result.peak_mem_bytes, "took_s": result.took_s})
            print(f"batch {batch:3} a rank: {[spell_size(b) for b in result.peak_mem_bytes]}, {result.took_s:.0f} s")
            if i:
                results.setdefault(batch, result)
    peaks = {b: max(r.peak_mem_bytes) for b, r in results.items()}
    again = [max(r["peak_bytes"]) for r in runs[1:] if r["batch"] == REPEATED]
    noise_frac = stdev(again) / fmean(again)
    print(f"the same batch again, {len(again)} runs: standard deviation {noise_frac:.2%}")
    print(f"the first trial of all, which scans the labels: {max(runs[0]['peak_bytes']) / fmean(again) - 1:+.1%}")
    fits = []
    for n in (2, len(FITTED)):
        fits.append(judge({b: results[b] for b in FITTED[:n]}, peaks))
    save(given.out, {"machine": machine(), "n_ranks": given.ranks, "imgsz": given.imgsz, "runs": runs,
                     "noise_frac": noise_frac, "headroom_frac": HEADROOM_FRAC, "fits": fits})  # fmt: skip


def judge(fitted: dict[int, Any], peaks: dict[int, int]) -> dict[str, Any]:
    """Predictions of all batches that were not fitted, and what they would have meant under many limits."""
    errors, false_safe, false_hopeless, n_safe, n_hopeless = {}, [], [], 0, 0
    held_out = [b for b in sorted(peaks) if b not in fitted]
    lowest, highest = 0.8 * min(peaks.values()), 1.4 * max(peaks.values())
    limits = [lowest + (highest - lowest) * i / (N_LIMITS - 1) for i in range(N_LIMITS)]
    for limit in limits:
        model = MemoryModel(int(limit), on_cpu=True)
        for result in fitted.values():
            model.learn(result)
        for batch in held_out:
            p = model.predict({BATCH: batch})
            assert p is not None
            errors[batch] = p.mem_bytes / peaks[batch] - 1
            safe = p.near and p.upper_bytes <= (1 - HEADROOM_FRAC) * limit
            hopeless = model.why_not({BATCH: batch}) is not None
            n_safe, n_hopeless = n_safe + safe, n_hopeless + hopeless
            if safe and peaks[batch] > limit:
                false_safe.append((batch, limit))
            if hopeless and peaks[batch] <= limit:
                false_hopeless.append((batch, limit))
    least = max(0.0, *(-e for e in errors.values()))
    print(f"fitted on {sorted(fitted)}: " + ", ".join(f"{b}: {e:+.1%}" for b, e in errors.items()))
    print(f"  {N_LIMITS} limits x {len(held_out)} batches: {n_safe} called safe, {len(false_safe)} of them falsely; "
          f"{n_hopeless} hopeless, {len(false_hopeless)} of them falsely; largest underestimate {least:.1%}")  # fmt: skip
    return {"fitted": sorted(fitted), "error_frac": errors, "n_limits": N_LIMITS, "n_safe": n_safe,
            "n_false_safe": len(false_safe), "n_hopeless": n_hopeless, "n_false_hopeless": len(false_hopeless),
            "largest_underestimate_frac": least}  # fmt: skip


if __name__ == "__main__":
    main()
