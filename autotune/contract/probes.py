"""What can be measured of a job besides a segment of it, and what does it give?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Probe = Literal["data", "compute", "sizes", "losses", "no_sync", "one_rank", "memory", "epoch_end", "certificate"]
"""data: the loader alone; compute: the same step on batches that were kept, no loader; sizes: what a step keeps in
memory; losses: the loss of every step; no_sync: the same training with gradients that stay on their rank; one_rank: one
rank alone, with the batch that each of several has; memory: the peak with a smaller batch; epoch_end: a real end of an
epoch, with validation and checkpoint, and then the step without mosaic; certificate: the peak where the job needs most
memory."""
UNTIMED: Final[frozenset[Probe]] = frozenset({"sizes", "losses", "certificate"})
"""Probes whose record has no measured window: what they were run for stands in a field of its own."""
_OF_THE_STEP: Final = frozenset(
    {
        *("amp", "compile", "channels_last", "deterministic", "cudnn_benchmark", "alloc_conf", "fp32_precision"),
        *("activation_memory_budget", "fused_sgd", "log_every", "stride_on_cpu", "empty_cache"),
        *("bucket_cap_mb", "gradient_as_bucket_view", "batched_grad_copy", "static_graph", "find_unused_parameters"),
        *("ddp_wrap", "no_sync", "blocking_wait", "nccl_backend", "nccl_socket", "nccl_p2p_level", "nccl_ctas"),
        *("nccl_buffsize", "nccl_algo", "nccl_ib_qps"),
    }
)
UNFELT: Final[dict[Probe, frozenset[str]]] = {
    "data": frozenset({*_OF_THE_STEP, "val_workers"}),
    "compute": frozenset({"workers", "cache", "prefetch_factor", "val_workers"}),
    "no_sync": frozenset(),
    "one_rank": frozenset(),
    "memory": frozenset(),
    "epoch_end": frozenset(),
    "certificate": frozenset(),
}
"""Knobs that a probe does not feel: one probe stands for all their values. Knobs that are not named here are felt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What one rank of a job keeps in memory, measured on the CPU in fp32 (probe `sizes`)."""

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    """Of its state after a step."""
    ema_bytes: int
    """The moving average of parameters and buffers that Ultralytics keeps on every rank."""
    buffers_bytes: int
    activations_bytes: int
    """Of one image: what autograd saves in forward pass and loss until the backward pass, weights left out."""
    activations_px: tuple[int, ...]
    """Sides of the images that it was measured on: the job's own, or two smaller ones where that one is large."""
    optimizer: str
    """What the job's optimizer is; `auto` is resolved."""

    @property
    def state_bytes(self) -> int:
        """All that does not depend on the batch; what sharding could spread over ranks."""
        parts = (self.parameters_bytes, self.gradients_bytes, self.optimizer_bytes, self.ema_bytes, self.buffers_bytes)
        return sum(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnd:
    """What one rank measured around a real end of an epoch (probe `epoch_end`), in seconds."""

    val_s: float | None = None
    """One validation of the whole set."""
    val_n_batches: int = 0
    """Of the whole set."""
    val_n_timed: int = 0
    """Of these were run; where fewer than all, val_s is extrapolated from the rate of the second half of them."""
    val_every_epoch: bool = True
    """False with val=False: then only the last epoch is validated."""
    save_s: float | None = None
    """One checkpoint."""
    save_every_epoch: bool = True
    """False with save=False: then only the last epoch is saved."""
    rest_s: float | None = None
    """The remainder between the last step of an epoch and the first of the next: csv, callbacks, memory clearing."""
    first_extra_s: float = 0.0
    """Once: what the first end of an epoch took longer than a later one (libraries loaded, kernels chosen)."""
    reset_s: float | None = None
    """Once: the loader's restart where the mosaic closes; None: it closes in no epoch, or in the first."""
    final_s: float | None = None
    """Once, after the last epoch: evaluation of the best checkpoint, and plots."""
