"""The sections of the page, from the verdict down to the glossary: a report in, blocks out.

A section that has nothing to show is left out, and ``What to know`` names it.
"""

from recmtl.evaluation.html.blocks import Section
from recmtl.evaluation.html.sections import ground, inside, parts, quality, summary
from recmtl.evaluation.html.sections.context import Context
from recmtl.findings import Report

__all__ = ["sections"]

_BELOW = (
    inside.training,
    quality.calibration,
    quality.discrimination,
    quality.ranking,
    parts.slices,
    inside.gates,
    inside.conflicts,
    inside.importance,
    ground.fusion,
    quality.coherence,
    ground.drift,
    ground.guards,
    ground.data,
    ground.cost,
    ground.config,
    ground.glossary,
)


def sections(report: Report) -> list[Section]:
    """What the page shows, in order."""
    context = Context(report)
    above = [summary.verdict(context), summary.headline(context)]
    below = [make(context) for make in _BELOW]
    left_out = [section.title for section in (*above, *below) if not section.blocks]
    return [section for section in (*above, summary.know(context, left_out), *below) if section.blocks]
