"""How is an examination told? Lines to paste into an issue, worst first, and JSON for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from autotune.contract import Machine, to_dict
from autotune.machine.checks.finding import Finding, Plan
from autotune.machine.facts import describe
from autotune.machine.memory import spell_size as size

WORST_FIRST: Final = ("fail", "warn", "unknown", "info", "ok")
_INDENT: Final = " " * 9


def as_lines(machine: Machine, plan: Plan, job: str, findings: Mapping[str, Finding]) -> list[str]:
    """For the screen.

    Args:
        machine: its facts stand first.
        plan: what was examined for.
        job: what that is, in words.
        findings: by name of the check.
    """
    lines = [*_facts(machine, plan, job), ""]
    for name, finding in sorted(findings.items(), key=lambda item: WORST_FIRST.index(item[1].verdict)):
        lines.append(f"{finding.verdict:9}{name}: {finding.says}")
        if finding.verdict != "ok" or finding.remedy:
            lines += [f"{_INDENT}{sentence}" for sentence in finding.evidence]
        lines += [f"{_INDENT}remedy: {finding.remedy}"] if finding.remedy else []
    counted = Counter(f.verdict for f in findings.values())
    said = ", ".join(f"{counted[v]} {v}" for v in WORST_FIRST if counted[v])
    return [*lines, "", f"{len(findings)} check{'s' * (len(findings) != 1)}: {said}"]


def as_json(machine: Machine, findings: Mapping[str, Finding]) -> dict[str, Any]:
    """For machines (PRODUCT B6)."""
    return {
        "machine": to_dict(machine),
        "checks": [
            {"name": name, "verdict": f.verdict, "evidence": "; ".join((f.says, *f.evidence)), "remedy": f.remedy}
            for name, f in findings.items()
        ],
    }


def _facts(m: Machine, plan: Plan, job: str) -> list[str]:
    v = m.versions
    inside = [
        f"{word} {v[name]}" for name, word in (("cuda", "CUDA"), ("cudnn", "cuDNN"), ("nccl", "NCCL")) if name in v
    ]
    torch = f"torch {v.get('torch', 'none')}" + (f" ({', '.join(inside)})" if inside else "")
    limit = f", {size(m.ram_bytes)} of them usable" if m.ram_bytes < (m.ram_host_bytes or 0) else ""
    rows = [
        ("host", f"{m.hostname}, {f'container {m.container}' if m.container else 'no container shows'}"),
        ("CPU", f"{m.cpu}, {m.n_cores} of {m.n_cores_host} cores usable"),
        (
            "memory",
            f"{size(m.ram_host_bytes or m.ram_bytes)}{limit}; /dev/shm {size(m.shm_bytes) if m.shm_bytes else 'none'}",
        ),
        ("GPUs", f"{describe(m)}, driver {m.driver or 'unknown'}" if m.gpus else "none"),
        (
            "versions",
            f"{torch}, ultralytics {v.get('ultralytics', 'none')}, python {v['python']}, autotune {v['autotune']}",
        ),
    ]
    if m.data:
        source = f" ({m.data.source})" if m.data.source else ""
        rows.append(("dataset", f"{plan.data} on {m.data.kind}{source}"))
    rows += [("fingerprint", m.fingerprint), ("examined for", job)]
    return [f"{name:13}{text}" for name, text in rows]
