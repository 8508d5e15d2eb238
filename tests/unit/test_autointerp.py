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
from lib.stats import populations
from lib.stats.draws import Draws

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


def means(*scored, **columns):
    """The rows of both means of SAEs without kin, by mean, with their own explanations."""
    names = [f"sae{i}" for i in range(len(scored))]
    about = {"notebook": "03", "variant": names, "sparsity": 8, "seed": 0, "folder": names} | columns
    table = summaries.means_of_saes(summaries.mean_draws(pd.DataFrame(about), list(scored), 0), list(scored))
    return table[table["score"] == "score"].set_index("mean")


def test_the_pathological_sae_scores_well_uniformly_and_badly_weighted(text):
    scored = autointerp.score_sae(NgramJudge(), pathological(text), Trial(100, seed=0))
    of_both = means(scored)
    assert of_both.loc["uniform", "value"] > 0.7 and of_both.loc["weighted", "value"] < 0.3
    assert of_both.loc["weighted", "high"] < of_both.loc["uniform", "low"]
    assert scored.table["shuffled"].notna().sum() == 100 and scored.table["shuffled"].mean() < 0.3
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
    assert np.isfinite(means(partial).loc["weighted", "value"])


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


def five_latents(score, shuffled=0.0, frequency=(0.1, 0.15, 0.2, 0.25, 0.3)):
    """An SAE of five latents, all scored, the rarest one first."""
    columns = {"latent": range(5), "frequency": frequency, "stratum": 0, "status": "scored", "score": score}
    return Scored(pd.DataFrame(columns | {"shuffled": shuffled}))


STEPS = np.array([5, 4, 3, 2, 1])


def test_means_and_falls_of_saes_by_hand():
    columns = ["notebook", "variant", "sparsity", "seed", "folder"]
    rows = [("03", "JumpReLU", 8, 0), ("03", "topk", 8, 0), ("04", "a way", 8, None)]
    saes = pd.DataFrame([(*row, f"f{i}") for i, row in enumerate(rows)], columns=columns)
    scored = [five_latents(STEPS * step, STEPS * 0.01) for step in (0.2, 0.1, 0.05)]
    table = summaries.means_of_saes(summaries.mean_draws(saes, scored, 0), scored)
    own = table[table["score"] == "score"]
    assert own["mean"].tolist() == ["uniform", "weighted"] * 3 and own["sae"].tolist() == [0, 0, 1, 1, 2, 2]
    assert own["value"].tolist() == pytest.approx([0.6, 0.5, 0.3, 0.25, 0.15, 0.125])
    assert own["low"].tolist() == pytest.approx(own["high"].tolist()), "all latents are known"
    assert own["l0"].tolist() == pytest.approx([1.0] * 6) and (own["n"] == 5).all()
    assert summaries.rank_correlation(table).loc[0, "value"] == pytest.approx(1)
    falls = summaries.falls(scored[:2], 0).table().set_index("score")["value"]  # each fifth holds one latent
    assert falls.to_dict() == pytest.approx({"score": 0.6, "shuffled": 0.04, "over_shuffled": 0.56})
    assert summaries.fall_rows(scored[:2], 0)["n"].tolist() == [4] * 3
    assert summaries.fall_rows([], 0)["value"].isna().all()


def sample_of(rng, n=400, judged=100):
    """A population of latents with frequencies over three decades, and a sample as it is drawn."""
    frequency = 10 ** rng.uniform(-4, -1, n)
    sample = populations.draw(frequency, np.ones(n, bool), judged, rng)
    return frequency, sample


def scored_sample(frequency, sample, score, shuffled=0.0):
    """The outcome of a sample: the scores of latents that were not drawn are not known."""
    table = pd.DataFrame({"latent": np.arange(len(frequency)), "frequency": frequency, "stratum": sample.stratum})
    is_drawn = np.isin(table["latent"], sample.latents)
    return Scored(table.assign(score=np.where(is_drawn, score, np.nan), shuffled=np.where(is_drawn, shuffled, np.nan)))


@pytest.mark.parametrize("restricted", [True, False])
def test_a_fall_that_a_shuffled_explanation_has_as_well_is_no_fall_over_shuffled(restricted, monkeypatch):
    """In the restricted world frequency takes as much from any explanation as from the right one."""
    monkeypatch.setattr(summaries, "REPLICATES", 999)
    covered, shown, n = 0, 0, 200
    for seed in range(n):
        rng = np.random.default_rng(seed)
        frequency, sample = sample_of(rng)
        rank = frequency.argsort().argsort() / len(frequency)
        shuffled = 0.3 - 0.3 * rank * restricted + rng.normal(0, 0.15, len(frequency))
        score = 0.8 - 0.3 * rank + rng.normal(0, 0.15, len(frequency))
        is_fifth = [rank < 0.2, rank >= 0.8]
        truth = np.subtract(*((score - shuffled)[which].mean() for which in is_fifth))
        rows = summaries.fall_rows([scored_sample(frequency, sample, score, shuffled)], seed)
        row = rows.set_index("metric").loc["autointerp_fall_over_shuffled"]
        covered += row["low"] <= truth <= row["high"]
        shown += row["low"] > 0
    assert covered / n >= 0.93
    assert shown / n < 0.1 if restricted else shown / n > 0.6


def test_kin_are_compared_latent_by_latent_which_is_more_exact():
    """A finetuned SAE whose latents each score 0.1 more: as pairs that is seen, as two samples it is not."""
    rng = np.random.default_rng(0)
    frequency, sample = sample_of(rng)
    score = rng.uniform(0, 0.9, len(frequency))
    scored = [scored_sample(frequency, sample, score + gain + rng.normal(0, 0.02, len(score))) for gain in (0, 0.1)]
    columns = {"notebook": "04", "variant": ["base", "finetuned"], "sparsity": None, "seed": 0}
    widths = {}
    for name, start in (("pairs", "b"), ("samples", None)):
        saes = pd.DataFrame(columns | {"folder": ["b", "f"], "start": [None, start]})
        assert summaries.kin(saes) == ([["b", "f"]] if start else [["b"], ["f"]])
        rows = summaries.behind(summaries.differences(summaries.mean_draws(saes, scored, 0), "finetuned", 0))
        (weighted,) = rows[rows["mean"] == "weighted"].itertuples()
        assert weighted.variant == "base" and weighted.against == "finetuned" and weighted.alpha == 0.05
        assert weighted.low < 0.1 < weighted.high and weighted.value == pytest.approx(0.1, abs=0.02)
        widths[name] = weighted.high - weighted.low
    assert widths["pairs"] < 0.25 * widths["samples"]


def test_ways_are_compared_within_a_seed_and_the_noise_of_seeds_is_in_the_interval():
    """Three base SAEs whose latents gain 0, 0.1 and 0.2 by finetuning: 0.1, and not known to be above 0."""
    rng = np.random.default_rng(0)
    scored, rows, gains = [], [], {"base": (0, 0, 0), "finetuned": (0.0, 0.1, 0.2)}
    for seed in range(3):
        frequency, sample = sample_of(rng)
        score = rng.uniform(0, 0.5, len(frequency)) + 0.1 * seed
        for variant, gain in gains.items():
            scored.append(scored_sample(frequency, sample, score + gain[seed]))
            start = None if variant == "base" else f"base {seed}"
            rows.append(("04", variant, None, seed, f"{variant} {seed}", start))
    saes = pd.DataFrame(rows, columns=["notebook", "variant", "sparsity", "seed", "folder", "start"])
    draws = summaries.mean_draws(saes, scored, 0)
    apart = summaries.differences(draws, "base", 0).set_index("mean")
    assert apart["variant"].tolist() == ["finetuned", "finetuned"]
    half = 4.302652730 * 0.1 / np.sqrt(3)  # Student's t of two degrees of freedom; all latents gain alike
    interval = apart.loc["uniform", ["value", "low", "high"]].astype(float)
    np.testing.assert_allclose(interval, [0.1, 0.1 - half, 0.1 + half], atol=0.01)
    ways = summaries.over_seeds(draws, "04", 0)
    assert len(ways) == 4 and set(ways["panel"]) == set(summaries.PANELS.values())
    of_one = summaries.differences(draws.where(seed=1), "base", 0).set_index("mean").loc["uniform"]
    assert of_one["low"] == pytest.approx(of_one["high"]) == pytest.approx(0.1)


def test_kin_are_judged_by_the_same_latents_and_each_by_its_own_population(text):
    before = one_word(text)
    columns = before.latents.toarray()
    columns[:, 0] = 0  # a latent that died
    after = Encoded(text, scipy.sparse.csc_matrix(columns))
    first, second = autointerp.score_kin(Scripted(), [before, after], Trial(6, seed=0))
    drawn = [set(scores.table.index[scores.table["status"] == "scored"]) for scores in (first, second)]
    assert drawn[1] == drawn[0] - {0} and len(drawn[0]) == 6
    assert second.table.loc[0, "status"] == NEVER_FIRES and second.table.loc[0, "stratum"] == -1
    saes = pd.DataFrame({"notebook": "04", "variant": ["a", "b"], "sparsity": None, "seed": 0, "folder": ["a", "b"]})
    whole = autointerp.score_kin(Scripted(), [before, after], Trial(50, seed=0))
    draws = summaries.mean_draws(saes.assign(start=[None, "a"]), whole, 0)
    values = draws.where(mean="uniform", score="score").table()["value"]
    assert values.tolist() == pytest.approx([scores.table["score"].mean() for scores in whole])


def curve(values, rng):
    """Draws of two architectures at two L0s each: value by variant, L0 and mean, with noise of 0.01."""
    rows = [
        {"sae": i, "variant": variant, "sparsity": round(l0), "seed": 0, "l0": l0, "mean": mean, "score": "score"}
        for i, (variant, l0, mean) in enumerate(values)
    ]
    known = np.array(list(values.values()))[:, None]
    return Draws(pd.DataFrame(rows), np.hstack([known, known + rng.normal(0, 0.01, (len(rows), 2000))]))


def test_architectures_are_compared_at_equal_l0_where_pooling_would_mislead():
    """JumpReLU gains nothing by weighting at equal L0; its SAEs are denser, where weighting costs all of them more."""
    lines = {"topk": (8.0, 32.0), "JumpReLU": (16.0, 64.0), "far": (90.0, 95.0)}
    values = {}
    for variant, l0s in lines.items():
        for l0 in l0s:
            values[variant, l0, "uniform"] = 0.5
            values[variant, l0, "weighted"] = 0.5 - 0.1 * np.log2(l0 / 8)
    matched = summaries.at_matched_l0(curve(values, np.random.default_rng(0)), "topk", 0)
    rows = summaries.weighting(matched, "JumpReLU", "topk")
    drop = rows[rows["metric"] == "autointerp_drop"].set_index(["variant", "l0"])["value"]
    assert drop.to_dict() == pytest.approx({("topk", 8): 0.0, ("topk", 32): 0.2, ("JumpReLU", 32): 0.2})
    (gained,) = rows[rows["metric"] == "autointerp_lead_gained"].itertuples()
    assert (gained.variant, gained.against, gained.l0) == ("JumpReLU", "topk", 32)
    assert gained.value == pytest.approx(0) and gained.low < 0 < gained.high and gained.high < 0.05
    said = summaries.in_words(rows, "JumpReLU", "topk")
    assert "At L0 32, JumpReLU is " in said and "compared with topk" in said
    shown = summaries.sorted_means(matched)
    assert shown["panel"].tolist() == ["L0 8"] * 2 + ["L0 32"] * 4 and set(shown["mean"]) == {"uniform", "weighted"}


def test_an_architecture_that_gains_by_weighting_is_called_so_and_one_alone_is_compared_with_none():
    values = {("topk", 16.0, "uniform"): 0.5, ("topk", 16.0, "weighted"): 0.3}
    values |= {("JumpReLU", 15.8, "uniform"): 0.45, ("JumpReLU", 15.8, "weighted"): 0.4}
    draws = curve(values, np.random.default_rng(0))
    rows = summaries.weighting(summaries.at_matched_l0(draws, "topk", 0), "JumpReLU", "topk")
    (gained,) = rows[rows["metric"] == "autointerp_lead_gained"].itertuples()
    assert gained.value == pytest.approx(0.15) and gained.low > 0.05
    lead = rows[rows["metric"] == "autointerp_lead"].set_index("mean")["value"]
    assert lead.to_dict() == pytest.approx({"uniform": -0.05, "weighted": 0.1})
    said = summaries.in_words(rows, "JumpReLU", "topk")
    assert "is behind by 0.050 [0.0" in said and "ahead by 0.100 [0.0" in said and "it gains 0.150" in said
    turned = rows.assign(value=-rows["value"], low=-rows["high"], high=-rows["low"])
    said = summaries.in_words(turned, "JumpReLU", "topk")
    assert "is ahead by 0.050 [0.0" in said and "behind by 0.100 [0.0" in said and "it loses 0.150" in said
    alone = summaries.at_matched_l0(draws.where(variant="topk"), "topk", 0)
    rows = summaries.weighting(alone, "JumpReLU", "topk")
    assert rows["metric"].tolist() == ["autointerp_drop"]
    assert "no other variant" in summaries.in_words(rows, "JumpReLU", "topk")
    saes = pd.DataFrame({"notebook": ["03"], "variant": ["JumpReLU"]})
    assert summaries.reference(saes, "03", "topk") == summaries.reference(saes, "03", "JumpReLU") == "JumpReLU"


def test_saes_are_compared_at_a_seed_that_all_notebooks_have():
    rows = [("03", 0), ("03", 2), ("03", 1), ("04", None), ("04", 2), ("04", 1)]
    saes = pd.DataFrame(rows, columns=["notebook", "seed"])
    assert summaries.common_seed(saes, [2, 0, 1]) == 1 and summaries.common_seed(saes, [2]) == 2
    sentence = r"interp_seeds \[0\] must hold a seed .*: notebook 03 has \[0, 1, 2\]; notebook 04 has \[1, 2\]"
    with pytest.raises(ValueError, match=sentence):
        summaries.common_seed(saes, [0])


def of_l0(score, l0):
    """:func:`five_latents` of an L0."""
    return five_latents(score, frequency=np.full(5, l0 / 5))


def test_frequency_is_compared_between_saes_of_the_same_rank_of_l0():
    rows = [("03", "a", 8, 0), ("03", "a", 4, 0), ("03", "b", 2, 0), ("03", "a", 2, 1), ("04", "a", 2, 0)]
    saes = pd.DataFrame(rows, columns=["notebook", "variant", "sparsity", "seed"])
    scored = [of_l0(STEPS * step, l0) for step, l0 in zip((0.2, 0.1, 0.05, 0.01, 0.01), (0.8, 0.4, 0.2, 0.2, 0.2))]
    same = summaries.of_same_rank(saes, scored, "03", seed=0)
    assert same.index.tolist() == [1, 2]  # the sparsest of each, as b has only one
    fifths = summaries.by_frequency_of_saes(same, scored)
    rarest = fifths[(fifths["by"] == "latents") & (fifths["quantile"] == 1)].set_index("sae")
    assert rarest["value"].to_dict() == pytest.approx({1: 0.5, 2: 0.25}) and rarest["variant"].tolist() == ["a", "b"]


def test_a_penalty_that_lowers_l0_does_not_turn_the_ranks_round():
    """The sparsity of gated SAEs is a coefficient: the larger it is, the fewer latents are active."""
    rows = [("topk", 16, 16.0), ("topk", 32, 32.0), ("gated", 8, 33.1), ("gated", 20, 16.2)]
    saes = pd.DataFrame([("03", *row, 0) for row in rows], columns=["notebook", "variant", "sparsity", "l0", "seed"])
    scored = [of_l0(0.5, l0) for l0 in saes.pop("l0")]
    for rank, places in {1: [0, 3], 2: [1, 2], 3: [1, 2]}.items():
        assert summaries.of_same_rank(saes, scored, "03", 0, rank).index.tolist() == places


def test_coverage_over_saes_by_hand():
    counts = summaries.coverage_of_saes([five_latents(0.5), five_latents(0.5)])
    assert counts["sae"].tolist() == [0, 1] and counts["latents"].tolist() == [5, 5]
    over = summaries.coverage_over_saes(counts)
    assert over.loc[("firing_mass", "scored")].tolist() == pytest.approx([1, 1, 1])
