import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.contract import Ablation, Numerics, Outcome, Params, RunDir, Transport, TrialResult, sample_columns
from autotune.report.cards_pareto import front, saving
from autotune.report.figures import FIGURES
from autotune.report.load import RunData, load_run

from .conftest import (
    ALL_FAILURES,
    BASE,
    default_results,
    guesses_of,
    make_run,
    params_of,
    probe_of,
    result_of,
    tried_rows,
    with_losses,
    with_probes,
)


def points(figure: object) -> int:
    """Markers that a figure draws."""
    data = json.loads(figure.to_json())["data"]  # type: ignore[attr-defined]
    return sum(len(trace["x"]) for trace in data if "markers" in trace.get("mode", ""))


def test_every_figure_is_drawn_or_says_why(edge_run: RunDir) -> None:
    run = load_run(edge_run.path)
    for name, draw in FIGURES.items():
        card = draw(run)
        assert card.title
        assert card.drawn != bool(card.reason), name
        if card.drawn:
            assert card.note.endswith("."), name
            assert "nan" not in card.note.lower(), name
            assert not card.df.empty, name


def test_a_whole_run_draws_everything(tmp_path: Path) -> None:
    results = with_probes(default_results(20, ALL_FAILURES))
    folder = make_run(tmp_path / "r", results=results, guesses=guesses_of(results))
    folder.trial(0).samples.write_text(",".join(sample_columns(0)) + "\n" + ",".join(["1"] * len(sample_columns(0))))
    run = with_ablation(load_run(folder.path))
    assert [name for name, draw in FIGURES.items() if not draw(run).drawn] == ["ranks"]
    assert FIGURES["ranks"](run).reason == "This job has one rank, which exchanges nothing."


def test_a_simulated_run_says_so_in_each_title(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "r", 3, simulated=True).path)
    assert [name for name, draw in FIGURES.items() if "simulated" not in draw(run).title] == []


def test_best_so_far_has_a_point_per_row(edge_run: RunDir) -> None:
    run = load_run(edge_run.path)
    card = FIGURES["best_so_far"](run)
    n_rows = tried_rows(edge_run)
    assert len(card.df) == n_rows
    assert (points(card.figure) if card.figure else 0) == n_rows


def test_best_so_far_values(tmp_path: Path) -> None:
    card = FIGURES["best_so_far"](load_run(make_run(tmp_path / "r", 6, failures={2: Outcome.OOM}).path))
    job_min = [result_of(n).job_s / 60 for n in range(6)]  # type: ignore[operator]
    assert card.df["value"].isna().tolist()[:6] == [False, False, True, False, False, False]
    assert card.df["value"][5] == pytest.approx(job_min[5])
    running = card.df["best_so_far"].tolist()
    assert running == sorted(running, reverse=True)
    assert running[-1] == pytest.approx(min(job_min[n] for n in (0, 1, 3, 4, 5))), "finalists do not count"
    assert card.note.startswith("The best of 12 trials was trial 5,")
    assert "1 trial gave no number" in card.note


def test_best_so_far_rises_with_images_per_s(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "r", 6, info={"objective": "images_per_s"}).path)
    running = FIGURES["best_so_far"](run).df["best_so_far"].tolist()
    assert running == sorted(running)
    assert running[0] == pytest.approx(result_of(0).images_per_s)


def test_before_after_takes_finalist_runs_only(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "r", 12).path)
    card = FIGURES["before_after"](run)
    assert card.df["number"].tolist() == [12, 15, 16, 13, 14, 17]
    assert points(card.figure) == 6
    base = card.df[card.df["name"] == "baseline"]["gain"]
    assert base.prod() ** (1 / 3) == pytest.approx(1.0)
    assert card.df[card.df["name"] == "best"]["gain"].mean() == pytest.approx(1.89, rel=0.02)
    bars = [t for t in json.loads(card.figure.to_json())["data"] if t["type"] == "bar"]  # type: ignore[union-attr]
    assert "error_x" not in bars[0]
    assert bars[1]["error_x"]["array"][0] == pytest.approx(1.89 * 0.05)
    assert "95 % CI 1.80 to 1.98" in card.note


def test_before_after_of_a_stage_that_was_interrupted_in_its_first_run(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "r", 12).path)
    assert run.summary is not None
    none = tuple(
        replace(f, numbers=(), speedup=None, ci95_lo=None, ci95_hi=None) for f in run.summary.verdict.finalists
    )
    run = replace(run, summary=replace(run.summary, verdict=replace(run.summary.verdict, finalists=none)))
    assert "no finalists ran" in FIGURES["before_after"](run).reason


def ablated(tmp_path: Path) -> RunData:
    best = {**BASE, "torch_threads": 2, "batch_per_gpu": 64, "cache": "ram"}
    return with_ablation(
        load_run(make_run(tmp_path / "r", results=[result_of(0), result_of(1, params=best)]).path), best
    )


def with_ablation(run: RunData, best: Params = BASE) -> RunData:
    found = (
        Ablation(
            knob="torch_threads", value=2, baseline=1, params=best, numbers=(7, 9), gain=1.5, ci95_lo=1.4, ci95_hi=1.6
        ),
        Ablation(
            knob="batch_per_gpu",
            value=64,
            baseline=16,
            params=best,
            numbers=(8,),
            gain=1.02,
            ci95_lo=0.97,
            ci95_hi=1.07,
        ),
        Ablation(knob="cache", value="ram", baseline=False, params=best, note="no time was left for it"),
    )
    assert run.summary is not None
    return replace(run, summary=replace(run.summary, ablation=found))


def test_what_changed_is_the_difference_with_its_measured_gain(tmp_path: Path) -> None:
    card = FIGURES["what_changed"](ablated(tmp_path))
    df = card.df.set_index("knob")
    assert set(df.index) == {"torch_threads", "batch_per_gpu", "cache"}
    assert df.loc["torch_threads", ["yours", "best"]].tolist() == ["1", "2"]
    assert df.loc["torch_threads", "gain"] == 1.5
    assert card.table is not None
    shown = {row[0].text: row[3].text for row in card.table.rows}
    assert shown == {
        "torch_threads": "1.50x (1.40 to 1.60)",
        "batch_per_gpu": "1.02x (0.97 to 1.07), not shown to matter",
        "cache": "not measured",
    }


def test_ablation_shows_intervals_and_says_what_is_not_shown_to_matter(tmp_path: Path) -> None:
    run = ablated(tmp_path)
    card = FIGURES["ablation"](run)
    assert card.note == (
        "Measured, each alone set back to your value: torch_threads 1.50x (1.40 to 1.60). "
        "Not shown to matter: batch_per_gpu. Not measured: cache (no time was left for it)."
    )
    [points] = [t for t in json.loads(card.figure.to_json())["data"] if t["type"] == "scatter"]  # type: ignore[union-attr]
    assert points["x"] == [1.5, 1.02]
    assert points["error_x"]["array"] == pytest.approx([0.1, 0.05])
    assert "times as fast" in card.figure.layout.xaxis.title.text  # type: ignore[union-attr]
    energy = FIGURES["ablation"](replace(run, info=replace(run.info, objective="energy")))
    assert "times as many images per joule" in energy.figure.layout.xaxis.title.text  # type: ignore[union-attr]
    names = list(FIGURES)
    assert names.index("importance") == names.index("ablation") + 1, "beside it"
    none = FIGURES["ablation"](replace(run, summary=replace(run.summary, ablation=())))  # type: ignore[type-var]
    assert "gain is proven" in (none.reason or "")


def test_what_changed_says_where_the_loss_goes(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "r", 12).path)
    assert run.summary is not None
    checked = Numerics(
        within=False, sentence="the loss differs by 9 %", changes={"amp": "bf16"}, numbers=(12, 13, 14, 15)
    )
    run = replace(run, summary=replace(run.summary, numerics=checked))
    assert FIGURES["what_changed"](run).note.endswith("The loss differs by 9 %.")


def test_the_runs_that_compare_the_loss_are_no_trials(tmp_path: Path) -> None:
    card = FIGURES["trials"](
        load_run(make_run(tmp_path / "r", results=with_losses(default_results(6, {})), finalists=False).path)
    )
    assert card.note == "6 trials: 6 ok. And 4 runs to compare the loss."


def test_knob_effects_hold_medians_of_varied_knobs(tmp_path: Path) -> None:
    results = [result_of(n, params={**BASE, "torch_threads": 1 + n % 2}) for n in range(6)]
    card = FIGURES["knob_effects"](load_run(make_run(tmp_path / "r", results=results, finalists=False).path))
    assert set(card.df["knob"]) == {"torch_threads"}
    medians = card.df.groupby("value")["median"].first()
    assert medians["2"] == pytest.approx(60.0)
    assert medians["1"] == pytest.approx(40.0)
    assert "1.50x" in card.note


def test_knob_effects_order_values_by_size_and_keep_types_apart(tmp_path: Path) -> None:
    caches = [False, "ram", "disk", None]
    results = [
        result_of(n, params={**BASE, "cache": caches[n], "batch_per_gpu": (16, 64, 32, 16)[n]}) for n in range(4)
    ]
    df = FIGURES["knob_effects"](load_run(make_run(tmp_path / "r", results=results, finalists=False).path)).df
    assert list(dict.fromkeys(df[df["knob"] == "batch_per_gpu"]["value"])) == ["16", "32", "64"]
    assert set(df[df["knob"] == "cache"]["value"]) == {"False", "ram", "disk", "none"}


def test_importance_warns_under_thirty_trials(tmp_path: Path) -> None:
    few = FIGURES["importance"](load_run(make_run(tmp_path / "few", 12).path))
    assert few.df["knob"].tolist() == ["torch_threads", "batch_per_gpu", "cache"]
    assert "Only 12 trials" in few.note
    assert "Only" not in FIGURES["importance"](load_run(make_run(tmp_path / "many", 40).path)).note
    none = FIGURES["importance"](load_run(make_run(tmp_path / "none", 2).path))
    assert none.reason == "Needs 4 trials that gave a number."


def test_memory_front_and_wall(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "r", 8, gpu=True, failures={2: Outcome.OOM}, finalists=False).path)
    card = FIGURES["throughput_memory"](run)
    ok = card.df[card.df["images_per_s"].notna()]
    best = ok[ok["front_memory"]].sort_values("peak_mem_bytes")
    assert best["images_per_s"].is_monotonic_increasing
    assert ok["images_per_s"].max() in best["images_per_s"].tolist()
    oom = next(t for t in json.loads(card.figure.to_json())["data"] if t.get("name") == "out of memory")  # type: ignore[union-attr]
    assert oom["x"] == [80.0]
    assert "1 trial ran out of memory" in card.note


def test_ledger_adds_up(tmp_path: Path) -> None:
    card = FIGURES["ledger"](load_run(make_run(tmp_path / "r").path))
    assert dict(zip(card.df["purpose"], card.df["seconds"], strict=True)) == {
        "setup": 5.0,
        "baseline": 18.0,
        "trials_ok": 150.0,
        "trials_lost": 20.0,
        "finalists": 110.0,
    }
    assert "7 % into trials that gave no number" in card.note


def test_ledger_without_a_summary_is_made_of_trials(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", 3, summary=False, finalists=False, failures={2: Outcome.OOM})
    card = FIGURES["ledger"](load_run(folder.path))
    assert dict(zip(card.df["purpose"], card.df["seconds"], strict=True)) == {
        "baseline": 18.0,
        "trials_ok": 18.0,
        "trials_lost": 7.0,
    }


def test_sentinels_are_baseline_sentinels_and_baseline_finalists(tmp_path: Path) -> None:
    card = FIGURES["sentinels"](load_run(make_run(tmp_path / "r", 12).path))
    assert card.df["number"].tolist() == [0, 8, 12, 15, 16]
    first, last = card.df["images_per_s"].iloc[0], card.df["images_per_s"].iloc[-1]
    assert f"{100 * (last / first - 1):.0f} %" in card.note
    alone = FIGURES["sentinels"](load_run(make_run(tmp_path / "one", 1).path))
    assert alone.reason


def test_trials_table_explains_failures(tmp_path: Path) -> None:
    crash = replace(
        result_of(2, Outcome.CRASH), log_tail=("Traceback", "boom"), error="worker died", hint="see the log"
    )
    folder = make_run(tmp_path / "r", results=[result_of(0), result_of(1), crash], finalists=False)
    table = FIGURES["trials"](load_run(folder.path)).table
    assert table is not None
    assert len(table.rows) == 3
    row = dict(zip(table.columns, table.rows[2], strict=True))
    last = row["differs from your arguments in"]
    assert last.remark == "Worker died. See the log."
    assert last.more == ("Traceback", "boom", "(all of it: trials/0002/log.txt)")
    assert row["img/s"].text == "-"
    best = dict(zip(table.columns, table.rows[1], strict=True))
    assert best["role"].text == "best"
    assert best["x yours"].key == pytest.approx(result_of(1).images_per_s / result_of(0).images_per_s)  # type: ignore[operator]
    assert "torch_threads=2" in best["differs from your arguments in"].text
    assert str(params_of(1)["batch_per_gpu"]) in best["differs from your arguments in"].text


def test_environment_says_what_was_not_tried(tmp_path: Path) -> None:
    df = FIGURES["environment"](load_run(make_run(tmp_path / "r").path)).df
    text = {(s, n): v for s, n, v in df.itertuples(index=False)}
    assert text["not tried", "batch_per_gpu=512"] == "dearer than what is left (price 90 s)"
    assert text["not varied", "compile"] == "no compiler on CPU in this space"
    assert text["commands", "this run"] == "python -m autotune search --budget 5m"
    assert text["versions", "torch"] == "2.15.0"


def probed(tmp_path: Path, extra: Sequence[TrialResult] = (), **fields: Any) -> RunData:
    """A run of seven trials whose best is number 5 (workers=1), with these probes."""
    results = [*default_results(7, {}), *extra]
    return load_run(make_run(tmp_path / "r", results=results, finalists=False, **fields).path)


def test_ceilings_are_those_of_the_best_settings(tmp_path: Path) -> None:
    best = params_of(5)
    probes = [
        probe_of(7, "compute", 55.0, dict(BASE)),
        probe_of(8, "data", 140.0, dict(BASE)),
        probe_of(9, "compute", 148.0, {**best, "cache": "ram", "workers": 2}),  # the step feels neither
        probe_of(10, "data", 80.0, {**best, "channels_last": not best["channels_last"]}),  # nor the loader this
    ]
    card = FIGURES["ceilings"](probed(tmp_path, probes, info={"device": "0"}))
    rate = result_of(5).images_per_s
    ceilings = card.df[card.df["kind"] == "ceiling"].set_index("name")["images_per_s"].to_dict()
    assert ceilings == {"loader only": 80.0, "step only": 148.0}
    bars = card.df[card.df["kind"] == "trial"]
    assert bars["number"].tolist()[:2] == [0, 5]
    assert len(bars) == 5
    assert card.note == (
        "With the best settings the loader alone gives 80.0 img/s and the step alone 148 img/s: the loader is the "
        f"limit. The best reaches {100 * rate / 80.0:.0f} % of what they allow."  # type: ignore[operator]
    )
    lines = [t for t in json.loads(card.figure.to_json())["data"] if t.get("mode") == "lines"]  # type: ignore[union-attr]
    assert sorted(t["x"][0] for t in lines) == [80.0, 148.0]


def test_one_ceiling_of_other_settings_is_none_of_the_best(tmp_path: Path) -> None:
    probes = [probe_of(7, "compute", 55.0, dict(BASE)), probe_of(8, "data", 80.0, params_of(5))]
    card = FIGURES["ceilings"](probed(tmp_path, probes))
    assert card.df[card.df["kind"] == "ceiling"]["name"].tolist() == ["loader only"]
    assert "the step alone was not measured" in card.note
    assert not FIGURES["ceilings"](probed(tmp_path / "b", probes[:1])).drawn


def test_a_far_ceiling_does_not_squeeze_the_bars(tmp_path: Path) -> None:
    best = params_of(5)
    rate = result_of(5).images_per_s
    probes = [probe_of(7, "compute", 1.1 * rate, best), probe_of(8, "data", 9.0 * rate, best)]  # type: ignore[operator]
    figure = json.loads(FIGURES["ceilings"](probed(tmp_path, probes)).figure.to_json())  # type: ignore[union-attr]
    names = {t["name"].split()[0]: t["name"] for t in figure["data"] if t.get("mode") == "lines"}
    assert names["loader"].endswith(", off the scale")
    assert "off" not in names["step"]
    assert 1.1 * rate < figure["layout"]["xaxis"]["range"][1] < 2 * rate  # type: ignore[operator]


def test_without_workers_loader_and_step_take_turns(tmp_path: Path) -> None:
    best = params_of(5) | {"workers": 0}
    results = [result_of(0), result_of(1, params=best, images_per_s=50.0)]
    probes = [probe_of(2, "compute", 100.0, best), probe_of(3, "data", 150.0, best)]
    run = load_run(make_run(tmp_path / "r", results=[*results, *probes], finalists=False).path)
    note = FIGURES["ceilings"](run).note
    assert "with workers=0 they take turns, which allows 60.0 img/s." in note
    assert "The best reaches 83 % of what they allow." in note


def test_a_probe_is_no_trial_anywhere(tmp_path: Path) -> None:
    probe = [probe_of(7, "data", 100_000.0, params_of(5))]
    with_one, without = probed(tmp_path / "a", probe), probed(tmp_path / "b")
    for name in ("best_so_far", "knob_effects", "throughput_memory", "before_after", "what_changed", "sentinels"):
        left, right = FIGURES[name](with_one), FIGURES[name](without)
        assert (left.note, left.df.to_csv()) == (right.note, right.df.to_csv()), name
    table = FIGURES["trials"](with_one)
    assert table.note == "7 trials: 7 ok. And 1 probe."
    row = [cell.text for cell in table.table.rows[-1]]  # type: ignore[union-attr]
    assert row[:4] == ["7", "loader only", "ok", "100000"]
    assert row[5] == "-", "no ratio to the baseline"


def test_step_anatomy_is_per_image(tmp_path: Path) -> None:
    card = FIGURES["step_anatomy"](probed(tmp_path))
    mine = card.df[card.df["number"] == 0].set_index("part")
    rate = result_of(0).images_per_s
    assert mine["ms_per_image"].sum() == pytest.approx(1000 / rate)  # type: ignore[operator]
    assert mine.loc["backward", "ms_per_image"] == pytest.approx(500 / rate)  # type: ignore[operator]
    assert mine.loc["backward", "seconds_per_step"] == pytest.approx(0.5 * 16 / rate)  # type: ignore[operator]
    assert card.df["name"].unique().tolist()[:2] == ["your arguments", "best"]
    assert card.note.startswith("Your arguments: 50 % backward, 10 % waiting for data. Best: 50 % backward")
    old = replace(result_of(0), parts_s={})
    run = load_run(make_run(tmp_path / "old", results=[old], finalists=False).path)
    assert FIGURES["step_anatomy"](run).reason == "No trial has recorded the parts of its steps."


def test_ranks_compares_the_step_with_and_without_the_others(tmp_path: Path) -> None:
    first = result_of(0, images_per_s=100.0, straggler_frac=0.042)
    pair = [probe_of(1, "no_sync", 125.0, dict(BASE)), probe_of(2, "one_rank", 80.0, dict(BASE))]
    on_two = {"n_ranks": 2}
    run = load_run(make_run(tmp_path / "r", results=[first, *pair], info=on_two).path)
    card = FIGURES["ranks"](run)
    df = card.df.set_index("kind")
    assert df["step_s"].tolist() == pytest.approx([0.32, 0.256, 0.2])  # 2 ranks of 16 images
    assert df.loc["step", ["exposed_frac", "efficiency", "straggler_frac"]].tolist() == pytest.approx(
        [0.2, 0.625, 0.042]
    )
    assert "2 ranks train 1.25 times as fast as one: a scaling efficiency of 62 %." in card.note
    assert "is 20 % of the step" in card.note
    assert "Ranks wait for the slowest one for 4 % of the step." in card.note
    half = FIGURES["ranks"](load_run(make_run(tmp_path / "h", results=[first, pair[1]], info=on_two).path))
    assert "The step without communication was not measured." in half.note
    alone = FIGURES["ranks"](load_run(make_run(tmp_path / "a", results=[first], info=on_two).path))
    assert "neither the step without communication nor that of one rank" in str(alone.reason).lower()


def test_the_environment_names_transport_and_the_users_nccl_settings(tmp_path: Path) -> None:
    transport = Transport(nccl="2.30.7", n_nodes=2, pairs={"0-1": "SHM", "1-2": "NET/Socket", "2-3": "SHM"})
    info = {"transport": transport, "nccl_set": {"NCCL_ALGO": "Ring (environment)"}, "n_ranks": 4}
    df = FIGURES["environment"](load_run(make_run(tmp_path / "r", 3, info=info).path)).df.set_index("name")["value"]
    assert df["transport between ranks"] == "SHM (ranks 0-1, 2-3); NET/Socket (ranks 1-2)"
    assert df["NCCL"] == "2.30.7"
    assert df["your NCCL settings"] == "NCCL_ALGO=Ring (environment)"
    assert "transport assumed" not in df


def with_energy(results: list[TrialResult], joules: dict[int, float | None]) -> list[TrialResult]:
    """The results with J/image of some trials; of 3 J/image where it is not said."""
    return [replace(r, energy_j_per_image=joules.get(r.number, 3.0)) for r in results]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], ()),
        ([(0, 10.0, 5.0)], (0,)),
        ([(0, 10.0, 5.0), (1, 12.0, 5.0), (2, 12.0, 4.0), (3, 9.0, 4.0)], (2,)),
        ([(0, 10.0, 5.0), (1, 20.0, 6.0), (2, 15.0, 7.0), (3, 30.0, 9.0)], (0, 1, 3)),
        ([(3, 10.0, 5.0), (1, 10.0, 5.0), (2, 10.0, 6.0)], (1, 3)),
        ([(0, 10.0, None), (1, None, 1.0), (2, 5.0, 9.0), (3, 5.0, 9.0)], (2, 3)),
    ],
)
def test_the_front_is_what_nothing_beats(rows: list[tuple], expected: tuple[int, ...]) -> None:
    assert front(rows) == expected
    assert sorted(front(reversed(rows))) == sorted(expected)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], None),
        ([(0, 100.0, 3.0)], None),
        ([(0, 100.0, 3.0), (1, 96.0, 2.07), (2, 91.0, 2.5), (3, 89.0, 0.1)], (1, 0.96, 0.31)),
        ([(0, 100.0, 3.0), (1, 95.0, 2.9)], None),
        ([(0, 100.0, 3.0), (1, 100.0, 2.0)], None),
        ([(0, 100.0, None), (1, 50.0, 2.0), (2, 48.0, 1.0), (3, 47.0, 1.0)], (2, 0.96, 0.5)),
    ],
)
def test_who_saves_at_nearly_the_best_speed(rows: list[tuple], expected: tuple[int, float, float] | None) -> None:
    found = saving(rows)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.number, found.speed_frac, found.saved_frac) == pytest.approx(expected)


def test_energy_has_a_panel_of_its_own(tmp_path: Path) -> None:
    tried = [(40.0, 9.0), (100.0, 3.0), (96.0, 2.07), (50.0, 1.5), (97.0, 0.1), (70.0, 2.5)]
    outcomes = {4: Outcome.UNSTABLE}
    results = [
        result_of(n, outcomes.get(n, Outcome.OK), images_per_s=speed, energy_j_per_image=joules)
        for n, (speed, joules) in enumerate(tried)
    ]
    results.append(result_of(6, Outcome.OOM))
    card = FIGURES["throughput_memory"](load_run(make_run(tmp_path / "r", results=results, finalists=False).path))
    assert card.title == "Speed against memory and energy"
    on_front = card.df.loc[card.df["front_energy"], "number"].tolist()
    assert on_front == [1, 2, 3], "an unstable one proves nothing"
    assert "Trial 2 uses 31 % less energy per image at 96 % of the best's speed." in card.note
    drawn = json.loads(card.figure.to_json())  # type: ignore[union-attr]
    assert drawn["layout"]["yaxis2"]["domain"][1] < drawn["layout"]["yaxis"]["domain"][0]
    lines = [t["x"] for t in drawn["data"] if t["mode"] == "lines" and t["xaxis"] == "x2"]
    assert lines == [[1.5, 2.07, 3.0]]
    assert sum(t["name"] == "unstable" for t in drawn["data"]) == 2
    assert "Energy is not shown" not in card.note


def test_a_run_without_a_counter_says_so(tmp_path: Path) -> None:
    card = FIGURES["throughput_memory"](load_run(make_run(tmp_path / "r", 8).path))
    assert card.title == "Speed against memory"
    assert card.note.endswith("Energy is not shown: there is no GPU here that counts it.")
    assert "yaxis2" not in json.loads(card.figure.to_json())["layout"]  # type: ignore[union-attr]


def test_energy_without_memory_is_shown_alone(tmp_path: Path) -> None:
    results = [replace(r, peak_mem_bytes=()) for r in with_energy(default_results(6, {2: Outcome.OOM}), {4: 1.0})]
    card = FIGURES["throughput_memory"](load_run(make_run(tmp_path / "r", results=results, finalists=False).path))
    names = [t["name"] for t in json.loads(card.figure.to_json())["data"]]  # type: ignore[union-attr]
    assert "out of memory" not in names
    assert card.df["front_energy"].any()


def test_finalists_of_energy_are_not_called_fast(tmp_path: Path) -> None:
    results = with_energy(default_results(6, {}), {})
    run = load_run(make_run(tmp_path / "r", results=results, info={"objective": "energy"}).path)
    note = FIGURES["before_after"](run).note
    assert "1.80x fewer joules per image than your arguments" in note
