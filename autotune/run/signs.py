"""What does a dying trial say, and what does it mean? The classifier's table (KNOBS 5.1), data only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from autotune.contract import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One class of failure.

    A sign is looked for in the line `Type: message` of a rank's error record, or in the lines of the log.
    """

    outcome: Outcome
    says: str
    """For the user: what happened; empty where the message itself says it best."""
    hint: str
    """For the user: what to do."""
    types: tuple[str, ...] = ()
    """Names of exception classes."""
    patterns: tuple[str, ...] = ()
    """Regular expressions, searched in one line."""
    secondary: bool = False
    """Another process failed first; never the cause while anything else explains the end."""
    hangs: bool = False
    """A thread or a loader worker that meets it prints a traceback while the others wait for it: it can explain a stall
    (seen with torch 2.15 and /dev/shm full: no exit, no exception in the trainer)."""
    before_steps: bool = False
    """Only in the record of a rank that has not finished a step."""

    def matches(self, line: str) -> bool:
        """True when this line carries the sign."""
        return any(_raises(kind).match(line) for kind in self.types) or any(re.search(p, line) for p in self.patterns)


def _raises(kind: str) -> re.Pattern[str]:
    """`torch.OutOfMemoryError: ...` as a traceback ends, also behind torch's `[rank0]: `."""
    return re.compile(rf"(\[rank\d+\]:\s*)?(\w+\.)*{kind}(:|$)")


SMALLER: Final = "a smaller batch_per_gpu fits"
SHM: Final = "shared memory is full: start the container with a larger --shm-size, or use fewer workers"

SIGNS: Final[dict[str, Sign]] = {
    # Order matters: the first sign that matches is taken, so the special ones stand above the general ones.
    "va_exhaustion": Sign(
        outcome=Outcome.OOM,
        says="the GPU allocator found no more virtual addresses",
        hint="alloc_conf without expandable_segments, or a larger ulimit -v",
        patterns=(r"virtual-address-space \(VSZ\) exhaustion",),
    ),
    "nccl_oom": Sign(
        outcome=Outcome.OOM,
        says="NCCL got no GPU memory for its buffers",
        hint=SMALLER,
        patterns=(r"Cuda failure (2 )?'out of memory'", r"Failed to CUDA (host )?(c|m)alloc"),
    ),
    "gpu_oom": Sign(
        outcome=Outcome.OOM,
        says="GPU memory ran out",
        hint=SMALLER,
        types=("OutOfMemoryError",),
        patterns=(r"CUDA out of memory", r"CUDA error: out of memory", r"would exceed allowed memory"),
    ),
    "gpu_oom_disguised": Sign(
        outcome=Outcome.OOM,
        says="GPU memory ran out inside a library",
        hint=SMALLER,
        patterns=(
            r"CUBLAS_STATUS_ALLOC_FAILED",
            r"CUDNN_STATUS_(INTERNAL_ERROR|ALLOC_FAILED)",
            r"unable to find an engine to execute this computation",
            r"CUDA ran out of memory outside PyTorch's allocator",
        ),
    ),
    "files": Sign(
        outcome=Outcome.INVALID,
        says="the process ran out of open files",
        hint="fewer workers, or a larger ulimit -n",
        hangs=True,
        patterns=(r"Too many open files", r"received \d+ items of ancdata"),
    ),
    "shm": Sign(
        outcome=Outcome.OOM,
        says="shared memory (/dev/shm) is full",
        hint=SHM,
        hangs=True,
        patterns=(
            r"out of shared memory",
            r"[Bb]us error",
            r"unable to (write to|allocate shared memory|open shared memory|mmap|resize).*</torch_",
            r"failed to extend /dev/shm/",
            r"No space left on device.*/dev/shm",
        ),
    ),
    "threads": Sign(
        outcome=Outcome.INVALID,
        says="the system refuses more threads or processes",
        hint="fewer workers or threads, or a larger ulimit -u or pids limit of the container",
        hangs=True,
        patterns=(r"can't start new thread", r"pthread_create failed", r"Resource temporarily unavailable"),
    ),
    "disk_full": Sign(
        outcome=Outcome.CRASH,
        says="the disk is full",
        hint="free space where the run folder, the dataset (cache=disk) and the inductor cache lie",
        hangs=True,
        patterns=(
            r"No space left on device",
            r"Disk quota exceeded",
            r"PytorchStreamWriter failed",
            r"inline_container\.cc.*unexpected pos",
        ),
    ),
    "host_memory": Sign(
        outcome=Outcome.OOM,
        says="host memory ran out",
        hint="fewer workers, cache=False, or a smaller batch_per_gpu",
        types=("MemoryError", "_ArrayMemoryError", "std::bad_alloc"),
        hangs=True,
        patterns=(
            r"DefaultCPUAllocator: (can't allocate memory|not enough memory)",
            r"Cannot allocate memory",
            r"std::bad_alloc",
            r"Insufficient memory",
            r"failed to map segment from shared object",
            r"out of memory",
        ),
    ),
    "dataset_broken": Sign(
        outcome=Outcome.CRASH,
        says="the dataset has files that cannot be used",
        hint="look at the images or labels that log.txt names; the settings are not to blame",
        patterns=(
            r"No labels found in",
            r"No valid images found",
            r"exceeds dataset class count",
            r"(cannot identify image file|image file is truncated|Image Read Error|Corrupt JPEG data)",
        ),
    ),
    "dataset_missing": Sign(
        outcome=Outcome.CRASH,
        says="the dataset, or a part of it, is not there",
        hint="put the files back, or mend the paths in data=",
        patterns=(
            r"Image Not Found",
            r"No images found in",
            r"Error loading data from",
            r"Dataset '.*' (error|images not found|not found|file not found|does not exist)",
            r"FileNotFoundError: .*\.(jpe?g|png|bmp|tiff?|webp|txt|cache|npy|yaml)\b",
        ),
    ),
    "ddp_misuse": Sign(
        outcome=Outcome.INVALID,
        says="these DDP settings do not fit this model",
        hint="find_unused_parameters=True and static_graph=False are the safe ones",
        patterns=(
            r"Expected to have finished reduction in the prior iteration",
            r"Your training graph has changed in this iteration",
            r"Expected to mark a variable ready only once",
            r"bound to device .* but an operation was issued on",
        ),
    ),
    "bad_setting": Sign(
        outcome=Outcome.INVALID,
        says="a library refuses this setting",
        hint="the setting does not act on this machine; leave it at its default",
        patterns=(
            r"No algorithm/protocol available for function",
            r"Accelerator allocator config",
            r"Disable NVLS \(NCCL_NVLS_ENABLE=0\)",
            r"not compatible with NCCL_NVLS_ENABLE",
        ),
    ),
    "compile": Sign(
        outcome=Outcome.INVALID,
        says="torch.compile failed",
        hint="compile=False trains; the compiler's own message is in log.txt",
        types=(
            "InductorError",
            "BackendCompilerFailed",
            "CppCompileError",
            "InvalidCxxCompiler",
            "OutOfResources",
            "CompilationError",
            "TritonMissing",
            "GPUTooOldForTriton",
            "FailOnRecompileLimitHit",
        ),
    ),
    "driver": Sign(
        outcome=Outcome.CRASH,
        says="this torch does not fit this GPU or its driver",
        hint="install a torch build for this GPU and driver (autotune doctor shows both)",
        patterns=(
            r"no kernel image is available",
            r"driver version is insufficient",
            r"Found no NVIDIA driver",
            r"NVIDIA driver on your system is too old",
            r"CUDA initialization: ",
        ),
    ),
    "hardware": Sign(
        outcome=Outcome.CRASH,
        says="the GPU failed",
        hint="the settings are not to blame: look for Xid in dmesg, and run the trial again",
        types=("AcceleratorError",),
        patterns=(
            r"illegal memory access",
            r"uncorrectable ECC error",
            r"unspecified launch failure",
            r"GPU is lost",
            r"\bXid\b",
        ),
    ),
    "nan": Sign(
        outcome=Outcome.CRASH,
        says="the training diverged",
        hint="check lr0, the labels, or amp=False",
        types=("FloatingPointError",),
        patterns=(r"Loss NaN/Inf detected",),
    ),
    "port": Sign(
        outcome=Outcome.CRASH,
        says="the ranks' meeting port is taken",
        hint="run it again: another program was faster; or choose another --rdzv-endpoint",
        patterns=(r"EADDRINUSE", r"[Aa]ddress already in use"),
    ),
    "loader_worker": Sign(
        outcome=Outcome.CRASH,
        says="a loader worker died",
        hint="somebody killed it, or it crashed while it decoded an image; log.txt has its last words",
        patterns=(
            r"DataLoader worker \(pid\(?s?\)?.*\) (is killed by signal|exited unexpectedly)",
            r"Pin memory thread exited unexpectedly",
        ),
    ),
    "interrupted": Sign(
        outcome=Outcome.CRASH,
        says="somebody interrupted the trial's process",
        hint="autotune did not do it; run it again",
        types=("KeyboardInterrupt", "SignalException"),
    ),
    "collective_timeout": Sign(
        outcome=Outcome.TIMEOUT,
        says="the ranks waited for each other too long",
        hint="the rank that fell behind is the one to look at: its last lines are in log.txt",
        secondary=True,
        patterns=(
            r"Watchdog caught collective operation timeout",
            r"watchdog got stuck for",
            r"Operation timed out after \d+ ms",
            r"Timed out waiting \d+ms for (recv|send) operation",
        ),
    ),
    "rendezvous": Sign(
        outcome=Outcome.CRASH,
        says="the ranks did not find each other",
        hint="a firewall, a wrong --rdzv-endpoint, or a rank that died while it started",
        secondary=True,
        types=("RendezvousTimeoutError", "RendezvousConnectionError"),
        patterns=(r"Timed out after \d+ seconds waiting for clients", r"The client socket has (timed out|failed)"),
    ),
    "peer_gone": Sign(
        outcome=Outcome.CRASH,
        says="another rank died without a word",
        hint="log.txt may have its last lines; dmesg tells whether the kernel killed it",
        secondary=True,
        types=(
            "DistNetworkError",
            "DistStoreError",
            "ConnectionResetError",
            "BrokenPipeError",
            "ConnectionRefusedError",
        ),
        patterns=(
            r"Connection (closed|reset) by peer",
            r"Connection was likely closed",
            r"Broken pipe",
            r"ncclRemoteError",
        ),
    ),
    "refused": Sign(
        outcome=Outcome.INVALID,
        says="",
        hint="YOLO refuses these arguments",
        types=("SyntaxError", "ValueError", "TypeError", "KeyError", "AssertionError", "NotImplementedError"),
        before_steps=True,
    ),
}
"""Name -> sign; the name is for tests and for the log, the user sees `says` and `hint`."""
