import numpy as np
import pytest
import scipy.sparse

from lib.interp import autointerp, examples
from lib.interp.autointerp import UNSCORED
from lib.interp.examples import Plan, Sequences
from lib.interp.judges import Explanation, Judge, NgramJudge
from lib.interp.llm import BudgetSpent

N, WIDTH, WORDS = 1500, 20, 40


@pytest.fixture(scope="module")
def text():
    rng = np.random.default_rng(0)
    tokens = [f" word{i}" for i in rng.integers(WORDS, size=N * WIDTH)]
    return Sequences(tokens, np.arange(N + 1) * WIDTH, rng.permutation(N) % 2 == 1, np.zeros((N * WIDTH, 1), dtype=np.float16))


def pathological(text, n_bigrams=120, n_dense=3):
    """The paper's SAE: many latents for a pair of words each, and a few dense ones, of no rule, that carry everything."""
    rng = np.random.default_rng(1)
    words = np.array([int(token.strip()[4:]) for token in text.tokens])
    pairs = words[:-1] * WORDS + words[1:]
    latents = np.zeros((len(words), n_bigrams + n_dense), dtype=np.float32)
    for i, pair in enumerate(rng.choice(WORDS**2, n_bigrams, replace=False)):
        latents[1:, i] = 3.0 * (pairs == pair)
    latents[:, n_bigrams:] = rng.exponential(size=(len(words), n_dense)) * (rng.random((len(words), n_dense)) < 0.5)
    return scipy.sparse.csc_matrix(latents)


def test_the_pathological_sae_scores_well_uniformly_and_badly_weighted(text):
    found = autointerp.score_sae(NgramJudge(), pathological(text), text, 100, seed=0)
    means = autointerp.means(found.table)
    assert means["uniform"].value > 0.7 and means["weighted"].value < 0.3
    assert means["weighted"].high < means["uniform"].low
    fifths = autointerp.by_frequency(found.table, 3)
    assert set(fifths["by"]) == {"latents", "firing mass"}
    by_mass = fifths[fifths["by"] == "firing mass"].set_index("quantile")["value"]
    assert by_mass[3] < 0.3 and fifths[fifths["by"] == "latents"]["value"].iloc[0] > 0.7


class Scripted:
    """Answers from the number of the latent that an explanation names; ``spend`` judgements are in the budget."""

    workers, plan = 1, Plan(least=3)

    def __init__(self, spend=10**6, unread=()):
        self.left, self.unread = spend, unread

    def explain(self, shown):
        if not self.left:
            raise BudgetSpent("2 of 2 requests are used")
        self.left -= 1
        return None if len(self.unread) and self.left in self.unread else Explanation(f"rule {len(shown)}")

    def simulate(self, explanation, sequences):
        return [1.0 + (" word1" in tokens) for tokens in sequences]

    def detect(self, explanation, sequences):
        return [True] * len(sequences)

    def fuzz(self, explanation, sequences, marked):
        return None


def one_word(text, n=12):
    """Latent i fires at word i, the last two never and once."""
    columns = [[token == f" word{i}" for token in text.tokens] for i in range(n - 2)]
    once = np.arange(len(text.tokens)) == 5
    return scipy.sparse.csc_matrix(np.stack([*columns, once & False, once], axis=1).astype(np.float32))


def test_scripted_judges_are_judges():
    assert isinstance(Scripted(), Judge) and isinstance(NgramJudge(), Judge)


def test_every_latent_has_a_status_and_scores_go_to_their_latents(text):
    found = autointerp.score_sae(Scripted(), one_word(text), text, 50, seed=0).table.set_index("latent")
    assert found.loc[1, "score"] > 0.7 and found.drop(index=1)["score"].max() < 0.6
    assert found["status"].tolist() == ["scored"] * 10 + [UNSCORED[0], UNSCORED[1]]
    covered = autointerp.coverage(found.reset_index()).set_index("status")
    assert covered["latents"].to_dict() == {"scored": 10, "never fires": 1, "too few activating sequences": 1}
    assert covered["firing_mass"].sum() == pytest.approx(1)


def test_latents_that_are_not_drawn_are_reported(text):
    found = autointerp.score_sae(Scripted(), one_word(text), text, 4, seed=0).table
    assert (found["status"] == "scored").sum() == 4 and (found["status"] == "not drawn").sum() == 6
    assert (found["stratum"] >= 0).sum() == 10


def test_a_budget_that_is_spent_keeps_what_was_judged(text):
    found = autointerp.score_sae(Scripted(spend=6), one_word(text), text, 50, seed=0)
    whole = autointerp.score_sae(Scripted(), one_word(text), text, 50, seed=0)
    assert found.stopped == "2 of 2 requests are used" and whole.stopped == ""
    assert found.table["status"].tolist()[:10] == ["scored"] * 6 + ["budget spent"] * 4
    np.testing.assert_array_equal(found.table["score"][:6], whole.table["score"][:6])
    assert np.isfinite(autointerp.means(found.table)["weighted"].value)


def test_answers_that_cannot_be_read_are_counted(text):
    found = autointerp.score_sae(Scripted(unread={10**6 - 1}), one_word(text), text, 50, seed=0).table
    assert (found["status"] == "unparsed").sum() == 1 and found["score"].isna().sum() == 3
    marked = autointerp.score_sae(Scripted(), one_word(text), text, 50, seed=0, task="fuzzing").table
    assert (marked["status"] == "unparsed").sum() == 10 and (marked["explanation"].notna()).sum() == 10


def test_a_judge_that_says_yes_to_all_is_at_chance(text):
    found = autointerp.score_sae(Scripted(), one_word(text), text, 50, seed=0, task="detection").table
    assert found["score"].dropna().tolist() == [0.0] * 10


def test_threads_and_order_do_not_matter(text):
    threaded = Scripted()
    threaded.workers = 4
    tables = [autointerp.score_sae(judge, one_word(text), text, 50, seed=3).table for judge in (Scripted(), threaded)]
    assert tables[0].equals(tables[1])


def test_latents_judged_beside_the_sample_change_no_mean(text):
    judge, latents = Scripted(), one_word(text)
    found = autointerp.score_sae(judge, latents, text, 4, seed=0)
    extra = found.table.index[found.table["status"] == "not drawn"].tolist() + [10]
    more = autointerp.judge_also(judge, latents, text, found, extra, seed=0)
    assert (more.table["status"] == "scored").sum() == 10 and more.table.loc[10, "status"] == "never fires"
    assert (found.table["status"] == "scored").sum() == 4


def test_spearman_by_hand_and_without_variation():
    assert autointerp.spearman([0, 5, 10], [1.0, 2.0, 9.0]) == pytest.approx(1)
    assert autointerp.spearman([0, 5, 10, 10], [3.0, 2.0, 1.0, 1.0]) == pytest.approx(-1)
    assert autointerp.spearman([0, 0, 0], [1.0, 2.0, 3.0]) == autointerp.spearman([1, 2, 3], [4.0, 4.0, 4.0]) == 0


def test_an_unknown_task_and_an_sae_that_never_fires(text):
    with pytest.raises(ValueError, match="'vibes'"):
        autointerp.score_sae(Scripted(), one_word(text), text, 50, seed=0, task="vibes")
    with pytest.raises(ValueError, match="0 latents"):
        autointerp.score_sae(Scripted(), scipy.sparse.csc_matrix((len(text.tokens), 3), dtype=np.float32), text, 50, seed=0)


def test_fuzzing_marks_active_or_silent_tokens(text):
    seen = []

    class Looking(Scripted):
        def fuzz(self, explanation, sequences, marked):
            answers = [all(sequence[i] == " word2" for i in marks) for sequence, marks in zip(sequences, marked, strict=True)]
            seen.extend(answers)
            return answers

    latents = one_word(text)[:, [2]]
    drawn = examples.draw(latents, 0, text, Plan(), np.random.default_rng(0))
    found = autointerp.judge_latent(Looking(), drawn, "fuzzing", np.random.default_rng(0))
    assert found.score == 1.0 and set(seen) == {True, False}
