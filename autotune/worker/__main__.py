"""python -m autotune.worker TRIAL_DIR [FOLLOWERS]: one rank of one trial, from spec.json to rank0.json."""

from __future__ import annotations

import time

BEGAN = time.perf_counter()  # before the imports below, so that phases_s.import counts them

import contextlib
import os
import shutil
import sys
from pathlib import Path

from autotune.contract import TrialDir, TrialSpec, read_json
from autotune.worker import follow
from autotune.worker.backends import Backend, make_backend
from autotune.worker.parent import die_with_parent
from autotune.worker.recorder import Recorder


def main(argv: list[str], began: float = BEGAN) -> int:
    """Run the trial in this process, then its followers; the record, not the exit status, is what is believed.

    Args:
        argv: program, trial folder, and the folders of the trials that follow (run/followers.py): one rank only.
        began: perf_counter() at which this process began; a forked one says when it was forked.
    """
    first, *followers = (TrialDir(Path(path).resolve()) for path in argv[1:])
    settings = follow.Settings() if followers else None
    error, backend = _run(first, began, settings)
    for directory in followers:
        if error or backend is None or settings is None:
            break
        gone = follow.watched(backend)
        backend.close()
        backend = None
        try:
            peak_known = follow.forget(gone)
            settings.restore()
            follow.enter(directory)
        except BaseException as e:  # the follower has no record then, and whoever waits for it starts it afresh
            error = e
            sys.excepthook(type(e), e, e.__traceback__)
            break
        error, backend = _run(directory, time.perf_counter(), peak_known=peak_known)
    if backend:
        backend.close()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Torch aborted now and then in its static destructors after correct results (ULTRALYTICS 3): leave without them.
    os._exit(1 if error else 0)


def _run(
    directory: TrialDir, began: float, settings: follow.Settings | None = None, *, peak_known: bool = True
) -> tuple[BaseException | None, Backend | None]:
    """One trial, until its record is written.

    Args:
        directory: its folder.
        began: perf_counter() at its beginning.
        settings: taken once the libraries are imported and nothing is built.
        peak_known: the peak of this process's memory is this trial's own.
    """
    spec = read_json(directory.spec, TrialSpec)
    recorder = Recorder(spec, directory, rank=int(os.environ.get("RANK", "0")), began=began)
    recorder.peak_known = peak_known
    error: BaseException | None = None
    backend: Backend | None = None
    try:
        recorder.begin(f"pid {os.getpid()}")
        recorder.begin("import")
        backend = make_backend(spec.backend, recorder)
        if settings:
            settings.take()
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
    return error, backend


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
