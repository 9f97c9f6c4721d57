"""What the verbs share: the app, the options, how an error becomes a line and an exit code, how a run is shown."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recmtl.cli.watching import doing, follow, is_watched, noting, remedy, watch
from recmtl.errors import OtherRankError, RankLostError, RecmtlError, UserError

if TYPE_CHECKING:
    from recmtl.config import RunConfig
    from recmtl.progress import Progress
    from recmtl.stages import RunResult

__all__ = [
    "Config",
    "MaxRestarts",
    "Model",
    "OptionalConfig",
    "Output",
    "Overrides",
    "Overwrite",
    "Ranks",
    "TrackingUri",
    "alone",
    "among_many",
    "app",
    "complain",
    "config_app",
    "escape",
    "exit_code_of",
    "load",
    "main",
    "print_run",
    "progress",
    "tracking_app",
    "watched",
]

# Typer carries a click of its own; this is that one's base class of wrong arguments.
_UsageError: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

_INTERRUPTED = 130
"""What shells make of Ctrl-C."""

app = typer.Typer(
    name="recmtl",
    help="Train one recommender for several objectives at once: event logs in, a registered model out.",
    epilog="Exit codes: 0 done, 1 the run failed, 2 config, arguments or data, 3 a no: trained but not "
    "registered, refused by the gate, does not fit (plan). --debug, anywhere, shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
tracking_app = typer.Typer(no_args_is_help=True, help="The tracking store.")
config_app = typer.Typer(no_args_is_help=True, help="Configs: check one, or print their JSON schema for an editor.")
app.add_typer(tracking_app, name="tracking")
app.add_typer(config_app, name="config")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML.")]
OptionalConfig = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="The run's YAML: its own model, instead of --model.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B.C=VALUE", help="Replace one field of the config; may be given several times."),
]
Output = Annotated[Path | None, typer.Option("--output", metavar="DIR", help="The run's folder; by default runs/NAME.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove the run that is in the folder, and begin anew.")]
Ranks = Annotated[
    int | None,
    typer.Option(
        "--nproc",
        metavar="N",
        min=1,
        help="Train with N processes on this machine, one a GPU where there are GPUs; the batch is shared by all. "
        "Across machines start this command under torchrun instead.",
    ),
]
MaxRestarts = Annotated[
    int,
    typer.Option(
        "--max-restarts", metavar="K", min=0, help="With --nproc: how often to start again after a process was lost."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="PATH_OR_URI", help="A run's or a package's folder, or models:/NAME@ALIAS, models:/NAME/3."
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        help="Where --model's URI is looked up; by default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.",
    ),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; an error is one line, with ``--debug`` a traceback too.

    Args:
        arguments: run in this process; None: the process's own, a heavy verb in one apart (:mod:`recmtl.cli.watching`).
    """
    if arguments is None and is_watched(sys.argv[1:]):
        sys.exit(watch(sys.argv[1:]))
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    sys.exit(_run(given, debug=debug))


def watched() -> None:
    """What the process apart runs: the command line, for the process above."""
    follow()
    main(sys.argv[1:])


def _run(arguments: list[str], *, debug: bool) -> int:
    try:
        with exit_code_of(debug=debug):
            if hasattr(signal, "pthread_sigmask"):  # held back until here
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            code = app(args=arguments, prog_name="recmtl", standalone_mode=False)
            if code == _INTERRUPTED:
                raise KeyboardInterrupt  # Typer makes a code of it, and a user hears nothing
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1


@contextmanager
def exit_code_of(*, debug: bool = False) -> Iterator[None]:
    """Turn what goes wrong inside into one line on standard error and the exit code that belongs to it.

    Raises:
        SystemExit: with that code.
    """
    try:
        yield
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except _UsageError as error:
        _complain_of_usage(error, debug)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort) as error:
        if not _told_already(error):
            _complain("interrupted; the same command goes on from here", debug)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe has gone, as `| head` does: there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except RecmtlError as error:
        if not _told_already(error):
            _complain(str(error), debug)
        sys.exit(error.exit_code)
    except Exception as error:
        _complain(_sentence(error), debug)
        sys.exit(1)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust, which Polars and safetensors are written in
            raise
        _complain(_sentence(error), debug)
        sys.exit(1)


def _sentence(error: BaseException) -> str:
    """An error that recmtl did not raise: of the disk or the network, for want of memory, or a fault of recmtl's."""
    from recmtl.failures import input_or_output, out_of_memory

    short = out_of_memory(error)
    if short is not None:
        verb = next((one for one in sys.argv[1:] if not one.startswith("-")), "")
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return f"out of {short} ({reason}): {remedy(verb, doing())}"
    found = input_or_output(error)
    if found is not None:
        return found
    return f"unexpected {type(error).__name__}: {error} (a fault of recmtl's; --debug shows where)"


def _told_already(error: BaseException) -> bool:
    """Whether another process of the job tells the user of this: the rank that failed, or the launcher."""
    if isinstance(error, OtherRankError):
        return True
    if "RANK" not in os.environ or not isinstance(error, (RankLostError, KeyboardInterrupt, typer.Abort)):
        return False
    from recmtl.distributed.launch import LAUNCHER

    return LAUNCHER in os.environ


def _complain(text: str, debug: bool) -> None:
    if debug:
        from recmtl.uris import redact

        print(redact(traceback.format_exc()), file=sys.stderr)
    complain(text)


def complain(text: str) -> None:
    """One line on standard error, without the secrets of any address in it."""
    from recmtl.uris import redact

    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]error:[/] {escape(redact(text))}")


def _complain_of_usage(error: Any, debug: bool) -> None:
    text: str = error.format_message()
    if "\n" in text.strip():  # a command without any argument: its help
        error.show()
        return
    context = getattr(error, "ctx", None)
    command = "recmtl" if context is None else context.command_path
    _complain(f"{command}: {text[:1].lower()}{text[1:].rstrip('.')}; `{command} --help` says more", debug)


def escape(text: str) -> str:
    """Text from outside, so that rich takes nothing in it for markup."""
    from rich.markup import escape

    return escape(text)


def among_many() -> bool:
    """Whether torchrun, or the like of it, has started this process as one of several."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def alone(verb: str) -> None:
    """Refuse to do as many processes what one does."""
    if among_many():
        raise UserError(f"{verb}: one process does this; start it without torchrun (`train` and `run` take many)")


def load(path: Path, overrides: Sequence[str] | None) -> "RunConfig":
    """A verb's CONFIG with its overrides."""
    from recmtl.config import load_config

    return load_config(path, overrides or ())


def progress() -> "Progress":
    """A bar on a terminal, lines elsewhere."""
    from recmtl.progress import for_stream

    return noting(for_stream())


def print_run(result: "RunResult") -> None:
    """A run's figures as a table, then where everything is and the command that opens each."""
    out = Console(soft_wrap=True, highlight=False)
    for line in result.notes:
        out.print(escape(line))
    if result.rows:
        table = Table(*result.header, box=None, pad_edge=False)
        for row in result.rows:
            table.add_row(*row)
        out.print(table)
    if result.report is not None and result.report.verdict.decision != "not judged":
        verdict = result.report.verdict
        colour = "green" if verdict.decision == "promote" else "red"
        out.print(f"\n[bold {colour}]{verdict.decision}[/]: {escape(' '.join(verdict.reasons[:3]))}")
    if result.places:
        out.print()
    for place in result.places:
        out.print(f"[bold]{place.what:<9}[/] {escape(place.where)}")
        out.print(f"          {escape(place.command)}")
