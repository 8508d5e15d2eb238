import pickle
import zlib

import numpy as np
import pytest
import scipy.sparse

from lib.interp import autointerp, examples, judges
from lib.interp.examples import LEVELS, Example
from lib.interp.judges import Condition, Explanation, NgramJudge
from lib.model import models
from lib.texts import corpora

TOPIC = ("array arrays matrix matrices vector vectors axis axes shape dimension dimensions dimensional element elements index row rows "
         "column columns scalar").split()  # fmt: skip


@pytest.fixture(scope="module")
def text(minilm, tmp_path_factory):
    """Sequences of real text: docstrings of the installed packages."""
    return examples.harvest(minilm, models.identity(models.MINILM), corpora.corpus("docstrings"), 2, tmp_path_factory.mktemp("tokens"), 60_000, seed=0)


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


def scores(text, activations, task, draws=8):
    judge, latents = SHARED, scipy.sparse.csc_matrix(activations[:, None])
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        yield autointerp.judge_latent(judge, examples.draw(latents, 0, text, judge.plan, rng), task, rng)


@pytest.mark.parametrize("rule, said", [("digits", "numbers"), ("a word", "array"), ("after a word", "after “not”"), ("words of a topic", "array"), ("text about a topic", "array")])
def test_a_planted_rule_is_found_and_scores_well(text, rule, said):
    found = list(scores(text, planted(rule, text), "simulation"))
    assert np.mean([one.score for one in found]) >= 0.8
    assert said in found[0].explanation.text


@pytest.mark.parametrize("task", ["detection", "fuzzing"])
@pytest.mark.parametrize("rule", ["digits", "a word", "after a word", "words of a topic"])
def test_detection_and_fuzzing_find_the_planted_rule_too(text, task, rule):
    assert np.mean([one.score for one in scores(text, planted(rule, text), task)]) >= 0.8


@pytest.mark.parametrize("task", judges.TASKS)
def test_shuffled_activations_score_nothing(text, task):
    activations = planted("words of a topic", text)
    found = []
    for seed in range(20):
        shuffled = np.random.default_rng(seed).permutation(activations)
        found += [one.score for one in scores(text, shuffled, task, draws=2)]
    assert abs(np.mean(found)) <= 0.1


def test_the_conditions_of_a_token_by_hand():
    found = judges.conditions([" the", " matrices", " of", " 3", "d", " the"])
    everywhere = {Condition("context", "matri")}  # no stop words, no pieces of words
    assert found[1] == everywhere | {Condition("token", "matrices"), Condition("stem", "matri"), Condition("previous", "the"),
                                     Condition("pair", "the matrices"), Condition("next", "of")}  # fmt: skip
    assert Condition("class", "numbers") in found[3] and Condition("class", "word endings") in found[4]
    assert found[0] == everywhere | {Condition("token", "the"), Condition("next", "matrices")}


def test_a_rule_is_applied_as_it_reads():
    judge = NgramJudge()
    rule = Explanation("", 1.0, {Condition("token", "cat"): 4.0, Condition("previous", "black"): 3.0, Condition("token", "zebra"): 8.0, Condition("token", "dog"): 9.0})
    tokens = [" a", " black", " cat", " saw", " a", " dog"]
    assert judge.levels(rule, tokens).tolist() == [1, 1, 8, 1, 1, LEVELS]
    assert judge.simulate(rule, [tokens, [" a"]]) == [LEVELS, 1.0]
    assert judge.detect(rule, [tokens, [" a"]]) == [True, False]
    assert judge.fuzz(rule, [tokens, tokens], [{5}, {0}]) == [True, False]


def test_a_rule_does_not_depend_on_what_was_judged_before(text):
    latents = scipy.sparse.csc_matrix(np.stack([planted(rule, text) for rule in ("a word", "words of a topic", "text about a topic")], axis=1))
    drawn = [examples.draw(latents, i, text, NgramJudge.plan, np.random.default_rng(i)) for i in range(3)]
    one = NgramJudge()
    assert [one.explain(d.explaining) for d in drawn] == [NgramJudge().explain(d.explaining) for d in drawn]
    copy = pickle.loads(pickle.dumps(NgramJudge(max_terms=3)))
    assert copy is pickle.loads(pickle.dumps(NgramJudge(max_terms=3))) and copy.max_terms == 3 != one.max_terms


def test_examples_without_activity_or_pattern_give_no_rule():
    silent = [Example([" some", " words", " here"], np.zeros(3, dtype=int), i) for i in range(6)]
    found = NgramJudge().explain(silent)
    assert found.text == "no rule found" and found.weights == {}
    assert NgramJudge().explain([Example([" one"], np.array([10]), 0)]).weights == {}


def test_an_unknown_judge_is_named():
    with pytest.raises(ValueError, match="'gpt'.*'ngram'.*'llm'"):
        judges.offline("gpt")
