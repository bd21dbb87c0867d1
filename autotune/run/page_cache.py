"""Does the dataset lie in memory before the first trial reads it, or would that one pay for a cold disk?"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from typing import Final

from autotune.run.sources import find_source, label_of

FITS_FRAC: Final = 0.6
"""Files larger together than this share of the free memory would push each other out again (SEARCH 3.4)."""
READERS: Final = 4
BLOCK_BYTES: Final = 1 << 20


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


def warm_page_cache(data: str, task: str, *, free_ram_bytes: int, limit_s: float = 60.0) -> PageCache:
    """Read every train image and label once, so that the first trial meets the same page cache as the others.

    A dataset that does not fit is left alone: reading it would leave an arbitrary part of it in memory.

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
    fits = total <= FITS_FRAC * free_ram_bytes
    read = 0
    if fits:
        with ThreadPool(READERS) as pool:
            read = sum(pool.imap_unordered(lambda path: _read(path, began + limit_s), sizes, chunksize=64))
    return PageCache(dataset_bytes=total, read_bytes=read, fits=fits, took_s=time.perf_counter() - began)


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
