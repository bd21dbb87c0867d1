import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from autotune.contract import Outcome, RunDir
from autotune.errors import InputError
from autotune.report.figures import FIGURES
from autotune.report.html import write_report

from .conftest import make_run, result_of

HOSTILE = "<script>alert(1)</script>\"'&</script><img src=x onerror=alert(2)>"


def own_part(page: str) -> str:
    """The page without plotly.js."""
    longest = max(re.findall(r"<script>.*?</script>", page, flags=re.S), key=len)
    assert len(longest) > 1_000_000
    return page.replace(longest, "")


def test_the_page_is_whole(edge_run: RunDir) -> None:
    page = write_report(edge_run.path)
    assert page == edge_run.report
    text = own_part(page.read_text(encoding="utf-8"))
    for name in FIGURES:
        assert f'<section class="card" id="{name}">' in text
    assert len(text) < 200_000, "figures are small"
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert not list(edge_run.path.glob(".*tmp")), "nothing temporary is left"


def test_what_unfolds_says_what_it_is(tmp_path: Path) -> None:
    """Log lines are called so, and nothing else is: what more would lift a limit once was."""
    crash = replace(result_of(2, Outcome.CRASH), log_tail=("Traceback", "boom"), error="worker died")
    waits = [replace(result_of(n), wait_frac=0.5) for n in (0, 1)]
    folder = make_run(tmp_path / "r", results=[*waits, crash], finalists=False)
    text = own_part(write_report(folder.path).read_text(encoding="utf-8"))

    def titles(card: str) -> set[str]:
        section = text[text.index(f'<section class="card" id="{card}">') :]
        return set(re.findall(r"<summary>(.*?)</summary>", section[: section.index("</section>")]))

    assert titles("trials") == {"its last log lines"}
    assert titles("limits") == {"more"}


def test_a_dry_run_says_so_aloud(tmp_path: Path) -> None:
    text = own_part(write_report(make_run(tmp_path / "s", 3, simulated=True).path).read_text(encoding="utf-8"))
    assert "SIMULATED: no real training was measured" in text
    assert text.count("(simulated)") >= len(FIGURES)
    real = own_part(write_report(make_run(tmp_path / "r", 3).path).read_text(encoding="utf-8"))
    assert "simulated" not in real.lower()


def test_it_leads_with_the_verdict_and_the_commands(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r")
    text = own_part(write_report(folder.path).read_text(encoding="utf-8"))
    head = text[text.index("<header") : text.index("</header>")]
    assert "gain confirmed" in head
    assert "1.89\u00a0x the baseline" in head
    assert "yolo train cfg=results/x/best/best.yaml" in head


def test_commands_are_made_from_the_folder_when_the_run_has_not_ended(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a b", ended=False)
    folder.best.mkdir()
    (folder.best / "best.yaml").touch()
    (folder.best / "launch.sh").touch()
    text = own_part(write_report(folder.path).read_text(encoding="utf-8"))
    assert f"yolo train cfg=&#39;{folder.best}/best.yaml&#39;" in text
    assert f"bash &#39;{folder.best}/launch.sh&#39;" in text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    bad = replace(
        result_of(2, Outcome.CRASH),
        error=HOSTILE,
        hint=HOSTILE,
        log_tail=(HOSTILE,),
        params={**result_of(2).params, HOSTILE: HOSTILE},
    )
    info = {"name": HOSTILE, "command": HOSTILE, "train_args": {"model": HOSTILE, "data": HOSTILE}}
    folder = make_run(tmp_path / "x", results=[result_of(0), result_of(1), bad], info=info)
    text = own_part(write_report(folder.path).read_text(encoding="utf-8"))
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    for figure in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, flags=re.S):
        assert json.loads(figure)["data"]
        assert "<" not in figure


def test_data_links_hold_the_figures_numbers(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", 6, finalists=False)
    text = write_report(folder.path).read_text(encoding="utf-8")
    link = re.search(r'download="best_so_far.csv" href="data:text/csv;charset=utf-8,([^"]*)"', text)
    assert link
    rows = list(csv.DictReader(io.StringIO(unquote(link[1]))))
    assert [int(row["number"]) for row in rows] == list(range(6))
    assert float(rows[1]["images_per_s"]) == pytest.approx(result_of(1).images_per_s)


def test_figures_hold_no_template(tmp_path: Path) -> None:
    text = own_part(write_report(make_run(tmp_path / "r").path).read_text(encoding="utf-8"))
    for figure in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, flags=re.S):
        assert len(json.dumps(json.loads(figure)["layout"]["template"])) < 60


def test_an_unusable_folder_leaves_no_report(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_made_again_it_is_the_same(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r")
    first = write_report(folder.path).read_bytes()
    assert write_report(folder.path).read_bytes() == first
