"""autotune VERB: verbs, flags, exit codes; no logic."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from typing import Annotated, Any, NoReturn

import typer

import autotune
from autotune import interrupts
from autotune.cli_training import Pairs, train, watch
from autotune.errors import EXIT_BUG, EXIT_INPUT, EXIT_INTERRUPTED, EXIT_NO_TRIAL, EXIT_OK, AutotuneError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find the configuration with which an Ultralytics YOLO training runs fastest on this machine, and prove it.",
)
_BEGAN: dict[str, float] = {}

MemLimit = Annotated[
    str | None,
    typer.Option(help="Memory of one rank, such as 3GiB: what would need more is not tried, what does is ended."),
]


@app.command()
def search(
    ctx: typer.Context,
    pairs: Pairs = None,
    gpus: Annotated[
        str | None, typer.Option(help="How many GPUs (4), which (0,2), or all. Without: one, or the CPU.")
    ] = None,
    ranks: Annotated[int | None, typer.Option(help="Ranks on the CPU (gloo); a GPU is a rank anyway.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Measure even where a check fails, or another process uses the GPU.")
    ] = False,
    budget: Annotated[str, typer.Option(help="90s, 30m, 2h, 1h30m: everything from Enter to report.")] = "30m",
    space: Annotated[str | None, typer.Option(help="Name or file of a search space; see `autotune spaces`.")] = None,
    objective: Annotated[str, typer.Option(help="job_time, images_per_s or energy (J per image).")] = "job_time",
    strategy: Annotated[str, typer.Option(help="structured, tpe, gp, random, simple or grid.")] = "structured",
    training: Annotated[
        str, typer.Option(help="same, bounded or any: how far the batch may change the training.")
    ] = "same",
    mem_limit: MemLimit = None,
    verify_accuracy: Annotated[
        str | None, typer.Option(help="Then train your settings and the best, half of this time each (10m).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampler and of the order of finalists.")] = 0,
    name: Annotated[str | None, typer.Option(help="Label of the run folder.")] = None,
    out: Annotated[str, typer.Option(help="Folder for run folders.")] = "results",
    resume: Annotated[str | None, typer.Option(help="Go on with this run folder, for --budget more.")] = None,
    replay: Annotated[
        str | None, typer.Option(help="A run folder or a table of measurements answers: nothing is measured.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Simulate: no training, a formula answers.")] = False,
    assume_transport: Annotated[
        str | None,
        typer.Option(help="socket, ib, shm or p2p: search NCCL's settings of it, whatever NCCL's log says."),
    ] = None,
    track: Annotated[
        str | None, typer.Option(help="wandb, mlflow or wandb,mlflow: each trial becomes a run there too.")
    ] = None,
    no_atlas: Annotated[bool, typer.Option("--no-atlas", help="Neither use earlier winners nor add one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One event a line on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only the result.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log what the controller does.")] = False,
) -> int:
    """Search, prove the winner against your own settings, export it, write the report."""
    from rich.console import Console

    from autotune.app import search as run
    from autotune.question import Request, command_line
    from autotune.report.terminal import make_view

    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, stream=sys.stderr)
    request = Request(
        pairs=pairs or (),
        gpus=gpus,
        ranks=ranks,
        force=force,
        budget=budget,
        space=space,
        objective=objective,
        strategy=strategy,
        seed=seed,
        name=name,
        out=out,
        training=training,
        mem_limit=mem_limit,
        verify_accuracy=verify_accuracy,
        resume=resume,
        replay=replay,
        given=_typed(ctx),
        dry_run=dry_run,
        assume_transport=assume_transport,
        track=track,
        atlas=not no_atlas,
        command=command_line(sys.argv[1:]),
        began=_BEGAN.get("s"),
    )
    view = make_view(Console(), mode="json" if as_json else "quiet" if quiet else "auto", objective=objective)
    with contextlib.closing(view):
        _, code = run(request, [view])
    return code


@app.command()
def batch(
    pairs: Pairs = None,
    gpus: Annotated[str | None, typer.Option(help="As in search.")] = None,
    ranks: Annotated[int | None, typer.Option(help="Processes that train together on the CPU; without: one.")] = None,
    mem_limit: MemLimit = None,
    budget: Annotated[str, typer.Option(help="90s, 5m, ...: everything from Enter to the answer.")] = "5m",
    name: Annotated[str | None, typer.Option(help="Label of the folder.")] = None,
    out: Annotated[str, typer.Option(help="Folder for result folders.")] = "results",
    force: Annotated[bool, typer.Option("--force", help="Measure on a GPU that another process uses.")] = False,
) -> int:
    """Find the largest batch that is safe and the one that is fastest, on one GPU or on several."""
    from autotune.batch import find_batch
    from autotune.question import Request

    request = Request(
        pairs=pairs or (),
        gpus=gpus,
        force=force,
        mem_limit=mem_limit,
        budget=budget,
        name=name,
        out=out,
        began=_BEGAN.get("s"),
    )
    _, answer = find_batch(request, ranks, lambda line: print(line, flush=True))
    if answer.stopped_because == "interrupted":
        return EXIT_INTERRUPTED
    return EXIT_OK if answer.fastest else EXIT_NO_TRIAL


@app.command()
def report(run: Annotated[str, typer.Argument(help="A run folder.")]) -> int:
    """Make report.html again from a run folder alone."""
    from autotune.folders import run_folder
    from autotune.report.html import write_report

    print(write_report(run_folder(run).path))
    return EXIT_OK


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    trial: Annotated[int | None, typer.Option(help="This trial instead of the winner.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder to write; must be new or empty. Without: RUN/best.")] = None,
) -> int:
    """Write best.yaml, launch.sh and the other files again, or those of another trial."""
    from pathlib import Path

    from autotune.folders import run_folder
    from autotune.report.export import export as write

    run_dir = run_folder(run)
    where = Path(out) if out else run_dir.path / f"trial-{trial:04d}" if trial is not None else None
    print(write(run_dir, number=trial, out=where))
    return EXIT_OK


@app.command()
def trial(
    folder: Annotated[str, typer.Argument(help="A trial folder, such as RUN/trials/0003.")],
    trace: Annotated[
        bool, typer.Option("--trace", help="Write a torch.profiler trace of a few steps instead of measuring.")
    ] = False,
) -> int:
    """Run one trial again, its log on screen."""
    from autotune.report.trace import trace_lines
    from autotune.report.words import result_lines
    from autotune.rerun import limit_lines, rerun_trial

    again, result = rerun_trial(folder, trace=trace)
    if again.trace_summary.exists():
        print("\n".join(trace_lines(again)))
        return EXIT_OK
    print("\n".join((*result_lines(result), *limit_lines(again, result))))
    return EXIT_OK if result.outcome.measured else EXIT_NO_TRIAL


app.command()(train)
app.command()(watch)


@app.command()
def recheck(
    run: Annotated[str, typer.Argument(help="A run folder, its best/ folder, or a copy of that.")],
    pairs: Pairs = None,
    gpus: Annotated[str | None, typer.Option(help="As in search. Without: those of the receipt.")] = None,
    budget: Annotated[str, typer.Option(help="90s, 5m, ...: everything from Enter to the answer.")] = "5m",
    force: Annotated[bool, typer.Option("--force", help="Measure on a GPU that another process uses.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Only the answer, for machines.")] = False,
) -> int:
    """Measure winner and baseline of a receipt again: is it still the winner here? Exit code 5 when it is not."""
    from autotune.question import command_line
    from autotune.recheck import run_verb

    asked = {"pairs": pairs or (), "gpus": gpus, "budget": budget, "force": force, "began": _BEGAN.get("s")}
    say = functools.partial(print, flush=True)
    return run_verb(run, as_json=as_json, say=say, command=command_line(sys.argv[1:]), **asked)


@app.command()
def doctor(
    pairs: Pairs = None,
    gpus: Annotated[str | None, typer.Option(help="As in search.")] = None,
    ranks: Annotated[int | None, typer.Option(help="How many ranks the job would have; without: one a GPU.")] = None,
    gpu_mem: Annotated[str | None, typer.Option(help="Memory of each GPU, such as 24GiB, for another machine.")] = None,
    nnodes: Annotated[int, typer.Option(help="Machines that train together.")] = 1,
    measure: Annotated[bool, typer.Option("--measure", help="Short runs: what would mending it bring?")] = False,
    budget: Annotated[str, typer.Option(help="Of these runs together: 90s, 5m, ...")] = "5m",
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> int:
    """Examine this machine, and the job key=value names: verdicts, figures, remedies. Exit code 3 when one fails."""
    from autotune.doctor import examination as room
    from autotune.question import Request

    run_verb = room.run_verb
    if measure:
        from autotune.doctor.prices import run_verb
    asked = {"ranks": ranks, "gpu_mem": gpu_mem, "nnodes": nnodes}
    return run_verb(Request(pairs=pairs or (), gpus=gpus, budget=budget), as_json=as_json, say=print, **asked)


@app.command()
def spaces(
    name: Annotated[str | None, typer.Argument(help="Show this one (a name or a file) on this machine.")] = None,
    pairs: Pairs = None,
    gpus: Annotated[str | None, typer.Option(help="As in search.")] = None,
    ranks: Annotated[int | None, typer.Option(help="As in search.")] = None,
    training: Annotated[str, typer.Option(help="As in search.")] = "same",
) -> int:
    """List the search spaces, or say what of one would be tried here, and why the rest would not."""
    from autotune.listing import describe_space, list_all_spaces

    print("\n".join(list_all_spaces() if name is None else describe_space(name, pairs or [], gpus, training, ranks)))
    return EXIT_OK


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(autotune.__version__)
        raise typer.Exit


def main(began: float | None = None) -> NoReturn:
    """Run the command line; every way out has its exit code (PRODUCT B2)."""
    if began is not None:
        _BEGAN["s"] = began
    interrupts.install()
    try:
        code: Any = app(standalone_mode=False)
    except AutotuneError as e:
        _fail(e.message, e.hint)
        code = e.exit_code
    except (KeyboardInterrupt, interrupts.LeaveNow):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        code = EXIT_BUG
    except Exception as e:
        if not hasattr(e, "format_message") or not hasattr(e, "exit_code"):
            raise  # ours: a traceback is what we need to mend it
        if type(e).__name__ == "NoArgsIsHelpError":
            print(e.format_message())
        else:
            _fail(e.format_message(), "see `autotune --help`")
        code = EXIT_INPUT
    sys.exit(code if isinstance(code, int) else EXIT_OK)


def _typed(ctx: typer.Context) -> frozenset[str]:
    """Names of the flags that were given."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")


def _fail(message: str, hint: str) -> None:
    lines = [f"error: {message}", *([f"hint: {hint}"] if hint else [])]
    print("\n".join(lines), file=sys.stderr)
