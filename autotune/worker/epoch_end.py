"""How long does the end of an epoch take, and the step once the mosaic is closed? Probe `epoch_end` (MEASURING 4).

The user's own training, shortened, through Ultralytics' own loop with the user's val, save and plots: a few steps, a
real end of an epoch, the mosaic closed by the trainer's own code, a segment of steps without mosaic, and the end of the
last epoch with final evaluation and plots. Nothing of the loop is copied: `stop` ends an epoch between two batches, and
`args.close_mosaic` and `epochs` say which epoch of the job this one stands for.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any, Final

from autotune.contract import EpochEnd
from autotune.worker.cut_short import SegmentMixin, SegmentOverError

FIRST_STEPS: Final = 3
"""Of the first epoch at least, and whole accumulate cycles: optimizer and EMA have done their first step."""
VAL_CAP_S: Final = 20.0
"""A validation is cut short after this, and extrapolated..."""
NEXT_CAP_S: Final = 5.0
"""...and so are those after it, earlier."""
HEARTBEAT_S: Final = 2.0


class EpochEndMixin(SegmentMixin):
    """In place of SegmentMixin's stubs the trainer's own validation, checkpoints and final evaluation, timed.

    They stay stubs in the epochs that end within the segment: its steps are measured as any trial's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        me: Any = self
        self._n_left = 0
        """Steps of the first epoch that are still to be done."""
        self._now_ends = False
        """Between the last step of the first epoch, or of the last, and the next step."""
        self._last = False
        self._from_s = 0.0
        """perf_counter() when the last step of an epoch had ended; then when the final evaluation began."""
        self._took: dict[str, float] = {}
        self._ends: list[dict[str, float]] = []
        """Of the first epoch and of the last: seconds by part, the ones that were run."""
        self._wholes: list[tuple[int, float]] = []
        """Of each validation in training: batches timed, and seconds that the whole set would take."""
        self._closed_from_s: float | None = None
        self._reset_s: float | None = None
        self._not_run_s = 0.0
        """What the final evaluation would have taken longer on the whole set."""
        me.add_callback("on_train_batch_start", lambda _: self._on_batch_start())
        me.add_callback("on_train_epoch_end", lambda _: self._on_last_step_done())
        me.add_callback("teardown", lambda _: self._on_teardown())

    # What SegmentMixin stubs. `super(SegmentMixin, ...)` is the trainer below it.

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own, for validation too."""
        return super(SegmentMixin, self).get_dataloader(*args, **kwargs)  # type: ignore[misc]

    def validate(self) -> Any:
        """The trainer's own, on as many batches as the cap allows."""
        if not self._now_ends:
            return super().validate()
        t = time.perf_counter()
        result = super(SegmentMixin, self).validate()  # type: ignore[misc]
        self._took["val"] = time.perf_counter() - t
        n_timed, whole_s = self._val.whole(self._took["val"])
        self._wholes.append((n_timed, whole_s))
        if n_timed < len(self._val):
            self._val.cap_s = NEXT_CAP_S
        return result

    def save_model(self) -> bool:
        """The trainer's own."""
        if not self._now_ends:
            return super().save_model()
        t = time.perf_counter()
        saved: bool = super(SegmentMixin, self).save_model()  # type: ignore[misc]
        self._took["save"] = time.perf_counter() - t
        return saved

    def final_eval(self) -> None:
        """The trainer's own, on as many batches as the cap allows."""
        self._book_end()
        self._from_s = time.perf_counter()
        super(SegmentMixin, self).final_eval()  # type: ignore[misc]
        took_s = time.perf_counter() - self._from_s
        self._not_run_s = self._val.whole(took_s)[1] - took_s

    def _close_dataloader_mosaic(self) -> None:
        if self._ends:  # before the first epoch it belongs to the start
            self._closed_from_s = time.perf_counter()
        super()._close_dataloader_mosaic()  # type: ignore[misc]

    # One epoch after the other.

    def _on_train_start(self) -> None:
        me: Any = self
        close_mosaic = me.args.close_mosaic
        super()._on_train_start()
        me.args.close_mosaic = close_mosaic  # the loop looks at it once more: 0 would mean closed already, and for good
        self._n_left = min(-(-FIRST_STEPS // me.accumulate) * me.accumulate, len(me.train_loader))
        self._val = TimedLoader(me.validator.dataloader, VAL_CAP_S, lambda: self.recorder.begin("validation"))
        me.validator.dataloader = self._val

    def _on_epoch_start(self) -> None:
        super()._on_epoch_start()
        if self._now_ends:
            self._book_end()
            self._now_ends = False
            self._clock.start()

    def _on_batch_start(self) -> None:
        if self._closed_from_s is not None and self._reset_s is None:
            self._reset_s = time.perf_counter() - self._closed_from_s

    def _on_batch_end(self) -> None:
        if self._n_left == 0:
            super()._on_batch_end()
            return
        if "first_step" not in self.recorder.phases_s:
            self.recorder.phase("first_step")
            self.recorder.begin("epoch_end")
        self._n_left -= 1
        if self._n_left == 0:
            self._end_epoch()

    def _on_segment_over(self) -> None:
        self._last = True
        self._end_epoch()

    def _end_epoch(self) -> None:
        me: Any = self
        me.stop = self._now_ends = True
        self._took = {}
        self._from_s = time.perf_counter()

    def _on_last_step_done(self) -> None:
        """From here on the loop shall do what it does after a whole epoch: after the last one, if this is it."""
        me: Any = self
        if self._now_ends:
            me.stop = False
        if self._last:
            me.epochs = me.epoch + 1

    def _on_epoch_end(self) -> None:
        if self._last:
            return  # the loop ends by itself
        super()._on_epoch_end()
        me: Any = self
        job = self.recorder.job
        if self._now_ends and 0 < job["n_closed_epochs"] < job["epochs"]:
            me.args.close_mosaic = me.epochs - (me.epoch + 1)  # the next epoch is the first without

    def _book_end(self) -> None:
        rest_s = time.perf_counter() - self._from_s - sum(self._took.values())
        self._ends.append({**self._took, "rest": rest_s})

    def _on_teardown(self) -> None:
        """Training has ended: after its last epoch, or by an exception, which then goes on."""
        if len(self._ends) < 2 or sys.exc_info()[0] is not None:
            return
        for thread in threading.enumerate():  # Ultralytics draws samples in threads, which the user's process waits for
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        self.recorder.epoch_end = self._epoch_end(time.perf_counter() - self._from_s + self._not_run_s)
        raise SegmentOverError

    def _epoch_end(self, final_s: float) -> EpochEnd:
        first, last = self._ends
        n_timed, val_s = max(reversed(self._wholes), key=lambda w: w[0])
        both = first.keys() & last.keys() - ({"val"} if n_timed < len(self._val) else set())
        segment = self.recorder.segment
        reset_s = None
        if self._reset_s is not None:  # less the wait for data that any step has
            reset_s = max(0.0, self._reset_s - fmean(segment.steps.wait_s[segment.measured_from or 0 :]))
        return EpochEnd(
            val_s=val_s,
            val_n_batches=len(self._val),
            val_n_timed=n_timed,
            val_every_epoch="val" in first,
            save_s=last.get("save"),
            save_every_epoch="save" in first,
            rest_s=last["rest"],
            first_extra_s=max(0.0, sum(first[part] - last[part] for part in both)),
            reset_s=reset_s,
            final_s=final_s,
        )


class TimedLoader:
    """A loader that stamps its batches, and ends early.

    Args:
        loader: answers everything that is not a batch.
        cap_s: no batch is begun later than this, in each pass.
        alive: called every few seconds while batches are drawn.
    """

    def __init__(self, loader: Any, cap_s: float, alive: Callable[[], None]) -> None:
        self.loader = loader
        self.cap_s = cap_s
        self.ends_s: list[float] = []
        """Of the last pass: when each batch had been worked on, since its beginning."""
        self._alive = alive

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.ends_s = []
        began = told = time.perf_counter()
        for batch in self.loader:
            yield batch
            now = time.perf_counter()
            self.ends_s.append(now - began)
            if now - told > HEARTBEAT_S:
                self._alive()
                told = now
            if now - began > self.cap_s:
                return

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def whole(self, took_s: float) -> tuple[int, float]:
        """Batches of the last pass, and what its caller, who took so long, would have taken for all of them."""
        return len(self.ends_s), extrapolated_s(self.ends_s, len(self.loader), took_s)


def extrapolated_s(ends_s: Sequence[float], n_batches: int, took_s: float) -> float:
    """Seconds of a validation of the whole set, from those of its first batches.

    The rate is that of the second half: the first batches of a pass lie ready in the loader, since its workers fetch
    on between two validations. What comes after the batches (the metrics) grows with their number.

    Args:
        ends_s: when each of them was done, since the first was asked for.
        n_batches: of the whole set.
        took_s: of the validation that was cut short after them.
    """
    n = len(ends_s)
    if n == 0 or n >= n_batches:
        return took_s
    half = n // 2
    batch_s = (ends_s[-1] - (ends_s[half - 1] if half else 0.0)) / (n - half)
    return ends_s[-1] + (n_batches - n) * batch_s + (took_s - ends_s[-1]) * n_batches / n
