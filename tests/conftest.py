"""Public tensor arguments are checked while testing: jaxtyping with beartype on every module of lib."""

import os
import shutil
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("lib", "beartype.beartype")
# Fits of tests are small, and done before joblib's other processes have begun, each of which imports everything.
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker for each core: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from lib.model import models, weights  # noqa: E402, weights(after the hook)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Give the tests of a module to one worker, and those that read the small run of all notebooks too."""
    for item in items:
        reads_small_run = {"profile", "small_run", "beside"} & set(item.fixturenames)
        item.add_marker(pytest.mark.xdist_group("small run" if reads_small_run else item.module.__name__))


@pytest.fixture(scope="session")
def minilm():
    return models.load_model(weights.MINILM)


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory):
    """Folder of a tiny random Gemma 2 with Gemma's turn tokens and template."""
    from tests.tiny_gemma import build

    return build(tmp_path_factory.mktemp("gemma") / "tiny-gemma")


@pytest.fixture
def gemma(tiny_gemma):
    return models.load_model(str(tiny_gemma))


@pytest.fixture
def csv(tmp_path):
    """Write a CSV of text,label rows and return its path."""

    def write(rows, name="data.csv", header="text,label") -> str:
        path = Path(tmp_path / name)
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium (Debian: chromium and chromium-driver) that keeps its console's messages."""
    from selenium import webdriver

    if not shutil.which("chromedriver") and not os.environ.get("NEED_BROWSER"):
        pytest.skip("chromedriver is not installed")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'browser'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()
