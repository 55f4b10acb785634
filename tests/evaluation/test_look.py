"""A report in a browser: nothing runs out of the page, and nothing is hard to read."""

from pathlib import Path

import pytest
from browser import AXE
from test_report import make_run
from test_words import run_of, two

from fmnist_keras3.evaluation import report


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    labels, first, second = two(30, 3)
    runs = [run_of(folder / ("a" * 40), labels, first), run_of(folder / "b", labels, second)]
    return [report.build(make_run(folder / "one")), report.build(runs)]


WIDER = """[...document.querySelectorAll("body *")].filter(e =>
    e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".hidden, thead")
).map(e => e.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_runs_out_of_the_page(browser, pages, width, dark):
    for page in pages:
        browser.open(page, width, dark=dark, phone=width < 700)
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(WIDER) == []
        letters = browser.run(
            "Math.min(...[...document.querySelectorAll('.chart text')].map("
            "e => e.getBoundingClientRect().height))"
        )
        assert letters > 10
        assert browser.errors == []
        assert all(url.startswith(("file:", "data:")) for url in browser.requests)


@pytest.mark.skipif(not AXE, reason="AXE is not the path of axe.min.js")
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(browser, pages, dark):
    for page in pages:
        browser.open(page, dark=dark)
        browser.run(Path(AXE).read_text() + "\n;0")
        found = browser.run(
            "axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html)]))"
        )
        assert found == []
