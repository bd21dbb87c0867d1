"""What `autotune doctor` shows: facts, then the worst first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autotune.contract import Gpu, Machine, Mount, from_dict
from autotune.doctor.diagnosis import as_json, as_lines
from autotune.machine.checks.finding import Finding, Plan, ok, unknown
from autotune.machine.facts import read_machine
from tests.machine.fakes import fabricate

FINDINGS = {
    "one": ok("fine", "a figure that is not shown"),
    "two": Finding(verdict="info", says="worth knowing", evidence=("a figure",)),
    "three": unknown("not told", "ask"),
    "four": Finding(verdict="fail", says="broken", evidence=("a figure", "another"), remedy="mend it"),
    "five": Finding(verdict="warn", says="slow", remedy="faster"),
    "six": Finding(verdict="ok", says="not useful", evidence=("the figures behind it",), remedy="for more: this"),
}


def test_lines(tmp_path: Path) -> None:
    files = {".dockerenv": "", "sys/fs/cgroup/memory.max": str(32 << 30)}
    machine = read_machine(fabricate(tmp_path, files, affinity=4), data="/data")
    gpus = tuple(Gpu(index=i, uuid=f"GPU-{i}", name="NVIDIA H100 80GB HBM3", mem_bytes=80 << 30) for i in range(2))
    mount = Mount(path="/data", point="/data", kind="nfs4", source="server:/x", network=True)
    machine = replace(machine, hostname="box", gpus=gpus, driver="590.1", data=mount, fingerprint="0123abcd")
    machine = replace(machine, versions=machine.versions | {"python": "3.12.1", "autotune": "0.1.0", "cuda": "13.2"})
    lines = as_lines(machine, Plan(data="/data"), "a job", FINDINGS)
    assert lines == [
        "host         box, container docker",
        "CPU          Synthetic CPU @ 3 GHz, 4 of 16 cores usable",
        "memory       128.0 GiB, 32.0 GiB of them usable; /dev/shm 64.0 GiB",
        "GPUs         2 x H100 80GB, driver 590.1",
        "versions     torch 2.15.0 (CUDA 13.2, cuDNN 9.26.0.51, NCCL 2.30.7), ultralytics 8.4.190, python 3.12.1, "
        "autotune 0.1.0",
        "dataset      /data on nfs4 (server:/x)",
        "fingerprint  0123abcd",
        "examined for a job",
        "",
        "fail     four: broken",
        "         a figure",
        "         another",
        "         remedy: mend it",
        "warn     five: slow",
        "         remedy: faster",
        "unknown  three: not told",
        "         remedy: ask",
        "info     two: worth knowing",
        "         a figure",
        "ok       one: fine",
        "ok       six: not useful",
        "         the figures behind it",
        "         remedy: for more: this",
        "",
        "6 checks: 1 fail, 1 warn, 1 unknown, 1 info, 2 ok",
    ]


def test_json(tmp_path: Path) -> None:
    machine = read_machine(fabricate(tmp_path))
    answer = as_json(machine, FINDINGS)
    assert from_dict(Machine, answer["machine"]) == machine
    assert [c["name"] for c in answer["checks"]] == list(FINDINGS)
    assert answer["checks"][3] == {
        "name": "four",
        "verdict": "fail",
        "evidence": "broken; a figure; another",
        "remedy": "mend it",
    }
