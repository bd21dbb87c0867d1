import json
import os
import subprocess
import sys

import optuna
import pytest

from autotune.contract import Outcome, TrialResult
from autotune.search.study import Study

pytestmark = pytest.mark.usefixtures("study_on_disk")

DOMAIN = {"batch_per_gpu": (16, 32, 64), "amp": (False, True), "prefetch_factor": (2, 4)}


def make(tmp_path, strategy="tpe", name="study.db"):
    study = Study(tmp_path / name, objective="job_time", strategy=strategy, seed=1, command="autotune search")
    study.domain = dict(DOMAIN)
    return study


def told(tmp_path, name="study.db"):
    return optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / name}").trials


def result(outcome=Outcome.OK, number=0):
    return TrialResult(
        number=number, role="trial", outcome=outcome, params={}, started_s=0.0, took_s=1.0, n_steps=40, images_per_s=9.0
    )


def tell_all(study):
    study.tell(study.ask(role="baseline")[0], result(), 5.0)
    for outcome in Outcome:
        study.tell(study.ask()[0], result(outcome), 7.0 if outcome in (Outcome.OK, Outcome.PRUNED) else None)
    study.close()


def test_told_to_tpe(tmp_path):
    tell_all(make(tmp_path))
    states = {t.user_attrs["outcome"]: (t.state.name, t.value, t.constraints) for t in told(tmp_path)[1:]}
    bad, good = {"feasible": 1.0}, {"feasible": -1.0}
    assert states == {
        "ok": ("COMPLETE", 7.0, good),
        "oom": ("PRUNED", None, bad),
        "timeout": ("PRUNED", None, bad),
        "crash": ("FAIL", None, {}),
        "invalid": ("PRUNED", None, bad),
        "mismatch": ("PRUNED", None, bad),
        "unstable": ("FAIL", None, good),
        "pruned": ("PRUNED", 7.0, good),
        "interrupted": ("FAIL", None, {}),
    }


def test_told_to_gp(tmp_path):
    tell_all(make(tmp_path, "gp"))
    trials = told(tmp_path)
    complete = [t for t in trials if t.state.name == "COMPLETE"]
    assert {tuple(t.constraints) for t in complete} == {("feasible",)}
    imputed = {t.user_attrs["outcome"]: t.value for t in complete if t.user_attrs.get("imputed")}
    assert imputed == dict.fromkeys(("oom", "timeout", "invalid", "mismatch"), 7.0)
    assert {t.user_attrs["outcome"] for t in trials if t.state.name == "FAIL"} == {"crash", "interrupted", "unstable"}


def test_gp_models_past_its_random_start(tmp_path):
    study = make(tmp_path, "gp")
    for i in range(9):
        number, params = study.ask()
        oom = params["batch_per_gpu"] == 64
        study.tell(number, result(Outcome.OOM if oom else Outcome.OK), None if oom else 10.0 - params["amp"] + i / 100)
    study.close()
    assert all(t.state.is_finished() for t in told(tmp_path))


@pytest.mark.slow
def test_gp_hides_cuda_and_does_not_initialise_it():
    code = (
        "import os; from autotune.search.samplers import SAMPLERS; SAMPLERS['gp'](0); import torch;"
        "print(os.environ.get('CUDA_VISIBLE_DEVICES'), torch.cuda.is_initialized())"
    )
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == ["0", "False"]


def test_importing_the_room_loads_nothing_heavy():
    code = (
        "import sys, autotune.search, autotune.search.verdict, autotune.search.objective, autotune.search.budget,"
        "autotune.search.samplers; print([m for m in ('optuna', 'torch', 'scipy', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["with space.db", "größe.db", "{brace}.db", "100%.db"])
def test_paths(tmp_path, name):
    study = make(tmp_path, name=name)
    study.close()
    assert (tmp_path / name).exists()


def test_ask_for_something(tmp_path):
    study = make(tmp_path)
    wanted = {"batch_per_gpu": 32, "amp": True, "prefetch_factor": 4, "not_in_the_domain": 1}
    assert study.ask(wanted) == (0, {"batch_per_gpu": 32, "amp": True, "prefetch_factor": 4})
    number, params = study.ask({"batch_per_gpu": 64, "amp": False, "prefetch_factor": None})
    assert (number, params["batch_per_gpu"], params["prefetch_factor"] in (2, 4)) == (1, 64, True)
    assert study.ask({"batch_per_gpu": 128, "amp": False, "prefetch_factor": 2})[1]["batch_per_gpu"] == 128
    study.tell(2, result(Outcome.OOM), None)
    assert study.next_number == 3
    study.close()
    assert [t.state.name for t in told(tmp_path)] == ["FAIL"] * 3
    assert told(tmp_path)[0].user_attrs["skipped"] == "interrupted"


def test_duplicates_are_told_the_known_value(tmp_path):
    study = make(tmp_path)
    study.tell(study.ask()[0], result(), 5.0)
    study.tell(study.ask()[0], result(), 5.0, duplicate_of=0)
    study.close()
    again = told(tmp_path)[1]
    assert (again.value, again.user_attrs["duplicate_of"], again.user_attrs["folder"]) == (5.0, 0, "trials/0000")


def test_importance_ignores_what_was_not_measured(tmp_path):
    study = make(tmp_path)
    assert study.importance()[0] == {}
    for i in range(24):
        number, params = study.ask(
            {"batch_per_gpu": (16, 32, 64)[i % 3], "amp": i % 2 == 0, "prefetch_factor": (2, 4)[i % 5 > 2]}
        )
        oom = params["batch_per_gpu"] == 64
        value = None if oom else (50.0 if params["amp"] else 100.0) + (7 * i % 5) / 100
        study.tell(number, result(Outcome.OOM if oom else Outcome.OK), value)
    study.tell(study.ask(role="sentinel")[0], result(), 1.0)
    shares, note, n = study.importance()
    study.close()
    assert n == 16
    assert next(iter(shares)) == "amp"
    assert sum(shares.values()) == pytest.approx(1.0)
    assert note == "", "how few they are the figure says"


def test_dashboard_serves_every_trial(tmp_path):
    tell_all(make(tmp_path))
    code = (
        "import io, json, sys, warnings; warnings.simplefilter('ignore'); import optuna_dashboard\n"
        "app = optuna_dashboard.wsgi(sys.argv[1])\n"
        "env = {'REQUEST_METHOD': 'GET', 'PATH_INFO': '/api/studies/1', 'QUERY_STRING': 'after=0',"
        " 'wsgi.input': io.BytesIO(), 'SERVER_NAME': 'x', 'SERVER_PORT': '80', 'wsgi.url_scheme': 'http'}\n"
        "status = []\n"
        "body = b''.join(app(env, lambda s, h, e=None: status.append(s)))\n"
        "print(json.dumps([status[0], json.loads(body)]))"
    )
    address = f"sqlite:///{tmp_path / 'study.db'}"
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, check=True)
    status, body = json.loads(done.stdout.splitlines()[-1])
    assert status.startswith("200")
    ours = told(tmp_path)
    assert len(body["trials"]) == len(ours) == len(Outcome) + 1
    for served, trial in zip(body["trials"], ours, strict=True):
        assert served["state"].lower() == trial.state.name.lower()
        assert served.get("values") == ([trial.value] if trial.value is not None else None)


def test_a_study_that_goes_on_does_not_draw_the_same_again(tmp_path):
    first = make(tmp_path, "random")
    drawn = [first.ask()[1] for _ in range(4)]
    first.close()
    second = make(tmp_path, "random")
    assert second.next_number == 4
    assert [second.ask()[1] for _ in range(4)] != drawn
    second.close()
