"""Shared fixtures: small real datasets, drawn once a session, and one compile cache."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.run.demo import demo_dataset

PRIVATE = tempfile.TemporaryDirectory(prefix="autotune-tests-")  # removed when the interpreter ends
# Tests that import Ultralytics, or start the yolo client, must not write the settings of whoever runs them.
os.environ.setdefault("YOLO_CONFIG_DIR", f"{PRIVATE.name}/yolo")
DATA_FOLDERS = itertools.count()
# A search that somebody runs on this machine is no fault of the tests, nor theirs of it; nor that of a second process
# of the same tests (pytest -n 2), which inherits what the first one has set.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("AUTOTUNE_LOCKS", None)
os.environ.setdefault("AUTOTUNE_LOCKS", f"{PRIVATE.name}/locks")
# A shell that runs the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for the plain tests; one where seconds of real training count, and for a debugger."""
    return 2 if "not slow" in config.option.markexpr and not config.option.usepdb else 0


@pytest.fixture(scope="module", autouse=True)
def _module_data() -> Iterator[None]:
    """An atlas of its own for the fixtures of a module: nobody's real one, and no test's."""
    with _own_data():
        yield


@pytest.fixture(autouse=True)
def _data() -> Iterator[None]:
    """An atlas of its own for each test: the winners of one must not be the seeds of another."""
    with _own_data():
        yield


@contextlib.contextmanager
def _own_data() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOTUNE_DATA", f"{PRIVATE.name}/data/{next(DATA_FOLDERS)}")
        yield


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small demo sets of this session."""
    return tmp_path_factory.mktemp("demo sets é")


@pytest.fixture(scope="session")
def tiny(tiny_home: Path) -> Path:
    """data.yaml of 64 training images, in a path with a space and a non-ASCII letter."""
    return demo_dataset(tiny_home, n_train=64, n_val=8)
