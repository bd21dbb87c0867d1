"""Deadlines of every rank, told by heartbeats that the test writes, on a clock that the test moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import Deadlines, TrialDir
from autotune.run.watch import Live, Watcher
from tests.run.trials import spec

LIMITS = Deadlines(import_s=10.0, build_s=20.0, first_step_s=30.0, stall_s=3.0, stall_steps=20.0, total_s=500.0)


class Trial:
    """Heartbeat files of `n_ranks` ranks and the watcher that reads them."""

    def __init__(self, path: Path, n_ranks: int = 1, role: str = "trial", deadlines: Deadlines = LIMITS) -> None:
        self.directory = TrialDir(path)
        asked = replace(spec("demo"), n_ranks=n_ranks, role=role, deadlines=deadlines)  # type: ignore[arg-type]
        self.seen: list[Live] = []
        self.watcher = Watcher(asked, self.directory, lambda live: self.seen.append(live))

    def write(self, rank: int, *lines: str) -> None:
        with self.directory.stream(rank).open("a", encoding="ascii") as f:
            f.writelines(f"{line}\n" for line in lines)

    def steps(self, rank: int, n: int, step_s: float = 0.1) -> None:
        self.write(rank, *(f"1.0 0.0 {step_s} 8 0 0" for _ in range(n)))

    def at(self, seconds: float) -> str | None:
        return self.watcher(seconds)


def test_each_phase_has_its_own_deadline(tmp_path: Path) -> None:
    t = Trial(tmp_path)
    assert t.at(9.9) is None
    t.write(0, "# import")
    assert t.at(10.4) is None  # a sign of life that is the phase's beginning
    assert t.at(20.9) == "rank 0 did not finish the imports in 10 s"
    t.write(0, "# build")
    assert t.at(21.5) is None
    assert t.at(42.0) == "rank 0 did not finish dataset, cache and model in 20 s"
    t.write(0, "# first_step")
    assert t.at(43.0) is None
    assert t.at(72.9) is None
    assert t.at(74.0) == "rank 0 did not finish the first step in 31 s"
    t.steps(0, 1)
    assert t.at(75.0) is None
    assert t.at(77.9) is None
    assert t.at(78.5) == "rank 0 made no step for 4 s after step 1"


def test_no_sign_of_life_at_all(tmp_path: Path) -> None:
    assert Trial(tmp_path).at(10.5) == "rank 0 did not finish the imports in 10 s"


def test_slow_steps_widen_the_stall_deadline(tmp_path: Path) -> None:
    t = Trial(tmp_path)
    t.steps(0, 1, step_s=40.0)  # the first one compiled: no yardstick
    t.steps(0, 3, step_s=1.0)
    assert t.at(1.0) is None
    assert t.at(20.9) is None
    assert t.at(21.6) == "rank 0 made no step for 21 s after step 4"


def test_any_rank_may_stall_and_the_one_behind_is_named(tmp_path: Path) -> None:
    t = Trial(tmp_path, n_ranks=2)
    for second in range(1, 6):
        t.steps(0, 1)
        t.steps(1, 1)
        assert t.at(second) is None
    t.steps(0, 1)
    assert t.at(6.0) is None
    assert t.at(8.2) == "rank 1 made no step for 3 s after step 5; rank 0 is at step 6"


def test_a_rank_that_steps_does_not_hide_one_that_does_not(tmp_path: Path) -> None:
    t = Trial(tmp_path, n_ranks=3)
    t.steps(1, 4)
    for second in range(1, 4):
        t.steps(0, 1)
        t.write(2, "# build")
        assert t.at(second) is None
    t.steps(0, 1)
    late = "rank 1 made no step for 3 s after step 4; rank 0 is at step 4; rank 2 is building"
    assert t.at(4.4) == late


def test_ranks_that_stopped_at_the_same_step_are_named_together(tmp_path: Path) -> None:
    t = Trial(tmp_path, n_ranks=2)
    t.steps(0, 7)
    t.steps(1, 7)
    assert t.at(1.0) is None
    assert t.at(4.5) == "rank 0 and rank 1 made no step for 4 s after step 7"


def test_a_rank_that_never_came_up(tmp_path: Path) -> None:
    t = Trial(tmp_path, n_ranks=2)
    t.write(0, "# import", "# build", "# first_step")
    assert t.at(1.0) is None
    assert t.at(11.0) == "rank 1 did not finish the imports in 11 s; rank 0 is in its first step"


def test_a_rank_that_has_ended_is_not_late_while_another_works(tmp_path: Path) -> None:
    t = Trial(tmp_path, n_ranks=2)
    t.steps(0, 5)
    t.steps(1, 4)
    t.directory.rank(0).write_text("{}")
    for second in range(1, 9):
        t.steps(1, 1)
        assert t.at(second) is None
    assert t.at(12.0) == "rank 1 made no step for 4 s after step 12; rank 0 has ended"


def test_a_process_that_does_not_end_after_its_record(tmp_path: Path) -> None:
    t = Trial(tmp_path)
    t.steps(0, 5)
    t.directory.rank(0).write_text("{}")
    assert t.at(1.0) is None
    assert t.at(4.6) == "rank 0 wrote the record, but did not end for 4 s"


def test_total_deadline_says_how_far_it_came(tmp_path: Path) -> None:
    t = Trial(tmp_path, deadlines=replace(LIMITS, total_s=2.0))
    t.steps(0, 5)
    assert t.at(1.9) is None
    assert t.at(2.5) == "still running after 2 s, its deadline: rank 0 is at step 5"


def test_a_full_training_has_no_heartbeat(tmp_path: Path) -> None:
    t = Trial(tmp_path, role="train")
    t.write(0, "# import")
    assert t.at(400.0) is None
    assert "deadline" in (t.at(501.0) or "")


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    t = Trial(tmp_path)
    with t.directory.stream(0).open("a", encoding="ascii") as f:
        f.write("1.0 0.0 0.1 8")
        f.flush()
        t.at(1.0)
        f.write(" 0 1\n")
    t.at(2.0)
    assert [live.n_steps for live in t.seen] == [0, 1]


def test_the_log_counts_up_to_the_breach(tmp_path: Path) -> None:
    t = Trial(tmp_path)
    t.directory.log.write_text("before\n")
    assert t.watcher.log_bytes is None
    assert t.at(11.0)
    assert t.watcher.log_bytes == len("before\n")


@pytest.mark.parametrize("text", ["# import", "# build", "# first_step"])
def test_the_live_view_shows_the_phase(tmp_path: Path, text: str) -> None:
    t = Trial(tmp_path)
    t.write(0, text)
    t.at(1.0)
    assert t.seen[-1].phase == text[2:]


def test_ranks_that_are_equally_far_are_told_as_many(tmp_path: Path) -> None:
    t = Trial(tmp_path, n_ranks=2, deadlines=replace(LIMITS, total_s=9.0))
    t.steps(0, 8)
    t.steps(1, 8)
    assert t.at(9.5) == "still running after 10 s, its deadline: rank 0 and rank 1 are at step 8"


def test_the_live_rate_is_that_of_all_ranks(tmp_path: Path) -> None:
    """It is compared with the baseline's, which counts the images of all ranks."""
    t = Trial(tmp_path, n_ranks=2)
    for rank in range(2):
        t.write(rank, "1.0 0.0 0.1 8 0 0", *(f"{1 + i / 10} 0.0 0.1 8 0 1" for i in range(1, 5)))
    t.at(1.0)
    assert t.seen[-1].steps.images == [16] * 5
