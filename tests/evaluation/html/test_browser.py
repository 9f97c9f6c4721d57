"""The page in a headless Chromium: no error, no request, nothing hidden or clipped, and its controls work."""
# ruff: noqa: E501 - scripts for the page

from collections.abc import Callable
from pathlib import Path

import pytest
from browser import Browser
from sample import SYSTEMS

from recmtl.evaluation.html import render, write_html
from recmtl.evaluation.html.palette import THEMES
from recmtl.findings import Report

WIDTHS = (360, 768, 1440)

# Texts of pictures that leave them, or lie on each other: [what, picture, text, …]
_PICTURES = """(() => {
  document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
  const wrong = [];
  for (const svg of document.querySelectorAll("svg")) {
    if (!svg.checkVisibility()) continue;
    const box = svg.getBoundingClientRect();
    const name = svg.querySelector("title").textContent;
    const texts = Array.from(svg.querySelectorAll("text"), (text) => [text.lastChild?.textContent, text.getBoundingClientRect()])
      .filter(([text]) => text);
    texts.forEach(([text, at], index) => {
      if (at.left < box.left - 2 || at.right > box.right + 2 || at.top < box.top - 2 || at.bottom > box.bottom + 3)
        wrong.push(["clipped", name, text]);
      for (const [other, there] of texts.slice(0, index)) {
        const wide = Math.min(at.right, there.right) - Math.max(at.left, there.left);
        const high = Math.min(at.bottom, there.bottom) - Math.max(at.top, there.top);
        if (wide > 1 && high > 3) wrong.push(["on each other", name, text, other]);
      }
    });
  }
  return wrong;
})()"""

# Texts whose colour stands less than 4.5:1 (large ones 3:1) on the ground that is under them.
_CONTRAST = """(() => {
  document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
  const channels = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour).map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (channels(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const wrong = new Map();
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest("script,style,title,desc") || element.classList.contains("cell")) continue;
    const style = getComputedStyle(element);
    const colour = element.closest("svg") ? style.fill : style.color;
    const under = ground(element.closest("svg") ? element.closest("svg") : element);
    const [a, b] = [light(colour), light(under)].sort((x, y) => x - y);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    seen += 1;
    if ((b + 0.05) / (a + 0.05) < (large ? 3 : 4.5)) wrong.set(`${colour} on ${under}`, element.textContent.slice(0, 40));
  }
  return [seen, Array.from(wrong)];
})()"""

_COLUMN = "(index, target = 0) => Array.from(document.querySelectorAll('.forest tbody')[target].rows, (row) => row.cells[index].dataset.v ?? row.cells[index].textContent)"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_opens_without_an_error_and_asks_the_network_for_nothing(chromium: Browser, file: Path, dark: bool) -> None:
    chromium.open(file, dark=dark)
    assert chromium.run("document.querySelectorAll('main > section').length") == 19
    assert chromium.run("document.querySelectorAll('th button').length > 50"), "the script has run to its end"
    assert chromium.run("document.querySelector('output').textContent") == "180 rows shown"
    assert chromium.errors == []
    assert chromium.requests == [file.absolute().as_uri()]


def test_what_only_must_be_there_opens_too(chromium: Browser, bare: Report, tmp_path: Path) -> None:
    write_html(tmp_path / "bare.html", bare)
    chromium.open(tmp_path / "bare.html", width=360)
    assert chromium.errors == []
    assert chromium.run("document.documentElement.scrollWidth <= 360")


def test_these_tests_can_fail(chromium: Browser, page: str, tmp_path: Path) -> None:
    """A script that throws, one that the policy does not know, and a request: each is seen."""
    path = tmp_path / "page.html"
    path.write_text(page)
    chromium.open(path)
    chromium.run("setTimeout(() => { throw new Error('on purpose') })")
    chromium.run("new Promise((done) => setTimeout(done, 50))")
    assert any("on purpose" in error for error in chromium.errors)

    path.write_text(page.replace("</body>", "<script>document.title = 'mine'</script></body>"))
    chromium.open(path)
    assert chromium.run("document.title") != "mine"
    assert any("Content Security Policy" in error for error in chromium.errors)

    path.write_text(page.replace("</body>", '<img src="http://127.0.0.1:9/x.png" alt=""></body>'))
    chromium.open(path)
    assert any("Content Security Policy" in error for error in chromium.errors)

    path.write_text('<!doctype html><title>t</title><img src="http://127.0.0.1:9/x.png" alt="">')
    chromium.open(path)
    assert "http://127.0.0.1:9/x.png" in chromium.requests

    path.write_text("<!doctype html><title>t</title><style>svg{width:80px}</style><svg viewBox='0 0 80 20'><title>p</title>"
                    "<text x='60' y='12'>leaves it</text><text x='62' y='12'>overlaps</text></svg>")  # fmt: skip
    chromium.open(path)
    assert {what for what, *_ in chromium.run(_PICTURES)} == {"clipped", "on each other"}

    path.write_text("<!doctype html><title>t</title><p style='color:#999;background:#fff'>pale</p>")
    chromium.open(path)
    assert chromium.run(_CONTRAST) == [1, [["rgb(153, 153, 153) on rgb(255, 255, 255)", "pale"]]]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_does_not_scroll_sideways_and_no_label_is_clipped(chromium: Browser, file: Path, width: int) -> None:
    chromium.open(file, width=width)
    assert chromium.run(_PICTURES) == []
    assert chromium.run("document.documentElement.scrollWidth") <= width
    sizes = chromium.run(
        "Array.from(document.querySelectorAll('figure.fit svg text, .tile svg text'), (text) => "
        "parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)"
    )
    assert len(sizes) > 300
    assert min(sizes) >= 9, "pixels of a chart's text"


@pytest.mark.parametrize("theme", THEMES)
def test_texts_stand_out_on_what_is_under_them(chromium: Browser, file: Path, theme: str) -> None:
    chromium.open(file, dark=theme == "dark")
    seen, wrong = chromium.run(_CONTRAST)
    assert seen > 2000
    assert wrong == []


def test_tables_sort_both_ways_with_what_is_missing_last(chromium: Browser, file: Path) -> None:
    chromium.open(file)
    column: Callable[[int], list[str]] = lambda index: chromium.run(f"({_COLUMN})({index})")  # noqa: E731
    head = "document.querySelectorAll('.forest thead')[0].rows[0].cells[{}]"
    before = column(2)
    assert before != sorted(before, key=float)
    for wanted, descending in (("descending", True), ("ascending", False), ("descending", True)):
        chromium.run(f"{head.format(2)}.querySelector('button').click()")
        assert chromium.run(f"{head.format(2)}.getAttribute('aria-sort')") == wanted
        assert column(2) == sorted(before, key=float, reverse=descending)
    chromium.run(f"{head.format(0)}.querySelector('button').click()")
    assert column(0) == sorted(column(0))
    assert chromium.run(f"{head.format(2)}.hasAttribute('aria-sort')") is False
    chromium.run("document.querySelectorAll('.forest tbody')[0].rows[0].cells[4].dataset.v = ''")
    name = chromium.run("document.querySelectorAll('.forest tbody')[0].rows[0].cells[1].textContent")
    for _ in range(2):
        chromium.run(f"{head.format(4)}.querySelector('button').click()")
        assert (
            chromium.run("Array.from(document.querySelectorAll('.forest tbody')[0].rows).at(-1).cells[1].textContent")
            == name
        )
    assert chromium.errors == []


def test_the_keyboard_reaches_and_sorts(chromium: Browser, file: Path) -> None:
    chromium.open(file)

    def press(key: str, code: int, text: str | None = None) -> None:
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        chromium.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        chromium.call("Input.dispatchKeyEvent", type="keyUp", **common)

    chromium.call("Page.bringToFront")
    press("Tab", 9)
    assert chromium.run("document.activeElement.className") == "skip"
    press("Tab", 9)
    assert chromium.run("document.activeElement.id") == "theme"
    chromium.run("document.querySelector('.forest th button').focus()")
    press("Enter", 13, "\r")
    assert chromium.run("document.querySelector('.forest th').getAttribute('aria-sort')") == "ascending"


def test_filters_narrow_the_slices(chromium: Browser, file: Path) -> None:
    chromium.open(file)
    shown = (
        "Array.from(document.querySelectorAll('.forest')).filter((box) => box.checkVisibility()).map((box) => "
        "Array.from(box.querySelector('tbody').rows).filter((row) => !row.hidden).length)"
    )
    assert chromium.run(shown) == [60, 60, 60]

    def put(name: str, value: str) -> list[int]:
        chromium.run(
            f"(() => {{ const form = document.querySelector('.filters'); form.elements['{name}'].value = '{value}'; "
            "form.dispatchEvent(new Event('input')) })()"
        )
        found: list[int] = chromium.run(shown)
        assert chromium.run("document.querySelector('output').textContent").startswith(f"{sum(found)} row")
        return found

    assert put("target", "purchase") == [60]
    assert put("slice", "country") == [8]
    assert put("find", "pl") == [1]
    assert put("target", "") == [1, 1, 1]
    assert put("find", "") == [8, 8, 8]
    assert put("slice", "") == [60, 60, 60]
    chromium.run("document.querySelector('[name=small]').click()")
    assert sum(chromium.run(shown)) == 174
    assert chromium.errors == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_theme_follows_the_system_until_the_button_is_pressed(chromium: Browser, file: Path, dark: bool) -> None:
    chromium.open(file, dark=dark)
    ground = "getComputedStyle(document.body).backgroundColor"

    def rgb(theme: str) -> str:
        colour = THEMES[theme]["ground"]
        return f"rgb({', '.join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))})"

    first, second = ("dark", "light") if dark else ("light", "dark")
    assert chromium.run(ground) == rgb(first)
    assert chromium.run("document.getElementById('theme').textContent") == second.capitalize()
    chromium.run("document.getElementById('theme').click()")
    assert chromium.run(ground) == rgb(second)
    chromium.run("document.getElementById('theme').click()")
    assert chromium.run(ground) == rgb(first)
    chromium.open(file, dark=dark)
    assert chromium.run(ground) == rgb(first), "nothing is remembered"


def test_without_scripts_it_says_all_the_same(chromium: Browser, file: Path) -> None:
    texts = "Array.from(document.querySelectorAll('main > section'), (section) => section.innerText.replace(/\\s+/g, ' ').length)"
    chromium.open(file)
    with_scripts = chromium.run(texts)
    chromium.open(file, script=False)
    assert chromium.run("document.querySelectorAll('th button').length") == 0
    assert chromium.run("document.querySelector('.filters').checkVisibility()") is False
    without = chromium.run(texts)
    assert len(without) == len(with_scripts) == 19
    assert all(b > 0.8 * a for a, b in zip(with_scripts, without, strict=True))
    chromium.call("Emulation.setScriptExecutionDisabled", value=False)


def test_on_paper_nothing_is_cut(chromium: Browser, file: Path) -> None:
    chromium.open(file, width=1040)  # A4 across, less its margins
    chromium.call("Emulation.setEmulatedMedia", media="print")
    assert chromium.run("document.documentElement.scrollWidth") <= 1040
    assert chromium.run("document.querySelector('nav').checkVisibility()") is False
    assert chromium.run("Array.from(document.querySelectorAll('.tall')).every((box) => getComputedStyle(box).maxHeight === 'none')")  # fmt: skip
    chromium.run("dispatchEvent(new Event('beforeprint'))")
    assert chromium.run("Array.from(document.querySelectorAll('details')).every((fold) => fold.open)")
    chromium.call("Emulation.setEmulatedMedia", media="")


def test_words_from_outside_run_nothing(chromium: Browser, full: Report, tmp_path: Path) -> None:
    evil = "</script><script>document.title='mine'</script><img src=x onerror=\"document.title='mine'\">"
    rows = tuple(row.model_copy(update={"value": evil, "slice": "a \"quoted' column"}) for row in full.slices[:3])
    report = full.model_copy(update={"slices": rows, "notes": (evil, "/a/path/<b>&amp;")})
    (tmp_path / "page.html").write_text(render(report))
    chromium.open(tmp_path / "page.html")
    assert chromium.errors == []
    assert chromium.requests == [(tmp_path / "page.html").absolute().as_uri()]
    assert chromium.run("document.title").startswith("shop-ranker")
    assert chromium.run("document.querySelectorAll('script').length") == 1
    assert evil in chromium.run("document.querySelector('.forest tbody').textContent")
    assert "/a/path/<b>&amp;" in chromium.run("document.querySelector('#notes').textContent")
    filter_ = "Array.from(document.querySelector('[name=slice]').options, (option) => option.value)"
    assert chromium.run(filter_) == ["", "a \"quoted' column"]


def test_the_systems_are_named_wherever_their_lines_are(chromium: Browser, file: Path) -> None:
    chromium.open(file)
    names = chromium.run(
        "Array.from(document.querySelectorAll('#calibration .key'), (key) => key.lastChild.textContent.trim())"
    )
    assert names == ["This model", "Champion", "Optimum"]
    assert len(SYSTEMS) == len(names) + 1  # the baseline predicts one number and has no curve
