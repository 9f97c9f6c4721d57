"""How the tasks' gradients lay to each other while training, out of the run's history.

In: the history that training leaves (``metrics.json``), in which every epoch has the mean cosines of the looks that
``training.log_conflicts_every`` asked for. Out: :class:`recmtl.findings.Conflict`, a row a pair of tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from recmtl.findings import Conflict

__all__ = ["conflicts"]


def conflicts(history: Sequence[Mapping[str, Any]]) -> tuple[Conflict, ...]:
    """A row for each pair of tasks whose gradients were looked at; empty where none were.

    Args:
        history: an entry an epoch: ``step``, and ``conflicts`` where there was a look.
    """
    found: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
    for entry in history:
        for pair, look in entry.get("conflicts", {}).items():
            found.setdefault(pair, []).append((int(entry["step"]), look))
    rows = []
    for pair, epochs in found.items():
        one, _, other = pair.partition("/")
        rows.append(
            Conflict(
                one=one,
                other=other,
                cosine=tuple(float(look["cosine"]) for _, look in epochs),
                steps=tuple(step for step, _ in epochs),
                negative=sum(look["negative"] for _, look in epochs) / sum(look["looks"] for _, look in epochs),
            )
        )
    return tuple(rows)
