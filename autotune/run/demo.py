"""Which dataset does a search without `data=` train on? One drawn here, once, without any download.

Images as heavy as COCO's (640x480 JPEG of 100-200 KB, about 7 boxes), so that the loader works as hard as on a real
job; objects simple enough that a few epochs from scratch give a clearly rising mAP.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from autotune.errors import MachineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Points = npt.NDArray[np.float64]
    Image = npt.NDArray[np.uint8]

Task = Literal["detect", "segment", "pose", "obb", "classify"]

VERSION: Final = "demo-v1"
"""Part of the folder's name: another drawing gets another name, so a cached set never changes."""
WIDTH: Final = 640
HEIGHT: Final = 480
JPEG_QUALITY: Final = 90
NOISE_SIGMAS: Final = (9.0, 11.0, 13.5, 16.0)
"""Grey levels; with quality 90 these make files of about 110, 135, 160 and 180 KB."""
NAMES: Final = ("disc", "square", "triangle", "star", "cross", "ring")
COLOURS_BGR: Final = ((40, 40, 220), (220, 70, 40), (50, 190, 50), (30, 210, 235), (200, 60, 200), (225, 215, 60))
"""One hue a class: YOLO's default hsv_h jitter (1.5 %) leaves them apart."""
BORROWED_COLOUR_FRAC: Final = 0.3
"""Objects in the colour of any class, so that shape must be learnt too: with none of them, yolo11n at 160 pixels was at
mAP50 0.99 after 5 epochs, which leaves nothing for a check of accuracy to see."""
RADIUS_PX: Final = (16.0, 110.0)
FLIP_IDX: Final = (0, 3, 2, 1)
"""Keypoints are top, right, bottom, left of the shape's own frame; a mirror swaps right and left."""


@dataclass(frozen=True, slots=True)
class _Object:
    """One drawn shape, in pixels."""

    cls: int
    outline: Points
    """(n, 2) polygon."""
    corners: Points
    """(4, 2) rotated square around it."""
    keypoints: Points
    """(4, 2)."""


def cache_home() -> Path:
    """Where generated things live: $AUTOTUNE_CACHE, else $XDG_CACHE_HOME/autotune, else ~/.cache/autotune."""
    if own := os.environ.get("AUTOTUNE_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "autotune"
    return Path.home() / ".cache" / "autotune"


def demo_exists() -> bool:
    """True when the demo set of the default size has been drawn before."""
    return (cache_home() / VERSION / "data.yaml").exists()


def demo_dataset(
    cache_dir: Path | None = None,
    *,
    n_train: int = 1280,
    n_val: int = 128,
    seed: int = 0,
    task: Task = "detect",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw the demo set, or find the one drawn before; whole or not at all, also with several callers at once.

    Args:
        cache_dir: folder that holds the sets; `cache_home()` when None.
        n_train: images of the train split.
        n_val: images of the val split.
        seed: same seed, same bytes (with the same OpenCV).
        task: which labels to write.
        progress: called with (images written, images in all) now and then, only when something is drawn.

    Returns:
        data.yaml; for `classify` the folder that holds train/ and val/.

    Raises:
        MachineError: the cache folder cannot be written.
    """
    from filelock import FileLock

    home = (cache_dir or cache_home()).absolute()
    default = (n_train, n_val, seed, task) == (1280, 128, 0, "detect")
    name = VERSION if default else f"{VERSION}-{task}-{n_train}-{n_val}-{seed}"
    folder = home / name
    found = folder if task == "classify" else folder / "data.yaml"
    if found.exists():
        return found
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f".{name}.lock"):
            if not found.exists():
                for stale in home.glob(f".{name}.tmp-*"):  # we hold the lock: whoever made it is dead
                    shutil.rmtree(stale)
                tmp = Path(tempfile.mkdtemp(prefix=f".{name}.tmp-", dir=home))
                try:
                    _generate(tmp, {"train": n_train, "val": n_val}, seed, task, progress)
                    tmp.chmod(0o755)  # mkdtemp makes it private
                    tmp.rename(folder)
                finally:
                    shutil.rmtree(tmp, ignore_errors=True)
    except OSError as e:
        raise MachineError(
            f"cannot write the demo dataset to {folder}: {e}", "set AUTOTUNE_CACHE to a folder with 300 MB free"
        ) from e
    return found


def _generate(
    root: Path, sizes: dict[str, int], seed: int, task: Task, progress: Callable[[int, int], None] | None
) -> None:
    """All images and labels of the set, then data.yaml."""
    import numpy as np

    classify = task == "classify"
    for split in sizes:
        folders = [f"{split}/{n}" for n in NAMES] if classify else [f"images/{split}", f"labels/{split}"]
        for name in folders:
            (root / name).mkdir(parents=True)
    # Four noise fields for the whole set, cut at another place for each image: drawing them anew would cost more than
    # all the rest. Luma only, as in a camera: chroma noise doubles the work of the encoder.
    field = np.random.default_rng([seed, 7]).standard_normal((HEIGHT * 2, WIDTH * 2, 1), dtype=np.float32)
    fields = [np.repeat((field * sigma).astype(np.int16), 3, axis=2) for sigma in NOISE_SIGMAS]
    jobs = [(k, split, i) for k, (split, n) in enumerate(sizes.items()) for i in range(n)]

    def write(job: tuple[int, str, int]) -> None:
        _write_image(root, job[1], job[2], np.random.default_rng([seed, job[0], job[2]]), fields, task)

    # Threads, not processes: OpenCV and NumPy release the GIL here, and nothing is asked of the caller's __main__.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done, _ in enumerate(pool.map(write, jobs), start=1):
            if progress is not None and (done % 64 == 0 or done == len(jobs)):
                progress(done, len(jobs))
    if not classify:
        (root / "data.yaml").write_text(_data_yaml(task), encoding="utf-8")


def _data_yaml(task: Task) -> str:
    """No `path:` line: YOLO then takes the folder of the file, and the set can be moved."""
    lines = [
        "# Demo dataset drawn by autotune: simple shapes on noise, COCO-like image sizes and box counts.",
        "train: images/train",
        "val: images/val",
        "names:",
        *(f"  {i}: {name}" for i, name in enumerate(NAMES)),
    ]
    if task == "pose":
        lines += ["kpt_shape: [4, 3]", f"flip_idx: [{', '.join(map(str, FLIP_IDX))}]"]
    return "\n".join(lines) + "\n"


def _write_image(
    root: Path, split: str, index: int, rng: np.random.Generator, fields: list[npt.NDArray[np.int16]], task: Task
) -> None:
    """One image and its labels."""
    import cv2

    objects = _place(rng, 1 if task == "classify" else int(rng.integers(4, 12)))
    image = _draw(rng, objects, fields[index % len(fields)])
    ok, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert ok, "OpenCV could not encode a JPEG"
    stem = f"{index:06d}"
    if task == "classify":
        (root / split / NAMES[objects[0].cls] / f"{stem}.jpg").write_bytes(jpeg.tobytes())
        return
    (root / "images" / split / f"{stem}.jpg").write_bytes(jpeg.tobytes())
    text = "".join(_label(o, task) + "\n" for o in objects)
    (root / "labels" / split / f"{stem}.txt").write_text(text, encoding="ascii")


def _place(rng: np.random.Generator, n: int) -> list[_Object]:
    """Up to n shapes wholly inside the image that hardly overlap; the first is always placed."""
    import numpy as np

    objects: list[_Object] = []
    circles: list[tuple[float, float, float]] = []
    for _ in range(n):
        for _attempt in range(12):
            radius = float(np.exp(rng.uniform(*np.log(RADIUS_PX))))
            x = float(rng.uniform(radius + 2, WIDTH - radius - 2))
            y = float(rng.uniform(radius + 2, HEIGHT - radius - 2))
            if all(np.hypot(x - a, y - b) > 0.85 * (radius + r) for a, b, r in circles):
                circles.append((x, y, radius))
                objects.append(_shape(int(rng.integers(len(NAMES))), x, y, radius, float(rng.uniform(-0.35, 0.35))))
                break
    return objects


def _shape(cls: int, x: float, y: float, radius: float, angle: float) -> _Object:
    """The outline of a class inside a circle (pixels), turned by `angle` (radians)."""
    import numpy as np

    def polar(degrees: Any, r: Any = 1.0) -> Points:
        """Points at `degrees` clockwise from the top of the picture."""
        t = np.radians(np.asarray(degrees, dtype=np.float64))
        return np.stack([np.sin(t) * r, -np.cos(t) * r], axis=-1)

    star_r = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    arm = 0.34
    cross = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
    cross += [(arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]
    outlines = {
        "disc": polar(np.arange(0, 360, 12)),
        "square": polar([45, 135, 225, 315]),
        "triangle": polar([0, 120, 240]),
        "star": polar(np.arange(10) * 36, star_r),
        "cross": np.array(cross) * 0.94,  # so that the arms' corners stay inside the circle
        "ring": polar(np.arange(0, 360, 12)),
    }
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])

    def to_image(p: Points) -> Points:
        return np.asarray(p @ turn * radius + (x, y), dtype=np.float64)

    own = outlines[NAMES[cls]]
    (x0, y0), (x1, y1) = own.min(axis=0), own.max(axis=0)
    box = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    middles = (box + np.roll(box, -1, axis=0)) / 2  # top, right, bottom, left
    return _Object(cls, to_image(own), to_image(box), to_image(middles))


def _draw(rng: np.random.Generator, objects: list[_Object], noise: npt.NDArray[np.int16]) -> Image:
    """Soft dull background, shapes on it, noise over all."""
    import cv2
    import numpy as np

    coarse = rng.integers(60, 170, (6, 8, 1)) + rng.integers(-22, 23, (6, 8, 3))  # near grey: no class has its colour
    image: Image = cv2.resize(coarse.astype(np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for o in objects:
        hue = int(rng.integers(len(NAMES))) if rng.random() < BORROWED_COLOUR_FRAC else o.cls
        base = np.array(COLOURS_BGR[hue]) + rng.integers(-25, 26, 3)
        colour = tuple(int(c) for c in np.clip(base, 0, 255))
        contour = np.round(o.outline).astype(np.int32)
        if NAMES[o.cls] == "ring":
            centre = o.outline.mean(axis=0)
            hole = np.round(centre + (o.outline - centre) * 0.55).astype(np.int32)
            cv2.fillPoly(image, [contour, hole], colour, cv2.LINE_AA)
        else:
            cv2.fillPoly(image, [contour], colour, cv2.LINE_AA)
    top, left = int(rng.integers(HEIGHT)), int(rng.integers(WIDTH))
    grain = noise[top : top + HEIGHT, left : left + WIDTH]
    out: Image = cv2.add(image, grain, dtype=cv2.CV_8U)
    return out


def _label(o: _Object, task: Task) -> str:
    """One line of a label file: class and coordinates as fractions of the image."""
    import numpy as np

    size = (WIDTH, HEIGHT)
    if task in ("segment", "obb"):
        points = o.outline if task == "segment" else o.corners
        values = list((np.clip(points, 0, size) / size).ravel())
        return f"{o.cls} " + " ".join(f"{v:.6f}" for v in values)
    lo, hi = o.outline.min(axis=0) / size, o.outline.max(axis=0) / size
    text = f"{o.cls} " + " ".join(f"{v:.6f}" for v in (*((lo + hi) / 2), *(hi - lo)))
    if task == "pose":
        text += "".join(f" {px:.6f} {py:.6f} 2" for px, py in np.clip(o.keypoints, 0, size) / size)
    return text
