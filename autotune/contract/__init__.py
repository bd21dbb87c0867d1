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
from autotune.contract.run import Finalist, Gpu, Machine, NotTried, RunInfo, Summary, Transport, Verdict, Winner
from autotune.contract.steps import PARTS, T_975, StepColumns, Throughput
from autotune.contract.trace import Operator, TraceSummary
from autotune.contract.trial import (
    JOB_TERMS,
    UNFELT,
    UNTIMED,
    Deadlines,
    Nodes,
    Probe,
    RankRecord,
    SegmentSettings,
    Sizes,
    TrialResult,
    TrialSpec,
)
from autotune.contract.words import FORMAT, PARENT, WARM_ROLES, Outcome, Params, Role, Site, Training, Value

__all__ = [
    "FORMAT",
    "JOB_TERMS",
    "PARENT",
    "PARTS",
    "TRIALS_CSV_COLUMNS",
    "T_975",
    "UNFELT",
    "UNTIMED",
    "WARM_ROLES",
    "Deadlines",
    "Event",
    "Finalist",
    "Gpu",
    "Machine",
    "Nodes",
    "NotTried",
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
    "read_json",
    "to_dict",
    "write_json",
]
