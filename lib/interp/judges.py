"""What explains a latent and applies the explanation: the interface of all judges, and the offline n-gram judge.

The n-gram judge's explanation is a rule: a base level and a few weighted conditions on a token, its neighbours and the words
of its sequence, fitted to the levels of the explaining examples,

    level(token) ≈ base + Σ weight_j · [condition j holds],   weight_j ≥ 0.

The non-negative lasso chooses the conditions, its penalty by cross-validation over whole sequences (the tokens of one share
their context), and the weights are refitted without penalty. A sequence's estimate is the largest level of its tokens.
"""

import functools
import warnings
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.linear_model import LassoCV, LinearRegression
from sklearn.model_selection import GroupKFold

from lib.interp.examples import LEVELS, Example, Plan

TASKS = ("simulation", "detection", "fuzzing")
STEM = 5  # first letters that stand for the words of one family
FOLDS = 3


class Condition(NamedTuple):
    """A property of a token: ``kind`` is token, stem, previous, next, pair, class or context; ``what`` the text it compares.
    ``context`` is a stem anywhere in the sequence."""

    kind: str
    what: str


class Explanation(NamedTuple):
    """What a judge says of a latent; the n-gram judge's text is its rule, ``base`` and ``weights``."""

    text: str
    base: float = 0.0
    weights: dict[Condition, float] = {}


@runtime_checkable
class Judge(Protocol):
    """Explains a latent from examples and answers questions on sequences whose levels it does not see.

    ``workers`` is how many latents may be judged at a time, ``plan`` how many examples are wanted of each. An answer is
    None where none could be read.
    """

    workers: int
    plan: Plan

    def explain(self, examples: list[Example]) -> Explanation | None:
        """An explanation of the examples."""

    def simulate(self, explanation: Explanation, sequences: list[list[str]]) -> list[float] | None:
        """The estimated level (0 to 10) of the highest-activating token of each sequence."""

    def detect(self, explanation: Explanation, sequences: list[list[str]]) -> list[bool] | None:
        """Whether the latent is active anywhere in each sequence."""

    def fuzz(self, explanation: Explanation, sequences: list[list[str]], marked: list[set[int]]) -> list[bool] | None:
        """Whether the latent is active at the marked tokens of each sequence."""


def conditions(tokens: list[str]) -> list[set[Condition]]:
    """The conditions that hold at each token of a sequence."""
    words = [token.strip().lower() for token in tokens]
    whole = [word for word, token in zip(words, tokens, strict=True) if token.startswith(" ") and word.isalpha() and len(word) > 2]
    context = {Condition("context", word[:STEM]) for word in whole if word not in ENGLISH_STOP_WORDS}
    found = []
    for i, (word, token) in enumerate(zip(words, tokens, strict=True)):
        here = {Condition("token", word)} | {Condition("class", name) for name in _classes(token, word, i)}
        if len(word) >= STEM and word.isalpha():
            here.add(Condition("stem", word[:STEM]))
        if i:
            here |= {Condition("previous", words[i - 1]), Condition("pair", f"{words[i - 1]} {word}")}
        if i + 1 < len(words):
            here.add(Condition("next", words[i + 1]))
        found.append(here | context)
    return found


def _classes(token: str, word: str, position: int) -> list[str]:
    tests = {
        "numbers": any(c.isdigit() for c in word),
        "punctuation": bool(word) and not any(c.isalnum() for c in word),
        "capitals": token.strip()[:1].isupper(),
        "word endings": position > 0 and not token.startswith(" ") and word.isalpha(),
    }
    return [name for name, holds in tests.items() if holds]


class NgramJudge:
    """Learns a rule of at most ``max_terms`` conditions; every condition holds in two or more activating sequences.

    It remembers which conditions hold where, which is much of its work, and no answers. Copies sent to another process are
    one object there, so that they remember together.
    """

    workers = 1
    plan = Plan(top=16, per_quantile=16, inactive=64)

    def __init__(self, max_terms: int = 20, candidates: int = 60):
        self.max_terms, self.candidates = max_terms, candidates
        self._number: dict[Condition, int] = {}
        self._names: list[Condition] = []
        self._known: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}

    def __reduce__(self) -> tuple:
        return _one_of_this_process, (self.max_terms, self.candidates)

    def explain(self, examples: list[Example]) -> Explanation:
        """See ``Judge``."""
        y = np.concatenate([one.levels for one in examples]).astype(np.float64)
        names, matrix = self._candidates(examples, y)
        weights = np.zeros(len(names))
        if len(names):
            sequence = np.repeat(np.arange(len(examples)), [len(one.tokens) for one in examples])
            folds = GroupKFold(min(FOLDS, len(examples)), shuffle=True, random_state=0).split(matrix, y, sequence)
            with warnings.catch_warnings(), sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
                warnings.simplefilter("ignore", ConvergenceWarning)
                path = LassoCV(positive=True, alphas=12, eps=2e-2, tol=1e-3, precompute=True, cv=list(folds)).fit(matrix, y)
            kept = np.argsort(-path.coef_, kind="stable")[: self.max_terms]
            kept = kept[path.coef_[kept] > 0]
            if len(kept):
                weights[kept] = LinearRegression(positive=True).fit(matrix[:, kept], y).coef_
        chosen = [i for i in np.argsort(-weights, kind="stable") if weights[i] >= 0.5]
        base = max(0.0, float((y - matrix[:, chosen] @ weights[chosen]).mean()))
        rule = {names[i]: round(float(weights[i]), 1) for i in chosen}
        return Explanation(_read(round(base, 1), rule), round(base, 1), rule)

    def _candidates(self, examples: list[Example], y: np.ndarray) -> tuple[list[Condition], np.ndarray]:
        """The conditions that alone explain most of the levels' variance, and where they hold."""
        parts = [self._encoded(one.tokens) for one in examples]
        lengths = np.array([len(one.tokens) for one in examples])
        row = np.concatenate([rows + first for (rows, _), first in zip(parts, np.cumsum(lengths) - lengths, strict=True)])
        column = np.concatenate([columns for _, columns in parts])
        holds = np.bincount(column)
        with np.errstate(invalid="ignore", divide="ignore"):
            gain = (np.bincount(column, weights=y[row]) - y.mean() * holds) / np.sqrt(holds)
        active = y[row] > 0
        pairs = np.unique(column[active] * len(examples) + np.repeat(np.arange(len(examples)), lengths)[row[active]])
        support = np.bincount(pairs // len(examples), minlength=len(holds))
        good = np.flatnonzero((support > 1) & (gain > 0))
        best = self._best(good, gain)
        place = np.full(len(holds), -1)
        place[best] = np.arange(len(best))
        inside = place[column] >= 0
        matrix = np.zeros((len(y), len(best)))
        matrix[row[inside], place[column[inside]]] = 1
        return [self._names[i] for i in best], matrix

    def _best(self, numbers: np.ndarray, gain: np.ndarray) -> list[int]:
        """The candidates of largest gain; ties go by name, as numbers depend on what was met before."""
        if len(numbers) > self.candidates:
            least = np.partition(gain[numbers], -self.candidates)[-self.candidates]
            numbers = numbers[gain[numbers] >= least]
        return sorted(numbers.tolist(), key=lambda i: (-gain[i], self._names[i]))[: self.candidates]

    def _encoded(self, tokens: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Positions and numbers of the conditions that hold in a sequence; sequences are met again and again."""
        key = tuple(tokens)
        if key not in self._known:
            pairs = [(i, self._numbered(c)) for i, here in enumerate(conditions(tokens)) for c in here]
            self._known[key] = tuple(np.array(pairs, dtype=np.int64).reshape(-1, 2).T)
        return self._known[key]

    def _numbered(self, condition: Condition) -> int:
        if condition not in self._number:
            self._number[condition] = len(self._names)
            self._names.append(condition)
        return self._number[condition]

    def levels(self, explanation: Explanation, tokens: list[str]) -> np.ndarray:
        """The rule's level of every token."""
        row, column = self._encoded(tokens)
        weights = {self._number[condition]: weight for condition, weight in explanation.weights.items() if condition in self._number}
        total = np.zeros(len(tokens))
        for number, weight in weights.items():
            total[row[column == number]] += weight
        return np.clip(explanation.base + total, 0, LEVELS)

    def simulate(self, explanation: Explanation, sequences: list[list[str]]) -> list[float]:
        """See ``Judge``."""
        return [float(self.levels(explanation, tokens).max()) for tokens in sequences]

    def detect(self, explanation: Explanation, sequences: list[list[str]]) -> list[bool]:
        """See ``Judge``: yes where some condition holds that lifts the level by 1."""
        return [level >= explanation.base + 1 for level in self.simulate(explanation, sequences)]

    def fuzz(self, explanation: Explanation, sequences: list[list[str]], marked: list[set[int]]) -> list[bool]:
        """See ``Judge``: yes where the marked tokens have a higher mean level than all tokens."""
        levels = [self.levels(explanation, tokens) for tokens in sequences]
        return [bool(level[sorted(marks)].mean() > level.mean()) for level, marks in zip(levels, marked, strict=True)]


@functools.cache
def _one_of_this_process(max_terms: int, candidates: int) -> NgramJudge:
    return NgramJudge(max_terms, candidates)


def offline(name: str) -> Judge:
    """A judge that needs no server, by its name.

    Raises:
        ValueError: unknown name.
    """
    if name != "ngram":
        raise ValueError(f"unknown judge {name!r}; allowed are 'ngram' (offline) and 'llm' (a server)")
    return NgramJudge()


WORDING = {"token": "at “{}”", "stem": "at “{}…”", "previous": "after “{}”", "next": "before “{}”", "pair": "at the end of “{}”", "class": "at {}", "context": "in texts with “{}…”"}


def _read(base: float, rule: dict[Condition, float]) -> str:
    """A rule as a sentence."""
    parts = [f"{weight:g} {WORDING[condition.kind].format(condition.what)}" for condition, weight in rule.items()]
    if not parts:
        return "no rule found"
    return "; ".join(parts) + (f"; {base:g} everywhere" if base >= 0.5 else "")
