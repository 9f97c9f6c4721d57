"""Headline, tables and plot, made of the recorded rounds. In: what ``speed.json`` holds. Out: text.

Every ratio is taken within a round; medians, with quartiles in brackets.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import measure
from work import Work

CEILING = "machine"
RECMTL, FUSED = "recmtl", "plain, fused Adam"

_TITLES = {
    "step": "The training step, from memory",
    "end_to_end": "An epoch, from Parquet",
    "inference": "Scoring, from memory",
    "rows": "The step by rows of the tables",
    "batch": "The step by size of the batch",
    "ranks": "An epoch of `recmtl train`, by ranks",
    "loader": "The loader alone",
    "balancers": "recmtl's balancers",
    "profile": "Profile",
    "startup": "Starting up",
    "grid": "The step on a GPU by rows and width of the tables, size of the batch and precision",
    "bytes": "Bytes",
}


def headline(parts: Mapping[str, Any]) -> dict[str, float | None]:
    """The four figures that the benchmark ends with, each the median over rounds; null where it was not measured."""
    heat = _heat(parts, "step", "step at 4096")
    mine = measure.rates(heat["rounds"], RECMTL)
    peers = [name for name, kind in parts.get("step", {}).get("kinds", {}).items() if kind == "peer"]
    ends = _heat(parts, "end_to_end", "epoch")["rounds"]
    every = {
        "step_share_of_ceiling": measure.ratios(mine, _ceiling(heat, Work().training_flop())),
        "step_over_plain_reference": measure.ratios(mine, measure.rates(heat["rounds"], FUSED)),
        "step_over_fastest_peer": measure.ratios(
            mine, measure.fastest(measure.rates(heat["rounds"], peer) for peer in peers)
        ),
        "end_to_end_over_step": measure.ratios(
            measure.rates(ends, f"{RECMTL}, epoch"), measure.rates(ends, f"{RECMTL}, step")
        ),
    }
    medians = {name: measure.median(values) for name, values in every.items()}
    return {name: None if value is None else round(value, 3) for name, value in medians.items()}


def _heat(parts: Mapping[str, Any], part: str, title: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = parts.get(part, {}).get("heats", {}).get(title, {"rounds": []})
    return found


def _ceiling(heat: Mapping[str, Any], operations: int) -> dict[int, float]:
    """Round to the rows per second that the machine's large product would allow."""
    return measure.rates(heat["rounds"], CEILING, lambda answer: float(answer["flops"]) / operations)


def markdown(result: Mapping[str, Any]) -> str:
    """Every part's table, in the order of the parts."""
    sections = []
    for name, part in result["parts"].items():
        title = _TITLES.get(name, name)
        sections.append([f"### {title}", "", _about(part), "", *_section(name, part), *_notes(part)])
    for name, error in result.get("failed", {}).items():
        sections.append([f"### {name}", "", f"Failed when it was run last: {error}"])
    head = json_line(result.get("headline", {}))
    return "\n\n".join(["\n".join(lines).rstrip() for lines in sections] + [head]) + "\n"


def json_line(figures: Mapping[str, Any]) -> str:
    """The headline as a person reads it."""
    return "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())


def _about(part: Mapping[str, Any]) -> str:
    """Machine, date, commit, and what else the machine did meanwhile."""
    machine = part.get("machine", {})
    hosts = [each["host"] for heat in part.get("heats", {}).values() for each in heat["rounds"] if "host" in each]
    others = measure.quartiles(host["others"] for host in hosts if "others" in host)
    stolen = measure.quartiles(host["stolen"] for host in hosts if "stolen" in host)
    loads = [load for host in hosts for load in host.get("load", ())]
    about = (
        f"{machine.get('cpu', '?')} ({machine.get('flags', '')}), {machine.get('cores')} cores, {part.get('threads')} "
        f"threads, {part.get('device')}, {part.get('date')}, commit {part.get('commit')}, "
        f"{part.get('wall_seconds', 0):.0f} s."
    )
    if others and stolen:
        about += (
            f" Meanwhile others took {others[1]:.0%} ({others[0]:.0%} to {others[2]:.0%}) of the cores and the host "
            f"{stolen[1]:.1%}; load {min(loads):.1f} to {max(loads):.1f}."
        )
    return about


def _notes(part: Mapping[str, Any]) -> list[str]:
    """What is missing, and why."""
    missing = dict(part.get("peers_missing", {})) | dict(part.get("left_out", {}))
    for title, heat in part.get("heats", {}).items():
        missing |= {f"{name}, {title}": error for name, error in heat.get("errors", {}).items()}
    return ["", *(f"- Not there: {name}: {why}" for name, why in missing.items())] if missing else []


def _section(name: str, part: Mapping[str, Any]) -> list[str]:
    if "skipped" in part:
        return [f"Skipped: {part['skipped']}."]
    if name == "startup":
        return _table(
            ["command", "seconds"],
            [[what, _spread(measure.quartiles(seconds), "{:.2f}")] for what, seconds in part["seconds"].items()],
        )
    if name == "loader":
        return _loader(part)
    if name == "profile":
        return ["See `profile.txt`."]
    lines: list[str] = []
    for title, heat in part["heats"].items():
        lines += ["", f"{title[0].upper()}{title[1:]}:", ""]
        if title.startswith(("shapes", "random", "stream")):
            lines += _machine(heat)
        else:
            work = Work().forward_flop() if title.startswith("infer") else Work().training_flop()
            lines += _race(heat, work)
    if "bytes_per_sample" in part:
        lines += [
            "",
            "Bytes of a sample trained, at the very least, and the samples/s that the copy's speed allows:",
            "",
        ]
        kinds = list(next(iter(part["bytes_per_sample"].values())))
        rounds = part["heats"].get("stream", {"rounds": []})["rounds"]
        stream = measure.median(measure.rates(rounds, CEILING, lambda answer: answer["bytes_per_second"]).values())
        body = []
        for what, counts in part["bytes_per_sample"].items():
            total = sum(counts.values())
            allowed = f"{stream / total:,.0f}" if stream else ""
            body.append([what, *(f"{counts[kind]:,.0f}" for kind in kinds), f"{total:,.0f}", allowed])
        lines += _table(["", *kinds, "in all", "samples/s"], body)
    return lines[1:]


def _race(heat: Mapping[str, Any], operations: int) -> list[str]:
    """Contender, rows per second, share of the ceiling, recmtl's ratio to it, most memory."""
    rounds = heat["rounds"]
    names = list(dict.fromkeys(name for each in rounds for name in each["turns"] if name != CEILING))
    names.sort(key=lambda name: -(measure.median(measure.rates(rounds, name).values()) or 0))
    ceiling = _ceiling(heat, operations)
    mine = next((name for name in (RECMTL, f"{RECMTL}, epoch", "fixed", "1 rank") if name in names), None)
    head = ["", "samples/s", *(["share of ceiling"] if ceiling else []), f"{mine} is … times", "memory at most, GB"]
    body = []
    for name in names:
        rates = measure.rates(rounds, name)
        over = measure.ratios(measure.rates(rounds, mine), rates) if mine else []
        share = [_spread(measure.quartiles(measure.ratios(rates, ceiling)), "{:.0%}")] if ceiling else []
        peak = heat.get("peak_bytes", {}).get(name)
        body.append(
            [
                name,
                _spread(measure.quartiles(rates.values()), "{:,.0f}"),
                *share,
                "" if name == mine else _spread(measure.quartiles(over), "{:.2f}"),
                "" if peak is None else f"{peak / 1e9:.2f}",
            ]
        )
    if ceiling:
        flops = measure.rates(rounds, CEILING, lambda answer: float(answer["flops"]) / 1e9)
        machine = f"ceiling: large matrix product, {_spread(measure.quartiles(flops.values()), '{:,.0f}')} GFLOP/s"
        body.append([machine, _spread(measure.quartiles(ceiling.values()), "{:,.0f}"), "", "", ""])
    return _table(head, body)


def _machine(heat: Mapping[str, Any]) -> list[str]:
    """The machine's own figures: products by shape, rows, bytes."""
    answers = [each["turns"][CEILING] for each in heat["rounds"] if CEILING in each["turns"]]
    if answers and "products" in answers[0]:
        body = []
        for position, product in enumerate(answers[0]["products"]):
            m, k, n, times = product["shape"]
            speeds = [answer["products"][position]["flops"] / 1e9 for answer in answers]
            times_s = [answer["products"][position]["seconds"] * 1e3 for answer in answers]
            shape = f"{m} × {k} × {n}" + (f", {times} of them" if times > 1 else "")
            body.append(
                [
                    product["name"],
                    shape,
                    _spread(measure.quartiles(speeds), "{:,.1f}"),
                    f"{measure.median(times_s) or 0:.2f}",
                ]
            )
        whole = measure.quartiles(answer["flops"] / 1e9 for answer in answers)
        summed = measure.median(sum(p["seconds"] for p in answer["products"]) * 1e3 for answer in answers)
        body.append(["all, one after another", "", _spread(whole, "{:,.1f}"), f"{summed or 0:.1f}"])
        return _table(["product", "M × K × N", "GFLOP/s", "ms"], body)
    key = next((key for key in ("rows_per_second", "bytes_per_second") if answers and key in answers[0]), None)
    if key is None:
        return []
    spread = _spread(measure.quartiles(answer[key] / 1e6 for answer in answers), "{:,.1f}")
    return [f"{spread} million {key.replace('_per_second', '')} per second."]


def _loader(part: Mapping[str, Any]) -> list[str]:
    rounds = part["heats"]["loader"]["rounds"]
    body = []
    for name in part["kinds"]:
        answers = [each["turns"][name] for each in rounds if name in each["turns"]]
        grown = [answer["peak_bytes"] - answer["resident_before_bytes"] for answer in answers]
        body.append(
            [
                name,
                f"{answers[0]['epoch_rows']:,}" if answers else "",
                _spread(measure.quartiles(measure.rates(rounds, name).values()), "{:,.0f}"),
                f"{max(grown) / 1e6:,.0f}" if grown else "",
            ]
        )
    return _table(["loader alone, shuffled", "rows of an epoch", "rows/s", "memory over an idle one, MB"], body)


def _spread(values: Sequence[float] | None, form: str) -> str:
    """Median, with the quartiles in brackets."""
    if values is None:
        return ""
    low, middle, high = (form.format(value) for value in values)
    return middle if low == high else f"{middle} ({low}–{high})"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


# The plot, as SVG by hand: three panels

_WIDTH, _HEIGHT, _LEFT, _TOP = 380, 250, 150, 40
_COLOURS = ("#1f5fbf", "#d95f02", "#2ca25f", "#7b3294", "#888888", "#c51b7d", "#a6761d", "#444444")


def plot(result: Mapping[str, Any]) -> str:
    """The step's speeds under the ceiling; time per sample by rows of the tables; speed by size of the batch."""
    parts = result["parts"]
    panels = [_bars(parts), _by_rows(parts), _by_batch(parts)]
    shown = [panel for panel in panels if panel]
    width = len(shown) * (_WIDTH + _LEFT)
    body = "".join(f'<g transform="translate({i * (_WIDTH + _LEFT)},0)">{each}</g>' for i, each in enumerate(shown))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(width, 1)} {_HEIGHT + 110}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>{body}</svg>\n'
    )


def _bars(parts: Mapping[str, Any]) -> str:
    heat = _heat(parts, "step", "step at 4096")
    names = list(dict.fromkeys(name for each in heat["rounds"] for name in each["turns"] if name != CEILING))
    rows = [(name, measure.quartiles(measure.rates(heat["rounds"], name).values())) for name in names]
    rows = sorted(((name, spread) for name, spread in rows if spread), key=lambda row: -row[1][1])
    ceiling = measure.median(_ceiling(heat, Work().training_flop()).values())
    if not rows:
        return ""
    most = max([spread[2] for _, spread in rows] + [ceiling or 0]) * 1.05
    step = _HEIGHT / len(rows)
    drawn = [_text(_LEFT, _TOP - 20, "samples/s of the training step, batch 4096", bold=True)]
    for i, (name, (low, middle, high)) in enumerate(rows):
        y, scale = _TOP + i * step, (_WIDTH - 70) / most
        colour = _COLOURS[0] if name.startswith(RECMTL) else _COLOURS[4]
        drawn += [
            _text(_LEFT - 6, y + step / 2 + 4, name, anchor="end"),
            f'<rect x="{_LEFT}" y="{y + 3:.1f}" width="{middle * scale:.1f}" height="{step - 6:.1f}" fill="{colour}"/>',
            f'<path d="M{_LEFT + low * scale:.1f} {y + step / 2:.1f}H{_LEFT + high * scale:.1f}" stroke="black"/>',
            _text(_LEFT + high * scale + 4, y + step / 2 + 4, f"{middle:,.0f}"),
        ]
    if ceiling:
        x = _LEFT + ceiling * (_WIDTH - 70) / most
        drawn += [
            f'<path d="M{x:.1f} {_TOP}V{_TOP + _HEIGHT}" stroke="#b2182b" stroke-dasharray="4 3"/>',
            _text(x, _TOP + _HEIGHT + 16, f"ceiling {ceiling:,.0f}", anchor="middle"),
        ]
    return "".join(drawn)


def _by_rows(parts: Mapping[str, Any]) -> str:
    lines: dict[str, dict[float, list[float]]] = {}
    for title, heat in parts.get("rows", {}).get("heats", {}).items():
        for name in (name for name in parts["rows"]["kinds"] if name != CEILING):
            found = list(
                measure.rates(heat["rounds"], name, lambda answer: 1e6 / measure.rows_per_second(answer)).values()
            )
            lines.setdefault(name, {}).setdefault(float(title.split()[0]), []).extend(found)
    return _lines(lines, "µs per sample by rows of the tables", lambda rows: f"{rows / 1e6:,.0f}M")


def _by_batch(parts: Mapping[str, Any]) -> str:
    lines: dict[str, dict[float, list[float]]] = {}
    for title, heat in parts.get("batch", {}).get("heats", {}).items():
        for name in (name for name in parts["batch"]["kinds"] if name != CEILING):
            found = list(measure.rates(heat["rounds"], name).values())
            lines.setdefault(name, {}).setdefault(float(title.split()[-1]), []).extend(found)
    return _lines(lines, "samples/s by size of the batch", lambda size: f"{size:,.0f}")


def _lines(every: Mapping[str, Mapping[float, Sequence[float]]], title: str, label: Callable[[float], str]) -> str:
    """Medians over x, both axes logarithmic."""
    found = {
        name: {x: value for x, values in line.items() if (value := measure.median(values)) is not None}
        for name, line in every.items()
    }
    found = {name: line for name, line in found.items() if line}
    if not found:
        return ""
    xs = sorted({x for line in found.values() for x in line})
    ys = [y for line in found.values() for y in line.values()]
    low, high = math.log10(min(ys)) - 0.05, math.log10(max(ys)) + 0.05

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x / xs[0]) / math.log(xs[-1] / xs[0])) if len(xs) > 1 else 0.5
        return _LEFT + across * (_WIDTH - 90), _TOP + _HEIGHT * (1 - (math.log10(y) - low) / (high - low))

    drawn = [_text(_LEFT, _TOP - 20, title, bold=True)]
    drawn.append(
        f'<path d="M{_LEFT - 8} {_TOP}V{_TOP + _HEIGHT + 6}H{_LEFT + _WIDTH - 80}" stroke="#666" fill="none"/>'
    )
    for power in range(math.floor(low), math.ceil(high) + 1):
        for y in (10.0**power, 3 * 10.0**power):
            if low <= math.log10(y) <= high:
                _, at = place(xs[0], y)
                drawn += [
                    _text(_LEFT - 12, at + 4, f"{y:,.0f}" if y >= 1 else f"{y:g}", anchor="end"),
                    f'<path d="M{_LEFT - 8} {at:.1f}H{_LEFT + _WIDTH - 80}" stroke="#ddd"/>',
                ]
    drawn += [_text(place(x, ys[0])[0], _TOP + _HEIGHT + 22, label(x), anchor="middle") for x in xs]
    for i, (name, line) in enumerate(found.items()):
        points = [place(x, y) for x, y in sorted(line.items())]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        colour = _COLOURS[i % len(_COLOURS)]
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        drawn.append(_text(_LEFT + (i % 2) * 170, _TOP + _HEIGHT + 42 + 16 * (i // 2), name, colour=colour))
    return "".join(drawn)


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False, colour: str = "black") -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>{html.escape(text)}</text>'
