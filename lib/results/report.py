"""A static site from a profile's executed notebooks: index, a page each, and the page of latents.

It opens from disk and asks no network. Pages hold no script, and a content security policy forbids any, so that text of
models and data that might have slipped into an output unescaped cannot run. Equations become MathML.
"""

import argparse
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

PURPOSE = (
    "A companion to <em>Negative Results for Sparse Autoencoders On Downstream Tasks</em> (Google DeepMind, 2025), "
    "profile <strong>{profile}</strong>. The data hold harmful requests, one sentence each, because detecting them is "
    "the task."
)
MATH = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)([^$]+?)(?<!\s)\$", re.DOTALL)
ADDRESSES = ("href", "src", "srcset", "action", "formaction", "xlink:href", "data", "poster", "background")
ALLOWED = ("#", "data:image/", "https://", "http://")  # how an address may begin
FORBIDDEN = ("script", "iframe", "object", "embed", "link", "base", "form", "meta")
LATENTS = "latents.html"


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


def build(notebooks: list[Path], latents: Path | None, profile: str, target: Path) -> Path:
    """Write the site to the folder ``target``, which is replaced as a whole; returns its index.

    Args:
        latents: page of latent cards to copy beside them, if there is one.
    """
    read = {path.stem: nbformat.read(path, as_version=4) for path in notebooks}
    has_latents = latents is not None and latents.exists()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        site = Path(scratch) / "site"
        site.mkdir()
        for name, notebook in read.items():
            html = _page(name, body(notebook), [("index", "index.html"), *_neighbours(name, list(read))])
            (site / f"{name}.html").write_text(html, encoding="utf-8")
        (site / "index.html").write_text(_index(read, profile, has_latents), encoding="utf-8")
        if has_latents:
            shutil.copy(latents, site / LATENTS)
        if target.exists():
            target.rename(Path(scratch) / "old")
        site.rename(target)
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


def _harmless(soup: BeautifulSoup) -> None:
    """Drop elements that run or fetch, event handlers, and addresses other than a web page's or an image's data."""
    for element in soup.find_all(FORBIDDEN):
        element.decompose()
    for element in soup.find_all(True):
        for name in list(element.attrs):
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


def _index(read: dict[str, nbformat.NotebookNode], profile: str, has_latents: bool) -> str:
    notebooks = ""
    for name, notebook in read.items():
        title, claims = _opening(notebook)
        notebooks += f'<li><a href="{name}.html">{escape(title)}</a> {escape(claims)}</li>'
    links, figure = "", None
    if "10_scorecard" in read:
        links += '<li><a href="10_scorecard.html">the scorecard: every claim of the paper with its verdict</a></li>'
        figure = BeautifulSoup(body(read["10_scorecard"]), "html.parser").find("img")
    if has_latents:
        links += f'<li><a href="{LATENTS}">latents with examples, search and sort</a></li>'
    html = f"<h1>Do SAEs help on my task?</h1><p>{PURPOSE.format(profile=escape(profile))}</p><ul>{links}</ul>"
    html += f"<h2>Notebooks</h2><ul>{notebooks}</ul>"
    html += f"<h2>Scorecard</h2>{figure}" if figure else ""
    return _page("Do SAEs help on my task?", html, [("index", None)])


def _opening(notebook: nbformat.NotebookNode) -> tuple[str, str]:
    """A notebook's title, and the line that names its claims, from its first cell."""
    lines = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "").splitlines()
    title = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "")
    return title, next((line for line in lines if line.startswith("Claim")), "")


def _page(title: str, html: str, links: list[tuple[str, Any]]) -> str:
    loader = jinja2.FileSystemLoader(ROOT / "lib" / "results" / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    highlighting = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    template = environment.get_template("report.html")
    return template.render(title=title, body=html, links=links, highlighting=highlighting)


def main() -> None:
    """Command line: ``python -m lib.results.report --profile embedded`` writes ``report/embedded``."""
    parser = argparse.ArgumentParser(prog="python -m lib.results.report", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="embedded", help="name of a profile that has been run")
    path = Path(parser.parse_args().profile)
    profile = path.stem if path.suffix in (".yaml", ".yml") else path.name
    try:
        index = build(executed(profile), ROOT / "figures" / profile / LATENTS, profile, ROOT / "report" / profile)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{index.relative_to(ROOT)}: open it in a browser")


if __name__ == "__main__":
    main()
