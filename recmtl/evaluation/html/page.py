"""The page: sections through the template into one file that needs nothing else.

In: a :class:`~recmtl.findings.Report`. Out: HTML with its style, script and pictures inside. Its
Content-Security-Policy forbids every request, and admits only the one script and the one style sheet that are in it, by
their hashes; texts from outside are escaped by the template.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from recmtl.evaluation.html.palette import HEAT_STEPS, SERIES, css
from recmtl.evaluation.html.sections import sections
from recmtl.evaluation.html.sections.context import Context
from recmtl.evaluation.html.words import count, instant
from recmtl.findings import Report

__all__ = ["render"]

_DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "1 2", "12 3", "")
"""Of each style's line."""
_STROKED = (5, 6)
"""Styles whose markers are lines, not areas."""


def render(report: Report) -> str:
    """The whole page."""
    context = Context(report)
    style = css() + _asset("style.css") + "\n".join(_styles())
    script = _asset("script.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    split = report.data.splits.get(report.about.split) or {}
    text = _template().render(
        about=report.about,
        policy=policy,
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        sections=sections(report),
        names=context.name,
        rows=count(split["rows"]) if split.get("rows") is not None else "",
    )
    return text.lstrip() + "\n"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("recmtl.evaluation.html", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"instant": instant, "prose": _prose, "digest": _digest}
    environment.globals["kind_of"] = lambda block: type(block).__name__
    return environment.get_template("page.html.j2")


def _prose(text: str) -> Markup:
    """A sentence, with `these` as code; markup stays as it is."""
    found = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(found)  # noqa: S704 - escaped before


def _digest(origin: str) -> str:
    """Where a model is from; of a long hash the start, as version control shows it."""
    return origin.removeprefix("sha256:")[:12] if re.fullmatch(r"(?:sha256:)?[0-9a-f]{40,}", origin) else origin


def _styles() -> Iterator[str]:
    """The classes that the charts use: ``l`` lines, ``e`` intervals, ``m`` markers, ``b`` bars, ``h`` shades."""
    for style in range(SERIES):
        dash = f";stroke-dasharray:{_DASHES[style]}" if _DASHES[style] else ""
        yield f".l{style}{{stroke:var(--s{style}){dash}}}.e{style}{{stroke:var(--s{style})}}"
        if style in _STROKED:
            yield f".m{style}{{stroke:var(--s{style});stroke-width:2.2;fill:none}}"
        else:
            yield f".m{style}{{fill:var(--s{style})}}"
        yield f".b{style}{{fill:var(--s{style})}}"
    for step in range(HEAT_STEPS):
        yield f".h{step}{{fill:var(--h{step})}}svg .i{step}{{fill:var(--i{step})}}"


def _asset(name: str) -> str:
    return (files("recmtl.evaluation.html") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
