"""Which values may be tried: as a file says, and as they make sense for this job on this machine?"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from autotune.contract import Params, Value
from autotune.errors import InputError
from autotune.space.config import baseline_params, canonical
from autotune.space.context import Context
from autotune.space.knob import Condition
from autotune.space.knobs import KNOBS
from autotune.space.legal import same, spell
from autotune.space.near import near
from autotune.space.scalars import dump, load
from autotune.space.space_file import RangeSpec, read_space_file
from autotune.space.training import batch_allowed

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "search_spaces", PACKAGE.parent / "search_spaces")
"""Where the spaces lie in a wheel, and in a checkout."""
MAX_VALUES = 64
"""A longer range is thinned to this many values; finer steps than that are below the noise."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Values in the order of the file."""

    choices: tuple[Value, ...]

    def values(self) -> tuple[Value, ...]:
        """All of them."""
        return self.choices


@dataclass(frozen=True, slots=True)
class Range:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    def values(self) -> tuple[Value, ...]:
        """At most MAX_VALUES of them, evenly or (log) geometrically spread, both ends included."""
        every = range(self.low, self.high + 1, self.step)
        if len(every) <= MAX_VALUES:
            return tuple(every)
        steps = [i / (MAX_VALUES - 1) for i in range(MAX_VALUES)]
        if self.log:
            return tuple(sorted({round(self.low * (every[-1] / self.low) ** s) for s in steps}))
        return tuple(every[round(s * (len(every) - 1))] for s in steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """A space as written."""

    name: str
    doc: str
    knobs: dict[str, Choices | Range]
    seeds: tuple[Params, ...] = ()
    """Configurations to try first; a knob left out is as in the baseline."""
    source: str = ""
    """The file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A space for one job on one machine."""

    domain: dict[str, tuple[Value, ...]]
    """Knob -> at least two values, the baseline's and those of all canonical seeds among them."""
    frozen: dict[str, str] = field(default_factory=dict)
    """`knob` -> why it is not sampled, `knob=values` -> why these values are not."""
    baseline: Params = field(default_factory=dict)
    """All knobs of the space, as the user's own arguments give them."""
    seeds: tuple[Params, ...] = ()
    """Complete assignments over `domain`, canonical, none of them the baseline."""


def list_spaces(folders: Iterable[Path] = FOLDERS) -> dict[str, str]:
    """Name -> doc of the spaces that come with autotune."""
    files = [f for folder in folders for f in sorted(folder.glob("*.yaml"))]
    return {f.stem: str(load(f.read_text(encoding="utf-8"))["doc"]) for f in files}


def load_space(name_or_path: str, folders: Iterable[Path] = FOLDERS) -> SearchSpace:
    """Read a space by its name or from a file.

    Raises:
        InputError: there is none, or it has faults (one line each, with line numbers).
    """
    known = {f.stem: f for folder in folders for f in folder.glob("*.yaml")}
    path = known.get(name_or_path, Path(name_or_path).expanduser())
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise InputError(
            f"no search space or file {name_or_path!r}{near(name_or_path, known)}",
            "spaces: " + ", ".join(sorted(known)),
        ) from e
    except UnicodeDecodeError as e:
        raise InputError(
            f"{path}: not YAML: not a text file", "a space is a small YAML file, see search_spaces/"
        ) from e
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}") from e
    spec = read_space_file(text, str(path))
    return SearchSpace(
        name=spec.name,
        doc=spec.doc,
        knobs={
            k: Range(s.low, s.high, s.step, s.log) if isinstance(s, RangeSpec) else Choices(tuple(s.choices))
            for k, s in spec.knobs.items()
        },
        seeds=tuple(spec.seeds),
        source=str(path),
    )


def dump_space(space: SearchSpace) -> str:
    """YAML that `load_space` reads back to the same space."""
    out = [dump({"name": space.name, "doc": space.doc}), "knobs:"]
    for name, values in space.knobs.items():
        if isinstance(values, Choices):
            spec: dict[str, object] = {"choices": list(values.choices)}
        else:
            spec = {"low": values.low, "high": values.high}
            spec |= {"step": values.step} if values.step != 1 else {}
            spec |= {"log": True} if values.log else {}
        out.append(f"  {name}: {dump(spec, flow=True)}")
    out += ["seeds:", *(f"  - {dump(seed, flow=True)}" for seed in space.seeds)] if space.seeds else []
    return "\n".join(out) + "\n"


def prepare(space: SearchSpace, ctx: Context, training: str) -> Prepared:
    """Keep what can be had here, say why about the rest, and add the baseline.

    Args:
        space: as written.
        ctx: the job on this machine.
        training: same, bounded or any (space/training.py).
    """
    baseline = baseline_params(space.knobs, ctx)
    domain: dict[str, tuple[Value, ...]] = {}
    frozen: dict[str, str] = {}
    for name, spec in space.knobs.items():
        if reason := KNOBS[name].blocked(ctx):
            frozen[name] = reason
            continue
        values, dropped = _sift(name, spec.values(), ctx, training)
        if condition := KNOBS[name].condition:
            acts = _acts(condition, space, ctx, training)
            if True not in acts:
                frozen[name] = condition.otherwise
                continue
            if False in acts:
                values += [None, condition.stock]  # where it is inert; and what that is where it acts
        values = _distinct([baseline[name], *values])
        frozen |= {f"{name}={_spell_all(vs)}": reason for reason, vs in dropped.items()}
        if len(values) < 2:
            frozen[name] = f"only {spell(values[0])} is possible here"
            continue
        whole = [v for v in values if type(v) is int]
        domain[name] = (*sorted(whole), *(v for v in values if type(v) is not int))
    seeds = [_seed(seed, domain, baseline, ctx) for seed in space.seeds]
    start = {name: baseline[name] for name in domain}
    fresh = [s for i, s in enumerate(seeds) if s != start and s not in seeds[:i]]
    return Prepared(domain=domain, frozen=frozen, baseline=baseline, seeds=tuple(fresh))


def _acts(condition: Condition, space: SearchSpace, ctx: Context, training: str) -> set[bool]:
    """Does the knob act with some, all or no values that this space has for the knobs it depends on?"""
    reach = []
    for name in condition.knobs:
        values = [baseline_params([name], ctx)[name]]
        if name in space.knobs and not KNOBS[name].blocked(ctx):
            values += _sift(name, space.knobs[name].values(), ctx, training)[0]
        reach.append(_distinct(values))
    combinations = itertools.product(*reach)
    return {condition.acts(dict(zip(condition.knobs, c, strict=True)).__getitem__, ctx) for c in combinations}


def _sift(
    name: str, written: Iterable[Value], ctx: Context, training: str
) -> tuple[list[Value], dict[str, list[Value]]]:
    """Values that can be had here, and the others by reason."""
    kept: list[Value] = []
    dropped: dict[str, list[Value]] = {}
    for value in written:
        reason = KNOBS[name].fits(value, ctx)
        if name == "batch_per_gpu" and not reason and type(value) is int:
            args = ctx.train_args
            reason = batch_allowed(value * ctx.n_ranks, int(args["batch"]), int(args["nbs"]), training)
        becomes = KNOBS[name].clamp(value, ctx)
        if reason:
            dropped.setdefault(reason, []).append(value)
        if not reason or (type(becomes) is int and becomes != value):  # a number above its cap is tried at the cap
            kept.append(becomes)
    return kept, dropped


def _seed(seed: Params, domain: dict[str, tuple[Value, ...]], baseline: Params, ctx: Context) -> Params:
    """A seed completed by the baseline, with values that are not to be had here replaced by the next smaller one."""
    whole = dict(baseline)
    for name in seed.keys() & domain.keys():
        value = KNOBS[name].clamp(seed[name], ctx)
        if not any(same(value, v) for v in domain[name]):
            below = [v for v in domain[name] if type(v) is int and type(value) is int and v < value]
            value = below[-1] if below else baseline[name]
        whole[name] = value
    whole = canonical(whole, ctx)
    return {name: whole[name] for name in domain}


def _distinct(values: list[Value]) -> list[Value]:
    return [v for i, v in enumerate(values) if not any(same(v, before) for before in values[:i])]


def _spell_all(values: list[Value]) -> str:
    """`9..16` for a run of three or more, else `9,16`."""
    first, last = values[0], values[-1]
    if type(first) is int and type(last) is int and len(values) > 2 and values == list(range(first, last + 1)):
        return f"{first}..{last}"
    return ",".join(spell(v) for v in values)
