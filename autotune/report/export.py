"""What does the user take away from a run? best/: the configuration as files that run as they are (PRODUCT B6).

Made from the run folder alone, whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

from autotune.contract import RunDir, RunInfo, TrialResult, Winner, read_json, write_json
from autotune.errors import FormatError, InputError, MachineError
from autotune.report.before_after_table import as_markdown, before_after_rows
from autotune.report.certificates import readme_lines
from autotune.report.chosen import Chosen, choose, keeper, yaml_header
from autotune.report.container import constraints_txt, container_of, dockerfile
from autotune.report.container_yaml import compose_yaml, k8s_yaml
from autotune.report.export_readme import readme
from autotune.report.receipt import receipt_of
from autotune.report.shell import env_sh, launch_sh
from autotune.report.yolo_yaml import check_with_yolo, yolo_yaml
from autotune.run.transport import LOGGING


def export(run: RunDir, *, number: int | None = None, out: Path | None = None) -> Path:
    """Write the files of a configuration.

    Args:
        run: the run folder; nothing else is read.
        number: a trial; the run's best when None.
        out: where to; RUN/best when None. An earlier export of the same run is replaced, nothing else is.

    Returns:
        The folder written.

    Raises:
        InputError: no such trial, it has no speed, or `out` holds something else.
        FormatError: a file of the run folder is missing or damaged.
        AutotuneError: Ultralytics refuses the YAML.
        MachineError: `out` cannot be written.
    """
    chosen = choose(run, number)
    target = (out or run.best).absolute()
    _refuse_foreign(target, chosen.info)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
            tmp = Path(name) / "new"
            tmp.mkdir()
            _write_all(tmp, chosen, run)
            if target.exists():
                target.rename(Path(name) / "old")
            tmp.rename(target)
    except OSError as e:
        raise MachineError(f"cannot write {target}: {e}", "give another folder") from e
    return target


def _refuse_foreign(target: Path, info: RunInfo) -> None:
    """Replace only what an export of this very run wrote."""
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file", "give a folder")
    names = {p.name for p in target.iterdir()}
    if not names:
        return
    try:
        receipt = json.loads((target / "receipt.json").read_text(encoding="utf-8"))
        ours = receipt["run"] == info.name and receipt["started"] == info.started
        foreign = names - set(receipt["files"])
    except (OSError, ValueError, KeyError, TypeError):
        ours, foreign = False, names
    if not ours:
        raise InputError(f"{target} is not empty and not an export of this run", "give another folder, or remove it")
    if foreign:
        raise InputError(
            f"{target} holds files that are not ours: {', '.join(sorted(foreign))}", "move them away first"
        )


def _write_all(folder: Path, chosen: Chosen, run: RunDir) -> None:
    """Every file of best/ into an empty folder."""
    info, args, best = chosen.info, chosen.args, chosen.finalist("best")
    winner = Winner(
        task=info.task,
        train_args=args,
        env={k: v for k, v in chosen.spec.env.items() if k not in LOGGING},
        patches=dict(chosen.spec.patches),
        n_ranks=chosen.spec.n_ranks,
        params=dict(chosen.spec.params),
        versions=dict(info.versions),
        fingerprint=chosen.machine.fingerprint if chosen.machine else "",
        images_per_s=best.images_per_s if best else None,
        sentence=chosen.claim,
        simulated=info.simulated,
    )
    write_json(folder / "winner.json", winner)
    yamls = {"best.yaml": yolo_yaml(args, info, yaml_header("best.yaml", chosen, winner))}
    same = keeper(run, chosen)
    if same is not None:
        yamls["keep-training.yaml"] = yolo_yaml(same.args, info, yaml_header("keep-training.yaml", same, None))
    for name, text in yamls.items():
        (folder / name).write_text(text, encoding="utf-8")
    check_with_yolo([folder / name for name in yamls])
    (folder / "env.sh").write_text(env_sh(winner, chosen.claim), encoding="utf-8", errors="surrogateescape")
    (folder / "launch.sh").write_text(launch_sh(winner, chosen.claim, info.gpus), encoding="utf-8")
    (folder / "launch.sh").chmod(0o755)
    container = container_of(info, winner, chosen.machine, chosen.claim)
    texts = {
        "Dockerfile": dockerfile(container),
        "compose.yaml": compose_yaml(container),
        "k8s.yaml": k8s_yaml(container),
        "constraints.txt": constraints_txt(info),
    }
    files = sorted([*(p.name for p in folder.iterdir()), *texts, "README.md", "receipt.json"])
    texts["README.md"] = readme(files, chosen, container, _table(run, chosen), _certified(chosen))
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    write_json(folder / "receipt.json", receipt_of(files, chosen, winner, run))


def _table(run: RunDir, chosen: Chosen) -> str:
    """Before and after, as Markdown; from every result that can be read."""
    results = []
    for _, directory in run.numbered():
        with contextlib.suppress(FormatError):
            results.append(read_json(directory.result, TrialResult))
    rows = before_after_rows(chosen.info, chosen.machine, chosen.summary, results, chosen.result.number)
    return as_markdown(rows, chosen.info.simulated)


def _certified(chosen: Chosen) -> list[str]:
    """The certificates of the winner, a line each."""
    return readme_lines(chosen.summary, chosen.info, chosen.args) if chosen.confirmed else []
