"""Where do the studies of this folder's tests live?"""

import optuna
import pytest

import autotune.search.study


@pytest.fixture
def study_on_disk():
    """For a test that reads study.db, or goes on with it."""


@pytest.fixture(autouse=True)
def _studies_in_memory(request, monkeypatch):
    """A trial costs SQLite 0.1 s, ten times what the rest of it costs: only tests that need the file have it."""
    if "study_on_disk" not in request.fixturenames:
        monkeypatch.setattr(autotune.search.study, "_file", lambda path: optuna.storages.InMemoryStorage())
