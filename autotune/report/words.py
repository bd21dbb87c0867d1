"""How do we say a number to a person? (SI inside, human outside; `None` is a dash)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from autotune.contract import Params, TrialResult, Value

DASH = "-"
PROBES: Final[dict[str, str]] = {
    "data": "loader only",
    "compute": "step only",
    "losses": "losses",
    "no_sync": "no sync",
    "one_rank": "one rank",
    "memory": "memory",
    "epoch_end": "epoch end",
    "certificate": "certificate",
}
"""What a probe ran, as a label."""


def number(x: float | None) -> str:
    """Three significant digits, never in powers of ten: 1131, 91.4, 0.83."""
    if x is None or not math.isfinite(x):
        return DASH
    size = abs(x)
    if size >= 100 or x == 0:
        return f"{x:.0f}"
    if size >= 10:
        return f"{x:.1f}"
    return f"{x:.2f}" if size >= 0.1 else f"{x:.2g}"


def seconds(x: float | None) -> str:
    """Seconds -> `0.5 s`, `58 s`, `4.5 min`, `3.2 h`, `12 d`."""
    if x is None or not math.isfinite(x):
        return DASH
    if abs(x) < 9.95:
        return f"{x:.1f} s"
    if abs(x) < 99.5:
        return f"{x:.0f} s"
    for size, unit in ((60.0, "min"), (3600.0, "h")):
        if abs(x) / size < 99.5:
            return f"{number(x / size)} {unit}"
    return f"{number(x / 86400)} d"


def clock(x: float) -> str:
    """Seconds -> `0:12`, `58:01`, `1:06:12`."""
    minutes, s = divmod(int(max(x, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


def size(n_bytes: float | None) -> str:
    """Bytes -> `19.8 GiB`, `512 MiB`."""
    if n_bytes is None or not math.isfinite(n_bytes):
        return DASH
    if n_bytes >= 0.995 * 2**30:
        return f"{number(n_bytes / 2**30)} GiB"
    return f"{number(n_bytes / 2**20)} MiB"


def percent(frac: float | None) -> str:
    """Share -> `4 %`; below one percent with a digit, since `0 %` would say `none`."""
    if frac is None or not math.isfinite(frac):
        return DASH
    x = 100 * frac
    return f"{x:.0f} %" if abs(x) >= 0.95 or x == 0 else f"{x:.1f} %"


def half_width(lo: float | None, hi: float | None) -> float | None:
    """Half of a confidence interval, in its own unit."""
    return None if lo is None or hi is None else (hi - lo) / 2


def rate(images_per_s: float | None, lo: float | None = None, hi: float | None = None, *, pm: str = "+-") -> str:
    """Images/s with the half-width of its interval: `1131 +-19 img/s`."""
    if images_per_s is None or not math.isfinite(images_per_s):
        return DASH
    half = half_width(lo, hi)
    return f"{number(images_per_s)}{'' if half is None else f' {pm}{number(half)}'} img/s"


def joules(result: TrialResult) -> str:
    """Energy of an image, and where it is no counter's: `0.52 J/image (from power readings)`; `` where unknown."""
    if result.energy_j_per_image is None:
        return ""
    integrated = result.meanwhile is not None and result.meanwhile.energy_from == "power"
    return f"{number(result.energy_j_per_image)} J/image{' (from power readings)' if integrated else ''}"


def times(x: float | None) -> str:
    """A ratio: `2.75x`."""
    return DASH if x is None or not math.isfinite(x) else f"{x:.2f}x"


def plural(n: int, one: str, many: str = "") -> str:
    """Count with its noun: `1 trial`, `3 trials`."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def value(v: Value) -> str:
    """A knob's value; None means that the knob has no effect in this combination."""
    return "none" if v is None else str(v)


def assignments(params: Mapping[str, Value]) -> str:
    """`batch_per_gpu=64 workers=2`; a dash when there is none."""
    return " ".join(f"{k}={value(v)}" for k, v in params.items()) or DASH


def differences(params: Params, baseline: Params) -> Params:
    """What `params` sets otherwise than the baseline (True is not 1)."""
    return {k: v for k, v in params.items() if k not in baseline or value(v) != value(baseline[k])}


def result_lines(result: TrialResult) -> list[str]:
    """One trial for the screen: outcome and rate, then what was asked for against what was in effect."""
    what = f" ({PROBES[result.probe]})" if result.probe else ""
    speed = rate(result.images_per_s, result.ci95_lo, result.ci95_hi)
    energy = f"   {said}" if (said := joules(result)) else ""
    lines = [f"trial {result.number}{what}: {result.outcome}   {speed}{energy}"]
    if result.error:
        lines.append(result.error)
    if result.hint:
        lines.append(f"hint: {result.hint}")
    for knob, asked in result.params.items():
        got = result.effective.get(knob)
        lines.append(f"  {knob}: asked {value(asked)}, in effect {value(got)}")
    lines.append("  " + ", ".join(f"{name} {seconds(s)}" for name, s in result.phases_s.items()))
    return lines
