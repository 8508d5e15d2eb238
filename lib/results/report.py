"""A static site from a profile's executed notebooks: the scorecard as its first page, a page each, and latent cards.

It opens from disk and asks no network. Pages hold no script, and a content security policy forbids any, so that text of
models and data that might have slipped into an output unescaped cannot run. Equations become MathML.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert
from markupsafe import escape
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from lib.base import build_graph
from lib.base.files import ROOT, run_dir
from lib.results import claims, evidence, report_index, scorecard
from lib.results.report_index import Place, Site
from lib.results.scorecard import Record

FIGURES = ROOT / "figures"
TITLE = "Do SAEs help on my task?"
SAVED = re.compile(r'"(\d\d_[a-z0-9_]+)"')  # names of figures in a cell that saves some
MATH = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)([^$]+?)(?<!\s)\$", re.DOTALL)
ADDRESSES = ("href", "src", "srcset", "action", "formaction", "xlink:href", "data", "poster", "background")
ALLOWED = ("#", "data:image/", "https://", "http://", "latents.html#")  # how an address may begin
FORBIDDEN = ("script", "iframe", "object", "embed", "link", "base", "form", "meta")
BESIDE = re.compile(r"\.\./figures/[^/]+/(latents\.html#.+)")  # a card, as notebooks lead to it
PAGES = {  # of a profile's figures that are pages, and what each is
    "latents.html": "latents with examples, search and sort",
    "tasks.html": "tasks: whether SAEs help on each",
}


def executed(profile: str) -> list[Path]:
    """The profile's executed notebooks, in order; of ``embedded`` the committed ones if it has not been run here.

    Raises:
        ValueError: there is none.
    """
    names = [path.stem for path in build_graph.notebooks()]
    folders = [run_dir(profile) / "notebooks"] + ([build_graph.NOTEBOOKS] if profile == "embedded" else [])
    for folder in folders:
        notebooks = [folder / f"{name}.ipynb" for name in names if (folder / f"{name}.ipynb").exists()]
        if notebooks:
            return notebooks
    raise ValueError(f"profile {profile!r} has no executed notebook; make reproduce PROFILE={profile} makes them")


def records_of(profile: str, notebooks: list[Path]) -> dict[str, dict[str, Record]]:
    """The committed records of all profiles, and of ``profile`` those of the run whose notebooks these are."""
    by_profile = scorecard.committed()
    own = run_dir(profile) / "results"
    if notebooks[0].parent != build_graph.NOTEBOOKS:
        run = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(own.glob("[0-9][0-9]_*.json"))]
        by_profile = scorecard.with_run(by_profile, profile, run)
    return by_profile


def build(notebooks: list[Path], by_profile: dict[str, dict[str, Record]], profile: str, target: Path) -> Path:
    """Write the site to the folder ``target``, which is replaced as a whole; returns its index.

    Args:
        by_profile: records by profile and notebook, of which the scorecard is made.
        profile: whose notebooks these are, and whose pages of figures are copied beside them.
    """
    read = {path.stem: nbformat.read(path, as_version=4) for path in notebooks}
    copied = [FIGURES / profile / name for name in PAGES]
    copied += sorted(FIGURES.glob(f"{profile}-tasks-*/tasks.html"))[:1]
    copied = [path for path in copied if path.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch) / "site"
        folder.mkdir()
        bodies = {name: body(notebook) for name, notebook in read.items()}
        for name, html in bodies.items():
            page = _page(name, html, [("index", "index.html"), *_neighbours(name, list(read))])
            (folder / f"{name}.html").write_text(page, encoding="utf-8")
        listed = [dict(zip(("title", "claims"), _opening(read[name])), name=name) for name in read]
        links = [(path.name, PAGES[path.name]) for path in copied]
        places, front = _places(bodies)
        site = Site(profile, places, FIGURES, listed, front, links)
        index, pictures = _index(by_profile, site)
        (folder / "index.html").write_text(index, encoding="utf-8")
        for path in copied:
            shutil.copy(path, folder / path.name)
        for address, path in pictures.items():
            (folder / address).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / address)
        if target.exists():
            target.rename(Path(scratch) / "old")
        folder.rename(target)
    return target / "index.html"


def _neighbours(name: str, names: list[str]) -> list[tuple[str, str]]:
    """Links to the notebooks before and after this one, where there are any."""
    place = names.index(name)
    before = [(f"← {other}", f"{other}.html") for other in names[:place][-1:]]
    after = [(f"{other} →", f"{other}.html") for other in names[place + 1 :][:1]]
    return before + after


def body(notebook: nbformat.NotebookNode) -> str:
    """A notebook as HTML without script, with MathML, and figures that are named after their section."""
    html, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    soup = BeautifulSoup(html, "html.parser")
    _harmless(soup)
    for rendered in soup.select(".text_cell_render, .output_markdown"):
        _equations(rendered, soup)
    _name_figures(notebook, soup)
    heading = ""
    for element in soup.find_all(["h1", "h2", "img"]):
        if element.name == "img":
            element["alt"] = f"Figure: {heading}"
        else:
            heading = element.get_text().removesuffix("¶")
    for table in soup.find_all("table"):
        if not table.find_parent(class_="output_html"):
            table.wrap(soup.new_tag("div", attrs={"class": "table"}))
    return str(soup)


def _name_figures(notebook: nbformat.NotebookNode, soup: BeautifulSoup) -> None:
    """Give the images of each cell that saves figures these figures' names as ids, in order; where one is saved and
    none is shown, the cell's output has it."""
    for cell in notebook.cells:
        if cell.cell_type != "code" or "figures.save(" not in cell.source:
            continue
        element = soup.find(id=f"cell-id={cell.get('id')}")
        images = element.find_all("img") if element else []
        for name, image in zip(SAVED.findall(cell.source), images, strict=False):
            image["id"] = f"figure-{name}"


def _places(bodies: dict[str, str]) -> tuple[dict[Any, Place], str]:
    """Where figures and sections stand, by a figure's name and by notebook and heading; and the front figure's data."""
    places: dict[Any, Place] = {}
    front = ""
    for name, html in bodies.items():
        heading, anchor = name, ""
        for element in BeautifulSoup(html, "html.parser").find_all(["h2", "img"]):
            if element.name == "h2":
                heading, anchor = element.get_text().removesuffix("¶"), element.get("id", "")
                places[name, heading] = Place(name, anchor, heading, anchor)
            elif element.get("id"):
                figure = element["id"].removeprefix("figure-")
                places[figure] = Place(name, element["id"], heading, anchor)
                front = element["src"] if figure == report_index.FRONT else front
    return places, front


def _harmless(soup: BeautifulSoup) -> None:
    """Drop elements that run or fetch, event handlers, and addresses other than a web page's or an image's data."""
    for element in soup.find_all(FORBIDDEN):
        element.decompose()
    for element in soup.find_all(True):
        for name in list(element.attrs):
            if name == "href":
                element[name] = BESIDE.sub(r"\1", str(element[name]))
            value = str(element[name]).strip().lower()
            if name.startswith("on") or (name in ADDRESSES and not value.startswith(ALLOWED)):
                del element[name]
    for image in soup.find_all("img"):
        if not str(image.get("src", "")).startswith("data:image/"):
            image.decompose()


def _equations(rendered: Tag, soup: BeautifulSoup) -> None:
    """Replace $…$ and $$…$$ in the text by MathML; an equation that cannot be converted stays as it is."""
    for text in rendered.find_all(string=MATH):
        if text.find_parent(["code", "pre"]):
            continue
        html, last = "", 0
        for equation in MATH.finditer(text):
            block, inline = equation.groups()
            html += str(escape(text[last : equation.start()]))
            html += _mathml(block or inline, block is not None, equation[0])
            last = equation.end()
        text.replace_with(BeautifulSoup(html + str(escape(text[last:])), "html.parser"))


def _mathml(latex: str, block: bool, original: str) -> str:
    try:
        return convert(latex.strip(), display="block" if block else "inline")
    except Exception:  # the converter has no common error; the source is readable too
        return str(escape(original))


def _index(by_profile: dict[str, dict[str, Record]], site: Site) -> tuple[str, dict[str, Path]]:
    """The first page, and the pictures that it leads to, by their address in the site."""
    rules = claims.load()
    blocks = report_index.blocks(rules, by_profile, evidence.load(rules), site)
    html = _template("report_index.html").render(
        title=TITLE,
        site=site,
        answer=report_index.answer(),
        blocks=blocks,
        columns=report_index.columns(blocks, by_profile),
        n_parts=len(rules.parts()),
        meanings=report_index.MEANINGS,
        symbols=report_index.SYMBOLS,
    )
    cells = [cell for block in blocks for line in block.lines for cell in line.cells]
    return _page(TITLE, html, [("index", None)]), {cell.href: cell.picture for cell in cells if cell.picture}


def _opening(notebook: nbformat.NotebookNode) -> tuple[str, str]:
    """A notebook's title, and the line that names its claims, from its first cell."""
    lines = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "").splitlines()
    title = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "")
    return title, next((line for line in lines if line.startswith("Claim")), "")


def _page(title: str, html: str, links: list[tuple[str, Any]]) -> str:
    highlighting = HtmlFormatter(style="xcode").get_style_defs(".highlight")  # all of it dark enough on light grey
    return _template("report.html").render(title=title, body=html, links=links, highlighting=highlighting)


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(ROOT / "lib" / "results" / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(name)


def main() -> None:
    """Command line: ``python -m lib.results.report --profile embedded`` writes ``report/embedded``."""
    parser = argparse.ArgumentParser(prog="python -m lib.results.report", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="embedded", help="name of a profile that has been run")
    path = Path(parser.parse_args().profile)
    profile = path.stem if path.suffix in (".yaml", ".yml") else path.name
    try:
        notebooks = executed(profile)
        index = build(notebooks, records_of(profile, notebooks), profile, ROOT / "report" / profile)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{index.relative_to(ROOT)}: open it in a browser")


if __name__ == "__main__":
    main()
