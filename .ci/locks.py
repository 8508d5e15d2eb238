"""Would pip install both locks on the lowest and on the highest Python that README promises? No second interpreter is needed.

``python .ci/locks.py``: pip reads the index's metadata for each version, and downloads next to nothing.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-sweep.lock")
VERSIONS = ("3.11.0", "3.13.0")
# These have no wheel but a source archive, which pip builds for the Python that runs it; it cannot say what another one would do.
# tests/unit/test_environment.py reads what they require from what is installed.
SOURCE_ONLY = {"transformers-stream-generator"}
# A machine without a network has torch's wheel on its disk, for the Python that it has. torch 2.13.0 exists for 3.10 to 3.14.
ON_DISK = {"torch"}


def pins(lock: str) -> list[str]:
    """The lines ``name==version`` of a lock."""
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if "==" in line and not line.startswith("#")]


def refusal(lock: str, version: str) -> str:
    """What pip says against a lock on a version of Python: its errors, or nothing."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    left_out = SOURCE_ONLY | (ON_DISK if not version.startswith(f"{running}.") else set())
    asked = [pin for pin in pins(lock) if pin.partition("==")[0] not in left_out]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", version, "--target", "unused", *asked]
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
