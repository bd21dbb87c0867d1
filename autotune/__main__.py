"""python -m autotune."""

import time

BEGAN = time.monotonic()  # the budget counts from Enter, so before anything else is imported

from autotune.cli import main

if __name__ == "__main__":
    main(began=BEGAN)
