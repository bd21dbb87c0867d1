"""What do the rooms say to each other? Types, events, and the folders they are written to (standard library only).

SI units; suffixes `_s _bytes _j _frac _per_s`; counts are `n_`. Not measured is `None`, never -1 or 0.
Every file that carries `format` is refused by `from_json` when the number is newer than `FORMAT`.
"""

from autotune.contract.codec import from_dict, read_json, to_dict, write_json
from autotune.contract.events import (
    Event,
    Observer,
    PhaseStarted,
    RunEnded,
    RunStarted,
    TrialEnded,
    TrialProgress,
    TrialSkipped,
    TrialStarted,
)
from autotune.contract.folders import TRIALS_CSV_COLUMNS, RunDir, TrialDir
from autotune.contract.machine import Gpu, GpuLink, Machine, Mount
from autotune.contract.probes import UNFELT, UNTIMED, EpochEnd, Probe, Sizes
from autotune.contract.run import (
    Ablation,
    Accuracy,
    Comparison,
    Finalist,
    FinalistName,
    MemoryCertificate,
    NotTried,
    Numerics,
    RunInfo,
    Summary,
    Transport,
    Verdict,
    Winner,
)
from autotune.contract.samples import GPU_COLUMNS, HOST_COLUMNS, GpuMeanwhile, Meanwhile, sample_columns
from autotune.contract.steps import PARTS, T_975, StepColumns, Throughput
from autotune.contract.trace import Operator, TraceSummary
from autotune.contract.trial import (
    JOB_TERMS,
    Deadlines,
    Nodes,
    RankRecord,
    SegmentSettings,
    TrialResult,
    TrialSpec,
    interrupted,
)
from autotune.contract.words import FORMAT, PARENT, WARM_ROLES, Outcome, Params, Role, Site, Training, Value

__all__ = [
    "FORMAT",
    "GPU_COLUMNS",
    "HOST_COLUMNS",
    "JOB_TERMS",
    "PARENT",
    "PARTS",
    "TRIALS_CSV_COLUMNS",
    "T_975",
    "UNFELT",
    "UNTIMED",
    "WARM_ROLES",
    "Ablation",
    "Accuracy",
    "Comparison",
    "Deadlines",
    "EpochEnd",
    "Event",
    "Finalist",
    "FinalistName",
    "Gpu",
    "GpuLink",
    "GpuMeanwhile",
    "Machine",
    "Meanwhile",
    "MemoryCertificate",
    "Mount",
    "Nodes",
    "NotTried",
    "Numerics",
    "Observer",
    "Operator",
    "Outcome",
    "Params",
    "PhaseStarted",
    "Probe",
    "RankRecord",
    "Role",
    "RunDir",
    "RunEnded",
    "RunInfo",
    "RunStarted",
    "SegmentSettings",
    "Site",
    "Sizes",
    "StepColumns",
    "Summary",
    "Throughput",
    "TraceSummary",
    "Training",
    "Transport",
    "TrialDir",
    "TrialEnded",
    "TrialProgress",
    "TrialResult",
    "TrialSkipped",
    "TrialSpec",
    "TrialStarted",
    "Value",
    "Verdict",
    "Winner",
    "from_dict",
    "interrupted",
    "read_json",
    "sample_columns",
    "to_dict",
    "write_json",
]
