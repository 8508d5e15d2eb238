import pickle
import zlib

import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import LassoCV
from sklearn.model_selection import GroupKFold

from lib.interp import autointerp, examples, judges, llm, ngram
from lib.interp.examples import MAX_LEVEL, Encoded, Example, Explanation
from lib.interp.ngram import Condition, NgramJudge, Rule
from lib.model import models, weights
from lib.texts import corpora

TOPIC = (
    "array arrays matrix matrices vector vectors axis axes shape dimension dimensions dimensional "
    "element elements index row rows column columns scalar"
).split()


@pytest.fixture(scope="module")
def text(minilm, tmp_path_factory):
    """Sequences of real text: docstrings of the installed packages."""
    identity, folder = models.identity(weights.MINILM), tmp_path_factory.mktemp("tokens")
    docstrings = corpora.corpus("docstrings")
    return examples.harvest(minilm, identity, docstrings, 2, folder, max_tokens=60_000, seed=0)


def planted(rule, text):
    """Activations of a latent with a known rule at every token."""
    words = [token.strip() for token in text.tokens]
    count = np.add.reduceat([word in TOPIC for word in words], text.starts[:-1])
    rules = {
        "digits": lambda i, n: 4.0 * any(c.isdigit() for c in words[i]),
        "a word": lambda i, n: 4.0 * (words[i] == "array"),
        "after a word": lambda i, n: 4.0 * (i > 0 and words[i - 1] == "not"),
        "words of a topic": lambda i, n: (words[i] in TOPIC) * (2 + zlib.crc32(words[i].encode()) % 5),
        "text about a topic": lambda i, n: n and 1.0 + min(4, n),
    }
    return np.array([rules[rule](i, n) for i, n in enumerate(np.repeat(count, np.diff(text.starts)))], dtype=np.float32)


SHARED = NgramJudge()  # it remembers which conditions hold where, and nothing of what it was asked


def judged(text, activations, task, n_seeds=8):
    encoded = Encoded(text, scipy.sparse.csc_matrix(activations[:, None]))
    outcomes = []
    for seed in range(n_seeds):
        rng = np.random.default_rng(seed)
        drawn = examples.draw(encoded, 0, SHARED.plan, rng)
        outcomes.append(autointerp.judge_latent(SHARED, drawn, task, rng))
    return outcomes


def mean_score(outcomes):
    return np.mean([outcome.score for outcome in outcomes])


@pytest.mark.parametrize(("rule", "said"), [
    ("digits", "numbers"),
    ("a word", "array"),
    ("after a word", "after “not”"),
    ("words of a topic", "array"),
    ("text about a topic", "array"),
])
def test_a_planted_rule_is_found_and_scores_well(text, rule, said):
    outcomes = judged(text, planted(rule, text), "simulation")
    assert mean_score(outcomes) >= 0.8
    assert said in outcomes[0].explanation.text


@pytest.mark.parametrize("task", ["detection", "fuzzing"])
@pytest.mark.parametrize("rule", ["digits", "a word", "after a word", "words of a topic"])
def test_detection_and_fuzzing_find_the_planted_rule_too(text, task, rule):
    assert mean_score(judged(text, planted(rule, text), task)) >= 0.8


@pytest.mark.parametrize("task", autointerp.TASKS)
def test_shuffled_activations_score_nothing(text, task):
    activations = planted("words of a topic", text)
    outcomes = []
    for seed in range(20):
        shuffled = np.random.default_rng(seed).permutation(activations)
        outcomes += judged(text, shuffled, task, n_seeds=2)
    assert abs(mean_score(outcomes)) <= 0.1


def test_the_conditions_of_a_token_by_hand():
    conditions = ngram.conditions([" the", " matrices", " of", " 3", "d", " the"])
    everywhere = {Condition("context", "matri")}  # no stop words, no pieces of words
    assert conditions[1] == everywhere | {
        Condition("token", "matrices"),
        Condition("stem", "matri"),
        Condition("previous", "the"),
        Condition("pair", "the matrices"),
        Condition("next", "of"),
    }
    assert Condition("class", "numbers") in conditions[3] and Condition("class", "word endings") in conditions[4]
    assert conditions[0] == everywhere | {Condition("token", "the"), Condition("next", "matrices")}


def test_a_rule_is_applied_as_it_reads():
    judge = NgramJudge()
    rule = Rule(1.0, {
        Condition("token", "cat"): 4.0,
        Condition("previous", "black"): 3.0,
        Condition("token", "zebra"): 8.0,
        Condition("token", "dog"): 9.0,
    })
    tokens = [" a", " black", " cat", " saw", " a", " dog"]
    assert judge.levels(rule, tokens).tolist() == [1, 1, 8, 1, 1, MAX_LEVEL]
    explanation = Explanation(rule.text(), rule)
    assert explanation.text == "4 at “cat”; 3 after “black”; 8 at “zebra”; 9 at “dog”; 1 everywhere"
    assert judge.simulate(explanation, [tokens, [" a"]]) == [MAX_LEVEL, 1.0]
    assert judge.detect(explanation, [tokens, [" a"]]) == [True, False]
    assert judge.fuzz(explanation, [tokens, tokens], [{5}, {0}]) == [True, False]


def test_a_rule_does_not_depend_on_what_was_judged_before(text):
    columns = [planted(rule, text) for rule in ("a word", "words of a topic", "text about a topic")]
    encoded = Encoded(text, scipy.sparse.csc_matrix(np.stack(columns, axis=1)))
    drawn = [examples.draw(encoded, i, NgramJudge.plan, np.random.default_rng(i)) for i in range(3)]
    judge = NgramJudge()
    assert [judge.explain(d.explaining) for d in drawn] == [NgramJudge().explain(d.explaining) for d in drawn]
    copy = pickle.loads(pickle.dumps(NgramJudge(max_terms=3)))
    assert copy is pickle.loads(pickle.dumps(NgramJudge(max_terms=3))) and copy.max_terms == 3 != judge.max_terms


def test_examples_without_activity_or_pattern_give_no_rule():
    silent = [Example([" some", " words", " here"], np.zeros(3, dtype=int), i) for i in range(6)]
    explanation = NgramJudge().explain(silent)
    assert explanation.text == "no rule found" and explanation.rule.weights == {}
    assert NgramJudge().explain([Example([" one"], np.array([10]), 0)]).rule.weights == {}


def test_judges_are_made_by_name_and_an_unknown_one_is_named(tmp_path):
    settings = llm.Settings("m", "http://localhost:1/v1", "NO_KEY", tmp_path)
    assert [type(judges.make(name, settings)) for name in judges.JUDGES] == [NgramJudge, llm.LLMJudge]
    assert all(isinstance(judges.make(name, settings), judges.Judge) for name in judges.JUDGES)
    assert judges.make("ngram", settings).bill((1.0, 1.0)) == ""
    assert "'requests': 0" in judges.make("llm", settings).bill((1.0, 1.0))
    with pytest.raises(ValueError, match="unknown judge 'gpt'; allowed are ngram, llm"):
        judges.make("gpt", settings)


def test_the_lasso_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for n_columns in (1, 5, 40):
        matrix = (rng.random((600, n_columns)) < 0.1).astype(float)
        y, sequence = matrix[:, :3].sum(1) * 4 + rng.random(600), np.repeat(np.arange(20), 30)
        folds = list(GroupKFold(ngram.FOLDS, shuffle=True, random_state=0).split(matrix, y, sequence))
        theirs = LassoCV(positive=True, alphas=12, eps=2e-2, tol=1e-3, precompute=True, cv=folds).fit(matrix, y)
        np.testing.assert_allclose(ngram._lasso(matrix, y, sequence), theirs.coef_, atol=1e-10)


def test_sequences_together_have_the_levels_of_each():
    judge, sequences = NgramJudge(), [["a", " b", " c"], [" b"], [" c", " a", " d", " b"]]
    rule = Rule(0.5, {Condition("token", "b"): 2.0, Condition("previous", "a"): 1.5, Condition("token", "new"): 1.0})
    peaks = judge.simulate(Explanation("", rule), sequences)
    assert peaks == [judge.levels(rule, tokens).max() for tokens in sequences] == [4.0, 2.5, 2.5]
    assert judge.simulate(Explanation("", rule), []) == []
