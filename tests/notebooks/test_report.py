"""The static site: harmless without a browser's help, and looked at in a real one."""

import base64
import copy
import functools
import json
import shutil
from urllib.parse import unquote

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib.base import build_graph
from lib.base.files import ROOT
from lib.results import claims, evidence, report, report_index, scorecard

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
HOSTILE = """<script>document.title = 'taken'</script><img src=x onerror="document.title = 'taken'">
<p onclick="x()">kept</p><a href="javascript:x()">a</a>
<a href="../figures/mine/latents.html#an-SAE-3">3</a><a href="../figures/mine/other.html#x">other</a>"""
EQUATION = "The mean is $\\frac{1}{N} \\sum_i s_i$, and `$x$` is code."
WIDE = "<table>" + "<td>wide cell</td>" * 80 + "</table>"


def notebook(title, *outputs):
    """A notebook with an equation, a section and one cell with the outputs."""
    text = new_markdown_cell(f"# {title}\n\nClaim C9.\n\n{EQUATION}\n\n## Results")
    return new_notebook(cells=[text, new_code_cell("1 < 2", outputs=list(outputs), execution_count=1)])


def output(**data):
    return new_output("display_data", data={name.replace("_", "/"): value for name, value in data.items()})


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Three pages, with an image, a hostile output and a wide table; a page of latents; and the committed scorecard."""
    tmp_path = tmp_path_factory.mktemp("site")
    saved = new_code_cell('figures.save(figure, run.figures, "05_rotation", about)', outputs=[output(image_png=PNG)])
    probing = notebook("05 · Probing", output(text_html=HOSTILE))
    probing.cells.append(saved)
    notebooks = {
        "01_a": notebook("01 · First <b>", output(image_png=PNG)),
        "05_probing": probing,
        "10_scorecard": notebook("10 · Scorecard", output(image_png=PNG), output(text_html=WIDE)),
    }
    for name, content in notebooks.items():
        nbformat.write(content, tmp_path / f"{name}.ipynb")
    root = tmp_path / "root"
    for name in ("mine", "minilm"):
        (root / "figures" / name).mkdir(parents=True)
    (root / "figures" / "mine" / "latents.html").write_text('<title>latents</title><p id="an-SAE-3">a card</p>')
    (root / "figures" / "minilm" / "05_rotation.png").write_bytes(base64.b64decode(PNG))
    paths = [tmp_path / f"{name}.ipynb" for name in notebooks]
    records = scorecard.committed()
    hostile = copy.deepcopy(records["embedded"])
    hostile["07_dataset_debugging"]["metrics"] = [
        row | {"value": None, "why": "<img src=x>"} for row in hostile["07_dataset_debugging"]["metrics"]
    ]
    hostile |= {"01_datasets": hostile["01_datasets"] | {"commit": "<b>"}}
    by_profile = {"mine": hostile, "minilm": records["minilm"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "FIGURES", root / "figures")
        return report.build(paths, by_profile, "mine", tmp_path / "out" / "site").parent


def page(site, name):
    return BeautifulSoup((site / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


@functools.cache
def ids(path):
    """The ids of a page."""
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    return {element["id"] for element in soup.find_all(id=True)}


def test_index_and_pages_lead_to_each_other(site):
    index = page(site, "index")
    targets = [a["href"] for a in index.find_all("a") if not a["href"].startswith("#")]
    assert {target.partition("#")[0] for target in targets} == {
        "latents.html", "05_probing.html", "01_a.html", "10_scorecard.html", "figures/minilm/05_rotation.png"
    }  # fmt: skip
    assert "Claim C9." in index.text and index.find("img")["src"] == f"data:image/png;base64,{PNG}"
    neighbours = [a["href"] for a in page(site, "05_probing").nav.find_all("a")]
    assert neighbours == ["index.html", "01_a.html", "10_scorecard.html"]


def test_every_address_of_the_site_leads_somewhere(site):
    for path in site.glob("*.html"):
        for link in page(site, path.stem).find_all("a", href=True):
            name, _, anchor = link["href"].partition("#")
            target = site / name if name else path
            assert name.startswith("http") or target.exists(), f"{path.name}: {link['href']}"
            if anchor and target.suffix == ".html" and link.get("class") != ["anchor-link"]:
                assert {anchor, unquote(anchor)} & ids(target), f"{path.name}: {link['href']}"


def test_latents_of_a_notebook_lead_to_their_cards(site):
    links = page(site, "05_probing").main.find_all("a", href=True)
    assert [link["href"] for link in links if "html" in link["href"]] == ["latents.html#an-SAE-3"]


def test_the_scorecard_of_the_first_page_is_that_of_the_records(site):
    index = page(site, "index")
    by_profile = scorecard.committed()
    rows = scorecard.evaluate(claims.load(), by_profile["minilm"], "minilm")
    for row in rows:
        (line,) = index.find_all("tr", id=row.id)
        (cell,) = [cell for cell in line.find_all("td") if cell["data-label"] == "minilm"]
        assert row.verdict in cell.text and row.measured in cell.text
        has_verdict = row.verdict not in ("not applicable", "not run")
        assert bool(cell.find(class_="change")) == has_verdict
    chips = index.find_all("a", class_="chip")
    assert len(chips) == 2 * len(rows) and {chip["href"][1:] for chip in chips} == {row.id for row in rows}
    (of_rotation,) = [a for a in index.find_all("a") if a.get("aria-label") == "C3e, mine: 05_rotation"]
    assert of_rotation["href"] == "05_probing.html#figure-05_rotation"
    assert report_index.answer() in index.text


def test_text_of_records_is_text(site):
    index = page(site, "index")
    assert "<img src=x>" in index.text and not [image for image in index.find_all("img") if image["src"] == "x"]
    assert not index.find("b") and not index.find("script")


def test_nothing_in_an_output_runs_or_fetches(site):
    soup = page(site, "05_probing")
    assert not soup.find_all(["script", "iframe"]) and "kept" in soup.text
    assert not [name for tag in soup.find_all(True) for name in tag.attrs if name.startswith("on")]
    assert not [a for a in soup.main.find_all("a") if "javascript" in a.get("href", "")]
    assert [image["id"] for image in soup.find_all("img")] == ["figure-05_rotation"]
    assert "default-src 'none'" in soup.find("meta", attrs={"http-equiv": True})["content"]


def test_equations_are_mathml_and_code_is_left(site):
    soup = page(site, "01_a")
    assert len(soup.find_all("math")) == 1 and soup.math.mfrac and soup.math.msub and "$" not in soup.math.text
    assert "$x$" in [code.text for code in soup.find_all("code")]
    assert soup.find("img")["alt"] == "Figure: Results"


def test_a_site_is_replaced_as_a_whole(site, tmp_path):
    copied = shutil.copytree(site, tmp_path / "sites" / "site")
    nbformat.write(notebook("01 · Alone"), tmp_path / "01_a.ipynb")
    again = report.build([tmp_path / "01_a.ipynb"], {}, "other", copied)
    assert sorted(path.name for path in again.parent.iterdir()) == ["01_a.html", "index.html"]
    (tmp_path / "02_b.ipynb").write_text("no notebook")
    with pytest.raises(Exception):  # noqa: B017, PT011  (nbformat's own)
        report.build([tmp_path / "02_b.ipynb"], {}, "other", copied)
    assert sorted(path.name for path in copied.iterdir()) == ["01_a.html", "index.html"]
    assert [path.name for path in copied.parent.iterdir()] == ["site"]


def test_a_profile_that_was_not_run():
    with pytest.raises(ValueError, match="profile 'nobody' has no executed notebook; make reproduce PROFILE=nobody"):
        report.executed("nobody")


def test_the_records_are_the_committed_ones_and_those_of_the_run(tmp_path, monkeypatch):
    committed = report.records_of("embedded", [build_graph.NOTEBOOKS / "01_datasets.ipynb"])
    assert list(committed)[0] == "embedded" and committed == scorecard.committed()
    monkeypatch.setattr(report, "run_dir", lambda profile: tmp_path / profile)
    (tmp_path / "minilm" / "results").mkdir(parents=True)
    of_run = {"notebook": "05_probing", "outputs": {}, "metrics": []}
    (tmp_path / "minilm" / "results" / "05_probing.json").write_text(json.dumps(of_run))
    run = report.records_of("minilm", [tmp_path / "minilm" / "notebooks" / "05_probing.ipynb"])
    assert list(run)[0] == "minilm" and run["minilm"]["05_probing"] == of_run and "embedded" in run


WIDTH_AND_IMAGES = "return [document.documentElement.scrollWidth, [...document.images].map(i => i.naturalWidth)]"
FETCHED = "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
SMALLEST_FONT = """
    const sizes = [...document.querySelectorAll('main p, main small, main td, p')]
        .map(e => parseFloat(getComputedStyle(e).fontSize));
    return Math.min(...sizes)"""
LOWEST_CONTRAST = """
    const light = c => c.map(x => x / 255).map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
        .reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
    const parts = text => text.match(/[\\d.]+/g).map(Number);
    const below = element => {
        const layers = [];
        for (let e = element; e && e.nodeType === 1; e = e.parentElement) {
            const [r, g, b, a = 1] = parts(getComputedStyle(e).backgroundColor);
            if (a > 0) layers.push([[r, g, b], a]);
            if (a === 1) break;
        }
        return layers.reverse().reduce((c, [over, a]) => c.map((x, i) => x * (1 - a) + over[i] * a), [255, 255, 255]);
    };
    let lowest = 21;
    for (const e of document.querySelectorAll('body *')) {
        const hasText = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!hasText || ['STYLE', 'SCRIPT'].includes(e.tagName) || !e.getClientRects().length) continue;
        const [a, b] = [light(parts(getComputedStyle(e).color).slice(0, 3)), light(below(e))];
        lowest = Math.min(lowest, (Math.max(a, b) + .05) / (Math.min(a, b) + .05));
    }
    return lowest"""
FOCUSED = """
    const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
    const places = [...document.querySelectorAll('a[href], input, select, button, [tabindex]')];
    return [e.getAttribute('href'), style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1,
            box.width > 0 && box.left >= 0 && box.top >= 0, places.indexOf(e)]"""
MEGABYTES = 20


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The site of the committed notebooks and records."""
    notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert len(notebooks) >= 8
    return report.build(notebooks, scorecard.committed(), "embedded", tmp_path_factory.mktemp("real") / "site").parent


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_in_a_browser(browser, site, real, width):
    """The committed notebooks: no console message, no request, no missing image, no page wider than the window, and no
    text that is small or pale."""
    window = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    for path in sorted(real.glob("*.html")) + sorted(site.glob("[01]*.html")):
        browser.get(path.as_uri())
        content_width, images = browser.execute_script(WIDTH_AND_IMAGES)
        assert content_width <= width and all(images), path.name
        assert browser.get_log("browser") == [] and browser.title != "taken", path.name
        assert not browser.execute_script(FETCHED)
        assert browser.execute_script(SMALLEST_FONT) >= 12, path.name
        assert browser.execute_script(LOWEST_CONTRAST) >= 4.5, path.name


@pytest.mark.slow
def test_the_first_page_by_keyboard(browser, real):
    """The skip link comes first and is seen; then everything in the order of the page, each with a visible focus."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(key):
        ActionChains(browser).send_keys(key).perform()
        return browser.execute_script(FOCUSED)

    browser.get((real / "index.html").as_uri())
    assert press(Keys.TAB)[:3] == ["#main", True, True]
    places = [press(Keys.TAB) for _ in range(60)]
    assert all(is_outlined and is_seen for _, is_outlined, is_seen, _ in places)
    numbers = [place for *_, place in places]
    assert numbers == sorted(numbers) and len(set(numbers)) == len(numbers)
    assert {"#scorecard", "latents.html", "#C1", "#C3e"} <= {address for address, *_ in places}
    browser.get((real / "index.html").as_uri())
    press(Keys.TAB)
    press(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "main"


@pytest.mark.slow
def test_the_site_is_small_whole_and_needs_no_script(real):
    files = [path for path in real.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MEGABYTES * 1e6
    index = page(real, "index")
    for path in real.glob("[0-9]*.html"):
        assert not page(real, path.stem).find("script")
    assert not index.find("script") and len(page(real, "latents").find_all(class_="card")) > 10
    rules = claims.load()
    beside = evidence.load(rules)
    for part in rules.parts().values():
        (line,) = index.find_all("tr", id=part.id)
        assert line.th.find("a")["href"].startswith(f"{part.record}.html#"), "the section that measures it"
        for cell in line.find_all("td"):
            verdict = cell.find(class_="verdict")
            if verdict and not {"not-applicable", "not-run"} & set(verdict["class"]):
                link = cell.find("a")
                if beside[part.id].section and cell["data-label"] not in ("embedded", "tasks"):
                    continue  # a table, and the site has the notebooks of one profile
                name, _, anchor = link["href"].partition("#")
                assert (real / name).exists(), f"{part.id}: {link['href']}"
                assert not anchor or anchor in ids(real / name), f"{part.id}: {link['href']}"
