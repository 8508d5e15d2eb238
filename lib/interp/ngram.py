"""The offline judge: an explanation is a rule on tokens, their neighbours and the words of their sequence.

A rule is a base level and a few weighted conditions, fitted to the levels of the explaining examples,

    level(token) ≈ base + Σ weight_j · [condition j holds],   weight_j ≥ 0.

The non-negative lasso chooses the conditions, its penalty by cross-validation over whole sequences (the tokens of one
share their context), and the weights are refitted without penalty. A sequence's estimate is the largest level of its
tokens.
"""

import functools
import warnings
from typing import NamedTuple

import numpy as np
import sklearn
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.linear_model import LinearRegression, lasso_path
from sklearn.model_selection import GroupKFold

from lib.interp.examples import MAX_LEVEL, Example, Explanation, Plan

STEM = 5  # first letters that stand for the words of one family
FOLDS = 3
N_PENALTIES, LEAST_PENALTY = 12, 2e-2  # tried; the least one as a share of that which leaves no condition
LEAST_WEIGHT = 0.5  # of a condition in levels, below which a rule does without it
WORDING = {
    "token": "at “{}”",
    "stem": "at “{}…”",
    "previous": "after “{}”",
    "next": "before “{}”",
    "pair": "at the end of “{}”",
    "class": "at {}",
    "context": "in texts with “{}…”",
}


class Condition(NamedTuple):
    """A property of a token: ``kind`` is one of ``WORDING``, ``what`` the text that is compared.

    ``context`` is a stem anywhere in the sequence.
    """

    kind: str
    what: str


class Rule(NamedTuple):
    """What the n-gram judge applies: the level of any token, and what each condition adds to it."""

    base: float = 0.0
    weights: dict[Condition, float] = {}

    def text(self) -> str:
        """The rule as a sentence."""
        parts = [f"{weight:g} {WORDING[kind].format(what)}" for (kind, what), weight in self.weights.items()]
        if not parts:
            return "no rule found"
        return "; ".join(parts) + (f"; {self.base:g} everywhere" if self.base >= 0.5 else "")


def conditions(tokens: list[str]) -> list[set[Condition]]:
    """The conditions that hold at each token of a sequence."""
    words = [token.strip().lower() for token in tokens]
    context = _context(tokens, words)
    at_tokens = []
    for i, (word, token) in enumerate(zip(words, tokens, strict=True)):
        here = {Condition("token", word)} | {Condition("class", name) for name in _classes(token, word, i)}
        if len(word) >= STEM and word.isalpha():
            here.add(Condition("stem", word[:STEM]))
        if i:
            here |= {Condition("previous", words[i - 1]), Condition("pair", f"{words[i - 1]} {word}")}
        if i + 1 < len(words):
            here.add(Condition("next", words[i + 1]))
        at_tokens.append(here | context)
    return at_tokens


def _context(tokens: list[str], words: list[str]) -> set[Condition]:
    """Stems of the whole words of a sequence, without stop words; these conditions hold at every token."""
    stems = set()
    for token, word in zip(tokens, words, strict=True):
        is_whole = token.startswith(" ") and word.isalpha() and len(word) > 2
        if is_whole and word not in ENGLISH_STOP_WORDS:
            stems.add(Condition("context", word[:STEM]))
    return stems


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

    It remembers which conditions hold where, which is much of its work, and no answers. Copies sent to another process
    are one object there, so that they remember together.
    """

    workers = 1
    plan = Plan(top=16, per_quantile=16, inactive=64, shuffled=4)

    def __init__(self, max_terms: int = 20, max_candidates: int = 60):
        self.max_terms, self.max_candidates = max_terms, max_candidates
        self._number: dict[Condition, int] = {}
        self._names: list[Condition] = []
        self._known: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}

    def __reduce__(self) -> tuple:
        return _of_this_process, (self.max_terms, self.max_candidates)

    def bill(self, prices: tuple[float, float]) -> str:
        """See ``Judge``: it costs nothing."""
        return ""

    def explain(self, examples: list[Example]) -> Explanation:
        """See ``Judge``."""
        y = np.concatenate([example.levels for example in examples]).astype(np.float64)
        names, matrix = self._candidates(examples, y)
        weights = np.zeros(len(names))
        if len(names):
            sequence = np.repeat(np.arange(len(examples)), [len(example.tokens) for example in examples])
            coefficients = _lasso(matrix, y, sequence)
            kept = np.argsort(-coefficients, kind="stable")[: self.max_terms]
            kept = kept[coefficients[kept] > 0]
            if len(kept):
                weights[kept] = LinearRegression(positive=True).fit(matrix[:, kept], y).coef_
        chosen = [i for i in np.argsort(-weights, kind="stable") if weights[i] >= LEAST_WEIGHT]
        base = max(0.0, float((y - matrix[:, chosen] @ weights[chosen]).mean()))
        rule = Rule(round(base, 1), {names[i]: round(float(weights[i]), 1) for i in chosen})
        return Explanation(rule.text(), rule)

    def _candidates(self, examples: list[Example], y: np.ndarray) -> tuple[list[Condition], np.ndarray]:
        """The conditions that alone explain most of the levels' variance, and where they hold (tokens, conditions)."""
        parts = [self._encoded(example.tokens) for example in examples]
        lengths = np.array([len(example.tokens) for example in examples])
        starts = np.cumsum(lengths) - lengths
        sequence = np.repeat(np.arange(len(examples)), lengths)
        token = np.concatenate([tokens + start for (tokens, _), start in zip(parts, starts, strict=True)])
        condition = np.concatenate([numbers for _, numbers in parts])

        holds = np.bincount(condition)
        with np.errstate(invalid="ignore", divide="ignore"):
            gain = (np.bincount(condition, weights=y[token]) - y.mean() * holds) / np.sqrt(holds)
        active = y[token] > 0
        pairs = np.unique(condition[active] * len(examples) + sequence[token[active]])
        support = np.bincount(pairs // len(examples), minlength=len(holds))  # activating sequences in which it holds

        best = self._best(np.flatnonzero((support > 1) & (gain > 0)), gain)
        column = np.full(len(holds), -1)
        column[best] = np.arange(len(best))
        inside = column[condition] >= 0
        matrix = np.zeros((len(y), len(best)))
        matrix[token[inside], column[condition[inside]]] = 1
        return [self._names[number] for number in best], matrix

    def _best(self, numbers: np.ndarray, gain: np.ndarray) -> list[int]:
        """The candidates of largest gain; ties go by name, as numbers depend on what was met before."""
        if len(numbers) > self.max_candidates:
            least = np.partition(gain[numbers], -self.max_candidates)[-self.max_candidates]
            numbers = numbers[gain[numbers] >= least]
        ordered = sorted(numbers.tolist(), key=lambda number: (-gain[number], self._names[number]))
        return ordered[: self.max_candidates]

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

    def levels(self, rule: Rule, tokens: list[str]) -> Float[np.ndarray, " tokens"]:
        """The rule's level of every token."""
        return self._levels(rule, [tokens])

    def _levels(self, rule: Rule, sequences: list[list[str]]) -> Float[np.ndarray, " tokens"]:
        """:meth:`levels` of sequences, one behind the other."""
        ends = np.cumsum([len(tokens) for tokens in sequences])
        parts = [self._encoded(tokens) for tokens in sequences]
        position = np.concatenate([here + start for (here, _), start in zip(parts, [0, *ends[:-1]], strict=True)])
        number, total = np.concatenate([numbers for _, numbers in parts]), np.zeros(ends[-1])
        for condition, weight in rule.weights.items():
            if condition in self._number:  # one that was never met holds nowhere
                total[position[number == self._number[condition]]] += weight
        return np.clip(rule.base + total, 0, MAX_LEVEL)

    def simulate(self, explanation: Explanation, sequences: list[list[str]]) -> list[float]:
        """See ``Judge``."""
        if not sequences:
            return []
        starts = np.cumsum([0, *map(len, sequences[:-1])])
        return np.maximum.reduceat(self._levels(explanation.rule, sequences), starts).tolist()

    def detect(self, explanation: Explanation, sequences: list[list[str]]) -> list[bool]:
        """See ``Judge``: yes where some condition holds that lifts the level by 1."""
        return [level >= explanation.rule.base + 1 for level in self.simulate(explanation, sequences)]

    def fuzz(self, explanation: Explanation, sequences: list[list[str]], marked: list[set[int]]) -> list[bool]:
        """See ``Judge``: yes where the marked tokens have a higher mean level than all tokens."""
        answers = []
        for tokens, marks in zip(sequences, marked, strict=True):
            levels = self.levels(explanation.rule, tokens)
            answers.append(bool(levels[sorted(marks)].mean() > levels.mean()))
        return answers


def _lasso(matrix: np.ndarray, y: np.ndarray, sequence: np.ndarray) -> np.ndarray:
    """Coefficients of the non-negative lasso, with the penalty that predicts sequences left out best.

    It is scikit-learn's ``LassoCV`` without its checks, which take longer than the fits of so small matrices.
    """
    n_folds = min(FOLDS, len(np.unique(sequence)))
    folds = GroupKFold(n_folds, shuffle=True, random_state=0).split(matrix, y, sequence)
    largest = np.max((matrix - matrix.mean(0)).T @ (y - y.mean())) / len(y)
    alphas = np.geomspace(largest, LEAST_PENALTY * largest, N_PENALTIES)
    errors = np.zeros(len(alphas))
    with warnings.catch_warnings(), sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        warnings.simplefilter("ignore", ConvergenceWarning)
        for fitted, tested in folds:
            weights = _path(matrix[fitted], y[fitted], alphas)
            base = y[fitted].mean() - matrix[fitted].mean(0) @ weights
            errors += ((matrix[tested] @ weights + base - y[tested, None]) ** 2).mean(0)
        return _path(matrix, y, alphas[[errors.argmin()]])[:, 0]


def _path(matrix: np.ndarray, y: np.ndarray, alphas: np.ndarray) -> Float[np.ndarray, "columns alphas"]:
    """Weights of the non-negative lasso with an intercept, for each of falling penalties."""
    x, target = np.asfortranarray(matrix - matrix.mean(0)), y - y.mean()
    products = {"precompute": x.T @ x, "Xy": x.T @ target}
    return lasso_path(x, target, alphas=alphas, **products, positive=True, tol=1e-3, check_input=False)[1]


@functools.cache
def _of_this_process(max_terms: int, max_candidates: int) -> NgramJudge:
    return NgramJudge(max_terms, max_candidates)
