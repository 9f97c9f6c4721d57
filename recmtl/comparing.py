"""Comparing over tasks: several p-values at once, and what is left of them.

In: a p-value for each task. Out: Holm's correction (1979, A Simple Sequentially Rejective Multiple Test Procedure):
with it, the chance that any task of equal models is called different is at most the level, however the tasks depend on
each other.
"""

from collections.abc import Hashable, Mapping
from typing import TypeVar

__all__ = ["holm"]

Key = TypeVar("Key", bound=Hashable)


def holm(p_values: Mapping[Key, float | None]) -> dict[Key, float | None]:
    """Corrected p-values by the same keys; one that is None stays so and does not count as a comparison."""
    known = sorted((value, place, key) for place, (key, value) in enumerate(p_values.items()) if value is not None)
    corrected: dict[Key, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for place, (value, _, key) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - place)))
        corrected[key] = largest
    return corrected
