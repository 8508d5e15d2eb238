import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from lib.interp import autointerp, examples, summaries
from lib.interp.autointerp import NEVER_FIRES, TOO_FEW, Scored, Trial
from lib.interp.examples import Encoded, Explanation, Plan, Sequences
from lib.interp.judges import Judge
from lib.interp.llm import BudgetSpent
from lib.interp.ngram import NgramJudge
from lib.stats.metrics import Estimate

N, WIDTH, WORDS = 1500, 20, 40


@pytest.fixture(scope="module")
def text():
    rng = np.random.default_rng(0)
    tokens = [f" word{i}" for i in rng.integers(WORDS, size=N * WIDTH)]
    scoring = rng.permutation(N) % 2 == 1
    return Sequences(tokens, np.arange(N + 1) * WIDTH, scoring, np.zeros((N * WIDTH, 1), dtype=np.float16))


def pathological(text, n_bigrams=120, n_dense=3):
    """The paper's SAE: many latents for a pair of words each, and a few dense ones of no rule that carry everything."""
    rng = np.random.default_rng(1)
    words = np.array([int(token.strip()[4:]) for token in text.tokens])
    pairs = words[:-1] * WORDS + words[1:]
    latents = np.zeros((len(words), n_bigrams + n_dense), dtype=np.float32)
    for i, pair in enumerate(rng.choice(WORDS**2, n_bigrams, replace=False)):
        latents[1:, i] = 3.0 * (pairs == pair)
    latents[:, n_bigrams:] = rng.exponential(size=(len(words), n_dense)) * (rng.random((len(words), n_dense)) < 0.5)
    return Encoded(text, scipy.sparse.csc_matrix(latents))


def test_the_pathological_sae_scores_well_uniformly_and_badly_weighted(text):
    scored = autointerp.score_sae(NgramJudge(), pathological(text), Trial(100, seed=0))
    means = summaries.means(scored.table)
    assert means["uniform"].value > 0.7 and means["weighted"].value < 0.3
    assert means["weighted"].high < means["uniform"].low
    thirds = summaries.by_frequency(scored.table, 3)
    assert set(thirds["by"]) == {"latents", "firing mass"}
    by_mass = thirds[thirds["by"] == "firing mass"].set_index("quantile")["value"]
    assert by_mass[3] < 0.3 and thirds[thirds["by"] == "latents"]["value"].iloc[0] > 0.7


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

    def bill(self, prices):
        return ""


def one_word(text, n=12):
    """Latent i fires at word i, the last two never and once."""
    columns = [[token == f" word{i}" for token in text.tokens] for i in range(n - 2)]
    once = np.arange(len(text.tokens)) == 5
    latents = np.stack([*columns, once & False, once], axis=1).astype(np.float32)
    return Encoded(text, scipy.sparse.csc_matrix(latents))


def test_scripted_judges_are_judges():
    assert isinstance(Scripted(), Judge) and isinstance(NgramJudge(), Judge)


def test_every_latent_has_a_status_and_scores_go_to_their_latents(text):
    table = autointerp.score_sae(Scripted(), one_word(text), Trial(50, seed=0)).table.set_index("latent")
    assert table.loc[1, "score"] > 0.7 and table.drop(index=1)["score"].max() < 0.6
    assert table["status"].tolist() == ["scored"] * 10 + [NEVER_FIRES, TOO_FEW]
    covered = summaries.coverage(table.reset_index()).set_index("status")
    assert covered["latents"].to_dict() == {"scored": 10, "never fires": 1, "too few activating sequences": 1}
    assert covered["firing_mass"].sum() == pytest.approx(1)


def test_latents_that_are_not_drawn_are_reported(text):
    table = autointerp.score_sae(Scripted(), one_word(text), Trial(4, seed=0)).table
    assert (table["status"] == "scored").sum() == 4 and (table["status"] == "not drawn").sum() == 6
    assert (table["stratum"] >= 0).sum() == 10


def test_a_budget_that_is_spent_keeps_what_was_judged(text):
    partial = autointerp.score_sae(Scripted(spend=6), one_word(text), Trial(50, seed=0))
    whole = autointerp.score_sae(Scripted(), one_word(text), Trial(50, seed=0))
    assert partial.stopped == "2 of 2 requests are used" and whole.stopped == ""
    assert partial.table["status"].tolist()[:10] == ["scored"] * 6 + ["budget spent"] * 4
    np.testing.assert_array_equal(partial.table["score"][:6], whole.table["score"][:6])
    assert np.isfinite(summaries.means(partial.table)["weighted"].value)


def test_answers_that_cannot_be_read_are_counted(text):
    table = autointerp.score_sae(Scripted(unread={10**6 - 1}), one_word(text), Trial(50, seed=0)).table
    assert (table["status"] == "unparsed").sum() == 1 and table["score"].isna().sum() == 3
    marked = autointerp.score_sae(Scripted(), one_word(text), Trial(50, seed=0, task="fuzzing")).table
    assert (marked["status"] == "unparsed").sum() == 10 and (marked["explanation"].notna()).sum() == 10


def test_a_judge_that_says_yes_to_all_is_at_chance(text):
    table = autointerp.score_sae(Scripted(), one_word(text), Trial(50, seed=0, task="detection")).table
    assert table["score"].dropna().tolist() == [0.0] * 10


def test_threads_and_order_do_not_matter(text):
    threaded = Scripted()
    threaded.workers = 4
    tables = [autointerp.score_sae(judge, one_word(text), Trial(50, seed=3)).table for judge in (Scripted(), threaded)]
    assert tables[0].equals(tables[1])


def test_latents_judged_beside_the_sample_change_no_mean(text):
    judge, encoded, trial = Scripted(), one_word(text), Trial(4, seed=0)
    sample = autointerp.score_sae(judge, encoded, trial)
    extra = sample.table.index[sample.table["status"] == "not drawn"].tolist() + [10]
    more = autointerp.judge_also(judge, encoded, sample, extra, trial)
    assert (more.table["status"] == "scored").sum() == 10 and more.table.loc[10, "status"] == "never fires"
    assert (sample.table["status"] == "scored").sum() == 4


def test_spearman_by_hand_and_without_variation():
    assert autointerp.spearman([0, 5, 10], [1.0, 2.0, 9.0]) == pytest.approx(1)
    assert autointerp.spearman([0, 5, 10, 10], [3.0, 2.0, 1.0, 1.0]) == pytest.approx(-1)
    assert autointerp.spearman([0, 0, 0], [1.0, 2.0, 3.0]) == autointerp.spearman([1, 2, 3], [4.0, 4.0, 4.0]) == 0


def test_an_unknown_task_and_an_sae_that_never_fires(text):
    unknown = "unknown scoring task 'vibes'; allowed are simulation, detection, fuzzing"
    with pytest.raises(ValueError, match=unknown):
        autointerp.score_sae(Scripted(), one_word(text), Trial(50, seed=0, task="vibes"))
    with pytest.raises(ValueError, match=unknown):
        autointerp.measure("vibes")
    silent = Encoded(text, scipy.sparse.csc_matrix((len(text.tokens), 3), dtype=np.float32))
    with pytest.raises(ValueError, match="0 latents"):
        autointerp.score_sae(Scripted(), silent, Trial(50, seed=0))


def test_fuzzing_marks_active_or_silent_tokens(text):
    seen = []

    class Looking(Scripted):
        def fuzz(self, explanation, sequences, marked):
            pairs = zip(sequences, marked, strict=True)
            answers = [all(sequence[i] == " word2" for i in marks) for sequence, marks in pairs]
            seen.extend(answers)
            return answers

    drawn = examples.draw(one_word(text), 2, Plan(), np.random.default_rng(0))
    judged = autointerp.judge_latent(Looking(), drawn, "fuzzing", np.random.default_rng(0))
    assert judged.score == 1.0 and set(seen) == {True, False}


def five_latents(score):
    """An SAE of five latents, all scored, the rarest one first."""
    frequency = [0.1, 0.15, 0.2, 0.25, 0.3]
    columns = {"latent": range(5), "frequency": frequency, "stratum": 0, "status": "scored", "score": score}
    return Scored(pd.DataFrame(columns))


def test_means_and_ranking_of_saes_by_hand():
    columns = ["notebook", "variant", "sparsity", "seed"]
    of_03 = [("03", "JumpReLU", 8, 0), ("03", "topk", 8, 0), ("03", "topk", 4, 0), ("03", "topk", 8, 1)]
    saes = pd.DataFrame([*of_03, ("04", "a way", 8, 0)], columns=columns)
    scored = [five_latents(np.array([5, 4, 3, 2, 1]) * step) for step in (0.2, 0.1, 0.05, 0.02, 0.01)]
    table = summaries.means_of_saes(saes, scored)
    assert table["mean"].tolist() == ["uniform", "weighted"] * 5
    assert table["sae"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert table["value"][:2].tolist() == pytest.approx([0.6, 0.5])
    assert table["l0"].tolist() == pytest.approx([1.0] * 10)
    checks = summaries.ranking(table[table["notebook"] == "03"], scored, 0, "JumpReLU", "topk").set_index("metric")
    falls = np.array([0.2, 0.1, 0.05, 0.02]) * 4  # each fifth holds one latent
    assert checks.loc["autointerp_fall", "value"] == pytest.approx(falls.mean())
    assert checks.loc["rank_correlation", "value"] == 1
    lead = checks.loc["autointerp_lead"].set_index("mean")
    assert lead["value"].to_dict() == pytest.approx({"uniform": 0.3, "weighted": 0.25})
    assert set(lead["against"]) == {"topk"} and set(lead["variant"]) == {"JumpReLU"}


def test_saes_are_compared_at_a_seed_that_all_notebooks_have():
    rows = [("03", 0), ("03", 2), ("03", 1), ("04", None), ("04", 2), ("04", 1)]
    saes = pd.DataFrame(rows, columns=["notebook", "seed"])
    assert summaries.common_seed(saes, [2, 0, 1]) == 1 and summaries.common_seed(saes, [2]) == 2
    sentence = r"interp_seeds \[0\] must hold a seed .*: notebook 03 has \[0, 1, 2\]; notebook 04 has \[1, 2\]"
    with pytest.raises(ValueError, match=sentence):
        summaries.common_seed(saes, [0])


def test_frequency_is_compared_between_saes_of_the_same_rank_of_sparsity():
    rows = [("03", "a", 8, 0), ("03", "a", 4, 0), ("03", "b", 2, 0), ("03", "a", 2, 1), ("04", "a", 2, 0)]
    saes = pd.DataFrame(rows, columns=["notebook", "variant", "sparsity", "seed"])
    same = summaries.of_same_rank(saes, "03", seed=0)
    assert same.index.tolist() == [1, 2]  # the sparsest of each, as b has only one
    scored = [five_latents(np.array([5, 4, 3, 2, 1]) * step) for step in (0.2, 0.1, 0.05)]
    fifths = summaries.by_frequency_of_saes(same, scored)
    rarest = fifths[(fifths["by"] == "latents") & (fifths["quantile"] == 1)].set_index("sae")
    assert rarest["value"].to_dict() == pytest.approx({1: 0.5, 2: 0.25}) and rarest["variant"].tolist() == ["a", "b"]


def test_differences_are_against_the_reference_and_may_be_none():
    estimates = {"first": Estimate(0.5, 0.2, 0.8, 10, 10), "other": Estimate(0.1, -0.3, 0.5, 20, 20)}
    rows = [(variant, "uniform", *estimate) for variant, estimate in estimates.items()]
    points = pd.DataFrame(rows, columns=["variant", "mean", *Estimate._fields])
    (row,) = summaries.differences(points, "first").itertuples()
    assert (row.variant, row.against, row.mean, row.n) == ("other", "first", "uniform", 30)
    assert (row.value, row.low, row.high) == pytest.approx((-0.4, -0.9, 0.1))
    assert summaries.differences(points[:1], "first").empty


def test_coverage_over_saes_by_hand():
    counts = summaries.coverage_of_saes([five_latents(0.5), five_latents(0.5)])
    assert counts["sae"].tolist() == [0, 1] and counts["latents"].tolist() == [5, 5]
    over = summaries.coverage_over_saes(counts)
    assert over.loc[("firing_mass", "scored")].tolist() == pytest.approx([1, 1, 1])
