import json
import math
from pathlib import Path

import pandas as pd
import pytest

from autotune.contract import TRIALS_CSV_COLUMNS, Outcome
from autotune.errors import AutotuneError, FormatError, InputError
from autotune.report.load import EXTRA_COLUMNS, load_run

from .conftest import BASE, make_run, params_of, result_of


def test_a_whole_run_is_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", 12, failures={2: Outcome.OOM})
    run = load_run(folder.path)
    assert run.info.space == "cpu"
    assert run.summary is not None
    assert list(run.trials.columns) == [*TRIALS_CSV_COLUMNS, *BASE, *EXTRA_COLUMNS]
    assert run.trials["number"].tolist() == [r.number for r in run.results] == list(range(18))
    assert len(run.specs) == 18
    third = run.trials.iloc[2]
    assert (third["outcome"], third["error"], third["hint"]) == ("oom", "oom happened", "do something about it")
    assert math.isnan(third["images_per_s"])
    assert third["started_s"] == 45.0
    assert third["ended_s"] == 52.0
    assert run.trials["cache"].tolist()[:4] == [params_of(n)["cache"] for n in range(4)], "False stays False"
    assert run.best_params == params_of(11)
    assert run.baseline is not None
    assert run.baseline.number == 0


def test_without_a_summary_it_says_none_and_reads_the_journal(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", 3, summary=False, ended=False)
    skipped = {"kind": "trial_skipped", "t_s": 1.0, "not_tried": {"params": {}, "price_s": None, "reason": "too dear"}}
    with folder.events.open("a", encoding="utf-8") as f:
        f.write(json.dumps(skipped) + "\n" + '{"kind": "trial_st')  # the machine stopped here
    run = load_run(folder.path)
    assert run.summary is None
    assert run.best_params is None
    assert [n.reason for n in run.not_tried] == ["too dear"]


def test_a_row_whose_folder_was_deleted_is_still_a_row(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", 4, finalists=False)
    folder.trial(2).result.unlink()
    trials = load_run(folder.path).trials
    assert trials["number"].tolist() == [0, 1, 2, 3]
    assert trials["images_per_s"][2] == pytest.approx(result_of(2).images_per_s)
    assert trials["ended_s"][2] == trials["ended_s"][1] + 18
    assert pd.isna(trials["hint"][2])


def test_a_result_that_the_csv_lacks_is_a_row(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", 4, finalists=False)
    folder.trials_csv.unlink()
    assert load_run(folder.path).trials["number"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["run.json", "machine.json", "summary.json", "trials/0001/result.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "nonsense": 2}', "\x00\xff"])
def test_damage_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    folder = make_run(tmp_path / "r", 2)
    (folder.path / name).write_text(text, encoding="latin-1")
    with pytest.raises(FormatError) as e:
        load_run(folder.path)
    assert "\n" not in e.value.message


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\xff\xfe", ",".join(TRIALS_CSV_COLUMNS) + "\nx,trial,ok\n"])
def test_a_damaged_csv_is_one_line(tmp_path: Path, text: str) -> None:
    folder = make_run(tmp_path / "r", 2)
    folder.trials_csv.write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match=r"trials\.csv"):
        load_run(folder.path)


def test_a_damaged_journal_names_the_line(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", 2)
    folder.events.write_text('{"kind": "run_started"}\nnot json\n{"kind": "run_ended"}\n', encoding="utf-8")
    with pytest.raises(FormatError, match=r"events\.jsonl:2"):
        load_run(folder.path)


def test_not_a_run_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError):
            load_run(path)
    make_run(tmp_path / "r", 1).machine.unlink()
    with pytest.raises(AutotuneError, match=r"machine\.json"):
        load_run(tmp_path / "r")
