"""`autotune train`: what the user's Ctrl-C does to a full training. Real processes; a script in place of the worker."""

from __future__ import annotations

import _thread
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from autotune import rerun
from autotune.contract import Winner, write_json
from autotune.run import launch

TRAINING = """
    import signal, time
    busy = []
    signal.signal(signal.SIGINT, lambda *_: busy.append("interrupted"))
    with open("last.pt", "w") as f:
        f.write("half of the checkpoint")
        f.flush()
        open("up", "w").close()
        while not busy:
            time.sleep(0.05)
        time.sleep(0.5)
        f.write(", and the other half")
    {then}
"""


def interrupt_once_up(folder: Path) -> None:
    """As Ctrl-C would, once the training is in the middle of its checkpoint."""
    for _ in range(600):
        if (folder / "up").exists():
            _thread.interrupt_main()
            return
        time.sleep(0.05)


@pytest.mark.parametrize("then", ["", "time.sleep(300)"], ids=["ends", "does not end"])
def test_an_interrupted_training_finishes_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    script = tmp_path / "training.py"
    script.write_text(textwrap.dedent(TRAINING.format(then=then)))
    monkeypatch.setattr(launch, "argv", lambda *_: [sys.executable, str(script)])
    monkeypatch.setattr(rerun, "FINISH_S", 3.0 if then else 60.0)
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "winner.json", Winner(task="detect", train_args={}))
    threading.Thread(target=interrupt_once_up, args=(tmp_path,)).start()
    with pytest.raises(KeyboardInterrupt):
        rerun.train(str(tmp_path), {})
    if not then:
        assert (tmp_path / "last.pt").read_text() == "half of the checkpoint, and the other half"
    left = [p for p in psutil.process_iter(["cmdline"]) if str(script) in (p.info["cmdline"] or ())]
    assert left == []
