"""What a section is made of: texts, tables, charts, folds. The sections say it in these; the template draws them.

In: Python values. Out: plain classes without any markup of their own; whatever a text holds is escaped when drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

from recmtl.evaluation.html.charts import Chart

__all__ = [
    "Banner",
    "Block",
    "Cell",
    "Charts",
    "Chip",
    "Code",
    "Column",
    "Facts",
    "Filters",
    "Fold",
    "Heading",
    "Items",
    "Prose",
    "Section",
    "Table",
    "Tile",
    "Tiles",
    "Tone",
]

Tone = Literal["", "good", "bad", "warn", "muted"]


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str | Markup = ""
    sort: float | str | None = None
    """What it is sorted by; None: its text."""
    note: str = ""
    """A second, quieter line."""
    tone: Tone = ""
    mark: str = ""
    """A sign before the text: colour never stands alone."""
    sub: bool = False
    """Code: monospaced."""


@dataclass(frozen=True)
class Column:
    """A column's head."""

    text: str
    number: bool = False
    """Numbers, aligned at the right."""
    picture: Markup | None = None
    """Under the text: a chart's axis."""
    help: str = ""
    """A tooltip, and what a screen reader says after the name."""
    sorts: bool = True


@dataclass(frozen=True)
class Table:
    """Rows under heads; each row's first cell is its own head."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    keys: Sequence[dict[str, str]] = ()
    """Of each row: what the filters look at."""
    sortable: bool = True
    quiet: bool = False
    """The caption is for screen readers only: a heading says the same."""
    heads: int = 1
    """How many of the first cells say what the row is."""
    kind: str = ""
    """A class of the style sheet."""


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str | Markup
    tone: Tone = ""


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str
    id: str = ""


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str | Markup]


@dataclass(frozen=True)
class Charts:
    """Pictures side by side, as many as fit."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    facts: Sequence[tuple[str, str | Markup]]
    large: bool = False
    """Few, and shown in large type."""


@dataclass(frozen=True)
class Code:
    """Text as it is."""

    text: str
    label: str


@dataclass(frozen=True)
class Fold:
    """Something to open."""

    summary: str
    blocks: Sequence["Block"]
    opened: bool = False


@dataclass(frozen=True)
class Chip:
    """A finding in a word or two."""

    text: str
    tone: Tone = ""
    mark: str = ""


@dataclass(frozen=True)
class Tile:
    """A target's most important figure."""

    title: str
    metric: str
    value: str
    interval: str
    chips: Sequence[Chip]
    chart: Chart | None
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """Tiles side by side."""

    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Filters:
    """What narrows the tables of its section; there only where scripts run."""

    targets: Sequence[str]
    slices: Sequence[str]


@dataclass(frozen=True)
class Banner:
    """The verdict."""

    title: str
    tone: Tone
    mark: str
    counts: Sequence[Chip]
    reasons: Sequence[str]
    overridden: str | None = None


Block = Banner | Charts | Code | Facts | Filters | Fold | Heading | Items | Prose | Table | Tiles


@dataclass
class Section:
    """A part of the page with its heading."""

    id: str
    title: str
    lead: str | Markup = ""
    blocks: list[Block] = field(default_factory=list)
    short: str = ""
    """Its name in the table of contents; by default the title."""
