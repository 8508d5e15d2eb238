"""An empty project with stub notebooks, for what runs notebooks."""

import shutil
import sys
from pathlib import Path

from lib.base.files import ROOT

HEAD = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
"""
STUB = HEAD + """
# %% [markdown]
# # {number} · stub

# %%
from lib.base import files
from lib.results import records
{extra_import}

# %% tags=["parameters"]
profile = "embedded"
layer = 3
share = 0.5

# %%
run = records.start("{name}", globals())
{body}

# %%
import pandas as pd
table = pd.DataFrame([{{"metric": "m", "value": 1.0}}])
product = run.results / "{name}.txt"
files.write_text(product, "{content}", only_if_changed=True)
records.write(run, table, table, inputs=[], outputs={{"product": product}})
"""


def project(folder: Path) -> Path:
    """A copy of lib and the Makefile with two stub notebooks: 02 reads 01, and only 02 draws."""
    shutil.copytree(ROOT / "lib", folder / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "requirements.lock", "requirements-sweep.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "data" / "prompts").mkdir(parents=True)
    (folder / ".venv").symlink_to(sys.prefix)
    profiles = folder / "notebooks" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "embedded.yaml").write_text("profile: embedded\n")
    write(folder, "01_first", "a")
    drawing = "from lib.results import figures"
    write(folder, "02_second", "b", extra_import=drawing, body='records.read(run, "01_first")')
    return folder


def write(project: Path, name: str, content: str, extra_import: str = "", body: str = "") -> None:
    """Write a stub notebook: what its product holds, what it imports and does."""
    text = STUB.format(number=name[:2], name=name, content=content, extra_import=extra_import, body=body)
    (project / "notebooks" / f"{name}.py").write_text(text)
