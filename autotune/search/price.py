"""What will a trial cost, in seconds, before it is started?

Four parts, each learned from the trials that ended: launch, compile, cache fill, segment. Medians, nothing more: the
price only has to be good enough to refuse what the budget cannot carry. A segment has a least number of steps, so a
large batch on a slow machine is dearer than a small one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import median
from typing import Final

from autotune.contract import Params, SegmentSettings, TrialResult, Value

LAUNCH_S: Final = 12.0
"""Before any trial has ended: importing torch and ultralytics and building the trainer on two slow cores."""
COMPILE_COLD_S: Final = 60.0
"""torch.compile of a small YOLO with an empty inductor cache (SEARCH 3.6 has 40 s; this is an upper guess)."""
COMPILE_WARM_FRAC: Final = 0.3
"""A warm inductor cache still traces and loads."""
DECODED_PER_S: Final = 450.0
"""640x480 JPEGs decoded and resized a second on one slow machine, until 200 decoded images or a trial say better."""

COMPILE_KEY: Final = ("compile", "batch_per_gpu", "amp", "torch_threads", "omp_num_threads", "channels_last")
"""What a compiled graph depends on."""
CompileKey = tuple[Value, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Seconds of one trial, by part."""

    launch_s: float
    compile_s: float
    cache_s: float
    segment_s: float

    @property
    def total_s(self) -> float:
        """All parts."""
        return self.launch_s + self.compile_s + self.cache_s + self.segment_s


class PriceModel:
    """Learns from results, answers with prices.

    Args:
        n_images: training images, for the cache fill; None while unknown.
        images_decoded_per_s: rate of one rank from a probe of about 200 images, when there was one. Ultralytics
            caches all images in every rank, so more ranks do not make it faster.
    """

    def __init__(self, n_images: int | None = None, images_decoded_per_s: float | None = None) -> None:
        self.n_images = n_images
        self._decoded_per_s = images_decoded_per_s
        self._launch: dict[bool, list[float]] = {False: [], True: []}
        self._segment: dict[str, list[float]] = {}
        self._image_s = 0.0
        self._cold: dict[CompileKey, float] = {}
        self._cache: dict[Value, float] = {}

    def price(self, params: Params, segment: SegmentSettings, *, warm: bool = False) -> Price:
        """Seconds that a trial of this configuration will take.

        Args:
            params: the configuration.
            segment: its settings.
            warm: it may be forked by a preloaded parent; a finalist never is, and its reserve must not be too small.
        """
        launches = (self._launch[True] if warm else []) or self._launch[False]
        return Price(
            launch_s=median(launches) if launches else LAUNCH_S,
            compile_s=self._compile_s(params),
            cache_s=self._cache_s(params),
            segment_s=self._segment_s(params, segment),
        )

    def _segment_s(self, params: Params, segment: SegmentSettings) -> float:
        """Median of the segments that this very configuration had; else its steps at the slowest rate seen.

        The slowest, because what the price must not miss is the finalists' reserve: their projection onto YOLO's own
        keys is often a large batch at the baseline's rate.
        """
        own = self._segment.get(_key(params))
        if own:
            return median(own)
        batch = params.get("batch_per_gpu")
        step_s = self._image_s * int(batch) if batch else 0.0
        warmup_s = min(max(segment.warmup_s, (1 + segment.warmup_steps) * step_s), segment.warmup_cap_s + step_s)
        # Half of the segments need most of the one extension that they may have.
        measure_s = min(max(1.5 * segment.measure_s, segment.measure_steps * step_s), segment.measure_cap_s)
        return step_s + warmup_s + measure_s

    def learn(self, params: Params, result: TrialResult) -> None:
        """Take in what a trial really cost."""
        phases = result.phases_s
        if "import" in phases and "build" in phases:
            self._launch[result.warm].append(phases["import"] + phases["build"])
        compile_s = 0.0
        if (
            params.get("compile")
            and result.effective.get("compile")
            and "first_step" in phases
            and result.step_p50_s is not None
        ):
            compile_s = max(0.0, phases["first_step"] - result.step_p50_s)
            self._cold.setdefault(compile_key(params), compile_s)
        cache_s = phases.get("cache", 0.0)
        if params.get("cache") and cache_s > 0:
            # A disk cache is filled once and only checked afterwards: the dearest is the price of filling it.
            self._cache[params["cache"]] = max(cache_s, self._cache.get(params["cache"], 0.0))
        if result.outcome.measured:  # a pruned or killed segment is shorter than the next one will be
            rest_s = result.took_s - phases.get("import", 0.0) - phases.get("build", 0.0) - cache_s - compile_s
            self._segment.setdefault(_key(params), []).append(max(0.0, rest_s))
            batch = params.get("batch_per_gpu")
            if result.step_p50_s is not None and batch:
                self._image_s = max(self._image_s, result.step_p50_s / int(batch))

    def cold_s(self, params: Params) -> dict[str, float]:
        """Term of the job -> what it cost when it was cold, for the terms a later trial may find warm."""
        known = {}
        if params.get("compile") and compile_key(params) in self._cold:
            known["compile_s"] = self._cold[compile_key(params)]
        if params.get("cache") in self._cache:
            known["cache_build_s"] = self._cache[params["cache"]]
        return known

    def _compile_s(self, params: Params) -> float:
        if not params.get("compile"):
            return 0.0
        cold = median(self._cold.values()) if self._cold else COMPILE_COLD_S
        if compile_key(params) in self._cold:
            return COMPILE_WARM_FRAC * self._cold[compile_key(params)]
        return cold

    def _cache_s(self, params: Params) -> float:
        cache = params.get("cache")
        if not cache:
            return 0.0
        if cache in self._cache:
            return 0.0 if cache == "disk" else self._cache[cache]
        if self._cache:  # another mode decoded the same images
            return max(self._cache.values())
        return (self.n_images or 0) / (self._decoded_per_s or DECODED_PER_S)


def _key(params: Params) -> str:
    return json.dumps(params, sort_keys=True)


def compile_key(params: Params) -> CompileKey:
    """COMPILE_KEY's values."""
    return tuple(params.get(name) for name in COMPILE_KEY)
