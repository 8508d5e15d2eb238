"""The commands ``make probe`` and ``make score``: a profile's probe as a folder, and texts scored with it."""

import contextlib
import sys
from collections.abc import Mapping

import torch

from lib.base.files import ROOT, cause, relative, replacing, run_dir, typed_path
from lib.probing import portable, refit, scoring
from lib.results import records
from lib.texts import labelled


def write(profile: str, variables: Mapping[str, str]) -> None:
    """Write the best dense probe of a profile's run as the folder ``TO``, by default ``data/runs/<profile>/probe``.

    Raises:
        ValueError: see :func:`lib.probing.refit.best` and :func:`lib.probing.portable.save`.
    """
    base = run_dir(profile)
    run = records.Run("probe", profile, {}, base, base / "results", ROOT / "figures" / profile, 0.0)
    folder = portable.save(refit.best(run), typed_path(variables.get("TO") or base / "probe"))
    print(f"the probe is in {relative(folder)}; its README.md says what it is and what it must not be used for")


def score(profile: str, variables: Mapping[str, str]) -> None:
    """Score the texts of the file ``CSV``, or without one the lines of the standard input, with the probe in ``PROBE``
    (by default that of a profile), into the CSV ``TO`` or the standard output.

    ``TEXT`` names the column, ``ENCODING`` the encoding. All that is said goes to the standard error.

    Raises:
        ValueError: a file or a folder that cannot be read or written, a model that is not the probe's, or no texts.
    """
    csv, to, encoding = (variables.get(name, "") for name in ("CSV", "TO", "ENCODING"))
    if csv and not typed_path(csv).is_file():
        raise ValueError(f"there is no file {csv!r}; give CSV=file with a column of texts")
    if to and typed_path(to).is_dir():
        raise ValueError(f"{to!r} is a folder; give TO=file.csv")
    with contextlib.redirect_stdout(sys.stderr):
        probe = portable.load(typed_path(variables.get("PROBE") or run_dir(profile) / "probe"))
        texts, said = labelled.texts(typed_path(csv), variables.get("TEXT", ""), encoding) if csv else _lines(encoding)
        bridge = scoring.reader(probe, "cuda" if torch.cuda.is_available() else "cpu")
        scored = scoring.score(probe, bridge, texts)
    table = scoring.table(probe, texts, scored)
    if to:
        with replacing(typed_path(to)) as temporary:
            table.to_csv(temporary, index=False)
    else:
        table.to_csv(sys.stdout, index=False)
    warned = scoring.warnings(probe, bridge, scored)
    for sentence in (*said, scoring.summary(table), *portable.measured(probe.about), *warned):
        print(sentence, file=sys.stderr)


def _lines(encoding: str) -> tuple[list[str], list[str]]:
    """The lines of the standard input that hold something."""
    encoding = encoding or "utf-8"
    if sys.stdin.isatty():
        print("type a text a line, and Ctrl-D at the end; or give CSV=file", file=sys.stderr)
    try:
        lines = sys.stdin.buffer.read().decode(encoding).removeprefix("\ufeff").split("\n")
    except (LookupError, UnicodeError) as error:
        raise ValueError(f"the input is not {encoding} ({cause(error)}); ENCODING names another encoding") from error
    lines = [line.removesuffix("\r") for line in lines if line.strip()]
    if not lines:
        raise ValueError("the input holds no texts; give one a line, or CSV=file")
    return lines, []
