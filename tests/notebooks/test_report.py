"""The static site: harmless without a browser's help, and looked at in a real one."""

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib.base.files import ROOT
from lib.results import report

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
HOSTILE = """<script>document.title = 'taken'</script><img src=x onerror="document.title = 'taken'">
<p onclick="x()">kept</p><a href="javascript:x()">a</a>"""
EQUATION = "The mean is $\\frac{1}{N} \\sum_i s_i$, and `$x$` is code."
WIDE = "<table>" + "<td>wide cell</td>" * 80 + "</table>"


def notebook(title, *outputs):
    """A notebook with an equation, a section and one cell with the outputs."""
    text = new_markdown_cell(f"# {title}\n\nClaim C9.\n\n{EQUATION}\n\n## Results")
    return new_notebook(cells=[text, new_code_cell("1 < 2", outputs=list(outputs), execution_count=1)])


def output(**data):
    return new_output("display_data", data={name.replace("_", "/"): value for name, value in data.items()})


@pytest.fixture
def site(tmp_path):
    """Three pages, with an image, a hostile output and a wide table; and a page of latents."""
    notebooks = {
        "01_a": notebook("01 · First <b>", output(image_png=PNG)),
        "02_b": notebook("02 · Second", output(text_html=HOSTILE)),
        "10_scorecard": notebook("10 · Scorecard", output(image_png=PNG), output(text_html=WIDE)),
    }
    for name, content in notebooks.items():
        nbformat.write(content, tmp_path / f"{name}.ipynb")
    latents = tmp_path / "l.html"
    latents.write_text("<title>latents</title>")
    paths = [tmp_path / f"{name}.ipynb" for name in notebooks]
    return report.build(paths, latents, "mine <x>", tmp_path / "out" / "site").parent


def page(site, name):
    return BeautifulSoup((site / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


def test_index_and_pages_lead_to_each_other(site):
    index = page(site, "index")
    targets = [a["href"] for a in index.find_all("a")]
    assert targets == ["10_scorecard.html", "latents.html", "01_a.html", "02_b.html", "10_scorecard.html"]
    assert all((site / target).exists() for target in targets)
    assert "mine <x>" in index.text and "Claim C9." in index.text and index.find("img")
    assert [a["href"] for a in page(site, "02_b").nav.find_all("a")] == ["index.html", "01_a.html", "10_scorecard.html"]


def test_nothing_in_an_output_runs_or_fetches(site):
    soup = page(site, "02_b")
    assert not soup.find_all(["script", "iframe"]) and "kept" in soup.text
    assert not [name for tag in soup.find_all(True) for name in tag.attrs if name.startswith("on")]
    assert not [a for a in soup.main.find_all("a") if "javascript" in a.get("href", "")] and not soup.find_all("img")
    assert "default-src 'none'" in soup.find("meta", attrs={"http-equiv": True})["content"]


def test_equations_are_mathml_and_code_is_left(site):
    soup = page(site, "01_a")
    assert len(soup.find_all("math")) == 1 and soup.math.mfrac and soup.math.msub and "$" not in soup.math.text
    assert "$x$" in [code.text for code in soup.find_all("code")]
    assert soup.find("img")["alt"] == "Figure: Results"


def test_a_site_is_replaced_as_a_whole(site, tmp_path):
    (site / "old.html").write_text("old")
    again = report.build([tmp_path / "01_a.ipynb"], None, "mine", site)
    assert sorted(path.name for path in again.parent.iterdir()) == ["01_a.html", "index.html"]
    (tmp_path / "02_b.ipynb").write_text("no notebook")
    with pytest.raises(Exception):  # noqa: B017, PT011  (nbformat's own)
        report.build([tmp_path / "02_b.ipynb"], None, "mine", site)
    assert sorted(path.name for path in site.iterdir()) == ["01_a.html", "index.html"]
    assert [path.name for path in site.parent.iterdir()] == ["site"]


def test_a_profile_that_was_not_run():
    with pytest.raises(ValueError, match="profile 'nobody' has no executed notebook; make reproduce PROFILE=nobody"):
        report.executed("nobody")


WIDTH_AND_IMAGES = "return [document.documentElement.scrollWidth, [...document.images].map(i => i.naturalWidth)]"
FETCHED = "return performance.getEntriesByType('resource').filter(e => e.name.startsWith('http')).length"
SMALLEST_FONT = """
    const sizes = [...document.querySelectorAll('main p, p')].map(e => parseFloat(getComputedStyle(e).fontSize));
    return Math.min(...sizes)"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 400])
def test_the_report_in_a_browser(browser, site, tmp_path, width):
    """The committed notebooks: no console message, no missing image, no page wider than the window."""
    notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    latents = ROOT / "figures" / "embedded" / "latents.html"
    real = report.build(notebooks, latents, "embedded", tmp_path / "real").parent
    window = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    pages = sorted(real.glob("*.html")) + sorted(site.glob("[01]*.html"))
    index_and_latents, of_fixture = 2, 3
    assert len(notebooks) >= 8 and len(pages) == len(notebooks) + index_and_latents + of_fixture
    for path in pages:
        browser.get(path.as_uri())
        content_width, images = browser.execute_script(WIDTH_AND_IMAGES)
        assert content_width <= width and all(images), path.name
        assert browser.get_log("browser") == [] and browser.title != "taken", path.name
        assert not browser.execute_script(FETCHED)
        assert browser.execute_script(SMALLEST_FONT) >= 12, path.name
