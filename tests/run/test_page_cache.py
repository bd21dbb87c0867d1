"""Is the dataset read once before the study, and only when that helps?"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from autotune.run.demo import demo_dataset
from autotune.run.page_cache import warm_page_cache


def train_files(data: Path) -> list[Path]:
    folders = (data.parent / kind / "train" for kind in ("images", "labels"))
    return [p for folder in folders for p in folder.iterdir() if p.suffix != ".cache"]


def resident_frac(files: list[Path]) -> float:
    """Share of the files' pages that lie in the page cache, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    access = {"flags": mmap.MAP_PRIVATE, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
    pages = resident = 0
    for path in files:
        with path.open("rb") as f, mmap.mmap(f.fileno(), 0, **access) as m:
            n = -(-len(m) // mmap.PAGESIZE)
            found = (ctypes.c_ubyte * n)()
            view = (ctypes.c_char * len(m)).from_buffer(m)
            address = ctypes.c_void_p(ctypes.addressof(view))
            assert libc.mincore(address, ctypes.c_size_t(len(m)), found) == 0
            del view
            pages, resident = pages + n, resident + sum(b & 1 for b in found)
    return resident / pages


def evict(files: list[Path]) -> None:
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return demo_dataset(tmp_path, n_train=24, n_val=4)


def test_every_train_image_and_label_is_read(own: Path) -> None:
    files = train_files(own)
    got = warm_page_cache(str(own), "detect", free_ram_bytes=1 << 40)
    assert len(files) == 48
    assert got.fits
    assert got.read_bytes == got.dataset_bytes == sum(p.stat().st_size for p in files)
    assert got.cold_images_per_s is None
    assert "was read once" in got.note
    assert got.n_decoded == 0
    files[0].with_suffix(".npy").write_bytes(b"left by cache=disk")
    again = warm_page_cache(str(own), "detect", free_ram_bytes=1 << 40)
    assert again.note.startswith(f"{got.note}; beside 1 images lies a .npy")


def test_a_cold_dataset_is_warm_afterwards(own: Path) -> None:
    files = train_files(own)
    evict(files)
    # A file system that keeps its files in memory leaves the reading itself to be seen.
    print(f"resident before: {resident_frac(files):.0%}")
    got = warm_page_cache(str(own), "detect", free_ram_bytes=1 << 40)
    assert got.read_bytes == sum(p.stat().st_size for p in files)
    assert resident_frac(files) == 1.0


def test_what_does_not_fit_is_left_alone(own: Path) -> None:
    size = sum(p.stat().st_size for p in train_files(own))
    got = warm_page_cache(str(own), "detect", free_ram_bytes=size)
    assert not got.fits
    assert got.read_bytes == 0
    assert got.dataset_bytes == size
    assert got.note.startswith("the dataset (")
    assert f"read cold it delivers {got.cold_images_per_s:.0f} images/s" in got.note


def test_the_cold_read_asks_the_disk(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = []
    drop = os.posix_fadvise

    def noted(fd: int, offset: int, length: int, advice: int) -> None:
        dropped.append((str(Path(f"/proc/self/fd/{fd}").readlink()), advice))
        drop(fd, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", noted)
    got = warm_page_cache(str(own), "detect", free_ram_bytes=1)
    images = {str(p) for p in (own.parent / "images" / "train").iterdir()}
    assert {path for path, advice in dropped if advice == os.POSIX_FADV_DONTNEED} == images
    assert got.cold_images_per_s is not None
    assert len(images) / got.cold_images_per_s < got.took_s
    assert warm_page_cache(str(own), "detect", free_ram_bytes=1, limit_s=0.0).cold_images_per_s is None


def test_reading_ends_when_its_time_is_up(own: Path) -> None:
    got = warm_page_cache(str(own), "detect", free_ram_bytes=1 << 40, limit_s=0.0)
    assert got.fits
    assert got.read_bytes == 0
    assert "was not read whole in 0 s" in got.note


def test_images_without_labels_and_classification(own: Path, tmp_path: Path) -> None:
    next((own.parent / "labels" / "train").glob("*.txt")).unlink()
    got = warm_page_cache(str(own), "detect", free_ram_bytes=1 << 40)
    assert got.read_bytes == got.dataset_bytes == sum(p.stat().st_size for p in train_files(own))
    folder = demo_dataset(tmp_path, n_train=8, n_val=4, task="classify")
    got = warm_page_cache(str(folder), "classify", free_ram_bytes=1 << 40)
    assert got.read_bytes == sum(p.stat().st_size for p in (folder / "train").rglob("*.jpg"))
