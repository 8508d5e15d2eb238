from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from lib.probing.directions import directions_in_dictionary, logit_parts
from lib.probing.tasks import Probe
from lib.results.probe_tables import auroc_lost, behind_dense, gaps_closed, selection_differences, way_differences
from lib.stats import draws, metrics
from lib.stats.draws import Draws


class Named(NamedTuple):
    probe: str

    def columns(self):
        return self._asdict()


def prompts(n=400):
    rng = np.random.default_rng(0)
    splits, labels = ["train"] * (n // 2) + ["ood"] * (n // 2), rng.integers(0, 2, n)
    return pd.DataFrame({"split": splits, "label": labels, "base_id": [f"b{i // 2}" for i in range(n)]})


def of_rows(rows: dict[tuple, list[float]], names: list[str]) -> Draws:
    return Draws(pd.DataFrame(list(rows), columns=names, dtype=object), np.array(list(rows.values()), dtype=float))


def of_probes(rows: dict[Probe, list[float]], split="ood") -> Draws:
    dimensions = pd.DataFrame([probe.columns() | {"split": split} for probe in rows], dtype=object)
    return Draws(dimensions, np.array(list(rows.values()), dtype=float))


def test_draws_hold_the_value_and_the_replicates():
    table = prompts()
    weights = metrics.split_weights(table, 50, 0)
    score = np.random.default_rng(1).standard_normal(400) + table["label"].to_numpy()
    drawn = Draws.of(table, {Named("a"): score}, weights)
    part = (table["split"] == "ood").to_numpy()
    y, ids = table["label"].to_numpy()[part], table["base_id"].to_numpy()[part]
    expected = metrics.estimate(y, score[part], ids, metrics.auroc, weights["ood"])
    estimate = drawn.estimates().set_index("split").loc["ood"]
    assert estimate["value"] == pytest.approx(expected.value) and estimate["low"] == pytest.approx(expected.low)
    assert drawn.where(split="ood").values.shape == (1, 51)


def test_nothing_to_draw_is_said():
    table = prompts().assign(label=1)
    with pytest.raises(ValueError, match="no split of .*train.* with both classes"):
        Draws.of(table, {Named("a"): np.zeros(400)}, metrics.split_weights(table, 5, 0))


def test_rows_are_found_by_any_dimension_and_a_null_is_a_value():
    rows = {("a", None): [0.1], ("a", 5): [0.2], ("b", 5): [0.3], ("b", 20): [0.4]}
    drawn = of_rows(rows, ["probe", "k"])
    assert drawn.where(probe="a").values.ravel().tolist() == [0.1, 0.2]
    assert drawn.where(k=None).values.ravel().tolist() == [0.1]
    assert drawn.where(k=[5, 20], probe="b").values.ravel().tolist() == [0.3, 0.4]
    assert drawn.without(k=5).values.ravel().tolist() == [0.1, 0.4]
    with pytest.raises(ValueError, match=r"no dimension \['pooling'\]; there are \['probe', 'k'\]"):
        drawn.where(pooling="max")


def test_integers_stay_integers_beside_nulls():
    estimates = of_rows({("a", None): [0.1, 0.1], ("a", 20): [0.2, 0.2]}, ["probe", "k"]).estimates()
    assert str(estimates["k"].dtype) == "Int64" and estimates["k"][1] == 20 and estimates["k"].isna()[0]
    assert '"k":null' in estimates.to_json(orient="records") and '"k":20,' in estimates.to_json(orient="records")


def test_seeds_widen_the_interval_to_students_and_leave_the_mean():
    values = np.repeat([[0.6], [0.7], [0.8]], 20_001, axis=1)

    def of(*names):
        dimensions = pd.DataFrame([(name, seed) for name in names for seed in range(3)], columns=["probe", "seed"])
        return Draws(dimensions, np.tile(values, (len(names), 1)))

    estimate = of("a").over_seeds(0).estimates().iloc[0]
    both = of("a", "b").over_seeds(0).values[:, 1:]
    assert abs(np.corrcoef(both)[0, 1]) < 0.05, "the noise of two SAEs is not shared"
    expected = metrics.t_interval(np.array([0.6, 0.7, 0.8]))
    assert estimate["value"] == pytest.approx(0.7)
    assert estimate["low"] == pytest.approx(expected.low, abs=0.02)
    assert estimate["high"] == pytest.approx(expected.high, abs=0.02)
    single = of("a").where(seed=0).over_seeds(0)
    assert np.ptp(single.values) == 0


def of_seeds(values: np.ndarray, replicates: int = 999) -> Draws:
    """A row per world (``k``), variant and seed of (worlds, variants, seeds) values; base prompts add no noise."""
    names = [(k, f"v{variant}", seed) for k, variant, seed in np.ndindex(values.shape)]
    dimensions = pd.DataFrame(names, columns=["k", "variant", "seed"], dtype=object)
    return Draws(dimensions, np.repeat(values.reshape(-1, 1), replicates + 1, axis=1))


def test_the_spread_of_a_kind_by_hand():
    apart = [{0: 0.0, 1: 1.0, 2: 2.0}, {0: 1.0, 1: 3.0, 2: 1.0}]  # residuals −1, 0, 1 and −2/3, 4/3, −2/3: orthogonal
    spread = draws.pooled_spread(apart)
    total = 2 + 24 / 9
    assert spread.deviation == pytest.approx((total / 4) ** 0.5)
    assert spread.degrees == pytest.approx(2 * total**2 / (2**2 + (24 / 9) ** 2))
    together = draws.pooled_spread([apart[0], {seed: value + 5 for seed, value in apart[0].items()}])
    assert together == pytest.approx((1.0, 2.0)), "a second group that moves with the first tells nothing new"
    lent = draws.pooled_spread([apart[0], {0: 0.4}, {}])
    assert lent == pytest.approx((1.0, 2.0)), "one seed has no spread of its own"
    assert draws.pooled_spread([{0: 0.4}, {1: 0.5}]) == (0.0, 0.0)


def test_variants_of_a_kind_lend_each_other_their_spread_and_others_do_not():
    values = np.array([[[0.5, 0.5, 0.5], [0.4, 0.5, 0.6], [0.1, 0.5, 0.9]]])
    widths = of_seeds(values).over_seeds(0, (-5.0, 5.0), apart=["v2"]).estimates().set_index("variant")
    width = widths["high"] - widths["low"]
    own = metrics.t_interval(values[0, 2])
    assert width["v0"] == pytest.approx(width["v1"]) and width["v0"] > 0
    assert width["v2"] == pytest.approx(own.high - own.low, rel=0.05)
    assert width["v1"] < 0.3 * width["v2"]


def test_one_seed_takes_the_spread_of_the_others_even_apart():
    drawn = of_seeds(np.array([[[0.4, 0.5, 0.6], [0.4, 0.0, 0.0], [0.5, 0.0, 0.0]]]))
    drawn = drawn.where(variant="v0").joined(drawn.where(variant=["v1", "v2"], seed=0))
    widths = drawn.over_seeds(0, (-5.0, 5.0), apart=["v2"]).estimates().set_index("variant")
    width = widths["high"] - widths["low"]
    student = metrics.t_interval(np.array([0.4, 0.5, 0.6]))
    assert width["v0"] == pytest.approx(student.high - student.low, rel=0.05)
    assert width["v1"] == pytest.approx(3**0.5 * width["v0"]) and width["v2"] == pytest.approx(width["v1"])
    assert widths.loc["v2", "value"] == 0.5
    alone = drawn.where(variant="v2").over_seeds(0, apart=["v2"]).estimates().iloc[0]
    assert alone["low"] == alone["high"] == 0.5, "there is nobody to take it from"


@pytest.mark.parametrize("shared", [0.0, 0.6, 1.0])
def test_intervals_over_seeds_cover_and_vary_less_than_each_row_by_itself(shared):
    """Five variants of three base seeds, whose values have the correlation ``shared``; the truth is 0."""
    rng, shape = np.random.default_rng(0), (300, 5, 3)
    values = shared**0.5 * rng.standard_normal((300, 1, 3)) + (1 - shared) ** 0.5 * rng.standard_normal(shape)
    drawn, every = of_seeds(values, 199), [f"v{i}" for i in range(5)]
    pooled, by_itself = (drawn.over_seeds(0, (-99.0, 99.0), apart).estimates() for apart in ([], every))
    assert ((pooled["low"] <= 0) & (pooled["high"] >= 0)).mean() >= 0.93
    widths = (pooled["high"] - pooled["low"], by_itself["high"] - by_itself["low"])
    varies, varied = (width.std() / width.mean() for width in widths)
    if shared == 1.0:
        assert varies == pytest.approx(varied, rel=0.05), "there is nothing to pool"
    else:
        assert varies < 0.85 * varied


def test_differences_are_paired_and_undefined_replicates_give_no_interval():
    rows = {("a", 1): [0.5, 0.4, 0.6], ("a", 2): [0.6, 0.6, 0.6]}
    rows |= {("b", 1): [0.7, 0.6, 0.8], ("b", 2): [0.5, 0.5, np.nan]}
    drawn = of_rows(rows, ["way", "k"])
    apart = drawn.against("way", "a").estimates().set_index("k")
    assert apart.loc[1, ["value", "low", "high"]].tolist() == pytest.approx([0.2, 0.2, 0.2])
    assert apart.loc[2, "value"] == pytest.approx(-0.1) and np.isnan(apart.loc[2, "low"])
    reference = drawn.where(way="b")
    np.testing.assert_allclose(drawn.behind(reference, ["k"]).values[0], [0.2, 0.2, 0.2])
    np.testing.assert_allclose(drawn.minus(reference, ["k"]).values[0], [-0.2, -0.2, -0.2])
    assert np.isnan(drawn.minus(reference.where(k=1), ["k"]).values[1]).all(), "no reference row: undefined"
    with pytest.raises(ValueError, match="2 reference rows have 1 different values"):
        drawn.minus(reference, ["way"])


def sparse(variant, seed, k=5, pooling="max", selection="s"):
    return Probe("k-sparse", pooling, variant, seed, selection, k)


DENSE = of_probes({Probe("dense", "mean", "dense"): [0.9, 0.9, 0.9]})


def test_shares_of_a_gap_by_hand():
    saes = {sparse("base", 0): [0.6, 0.5, 0.5], sparse("chat", 0): [0.75, 0.7, 0.6]}
    closed = gaps_closed(of_probes(saes), DENSE, "base", 0).iloc[0]
    assert closed["variant"] == "chat" and closed["value"] == pytest.approx(0.15 / 0.3) and closed["why"] is None
    assert [closed["low"], closed["high"]] == pytest.approx([0.25, 0.5], abs=0.01)
    behind = behind_dense(of_probes(saes), DENSE, 0).set_index("variant")["value"]
    assert behind["base"] == pytest.approx(0.3) and behind["chat"] == pytest.approx(0.15)
    linear = of_probes({Probe("reconstruction", "mean", "base"): [0.85, 0.8, 0.8]})
    assert auroc_lost(linear, DENSE.where(split="ood"), 0).estimates().iloc[0]["value"] == pytest.approx(0.05)
    with pytest.raises(ValueError, match="one row; there are 2"):
        gaps_closed(of_probes(saes), of_probes(saes), "base", 0)


def test_a_share_is_of_the_gap_of_the_same_base_saes():
    aurocs = {"base": [0.5, 0.55, 0.6], "chat": [0.6, 0.68, 0.7], "scratch": [0.52], "resampled": [0.54, 0.62]}
    saes = {sparse(name, seed): [area] * 50 for name, areas in aurocs.items() for seed, area in enumerate(areas)}
    dense = of_probes({Probe("dense", "mean", "dense"): [0.9] * 50})
    closed = gaps_closed(of_probes(saes | {sparse("stranger", 7): [0.8] * 50}), dense, "base", 0)
    value = closed.set_index("variant")["value"]
    assert value["chat"] == pytest.approx(0.11 / 0.35), "gaps of 0.4, 0.35 and 0.3"
    assert value["scratch"] == pytest.approx(0.02 / 0.4), "of the first base SAE alone"
    assert value["resampled"] == pytest.approx(0.055 / 0.375), "of the first two"
    assert len(closed) == 3, "a seed that no base SAE has is compared with none"


def test_a_gap_that_may_be_none_has_no_share_and_says_why():
    saes = {sparse("base", 0): [0.8, 0.7, 0.95], sparse("chat", 0): [0.85, 0.8, 0.9]}
    closed = gaps_closed(of_probes(saes), DENSE, "base", 0).iloc[0]
    assert np.isnan(closed["value"]) and np.isnan(closed["low"]) and closed["why"].startswith("the gap is 0.100 [-0.04")


def test_a_mean_over_k_is_over_those_that_all_have():
    rows = {
        ("a", 1): [0.2, 0.4],
        ("a", 5): [0.4, 0.4],
        ("a", 20): [0.9, 0.9],
        ("b", 1): [0.5, 0.5],
        ("b", 5): [0.7, 0.9],
    }
    mean = of_rows(rows, ["variant", "k"]).averaged("k", "mean")
    assert mean.where(variant="a", k="mean").values[0].tolist() == pytest.approx([0.3, 0.4])
    assert mean.where(variant="b").values[0].tolist() == pytest.approx([0.6, 0.7])
    both = of_rows(rows, ["variant", "k"]).joined(mean)
    assert len(both.where(variant="b").values) == 3 and both.where(k="mean").values.shape == (2, 2)


def test_differences_name_what_differs():
    rows = {sparse(variant, 0, 5, "max", selection): [0.5 + 0.1 * (variant == "chat") + 0.02 * (selection == "t")] * 2
            for variant in ("base", "chat", "other") for selection in ("s", "t")}  # fmt: skip
    by_selection = selection_differences(of_probes(rows), "s", 0)
    assert by_selection["value"].tolist() == pytest.approx([0.02] * 3) and set(by_selection["against"]) == {"s"}
    between = way_differences(of_probes(rows).where(selection="s"), "chat", ["base"], 0)
    assert between["variant"].tolist() == ["base"] and between["value"].tolist() == pytest.approx([-0.1])
    assert between["alpha"].tolist() == [0.05], "one comparison is no family"


def test_matching_pursuit_finds_the_rows_of_a_planted_direction():
    rng = np.random.default_rng(0)
    dictionary = rng.standard_normal((40, 64))
    unit = dictionary / np.linalg.norm(dictionary, axis=1, keepdims=True)
    shares = directions_in_dictionary(3 * unit[3] + 2 * unit[17], dictionary, [1, 2, 5])
    assert 0.5 < shares[0] < 0.9 and shares[1] == pytest.approx(1) and shares[2] == pytest.approx(1)


def test_the_parts_of_a_logit_add_up():
    table = prompts()
    rng = np.random.default_rng(2)
    parts = {"reconstruction": rng.standard_normal((400, 5)), "error": 0.1 * rng.standard_normal((400, 5))}
    rows = pd.DataFrame(logit_parts(np.ones(5), parts, table)).set_index(["split", "part"])["variance_share"]
    assert rows["ood", "reconstruction"] + rows["ood", "error"] == pytest.approx(1) and rows["ood", "error"] < 0.1
