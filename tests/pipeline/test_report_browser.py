"""The report in a real browser: it fits, is quiet, fetches nothing, and can be read in the dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.browser import CHROMIUM, Page, browser
from pipeline.folder import RunFolder
from pipeline.report import read_story, write_report
from pipeline.report_metrics import PHASES, Metrics, parse_line
from tests.tiny import copy_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

# Elements that reach beyond the window and lie in nothing that scrolls.
TOO_WIDE = """
[...document.querySelectorAll('body *')].filter(e => {
  for (let p = e.parentElement; p; p = p.parentElement)
    if (getComputedStyle(p).overflowX !== 'visible' || p.tagName === 'DETAILS' && !p.open) return false;
  return e.getBoundingClientRect().right > innerWidth + 0.5;
}).map(e => e.tagName + ' ' + (e.textContent || '').slice(0, 40))
"""
# The least contrast (WCAG 2) between a text's colour and the colour behind it.
CONTRAST = """
(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(
    v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const found = rgb(getComputedStyle(e).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  let least = [99, ''];
  const texts = 'h1, h2, h3, p, td, th, li, small, a, b, em, span, code, dt, dd, summary, figcaption, text';
  for (const e of document.querySelectorAll(texts)) {
    if (!e.textContent.trim() || e.classList.contains('mark')) continue;
    const style = getComputedStyle(e);
    const a = light(rgb(e.tagName === 'text' ? style.fill : style.color)), b = light(behind(e));
    const found = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (found < least[0]) least = [found, e.tagName + ' ' + e.className + ' ' + e.textContent.slice(0, 40)];
  }
  return least;
})()
"""


@pytest.fixture(scope="module")
def report(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every part, also the one that a run in one process has no numbers for."""
    folder = RunFolder(copy_run(run, tmp_path_factory.mktemp("browser") / "run"))
    story = read_story(folder)
    lines = [
        {"round": turn.round, "round_tokens": turn.tokens, "seconds": 3.0, "late": ["c01"]}
        | {"phases": dict.fromkeys(PHASES, 0.4), "work_ms": {"c00": 1200, "c01": 300}}
        | {"nodes": {"a-host-with-a-long-name.example": {"alive": True, "members": ["c00", "c01"]}}}
        for turn in story.turns
    ]
    turns = [parse_line(json.dumps(line).encode()) for line in lines]
    return write_report(folder, story, Metrics(tuple(turn for turn in turns if turn), 1))


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """One browser for all widths."""
    with browser() as tab:
        yield tab


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)])
def test_the_page_fits_and_is_quiet(page: Page, report: Path, width: int, phone: bool, dark: bool) -> None:
    page.show(report, width, 844, dark=dark, phone=phone)
    assert page.value("document.documentElement.clientWidth") == width
    assert page.value("document.documentElement.scrollWidth") == width
    assert page.value(TOO_WIDE) == []
    assert page.seen.requests == [report.as_uri()]
    assert page.seen.complaints == []
    # Everything that can be unfolded fits too.
    page.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.value("document.documentElement.scrollWidth") == width
    assert page.value(TOO_WIDE) == []


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_can_be_read(page: Page, report: Path, dark: bool) -> None:
    page.show(report, 1280, 844, dark=dark)
    ground = page.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == dark
    for pill in ("done", "open"):
        page.value(f"document.querySelector('.pill').className = 'pill {pill}'")
        least, where = page.value(CONTRAST)
        assert least >= 4.5, where


def test_either_plot_of_the_losses_is_shown_by_the_width(page: Page, report: Path) -> None:
    shown = "[...document.querySelectorAll('.{}')].map(e => e.getBoundingClientRect().width > 0)"
    for width, broad in ((1280, True), (390, False)):
        page.show(report, width, 844)
        assert page.value(shown.format("broad")) == [broad] * 2
        assert page.value(shown.format("narrow")) == [not broad] * 2


def test_the_browser_would_have_told(page: Page, tmp_path: Path) -> None:
    """The checks above can fail: a page that fetches, complains and is too wide is seen to."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><body style='color: #777; background: #888'><p style='width: 3000px'>wide</p>"
        "<img src='missing.png'><script>console.error('no'); nothing.here</script>"
    )
    page.show(bad, 390, 844)
    assert page.value("document.documentElement.scrollWidth") > 390
    assert len(page.value(TOO_WIDE)) > 0
    assert len(page.seen.requests) == 2
    assert any("no" in complaint for complaint in page.seen.complaints)
    assert page.value(CONTRAST)[0] < 3.0


def test_the_pictures_of_the_documentation_are_small_and_fetch_nothing() -> None:
    images = Path(__file__).parents[2] / "docs" / "images"
    for name in ("report-desktop.png", "report-phone.png", "top.svg"):
        assert 10_000 < (images / name).stat().st_size < 400_000
        assert f"`{name}`" in (images / "README.md").read_text()
    assert "url(" not in (images / "top.svg").read_text().replace("url(#", "")
