"""python -m autotune.worker.agent ARGS: torchrun, which starts the ranks, ending when the controller dies."""

from __future__ import annotations

import os
import sys

from autotune.contract import PARENT
from autotune.worker.parent import die_with_parent


def main(argv: list[str]) -> None:
    """Run torch.distributed.run in this process; its exit status is 1 for whatever fails in a rank."""
    os.environ[PARENT] = str(os.getpid())
    from torch.distributed.run import main as torchrun

    torchrun(argv)


if __name__ == "__main__":
    die_with_parent()
    main(sys.argv[1:])
