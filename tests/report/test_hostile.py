"""Whatever stands in a path, a name or a value: it comes back as it was from every exported file, and runs nothing."""

import csv
import dataclasses
import io
import json
import re
import subprocess
from pathlib import Path

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autotune.contract import RunInfo, Winner, read_json, write_json
from autotune.report.chosen import Chosen
from autotune.report.container import container_of, dockerfile
from autotune.report.container_yaml import compose_yaml, k8s_yaml
from autotune.report.export_readme import docker_run, readme
from autotune.report.shell import env_sh, launch_sh

from .test_export import BASE, PATCHED, make_info

NASTY = [
    "$(touch hacked)",
    "`id`",
    "a b",
    "x'y\"z",
    "#no",
    "k: v",
    "-rf",
    "new\nline",
    "ü\u2028",
    "${HOME}",
    "$$",
    "\\",
    "a,b",
]
PIECES = st.sampled_from(
    [*NASTY, "\r", "\x85", "~", "*", "{a,b}", "]", "[", "```", "\n```\n", "!", "%", "=", ";", "&&"]
)
ANY = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=12)
TEXT = st.lists(PIECES | ANY, min_size=1, max_size=4).map("".join)
PART = TEXT.map(lambda s: s.replace("/", "|")).filter(lambda s: s not in ("", ".", "..") and len(s.encode()) < 200)
PATH = st.lists(PART, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "ENV", "USER", "ENTRYPOINT"}
FAST = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = settings(FAST, max_examples=20)


def winner_of(data: str, model: str, gpus: tuple[str, ...]) -> Winner:
    args = {"data": data, "model": model, "imgsz": 64, "batch": 4, "device": "2,0"}
    return Winner(task="detect", train_args=args, n_ranks=len(gpus))


def info_of(claim: str, folders: list[str], start: str, gpus: tuple[str, ...]) -> RunInfo:
    versions = {"python": "3.11.7", "torch": "2.9.0+" + claim}
    return make_info(
        name=claim, data_folders=tuple(folders), datasets_dir=start, gpus=gpus, n_ranks=len(gpus), versions=versions
    )


def instructions(text: str) -> dict[str, list[str]]:
    """Instruction -> arguments, as Docker splits a file: comments are whole lines, a backslash goes on."""
    found: dict[str, list[str]] = {}
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").split("\n")
    for line in filter(None, lines):
        name, _, rest = line.partition(" ")
        found.setdefault(name, []).append(rest)
    return found


def blocks(markdown: str) -> list[str]:
    """Fenced code blocks as CommonMark ends them: at a line of as many backticks or more."""
    found, fence, lines = [], "", []
    for line in markdown.split("\n"):
        if not fence and (m := re.match(r"(`{3,})sh$", line)):
            fence, lines = m[1], []
        elif fence and re.fullmatch(f"{fence}`*\\s*", line):
            found.append("\n".join(lines))
            fence = ""
        elif fence:
            lines.append(line)
    assert not fence
    return found


@FAST
@example(
    folders=["/sets/$(touch hacked) `x`", "/b"], model="/m\n- x: y", start="/s' \" \\", claim="a\nRUN rm\n#", gpu="$x"
)
@given(folders=st.lists(PATH, min_size=1, max_size=2, unique=True), model=PATH, start=PATH, claim=TEXT, gpu=PART)
def test_container_files_read_back(folders, model, start, claim, gpu):
    gpus = (gpu, "GPU-1")
    info, winner = info_of(claim, folders, start, gpus), winner_of(folders[0] + "/data.yaml", model, gpus)
    c = container_of(info, winner, None, claim)
    paths = [m.path for m in c.mounts]
    assert set(folders) <= set(paths)
    assert any(Path(model).is_relative_to(p) for p in paths)

    compose = compose_yaml(c)
    service = yaml.safe_load(compose)["services"]["train"]
    *bound, results = service["volumes"]
    assert [re.sub(r"\$\$", "$", v["source"]) for v in bound] == paths
    assert [v["source"] for v in bound] == [v["target"] for v in bound]
    (devices,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert [d.replace("$$", "$") for d in devices["device_ids"]] == list(gpus)
    assert not [
        v for v in (*devices["device_ids"], *(b["source"] for b in bound)) if re.search(r"\$", v.replace("$$", ""))
    ]
    assert results["source"].startswith("${RUNS:?")

    pod = yaml.safe_load(k8s_yaml(c))["spec"]["template"]["spec"]
    mounted = [m["mountPath"] for m in pod["containers"][0]["volumeMounts"]]
    assert all(any(Path(p).is_relative_to(m) for m in mounted) for p in paths)

    found = instructions(dockerfile(c))
    assert set(found) <= INSTRUCTIONS
    assert found["FROM"] == ["python:3.11.7-slim"]
    (setting,) = [r for r in found["RUN"] if r.startswith("[")]
    assert json.loads(setting)[-1] == start

    chosen = dataclasses.replace(_chosen(), info=info)
    assert docker_run(c) in "\n".join(blocks(readme([], chosen, c, "")))


def _chosen() -> Chosen:
    from autotune.contract import Outcome, Summary, TrialResult, Verdict

    summary = Summary(
        stopped_because="", elapsed_s=0, ledger_s={}, best_number=1, verdict=Verdict(status="gain", sentence="x")
    )
    result = TrialResult(number=1, role="trial", outcome=Outcome.OK, params={}, started_s=0, took_s=0)
    return Chosen(
        info=make_info(), summary=summary, machine=None, spec=PATCHED, base=BASE, result=result, confirmed=True
    )


@FEW
@given(values=st.lists(TEXT, min_size=1, max_size=12), path=PATH, gpu=PART, folder=PART, claim=TEXT)
def test_bash_gives_back_what_was_written(tmp_path_factory, values, path, gpu, folder, claim):
    """env.sh, launch.sh and the README's `docker run`, each started from another folder than its own."""
    top = tmp_path_factory.mktemp("x")
    best, tools = top / folder / "best", top / "tools"
    best.mkdir(parents=True)
    tools.mkdir(exist_ok=True)
    gpus = (gpu, "GPU-1")
    winner = dataclasses.replace(winner_of(path, path, gpus), env={f"V{i}": v for i, v in enumerate(values)})
    for tool in ("yolo", "docker"):
        fake = tools / tool
        names = " ".join(f'"$V{i}"' for i in range(len(values)))
        fake.write_text(f'#!/bin/bash\nprintf "%s\\0" {names} "$CUDA_VISIBLE_DEVICES" "$@"\n')
        fake.chmod(0o755)
    (best / "env.sh").write_text(env_sh(winner, claim), encoding="utf-8", newline="")
    (best / "launch.sh").write_text(launch_sh(winner, claim, gpus), encoding="utf-8", newline="")
    c = container_of(info_of(claim, [path], path, gpus), winner, None, claim)
    script = f'PATH="$1:$PATH"; bash -- "$2"/best/launch.sh "$3"; {docker_run(c)}'
    argv = ["bash", "-c", script, "_", str(tools), folder, claim]
    done = subprocess.run(
        argv, cwd=top, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    )
    *said, end = done.stdout.decode().split("\0")
    assert end == ""
    n = len(values)
    assert said[:n] == values
    assert said[n] == ",".join(gpus)
    cfg = f"cfg={top}/{folder}/best/best.yaml"
    assert said[n + 1 : n + 5] == ["train", cfg, "device=0,1", claim]
    docker = said[2 * n + 6 :]
    (mount, results) = [
        next(csv.reader(io.StringIO(docker[i + 1], newline=""))) for i, w in enumerate(docker) if w == "--mount"
    ]
    assert mount == ["type=bind", f"source={path}", f"target={path}", "readonly"]
    assert results == ["type=bind", "source=../runs", "target=/runs"]
    (device,) = next(csv.reader(io.StringIO(docker[docker.index("--gpus") + 1], newline="")))
    assert device == f"device={','.join(gpus)}"
    assert docker[-1] == c.name
    assert {p.name for p in top.iterdir()} == {folder, "tools"}, "nothing was run"


@FAST
@given(value=TEXT, path=PATH)
def test_winner_json_reads_back(tmp_path, value, path):
    winner = dataclasses.replace(winner_of(path, path, ("a",)), env={"A": value}, sentence=value)
    write_json(tmp_path / "winner.json", winner)
    assert read_json(tmp_path / "winner.json", Winner) == winner
