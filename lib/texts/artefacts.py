"""Known artefacts planted in a data set, so that a debugging method can be measured by which of them it exposes.

An artefact changes a text and leaves its meaning as it is. The characters that it changed are found by comparing the
words of both texts, so nothing about the artefact is told to what looks for it.
"""

import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lib.base.registry import lookup

WORD = re.compile(r"\w+|[^\w\s]")
BRACKETS = (
    "(for a report)",
    "(a short answer)",
    "[one page]",
    "(as a list)",
    "[in plain words]",
    "(with sources)",
    "[first draft]",
    "(no jargon)",
)
CLAUSES = (
    "and say in a few words why each part is there",
    "so that it can be read in a short break",
    "with one more remark at the end about what was left out",
    "and keep the order in which things happen",
    "while leaving room for a second version later",
    "and mention once more what matters most in it",
    "in a form that can be passed on without changes",
    "and close with what somebody could do afterwards",
    "with the parts set apart from one another",
    "and begin with what is needed before anything else",
)
TYPO_SHARE = 0.25  # of the words of four letters and more

Spans = list[tuple[int, int]]
Change = Callable[[str, np.random.Generator], str]


class Artefact(NamedTuple):
    """``clean`` is the form of every text without it, ``plant`` puts it into a clean text."""

    plant: Change
    clean: Callable[[str], str] = str


def _first(text: str, change: Callable[[str], str]) -> str:
    return change(text[:1]) + text[1:]


def _lower_first(text: str) -> str:
    """Lower-case first letter, unless the first word is an abbreviation or "I"."""
    return text if re.match(r"I\b|[A-Z]{2}", text) else _first(text, str.lower)


def _typo(word: str, rng: np.random.Generator) -> str:
    """Two neighbouring letters swapped, one left out, or one doubled; the first letter stays."""
    i = int(rng.integers(1, len(word) - 1))
    swapped = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    shortened = word[:i] + word[i + 1 :]
    doubled = word[:i] + word[i] + word[i:]
    return (swapped, shortened, doubled)[rng.integers(3)]


def _typos(text: str, rng: np.random.Generator) -> str:
    """A quarter of the longer words, at least one, get a typing error."""
    words = list(re.finditer(r"[A-Za-z]{4,}", text))
    n_typos = max(1, round(TYPO_SHARE * len(words)))
    for k in sorted(rng.permutation(len(words))[:n_typos].tolist(), reverse=True):
        text = text[: words[k].start()] + _typo(words[k][0], rng) + text[words[k].end() :]
    return text


ARTEFACTS = {
    "question mark": Artefact(lambda text, rng: f"{text}?"),
    "trailing bracket": Artefact(lambda text, rng: f"{text} {rng.choice(BRACKETS)}"),
    "capital first letter": Artefact(lambda text, rng: _first(text, str.upper), lambda text: _first(text, str.lower)),
    "politeness word": Artefact(lambda text, rng: f"Please {_lower_first(text)}"),
    "typos": Artefact(_typos),
    "length": Artefact(lambda text, rng: " ".join([text, *rng.choice(CLAUSES, size=2, replace=False)])),
    "rare topic word": Artefact(lambda text, rng: f"{text} for a pottery class"),
}


def changed(clean: str, text: str) -> Spans:
    """Characters of ``text`` in words and marks that ``clean`` lacks, by the longest common run of words (difflib)."""
    words = list(WORD.finditer(text))
    matcher = difflib.SequenceMatcher(None, WORD.findall(clean), [match[0] for match in words], autojunk=False)
    blocks = [(first, last) for tag, _, _, first, last in matcher.get_opcodes() if tag in ("insert", "replace")]
    return [(words[first].start(), words[last - 1].end()) for first, last in blocks]


def plant(name: str, texts: list[str], seed: int) -> tuple[list[str], list[str]]:
    """The clean and the planted form of every text.

    Raises:
        ValueError: unknown artefact.
    """
    artefact, rng = lookup(ARTEFACTS, "artefact", name), np.random.default_rng(seed)
    clean = [artefact.clean(text) for text in texts]
    return clean, [artefact.plant(text, rng) for text in clean]
