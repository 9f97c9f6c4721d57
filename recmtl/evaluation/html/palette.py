"""The page's colours, light and dark: one place, so that a test can measure what the page shows.

In: nothing. Out: :data:`THEMES`, and :func:`css`, the custom properties that ``style.css`` reads. The colours of lines
are Okabe and Ito's (2008), which people with any colour vision tell apart, darkened or lightened until each stands
3:1 against its ground (WCAG 2.1, 1.4.11); a dash and a marker differ beside every colour. Texts stand 4.5:1 (1.4.3).
"""

from collections.abc import Iterator

__all__ = ["HEAT_STEPS", "SERIES", "THEMES", "contrast", "css", "heat", "luminance"]

SERIES = 8
"""Styles of lines: a ninth begins again."""
HEAT_STEPS = 11
"""Shades of a heat map."""

THEMES: dict[str, dict[str, str]] = {
    "light": {
        "ground": "#f6f7f9",
        "surface": "#ffffff",
        "raised": "#eef1f5",
        "ink": "#15191e",
        "muted": "#56606c",
        "line": "#dde2e8",
        "grid": "#e7ebf0",
        "axis": "#7b8694",
        "link": "#0b5cad",
        "focus": "#0b5cad",
        "good": "#0a6b4d",
        "bad": "#b3261e",
        "warn": "#7a5600",
        "good-ground": "#e5f4ee",
        "bad-ground": "#fdecea",
        "warn-ground": "#fdf3dc",
        "s0": "#0072b2",
        "s1": "#cc5500",
        "s2": "#6b7480",
        "s3": "#00855f",
        "s4": "#a8488c",
        "s5": "#946400",
        "s6": "#2d2f86",
        "s7": "#15191e",
        "heat-low": "#f1f5fa",
        "heat-high": "#0a4a80",
    },
    "dark": {
        "ground": "#111418",
        "surface": "#191d22",
        "raised": "#242a31",
        "ink": "#e9ecf0",
        "muted": "#a5afbb",
        "line": "#323a43",
        "grid": "#2a3139",
        "axis": "#7f8a97",
        "link": "#7cc0ff",
        "focus": "#7cc0ff",
        "good": "#5fd3a6",
        "bad": "#ff9d92",
        "warn": "#f0c25c",
        "good-ground": "#12302a",
        "bad-ground": "#3a1d1c",
        "warn-ground": "#352a12",
        "s0": "#56b4e9",
        "s1": "#ff8f4a",
        "s2": "#98a2ae",
        "s3": "#35c79b",
        "s4": "#e795c9",
        "s5": "#e6b93a",
        "s6": "#a5a6ff",
        "s7": "#e9ecf0",
        "heat-low": "#212a33",
        "heat-high": "#9ad2fb",
    },
}


def css() -> str:
    """The custom properties of both themes; dark where the reader's system asks for it, or the page's button."""
    light, dark = ("".join(_properties(theme)) for theme in ("light", "dark"))
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
        f"@media print{{:root:root{{color-scheme:light;{light}}}}}\n"
    )


def heat(theme: str, step: int) -> tuple[str, str]:
    """(ground, text) of a shade of the heat map, 0 to ``HEAT_STEPS - 1``."""
    colours = THEMES[theme]
    share = step / (HEAT_STEPS - 1)
    ends = zip(_channels(colours["heat-low"]), _channels(colours["heat-high"]), strict=True)
    ground = "#" + "".join(f"{round(255 * (low + (high - low) * share)):02x}" for low, high in ends)
    return ground, max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, ground))


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as WCAG 2.1 defines it, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb``, 0 to 1."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _channels(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _properties(theme: str) -> Iterator[str]:
    for name, colour in THEMES[theme].items():
        if not name.startswith("heat"):
            yield f"--{name}:{colour};"
    for step in range(HEAT_STEPS):
        ground, ink = heat(theme, step)
        yield f"--h{step}:{ground};--i{step}:{ink};"


def _channels(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
