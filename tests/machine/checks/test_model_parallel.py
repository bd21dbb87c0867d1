"""What the checks of `doctor` say, from sizes like those that were measured (KNOBS 3)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.contract import Machine, Sizes
from autotune.machine.checks import WEIGHED
from autotune.machine.checks.finding import Subject, Weighed
from autotune.machine.checks.model_parallel import model_parallel
from autotune.machine.memory import spell_size

MIB, GIB = 1 << 20, 1 << 30
MACHINE = Machine(hostname="h", cpu="c", n_cores=2, n_cores_host=2, ram_bytes=GIB, shm_bytes=None)
SIZES = Sizes(
    parameters_bytes=225 * MIB,
    gradients_bytes=225 * MIB,
    optimizer_bytes=450 * MIB,
    ema_bytes=225 * MIB,
    buffers_bytes=0,
    activations_bytes=1806 * MIB,
    activations_px=(640,),
    optimizer="AdamW",
)
JOB = Weighed(title="x at 640", n_ranks=4, batch_per_gpu=16, mem_bytes=24 * GIB, mem_of="G", half=True, sizes=SIZES)


def examine(**changes: object) -> tuple[str, str, str]:
    finding = model_parallel(Subject(machine=MACHINE, weighed=replace(JOB, **changes)))  # type: ignore[arg-type]
    assert finding.remedy
    return finding.verdict, finding.says, "; ".join((*finding.evidence, finding.remedy))


def test_a_job_that_fits_needs_no_sharding() -> None:
    verdict, says, evidence = examine()
    assert verdict == "ok"
    assert "not useful" in says
    # (24 GiB - 700 MiB - 225 MiB of buckets - 1125 MiB) / 903 MiB = 24.9; 1125 MiB x 3/4 + 225 MiB = 1.0 GiB =
    # 1.2 images; 3 / (8 + 3) = 27 %
    for figure in (
        "1.1 GiB of state",
        "225 MiB in DDP's buckets",
        "24 images",
        "1.0 GiB on each",
        "1.2 images more",
        "27%",
        "903 MiB",
    ):
        assert figure in evidence
    assert "activation_memory_budget" in evidence


def test_in_fp32_half_as_many_images_fit() -> None:
    assert "12 images fit" in examine(half=False)[2]


def test_a_batch_that_is_too_large_is_told_what_fits() -> None:
    verdict, says, evidence = examine(batch_per_gpu=64)
    assert (verdict, "add 2 images to 24" in says) == ("warn", True)
    assert "batch=96 fits" in evidence, "24 on each of 4 ranks"


def test_sharding_is_offered_where_it_makes_the_batch_fit() -> None:
    verdict, says, _ = examine(batch_per_gpu=26)
    assert (verdict, "sharding over 4 ranks could help: 26 images" in says) == ("warn", True)
    # 700 + 1125 + 903 MiB do not fit into 2 GiB, 700 + 281 + 903 do.
    verdict, says, evidence = examine(batch_per_gpu=1, mem_bytes=2 * GIB)
    assert (verdict, "could help: 1 image" in says) == ("fail", True)
    assert "no sharded mode" in evidence


def test_one_image_that_does_not_fit_is_the_case_for_a_pipeline() -> None:
    huge = replace(SIZES, activations_bytes=80 * GIB)
    verdict, says, evidence = examine(sizes=huge)
    assert (verdict, "a pipeline (4 stages) could help" in says) == ("fail", True)
    assert "a device with 41.8 GiB" in evidence
    assert "nor on a stage of a pipeline of 2" in examine(sizes=huge, n_ranks=1, mem_bytes=16 * GIB)[1]


def test_images_that_were_not_measured_directly_say_so() -> None:
    far = replace(SIZES, activations_px=(640, 1280))
    assert "from 640 and 1280 pixels" in examine(sizes=far)[2]


def test_the_table_and_the_units() -> None:
    assert WEIGHED["model parallel"] is model_parallel
    assert [spell_size(n) for n in (9.84 * MIB, 225 * MIB, 24 * GIB)] == ["9.8 MiB", "225 MiB", "24.0 GiB"]


@pytest.mark.parametrize("mem_bytes", [1, 600 * MIB])
def test_a_device_smaller_than_the_allowance(mem_bytes: int) -> None:
    assert examine(mem_bytes=mem_bytes)[0] == "fail"
