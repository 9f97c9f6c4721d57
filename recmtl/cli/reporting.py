"""The report's verbs: its JSON schema, and the page made anew from ``report.json``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from recmtl.cli.base import app
from recmtl.errors import UserError

__all__ = ["report_app", "report_html", "report_schema"]

report_app = typer.Typer(no_args_is_help=True, help="Reports: print the JSON schema, or make the page anew.")
app.add_typer(report_app, name="report")


@report_app.command("schema")
def report_schema() -> None:
    """Print the JSON schema of report.json."""
    from recmtl.findings import schema

    print(json.dumps(schema(), indent=2))


@report_app.command("html")
def report_html(
    report_json: Annotated[Path, typer.Argument(metavar="REPORT_JSON", help="The report.json of an evaluation.")],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="The page; by default report.html beside it.")
    ] = None,
) -> None:
    """Make report.html from report.json, with this recmtl's template."""
    from pydantic import ValidationError

    from recmtl.evaluation.html import read_report, write_html

    target = output or report_json.with_name("report.html")
    try:
        found = read_report(report_json)
    except FileNotFoundError as error:
        raise UserError(f"{report_json}: there is no such file; `recmtl evaluate` writes it") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{report_json}: this is not a report.json that this recmtl reads: {_first(error)}") from error
    if target.exists() and target.samefile(report_json):
        raise UserError(f"--output {target}: this is the report.json itself; name another file")
    write_html(target, found)
    print(target)


def _first(error: ValueError) -> str:
    """What is wrong first, in a line."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return "it is not text"
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{field}: {first['msg']}" if field else first["msg"]
