"""Is there anything to win in how the ranks talk to each other? Two probes, and the arithmetic, before the search."""

from __future__ import annotations

from typing import Final

from autotune.contract import Outcome, Probe, Transport, TrialResult
from autotune.run.scaling import all_reduce_s, scaling_of
from autotune.run.transport import NVLINK, read_transport
from autotune.search.session import Session
from autotune.space.knobs import COMMUNICATION

PROBES: Final[tuple[Probe, ...]] = ("no_sync", "one_rank")
"""The one that decides what is searched comes first."""
MOST_OF_BUDGET: Final = 0.12
"""Both together: they are worth their time only where ranks communicate, and then they can save a whole family."""
SMALL_FRAC: Final = 0.03
"""Below this share of the step a setting of communication cannot gain what a finalist could confirm (issue 4)."""
DEADLINE: Final = 2.0
"""A probe is stopped at so many times its price."""
NVLINK_BYTES_PER_S: Final = 300e9
"""Where NCCL's log gave no bandwidth: what KNOBS 1.5 reckons with."""


def transport_of(session: Session, number: int) -> Transport | None:
    """Over what the ranks of this trial talked; None with one rank, on CPU, or where its log does not say it."""
    if session.info.n_ranks == 1 or session.info.device == "cpu":
        return None
    return read_transport(session.records.place(number).log)


def of_baseline(session: Session) -> None:
    """Probe the user's own settings on several ranks, and freeze what cannot matter."""
    if session.info.n_ranks == 1:
        return
    assert session.proposals is not None
    params = session.proposals.baseline
    # A probe starts as any other trial, and has one segment.
    price = session.model.price(params, session.plan.segment)
    price_s = price.launch_s + price.compile_s + price.cache_s + price.segment_s
    began = False
    for probe in PROBES:
        if any(r.result.probe == probe and r.result.outcome is not Outcome.INTERRUPTED for r in session.ran):
            continue
        if price_s > MOST_OF_BUDGET * session.plan.budget.total_s - spent_s(session):
            continue
        if not began:
            session.phase("probes", "what communication costs")
            began = True
        session.ask_and_run("probe", params, DEADLINE * price_s, probe)
    session.notes += _nvlink_note(session)
    _freeze(session)


def spent_s(session: Session) -> float:
    """Seconds that these probes took so far; they are not the share of the others."""
    return sum(r.result.took_s for r in session.ran if r.result.probe in PROBES)


def _probed(session: Session, probe: Probe) -> TrialResult | None:
    return next((r.result for r in reversed(session.ran) if r.result.probe == probe), None)


def _freeze(session: Session) -> None:
    """Take the family out of the domain when the step without communication is nearly as long.

    Once trials were run with it, its choices stay: Optuna's study has them.
    """
    assert session.baseline is not None
    n_ranks = session.info.n_ranks
    no_sync = _probed(session, "no_sync")
    found = scaling_of(session.baseline.result, no_sync, None, n_ranks)
    if found.exposed_frac is None:
        why = f"{no_sync.outcome}: {no_sync.error}" if no_sync else "a longer --budget has the time for it"
        session.notes.append(f"the step without communication was not measured: {why}")
        return
    share = f"{max(0.0, found.exposed_frac):.1%}"
    times = ""
    if found.step_s is not None and found.local_step_s is not None:
        times = f" ({1e3 * found.step_s:.4g} ms with, {1e3 * found.local_step_s:.4g} ms without)"
    said = f"communication is {share} of the step of your settings{times}"
    noisy = any(r.outcome is not Outcome.OK for r in (session.baseline.result, no_sync) if r)
    if found.exposed_frac >= SMALL_FRAC or noisy:
        session.notes.append(f"{said}, from a window too noisy to rest a choice on" if noisy else said)
        return
    tried = any(r.result.role == "trial" for r in session.ran)
    names = COMMUNICATION & session.study.domain.keys()
    if any(session.study.domain.get("compile", ())) and not session.baseline.result.params.get("compile"):
        names -= {"ddp_wrap"}  # acts under compile only, where nothing overlaps (KNOBS 0.13); the baseline is eager
    if names and not tried:
        assert session.proposals is not None
        domain = {k: v for k, v in session.study.domain.items() if k not in names}
        session.study.domain = domain
        session.proposals.narrow(domain)
        session.write_info(domain=domain)
    frozen = [k for k in session.knobs if k in COMMUNICATION and k not in session.study.domain]
    session.frozen |= {k: f"{said}: no setting of it can gain more" for k in frozen if k not in session.frozen}
    kept = "but trials have searched its settings already: they stay" if tried and names else ""
    session.notes.append(f"{said}, {kept or 'so that its settings are not searched'}")


def _nvlink_note(session: Session) -> list[str]:
    """On one machine whose GPUs are all joined by NVLink: why settings of NCCL were not searched, in figures."""
    transport, baseline = session.info.transport, session.baseline
    if session.info.device == "cpu" or session.info.assume_transport:
        return []
    if transport is None:
        silent = "the log of your own run does not say over what NCCL's traffic goes, so its settings are not searched"
        return [] if session.info.simulated else [f"{silent}; --assume-transport says it"]
    if set(transport.pairs.values()) != {NVLINK} or (transport.n_nodes or 1) > 1 or baseline is None:
        return []
    n_ranks, result = session.info.n_ranks, baseline.result
    said = f"all {n_ranks} ranks are joined by NVLink: settings of NCCL were not searched, as they cannot matter here"
    n_bytes, step_s = result.job.get("gradient_bytes"), result.step_p50_s
    if not n_bytes or not step_s:
        return [said]
    rate = transport.bus_bytes_per_s or NVLINK_BYTES_PER_S
    whose = "in NCCL's model of this machine" if transport.bus_bytes_per_s else "assumed"
    seconds = all_reduce_s(n_ranks, n_bytes, rate)
    return [
        f"{said}: an all-reduce of {n_bytes / 2**20:.4g} MiB of gradients takes about 2 x {n_ranks - 1}/{n_ranks} x "
        f"{n_bytes / 2**20:.4g} MiB / {rate / 1e9:.4g} GB/s ({whose}) = {1e3 * seconds:.2g} ms, and your step took "
        f"{1e3 * step_s:.3g} ms: {seconds / step_s:.2%} of it, were nothing of it hidden"
    ]
