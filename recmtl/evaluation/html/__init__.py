"""The report that a product manager reads from the top and an engineer to the bottom.

In: a :class:`~recmtl.findings.Report`. Out: ``report.html``, one self-contained file that makes no request, and
``report.json``, the same content under a published schema (``docs/report.schema.json``). Nothing is computed here but
pixels and words.
"""

from pathlib import Path

from recmtl import durable
from recmtl.evaluation.html.page import render
from recmtl.findings import Report, read_report

__all__ = ["read_report", "render", "write_html", "write_json"]


def write_html(path: Path, report: Report) -> None:
    """Write ``report.html``, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    durable.write_file(path, render(report))


def write_json(path: Path, report: Report) -> None:
    """Write ``report.json``, whole or not at all; what was written reads back as a report.

    Raises:
        pydantic.ValidationError: a number that must be defined is none, which JSON has no word for.
        OSError: it cannot be written.
    """
    text = report.model_dump_json(indent=2) + "\n"
    Report.model_validate_json(text)
    durable.write_file(path, text)
