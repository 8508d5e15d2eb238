"""The Pythons that README promises, the locks, and what make says about another Python; without a network."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from lib.base.files import ROOT
from lib.model import weights

PROMISED = ("3.11.0", "3.12.0", "3.13.0")


def pins(lock):
    """Versions by name."""
    lines = (ROOT / lock).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


LOCK, SWEEP = pins("requirements.lock"), pins("requirements-sweep.lock")
MODELS = pins("requirements-models.lock")
PINNED = {canonicalize_name(name): version for name, version in (SWEEP | LOCK).items()}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", [*LOCK, *SWEEP])
def test_a_pin_is_installed_and_takes_every_promised_python(name):
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        assert name in SWEEP, "make env"
        pytest.skip("an extra of the sweeps")
    assert Version(distribution.version).public == Version(PINNED[canonicalize_name(name)]).public, "make env"
    takes = SpecifierSet(distribution.metadata["Requires-Python"] or "")
    refused = [version for version in PROMISED if version not in takes]
    assert not refused, f"{name} {distribution.version} wants Python {takes}"


@pytest.mark.parametrize("version", PROMISED)
def test_the_locks_are_whole_on_every_promised_python(version):
    """What each pin requires there is pinned too, in a version that it accepts."""
    environment = {"python_version": version.rpartition(".")[0], "python_full_version": version, "extra": ""}
    missing = []
    for name in LOCK:
        for requirement in map(Requirement, metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate(environment):
                pinned = PINNED.get(canonicalize_name(requirement.name))
                if pinned is None or not requirement.specifier.contains(pinned, prereleases=True):
                    missing.append(f"{name} wants {requirement}, the lock has {pinned}")
    assert not missing


def test_the_project_promises_what_the_locks_hold():
    takes = SpecifierSet(PROJECT["requires-python"])
    assert all(version in takes for version in (*PROMISED, "3.11.2", "3.13.9"))
    assert "3.10.16" not in takes and "3.14.0" not in takes
    texts = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["sweep"]]
    for requirement in map(Requirement, texts):
        assert PINNED[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_packaged_models_are_those_of_the_locks():
    assert {model.package: model.version for model in weights.PACKAGED.values()}.items() <= (LOCK | MODELS).items()
    for name, version in MODELS.items():
        assert metadata.version(name) == version, "make env"


OTHERS = [((3, 10, 16), True), ((3, 11, 0), False), ((3, 13, 9), False), ((3, 14, 0), True), ((2, 7, 18), True)]


def make_env(folder, python):
    """What ``make env`` says in ``folder``, which gets the files that it reads, with a stand-in script for Python."""
    stand_in = folder / "python3"
    stand_in.write_text(f"#!/bin/sh\n{python}\n")
    stand_in.chmod(0o755)
    for name in ("pyproject.toml", *(path.name for path in ROOT.glob("requirements*.lock"))):
        (folder / name).write_text((ROOT / name).read_text())
    command = ["make", "-f", str(ROOT / "Makefile"), "env", f"PYTHON3={stand_in}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("version, refused", OTHERS)
def test_another_python_gets_one_sentence(tmp_path, version, refused):
    """A stand-in answers make's question with another version, and makes no environment."""
    code = f"import sys; sys.version_info = {version}; "
    code += "sys.argv[1:2] == ['-c'] or sys.exit('no environment is made'); exec(sys.argv[2])"
    done = make_env(tmp_path, f'exec "{sys.executable}" -c "{code}" "$@"')
    said = [line for line in done.stderr.splitlines() if not re.match(r"make(\[\d+\])?:", line)]
    number = ".".join(map(str, version))
    sentence = (
        f"error: Python 3.11, 3.12 or 3.13 is needed, this one is {number}; "
        "choose another, such as make PYTHON3=python3.12, or delete .venv if it was made with it"
    )
    assert done.returncode != 0 and said == [sentence if refused else "no environment is made"]


def test_an_environment_that_could_not_be_made_leaves_nothing_behind(tmp_path):
    """Debian's Python without python3-venv makes half of one, and says what to install."""
    half = "mkdir -p .venv/bin && touch .venv/bin/python && chmod +x .venv/bin/python"
    done = make_env(tmp_path, f'test "$1" = -c && exit 0\n{half}\necho "apt install python3-venv"\nexit 1')
    assert done.returncode != 0 and "apt install python3-venv" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_an_environment_without_pip_is_kept_and_named(tmp_path):
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").write_text('#!/bin/sh\ntest "$1" = -c && exit 0\nexit 1\n')
    (folder / "python").chmod(0o755)
    done = make_env(tmp_path, "exit 1")
    assert done.returncode != 0 and (folder / "python").exists()
    assert "error: .venv has no pip; delete it with rm -r .venv, and make builds it anew" in done.stderr


def test_tests_of_a_module_share_a_worker(request):
    """Fixtures of a module or of the session are made once for them, and their folders are removed at their end."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("no workers (make test has some)")
    assert request.node.nodeid.endswith("@test_environment"), "pytest and pytest-xdist do not go together"
