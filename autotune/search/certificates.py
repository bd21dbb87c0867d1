"""Will the winner run out of memory later than any segment could see? Looked at once, in a process of its own.

The probe (worker/certificate.py) runs the worst of the job: optimizer step and EMA, the most crowded images at the
largest size, validation at twice the batch. Its peak is held against what one rank may use (machine/memory.py): on a
GPU its memory less what torch does not count, on a CPU the rank's share of the machine's, or --mem-limit.

A winner that fails is still handed over, because its speed was measured and a smaller neighbour's was not; but every
sentence that names it says in the same breath that it may run out of memory, and so do all files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from autotune.contract import MemoryCertificate, Outcome, Params, TrialResult, TrialSpec, Verdict
from autotune.errors import AutotuneError
from autotune.machine.memory import MemoryLimit, spell_size
from autotune.search.proposals import key_of
from autotune.search.session import Session

MOST_OF_BUDGET: Final = 0.06
"""As the probes: in five minutes that is 18 s, which holds the start of a process and a dozen steps of a CPU."""
EXTRA_S: Final = 5.0
"""What is no step: decoding the crowded images, reading the validation labels, one validation. A guess."""
DEADLINE: Final = 3.0
"""The probe is stopped at so many times its price: the most crowded batch may be slower than all that were measured."""


def reserve_s(session: Session) -> float:
    """Seconds that the search should leave for the certificate of the best so far; 0 where it would not be run."""
    best = session.best()
    if not best.changes or _done(session, best.result.params):
        return 0.0
    price_s = _price_s(session, best.result.params)
    return price_s if price_s <= MOST_OF_BUDGET * session.plan.budget.total_s else 0.0


def check(session: Session, params: Params) -> MemoryCertificate:
    """Run the probe for this winner when there is time; whatever becomes of it, the search goes on.

    What an earlier part of the search found of the same winner holds: the machine is the same.

    Args:
        session: the finalists have run.
        params: the winner.
    """
    if done := _done(session, params):
        return _told(session, judge(done, session.plan.memory))
    budget, price_s = session.plan.budget, _price_s(session, params)
    if price_s > min(MOST_OF_BUDGET * budget.total_s, budget.left_s() - session.plan.report_s):
        return _told(
            session,
            MemoryCertificate(
                holds=None,
                sentence="not checked for lack of time: whether the best settings still fit into memory with the most "
                "crowded images and in validation; a longer --budget does",
                limit_bytes=session.plan.memory.per_rank_bytes,
            ),
        )
    session.phase("certificate", "the worst that the job will ask of the memory, with the best settings")

    def vary(spec: TrialSpec) -> TrialSpec:
        # No steps are written while the crowded batch is drawn and while it validates.
        return replace(spec, deadlines=replace(spec.deadlines, stall_s=spec.deadlines.total_s))

    try:
        ran = session.ask_and_run("probe", params, DEADLINE * price_s, "certificate", vary)
    except AutotuneError as e:
        return _told(session, MemoryCertificate(holds=None, sentence=f"the memory was not checked: {e.message}"))
    return _told(session, judge(ran.result, session.plan.memory))


def judge(result: TrialResult, limit: MemoryLimit) -> MemoryCertificate:
    """What the probe says, in words.

    Args:
        result: of the probe.
        limit: of each rank; not enforced, a peak above it may still have run, on what was kept back for other uses.
    """
    bound, peaks = limit.per_rank_bytes, result.peak_mem_bytes
    certificate = MemoryCertificate(
        holds=None,
        sentence="",
        number=result.number,
        peak_bytes=peaks,
        limit_bytes=bound,
        evidence=dict(result.certificate),
    )
    if result.outcome is Outcome.OOM:
        sentence = f"it ran out of memory in the worst that the job asks for ({result.error})"
        return replace(certificate, holds=False, sentence=sentence)
    if result.outcome is not Outcome.OK or not peaks:
        why = f"{result.outcome}: {result.error}" if result.outcome is not Outcome.OK else "it recorded no peak"
        sentence = f"the memory of the best settings was not checked (trial {result.number}: {why})"
        return replace(certificate, sentence=sentence)
    worst = max(peaks)
    most = f"{spell_size(worst)}{' a rank at most' if len(peaks) > 1 else ''}"
    if bound is None:
        return replace(certificate, holds=True, sentence=f"it ran in {most}; how much there is nobody knows")
    if worst > bound:
        sentence = f"the worst that the job asks for took {most}, more than can be counted on: {limit.says}"
        return replace(certificate, holds=False, sentence=sentence)
    free = bound - worst
    sentence = (
        f"the worst that the job asks for took {most}: {spell_size(free)} ({free / bound:.0%}) of "
        f"{spell_size(bound)} stay free"
    )
    return replace(certificate, holds=True, sentence=sentence)


def warned(verdict: Verdict, memory: MemoryCertificate | None) -> Verdict:
    """The verdict; of a winner that does not fit it says so wherever it goes."""
    return replace(verdict, sentence=verdict.sentence + memory.warning) if memory else verdict


def _told(session: Session, certificate: MemoryCertificate) -> MemoryCertificate:
    """Say what came of it, labelled where nothing real ran; what does not hold stands in the notes too."""
    if session.info.simulated and certificate.number is not None:
        label = session.info.label.lower()
        certificate = replace(certificate, sentence=f"{label}: {certificate.sentence}")
    if certificate.holds is not True:
        session.notes.append(certificate.sentence)
    session.phase("certificate", certificate.sentence)
    return certificate


def _done(session: Session, params: Params) -> TrialResult | None:
    """The probe of this configuration that has told something, if there is one."""
    probes = [r.result for r in session.ran if r.result.probe == "certificate"]
    told = (Outcome.OK, Outcome.OOM)
    return next((r for r in reversed(probes) if key_of(r.params) == key_of(params) and r.outcome in told), None)


def _price_s(session: Session, params: Params) -> float:
    """Seconds of the probe: its start, a cycle of ordinary steps, one of crowded ones at the largest size, the rest."""
    plan = session.plan
    price = session.model.price(params, plan.segment, warm=True)
    own = [r.result for r in session.ran if key_of(r.result.params) == key_of(params) and r.result.step_p50_s]
    first = own[-1] if own else session.best().result
    n_steps = int(first.job.get("accumulate") or 1)
    larger = (1 + float(session.info.train_args.get("multi_scale") or 0.0)) ** 2
    steps_s = first.phases_s.get("first_step", 0.0) + n_steps * (1 + larger) * (first.step_p50_s or 0.0)
    return price.launch_s + price.compile_s + price.cache_s + steps_s + EXTRA_S
