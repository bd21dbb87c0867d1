"""python -m autotune.worker TRIAL_DIR: one rank of one trial, from spec.json to rank0.json."""

from __future__ import annotations

import time

BEGAN = time.perf_counter()  # before the imports below, so that phases_s.import counts them

import contextlib
import os
import shutil
import sys
from pathlib import Path

from autotune.contract import TrialDir, TrialSpec, read_json
from autotune.worker.backends import Backend, make_backend
from autotune.worker.parent import die_with_parent
from autotune.worker.recorder import Recorder


def main(argv: list[str], began: float = BEGAN) -> int:
    """Run the trial in this process; the record, not the exit status, is what the controller believes.

    Args:
        argv: program and trial folder.
        began: perf_counter() at which this process began; a forked one says when it was forked.
    """
    directory = TrialDir(Path(argv[1]))
    spec = read_json(directory.spec, TrialSpec)
    recorder = Recorder(spec, directory, rank=int(os.environ.get("RANK", "0")), began=began)
    error: BaseException | None = None
    backend: Backend | None = None
    try:
        recorder.begin(f"pid {os.getpid()}")
        recorder.begin("import")
        backend = make_backend(spec.backend, recorder)
        backend.build(spec)
        backend.train(recorder)
    except BaseException as e:
        error = e
    _write(recorder, error)
    if spec.role == "train" and isinstance(error, KeyboardInterrupt):
        pass  # the user's own: nothing to explain
    elif error and spec.role == "train" and not recorder.training:
        sys.stderr.write(f"error: {type(error).__name__}: {' '.join(str(error).split())}\n")
    elif error:
        sys.excepthook(type(error), error, error.__traceback__)
    if backend:
        backend.close()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Torch aborted now and then in its static destructors after correct results (ULTRALYTICS 3): leave without them.
    os._exit(1 if error else 0)


def _write(recorder: Recorder, error: BaseException | None) -> None:
    """The record; on a full disk it takes the place of what the trial left in its private TMPDIR."""
    try:
        recorder.write(error)
    except OSError as e:
        if recorder.spec.role == "train":
            raise
        shutil.rmtree(recorder.directory.tmp, ignore_errors=True)
        recorder.write(error or e)


if __name__ == "__main__":
    die_with_parent()
    main(sys.argv)
