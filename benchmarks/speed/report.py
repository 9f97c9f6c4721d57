"""Tables, plot and headline, made of the recorded rounds. In: ``speed.json``'s parts. Out: text."""

from collections.abc import Mapping
from typing import Any

import measure
from work import Work

CEILING = "machine"
RECMTL, FUSED = "recmtl", "plain, fused Adam"


def headline(parts: Mapping[str, Any]) -> dict[str, float | None]:
    """The four figures that the benchmark ends with, each the median over rounds; null where it was not measured."""
    heat = _heat(parts, "step", "step at 4096")
    mine = measure.rates(heat["rounds"], RECMTL)
    peers = [name for name, kind in parts.get("step", {}).get("kinds", {}).items() if kind == "peer"]
    ends = _heat(parts, "end_to_end", "epoch")["rounds"]
    found = {
        "step_share_of_ceiling": _ratio(mine, _ceiling(heat, Work().training_flop())),
        "step_over_plain_reference": _ratio(mine, measure.rates(heat["rounds"], FUSED)),
        "step_over_fastest_peer": _ratio(mine, measure.fastest(measure.rates(heat["rounds"], peer) for peer in peers)),
        "end_to_end_over_step": _ratio(measure.rates(ends, f"{RECMTL}, epoch"), measure.rates(ends, f"{RECMTL}, step")),
    }
    return {name: None if value is None else round(value, 3) for name, value in found.items()}


def _heat(parts: Mapping[str, Any], part: str, title: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = parts.get(part, {}).get("heats", {}).get(title, {"rounds": []})
    return found


def _ceiling(heat: Mapping[str, Any], operations: int) -> dict[int, float]:
    return measure.rates(heat["rounds"], CEILING, lambda answer: float(answer["flops"]) / operations)


def _ratio(mine: Mapping[int, float], others: Mapping[int, float]) -> float | None:
    return measure.median(measure.ratios(mine, others))


def markdown(result: Mapping[str, Any]) -> str:
    return ""


def plot(result: Mapping[str, Any]) -> str:
    return ""
