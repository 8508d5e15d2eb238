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

MATH = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)([^$]+?)(?<!\s)\$", re.DOTALL)
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
        found = [folder / f"{name}.ipynb" for name in names if (folder / f"{name}.ipynb").exists()]
        if found:
            return found
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
        names = list(read)
        for place, (name, notebook) in enumerate(read.items()):
            around = [(f"← {names[place - 1]}", f"{names[place - 1]}.html")] if place else []
            around += [(f"{names[place + 1]} →", f"{names[place + 1]}.html")] if place + 1 < len(names) else []
            (site / f"{name}.html").write_text(_page(name, body(notebook), [("index", "index.html"), *around]), encoding="utf-8")
        (site / "index.html").write_text(_index(read, profile, has_latents), encoding="utf-8")
        if has_latents:
            shutil.copy(latents, site / LATENTS)
        if target.exists():
            target.rename(Path(scratch) / "old")
        site.rename(target)
    return target / "index.html"


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
    """Drop elements that run or fetch, event handlers, and addresses that are neither a web page's nor an image's data."""
    for element in soup.find_all(FORBIDDEN):
        element.decompose()
    for element in soup.find_all(True):
        for name in list(element.attrs):
            value = str(element[name]).strip().lower()
            address = name in ("href", "src", "srcset", "action", "formaction", "xlink:href", "data", "poster", "background")
            if name.startswith("on") or (address and not value.startswith(("#", "data:image/", "https://", "http://"))):
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
        for found in MATH.finditer(text):
            block, inline = found.groups()
            html += str(escape(text[last : found.start()])) + _mathml(block or inline, block is not None, found[0])
            last = found.end()
        text.replace_with(BeautifulSoup(html + str(escape(text[last:])), "html.parser"))


def _mathml(latex: str, block: bool, original: str) -> str:
    try:
        return convert(latex.strip(), display="block" if block else "inline")
    except Exception:  # the converter has no common error; the source is readable too
        return str(escape(original))


def _index(read: dict[str, nbformat.NotebookNode], profile: str, has_latents: bool) -> str:
    figure = BeautifulSoup(body(read["10_scorecard"]), "html.parser").find("img") if "10_scorecard" in read else None
    rows = []
    for name, notebook in read.items():
        title, claims = _opening(notebook)
        rows.append(f'<li><a href="{name}.html">{escape(title)}</a> {escape(claims)}</li>')
    extra = [("10_scorecard", "the scorecard: every claim of the paper with its verdict")] if "10_scorecard" in read else []
    extra += [(Path(LATENTS).stem, "latents with examples, search and sort")] if has_latents else []
    links = "".join(f'<li><a href="{name}.html">{text}</a></li>' for name, text in extra)
    text = (
        "<h1>Do SAEs help on my task?</h1><p>A companion to <em>Negative Results for Sparse Autoencoders On Downstream Tasks</em> "
        f"(Google DeepMind, 2025), profile <strong>{escape(profile)}</strong>. The data hold harmful requests, one sentence each, "
        f"because detecting them is the task.</p><ul>{links}</ul><h2>Notebooks</h2><ul>{''.join(rows)}</ul>"
        + (f"<h2>Scorecard</h2>{figure}" if figure else "")
    )
    return _page("Do SAEs help on my task?", text, [("index", None)])


def _opening(notebook: nbformat.NotebookNode) -> tuple[str, str]:
    """A notebook's title, and the line that names its claims, from its first cell."""
    lines = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "").splitlines()
    title = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "")
    return title, next((line for line in lines if line.startswith("Claim")), "")


def _page(title: str, html: str, links: list[tuple[str, Any]]) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(ROOT / "lib" / "results" / "templates"), autoescape=True, undefined=jinja2.StrictUndefined)
    highlighting = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    return environment.get_template("report.html").render(title=title, body=html, links=links, highlighting=highlighting)


def main() -> None:
    """Command line: ``python -m lib.results.report --profile embedded`` writes ``report/embedded``."""
    parser = argparse.ArgumentParser(prog="python -m lib.results.report", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="embedded", help="name of a profile that has been run")
    profile = Path(parser.parse_args().profile).stem
    try:
        index = build(executed(profile), ROOT / "figures" / profile / LATENTS, profile, ROOT / "report" / profile)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{index.relative_to(ROOT)}: open it in a browser")


if __name__ == "__main__":
    main()
