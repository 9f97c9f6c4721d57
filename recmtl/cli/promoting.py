"""The verbs that say who serves: promote, rollback, history."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from recmtl.cli.base import app, escape

__all__ = ["history", "promote", "rollback"]

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The registered model.")]
_Store = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", metavar="URI", help="The store; by default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."
    ),
]


@app.command()
def promote(
    name: _Name,
    version: Annotated[
        str, typer.Option("--version", metavar="N", help="A version's number, or an alias of it.")
    ] = "challenger",
    override: Annotated[
        str | None,
        typer.Option("--override", metavar="REASON", help="Promote whatever the gate says; this stays on record."),
    ] = None,
    tracking_uri: _Store = None,
) -> None:
    """Make a version @champion, if the gate's verdict that is stored with it lets it through.

    Exit code 3 where the gate refuses, its verdict compares with another champion, or somebody else was first.
    """
    from recmtl.stages import promoting

    move = promoting.promote(name, version, override=override, tracking_uri=tracking_uri)
    out = Console(soft_wrap=True, highlight=False)
    if move is None:
        out.print(f"{escape(name)}: nothing to do, {_said(version)} is the champion already")
        return
    before = "the first one" if move.before is None else f"before it was version {move.before}"
    how = "by override: " if move.kind == "override" else ""
    out.print(f"{escape(name)}: version {move.after} is the champion now, {before}. {how}{escape(move.why)}")


@app.command()
def rollback(
    name: _Name,
    reason: Annotated[str, typer.Option("--reason", metavar="R", help="Why; it stays on record.")],
    to: Annotated[
        int | None,
        typer.Option("--to", metavar="VERSION", min=1, help="By default the champion before the present one."),
    ] = None,
    tracking_uri: _Store = None,
) -> None:
    """Put an earlier champion back; the gate does not promote again what was rolled back, unless by --override."""
    from recmtl.stages import promoting

    move = promoting.rollback(name, to, reason=reason, tracking_uri=tracking_uri)
    was = "" if move.before in (None, move.after) else f" in place of version {move.before}"
    Console(soft_wrap=True, highlight=False).print(f"{escape(name)}: version {move.after} is the champion again{was}")


@app.command()
def history(
    name: _Name,
    tracking_uri: _Store = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Show every move of a model's aliases: when, what, by whom and why; void ones lost to another that was first."""
    from recmtl.stages import promoting

    found = promoting.history(name, tracking_uri=tracking_uri)
    if json_:
        print(json.dumps(asdict(found), indent=2, ensure_ascii=False))
        return
    # A line a move where a program reads it.
    out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 280)
    if found.moves:
        table = Table("move", "when (UTC)", "alias", "from", "to", "by", "who", "why", box=None, pad_edge=False)
        for move in found.moves:
            table.add_row(
                str(move.number),
                move.when[:16].replace("T", " "),
                f"@{escape(move.alias)}",
                "" if move.before is None else str(move.before),
                str(move.after),
                f"{move.kind}, void" if move.void else move.kind,
                escape(move.who),
                escape(move.why if len(move.why) <= 120 else f"{move.why[:117]}…"),
            )
        out.print(table)
    else:
        out.print(f"{escape(name)}: no move is on record")
    now = ", ".join(f"@{alias} version {version}" for alias, version in sorted(found.aliases.items()))
    out.print(f"now: {escape(now or 'no alias')}")
    for note in found.notes:
        out.print(f"[yellow]note[/] {escape(note)}")


def _said(version: str) -> str:
    return f"version {version}" if version.isdecimal() else f"@{escape(version.removeprefix('@'))}"
