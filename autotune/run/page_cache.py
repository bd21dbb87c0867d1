"""Does the dataset lie in memory before the first trial reads it, or would that one pay for a cold disk?"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from typing import Final

from autotune.run.sources import find_source, label_of

FITS_FRAC: Final = 0.6
"""Files larger together than this share of the free memory would push each other out again (SEARCH 3.4)."""
READERS: Final = 4
BLOCK_BYTES: Final = 1 << 20
COLD_SAMPLE: Final = 256
COLD_S: Final = 5.0
"""The cold read ends after so many seconds: a probe of the disk, not a benchmark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCache:
    """What was read before the study."""

    dataset_bytes: int
    """Train images and their labels, on disk."""
    read_bytes: int
    """0 when it does not fit; less than `dataset_bytes` when the time was up, or files could not be read."""
    fits: bool
    """The dataset fits into free memory beside the trials: after the first reading no trial waits for the disk."""
    took_s: float
    cold_images_per_s: float | None = None
    """What the disk delivers of a dataset that does not fit, by READERS readers at once; None where it fits."""
    n_decoded: int = 0
    """Images beside which an earlier training with cache=disk has left a .npy."""

    @property
    def note(self) -> str:
        """One line for the user."""
        # Ultralytics reads them whatever `cache` says (data/base.py); trials see links to the images alone.
        decoded = (
            f"; beside {self.n_decoded} images lies a .npy of an earlier cache=disk, which YOLO reads in any cache "
            "mode and no trial does: without them training is as measured here"
        )
        return self._note + (decoded if self.n_decoded else "")

    @property
    def _note(self) -> str:
        gb = self.dataset_bytes / 1e9
        size = f"{gb:.1f} GB" if gb >= 0.1 else f"{self.dataset_bytes / 1e6:.0f} MB"
        if not self.fits:
            cold = f"; read cold it delivers {self.cold_images_per_s:.0f} images/s" if self.cold_images_per_s else ""
            return f"the dataset ({size}) does not fit into memory: trials read it from disk, as training will{cold}"
        if self.read_bytes < self.dataset_bytes:
            return f"the dataset ({size}) was not read whole in {self.took_s:.0f} s: first trials may wait for the disk"
        return f"the dataset ({size}) fits into free memory and was read once: no trial waits for a cold disk"


def warm_page_cache(data: str, task: str, *, free_ram_bytes: int, limit_s: float = 60.0) -> PageCache:
    """Read every train image and label once, so that the first trial meets the same page cache as the others.

    A dataset that does not fit is left alone, as reading it would leave an arbitrary part of it in memory, but for a
    sample of images that are read from the disk: no setting of the loader can be faster than that (MEASURING 1).

    Args:
        data: as the user would give it to YOLO.
        task: detect, segment, pose, obb or classify.
        free_ram_bytes: memory that the page cache may take.
        limit_s: reading ends after so many seconds; what lies on a slow network disk is then read by the trials.

    Raises:
        InputError: the dataset is missing or has no images.
    """
    began = time.perf_counter()
    images = dict.fromkeys(find_source(data, task).images["train"])
    labels = () if task == "classify" else (label_of(image) for image in images)
    sizes = {path: _size(path) for path in (*images, *labels)}
    total = sum(sizes.values())
    n_decoded = sum(os.path.exists(f"{os.path.splitext(path)[0]}.npy") for path in images)  # noqa: PTH110, PTH122
    fits = total <= FITS_FRAC * free_ram_bytes
    read, cold = 0, None
    if fits:
        with ThreadPool(READERS) as pool:
            read = sum(pool.imap_unordered(lambda path: _read(path, began + limit_s), sizes, chunksize=64))
    else:
        cold = _cold_rate(random.Random(0).sample(list(images), min(COLD_SAMPLE, len(images))), min(COLD_S, limit_s))
    took_s = time.perf_counter() - began
    return PageCache(
        dataset_bytes=total,
        read_bytes=read,
        fits=fits,
        took_s=took_s,
        cold_images_per_s=cold,
        n_decoded=n_decoded,
    )


def drop_page_cache(data: str, task: str) -> None:
    """Let the kernel forget the train images, so that the next run reads them from the disk.

    Args:
        data: as in warm_page_cache.
        task: as in warm_page_cache.
    """
    _forget(find_source(data, task).images["train"])


def _forget(images: Iterable[str]) -> None:
    for path in images:
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def _cold_rate(images: list[str], limit_s: float) -> float | None:
    """Images a second that READERS get from the disk, not from memory; None when no image could be read in time."""
    _forget(images)
    began = time.perf_counter()
    with ThreadPool(READERS) as pool:
        n_read = sum(size > 0 for size in pool.imap_unordered(lambda path: _read(path, began + limit_s), images))
    return n_read / (time.perf_counter() - began) if n_read else None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - 100,000 times
    except OSError:
        return 0  # an image without a label; or one that the trials will report


def _read(path: str, until: float) -> int:
    n = 0
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:  # noqa: PTH123 - 100,000 times
        while time.perf_counter() < until and (block := file.read(BLOCK_BYTES)):
            n += len(block)
    return n
