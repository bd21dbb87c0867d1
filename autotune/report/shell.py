"""How does a configuration start from a shell? The text of env.sh and launch.sh."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Final

from autotune.contract import Winner
from autotune.space.knobs_nccl import VARIABLES

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_KNOB_OF: Final = {
    "OMP_NUM_THREADS": "omp_num_threads",
    "PYTORCH_CUDA_ALLOC_CONF": "alloc_conf",
    "TORCH_DIST_USE_NCCL2": "nccl_backend",
    **{variable: knob for knob, variables in VARIABLES.items() for variable in variables},
}


def one_line(text: str) -> str:
    """Text that can stand in a comment of YAML or bash: printable, without line breaks."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def env_sh(winner: Winner, claim: str) -> str:
    """env.sh: one `export` a variable, valid when there is none.

    Args:
        winner: whose env is written; an empty value stands for "not set", whatever the caller's shell exports.
        claim: the line that says how fast this is and how sure that is.
    """
    lines = [
        "# shellcheck shell=bash disable=SC2016  # values are literal",
        f"# {one_line(claim)}",
        "# The environment of this configuration:  source env.sh",
    ]
    if not winner.env:
        lines.append("# Nothing to set: no variable of the environment made it faster.")
    for name, value in sorted(winner.env.items()):
        assert _NAME.fullmatch(name), f"not a name of an environment variable: {name!r}"
        lines.append(f"# {one_line(_doc(name))}")
        lines.append(f"export {name}={shlex.quote(value)}" if value else f"unset {name}")
    return "\n".join(lines) + "\n"


def through_autotune(winner: Winner) -> bool:
    """True where plain YOLO cannot start what was measured: a setting that it has no argument for, or CPU ranks."""
    return bool(winner.patches) or (winner.n_ranks > 1 and str(winner.train_args.get("device")) == "cpu")


def launch_sh(winner: Winner, claim: str, gpus: Sequence[str] = ()) -> str:
    """launch.sh: plain `yolo` when YOLO's own arguments are all there is, else our trainer with the patches.

    Args:
        winner: what is launched.
        claim: as in env_sh.
        gpus: UUIDs that it was measured on.
    """
    device = str(winner.train_args.get("device"))
    if winner.n_ranks > 1 and device == "cpu":
        why = "# Through autotune, because plain YOLO trains in one process on a CPU."
        start = 'exec "${PYTHON:-python}" -m autotune train "$here/winner.json" "$@"'
    elif winner.patches:
        names = ", ".join(sorted(winner.patches))
        why = f"# Through autotune, because YOLO has no argument for: {one_line(names)}."
        start = 'exec "${PYTHON:-python}" -m autotune train "$here/winner.json" "$@"'
    else:
        why = "# Plain YOLO: every setting is one of its own arguments or stands in env.sh."
        start = 'exec yolo train cfg="$here/best.yaml" "$@"'
        if device != (first := ",".join(map(str, range(winner.n_ranks)))) and winner.n_ranks > 1:
            # NCCL may bind rank i to visible GPU i whatever device= says (KNOBS 0.3): show it only the ones that count.
            why += f"\n# GPUs {one_line(device)}, which are then numbers {first}."
            why += "\n# A container sees only the GPUs that it is given, and says in AUTOTUNE_GPUS which these are."
            start = f"gpus={shlex.quote(','.join(gpus))}\n"
            start += 'export CUDA_VISIBLE_DEVICES="${AUTOTUNE_GPUS:-$gpus}"\n'
            start += f'exec yolo train cfg="$here/best.yaml" device={first} "$@"'
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# {one_line(claim)}",
            "# Anything you add is passed on:  bash launch.sh epochs=300",
            why,
            "set -euo pipefail",
            "# The folder of this file, whatever its name is and wherever it is started from.",
            'here="${BASH_SOURCE[0]%/*}"',
            '[[ "${BASH_SOURCE[0]}" == */* ]] || here=.',
            '[[ "$here" == /* ]] || here="$PWD/$here"',
            "# shellcheck source=/dev/null",
            'source "$here/env.sh"',
            start,
            "",
        ]
    )


def _doc(variable: str) -> str:
    """What the knob table says about a variable."""
    try:
        from autotune.space.knobs import KNOBS
    except ImportError:
        return variable
    knob = KNOBS.get(_KNOB_OF.get(variable, ""))
    return str(knob.doc) if knob is not None else variable
