from dataclasses import replace

from search_world import BASELINE

from autotune.contract import Outcome, SegmentSettings, TrialResult
from autotune.search.price import COMPILE_COLD_S, DECODED_PER_S, LAUNCH_S, PriceModel

SEGMENT = SegmentSettings()


def result(params, took_s=20.0, outcome=Outcome.OK, **phases):
    return TrialResult(
        number=1, role="trial", outcome=outcome, params=params, started_s=0.0, took_s=took_s, step_p50_s=0.5,
        effective=params, phases_s={"import": 3.0, "build": 1.0, "first_step": 0.5, **phases},
    )  # fmt: skip


def test_before_anything_ran():
    price = PriceModel(9000).price({**BASELINE, "cache": "ram", "compile": True}, SEGMENT)
    assert (price.launch_s, price.compile_s, price.cache_s) == (LAUNCH_S, COMPILE_COLD_S, 9000 / DECODED_PER_S)
    assert price.total_s == LAUNCH_S + COMPILE_COLD_S + 20.0 + SEGMENT.warmup_s + 1.5 * SEGMENT.measure_s


def test_launch_and_segment_are_learned_from_whole_trials():
    model = PriceModel()
    for took_s in (20.0, 22.0, 30.0):
        model.learn(BASELINE, result(BASELINE, took_s))
    model.learn(BASELINE, result(BASELINE, 5.0, Outcome.PRUNED))
    price = model.price(BASELINE, SEGMENT)
    assert (price.launch_s, price.segment_s, price.total_s) == (4.0, 18.0, 22.0)


def test_a_warm_start_is_not_what_a_cold_one_costs():
    model, quick = PriceModel(), {"import": 0.25, "build": 0.25}
    model.learn(BASELINE, replace(result(BASELINE, 16.5, **quick), warm=True))
    assert model.price(BASELINE, SEGMENT).launch_s == LAUNCH_S, "finalists start cold"
    assert model.price(BASELINE, SEGMENT, warm=True).launch_s == 0.5
    assert model.price(BASELINE, SEGMENT).segment_s == 16.0


def test_a_large_batch_pays_for_its_least_number_of_steps():
    model, slow = PriceModel(), SegmentSettings(warmup_steps=4, measure_s=3.0, measure_steps=6, warmup_cap_s=60.0)
    model.learn(BASELINE, result(BASELINE))  # half a second a step of 16 images
    large = {**BASELINE, "batch_per_gpu": 64}
    assert BASELINE["batch_per_gpu"] == 16
    # 2 s a step: the first one, 5 of warm-up, 6 of the window
    assert model.price(large, slow).segment_s == 2.0 + 10.0 + 12.0


def test_compile_is_cold_once_a_key():
    model, first = PriceModel(), {**BASELINE, "compile": True}
    other = {**first, "batch_per_gpu": 64}
    model.learn(first, result(first, 70.0, first_step=40.5))
    assert model.price(first, SEGMENT).compile_s == 12.0
    assert model.price(other, SEGMENT).compile_s == 40.0
    assert model.price(BASELINE, SEGMENT).compile_s == 0.0
    assert model.cold_s(first) == {"compile_s": 40.0}
    assert model.cold_s(other) == {}


def test_ram_is_filled_by_every_trial_and_disk_once():
    model = PriceModel(1000, images_decoded_per_s=100.0)
    ram, disk = {**BASELINE, "cache": "ram"}, {**BASELINE, "cache": "disk"}
    assert model.price(ram, SEGMENT).cache_s == 10.0
    model.learn(ram, result(ram, cache=8.0))
    assert (model.price(ram, SEGMENT).cache_s, model.price(disk, SEGMENT).cache_s) == (8.0, 8.0)
    model.learn(disk, result(disk, cache=9.0))
    model.learn(disk, result(disk, cache=0.1))
    assert model.price(disk, SEGMENT).cache_s == 0.0
    assert model.cold_s(disk) == {"cache_build_s": 9.0}
