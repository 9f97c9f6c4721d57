"""Contrast as WCAG 2.1 asks, in both themes; and lines that people with any colour vision tell apart."""

from itertools import combinations

import numpy as np
import pytest

from recmtl.evaluation.html.page import _DASHES
from recmtl.evaluation.html.palette import HEAT_STEPS, SERIES, THEMES, contrast, css, heat

# Viénot, Brettel and Mollon (1999), on linear RGB: what remains without the long, or the middle, cones.
_VISIONS = {
    "protanopia": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deuteranopia": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
    "full": np.eye(3),
}


def test_contrast_by_hand() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert contrast("#123456", "#123456") == 1


@pytest.mark.parametrize("theme", THEMES)
def test_texts_stand_out(theme: str) -> None:
    colours = THEMES[theme]
    for ink in ("ink", "muted", "link", "good", "bad", "warn"):
        for ground in ("ground", "surface", "raised"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for tone in ("good", "bad", "warn"):
        for ink in (tone, "ink"):
            assert contrast(colours[ink], colours[f"{tone}-ground"]) >= 4.5, (ink, tone)


@pytest.mark.parametrize("theme", THEMES)
def test_lines_and_controls_stand_out(theme: str) -> None:
    colours = THEMES[theme]
    for style in range(SERIES):
        assert contrast(colours[f"s{style}"], colours["surface"]) >= 3, style
    for name in ("axis", "focus"):
        assert contrast(colours[name], colours["surface"]) >= 3, name


@pytest.mark.parametrize("theme", THEMES)
def test_numbers_on_every_shade_stand_out(theme: str) -> None:
    for step in range(HEAT_STEPS):
        ground, ink = heat(theme, step)
        assert contrast(ground, ink) >= 4.5, step
    ends = [heat(theme, step)[0] for step in (0, HEAT_STEPS - 1)]
    assert contrast(*ends) > 4


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("vision", _VISIONS)
def test_the_four_usual_systems_differ_for_every_eye(theme: str, vision: str) -> None:
    def seen(colour: str) -> np.ndarray:
        rgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]) @ (
            np.clip(np.array(_VISIONS[vision]) @ light, 0, 1)
        )
        f = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 0.008856))
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    for one, other in combinations(range(4), 2):
        distance = np.linalg.norm(seen(THEMES[theme][f"s{one}"]) - seen(THEMES[theme][f"s{other}"]))
        assert distance > 12, (one, other)  # CIE 1976: 2 can be told apart side by side


def test_dashes_differ_too() -> None:
    assert len(set(_DASHES[:7])) == 7


def test_the_style_sheet_has_both_themes_and_prints_light() -> None:
    text = css()
    assert "prefers-color-scheme:dark" in text
    assert ":root[data-theme=dark]" in text
    assert text.count(f"--surface:{THEMES['dark']['surface']}") == 2
    assert text.count(f"--surface:{THEMES['light']['surface']}") == 2
    assert text.rindex("@media print") > text.rindex(":root[data-theme=dark]")
