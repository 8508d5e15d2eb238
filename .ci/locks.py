"""Would pip install both locks on the lowest and on the highest Python that README promises?

``python .ci/locks.py`` needs no second interpreter: pip chooses wheels for a version that it is told.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-sweep.lock", "requirements-models.lock", "requirements-tasks.lock")
VERSIONS = ("3.11.0", "3.13.0")
# These are not asked for: two exist as source archives, which pip can judge only for the Python that it runs on, and
# of torch it would download half a gigabyte (it has wheels for 3.10 to 3.14). tests/unit/test_environment.py reads what
# they require of Python from the installed ones.
NOT_ASKED = ("py2store", "torch", "transformers-stream-generator")


def pins(lock: str) -> list[str]:
    """The lines ``name==version`` of a lock."""
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if "==" in line and not line.startswith("#")]


def refusal(lock: str, version: str) -> str:
    """What pip says against a lock on a version of Python: its errors, or nothing."""
    asked = [pin for pin in pins(lock) if pin.partition("==")[0] not in NOT_ASKED]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
    command += ["--no-deps", "--only-binary", ":all:", "--python-version", version, "--target", "unused", *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def main() -> None:
    """Ask for every lock and version at once; the exit status is 1 if one is refused."""
    questions = [(lock, version) for version in VERSIONS for lock in LOCKS]
    with ThreadPoolExecutor() as pool:
        refusals = list(pool.map(lambda question: refusal(*question), questions))
    for (lock, version), said in zip(questions, refusals, strict=True):
        print(f"{lock} on Python {version}: {said or 'installs'}")
    sys.exit(1 if any(refusals) else 0)


if __name__ == "__main__":
    main()
