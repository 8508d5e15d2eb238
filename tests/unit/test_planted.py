"""Recall net of placebo: by hand, in planted worlds, and how often its interval covers."""

import numpy as np
import pandas as pd
import pytest

from lib.interp import debugging, planted
from lib.interp.debugging import METHODS, Dataset, Pair
from lib.interp.readings import Peaks
from lib.stats import crossed, families
from lib.stats.verdicts import NO_DIFFERENCE, REPRODUCED, Interval, decide
from tests.unit.test_debugging import task

LATENTS, COORDINATES, *_ = METHODS


def test_a_draw_plants_the_share_of_each_class_and_the_placebo_tells_nothing():
    y = np.r_[np.ones(100, dtype=int), np.zeros(300, dtype=int)]
    in_one = planted.draw(y, 0.25, np.random.default_rng(0))
    assert len(in_one.rows) == 320 and not in_one.planted[in_one.y == 0].any()
    assert in_one.planted.sum() == round(0.25 * (in_one.y == 1).sum()) and np.array_equal(in_one.y, y[in_one.rows])
    in_both = planted.draw(y, 0.25, np.random.default_rng(0), (0, 1))
    assert np.array_equal(in_both.rows, in_one.rows)
    for label in (0, 1):
        assert in_both.planted[in_both.y == label].mean() == pytest.approx(0.25, abs=0.01)
    with pytest.raises(ValueError, match="share 1.5 must lie"):
        planted.draw(y, 1.5, np.random.default_rng(0))


def test_ranks_of_the_unit_that_fires_on_the_artefact():
    pair, y = task(120)
    ranks = planted.benchmark(pair, y, [1.0], [0])
    assert len(ranks) == 2 * 4
    of_units = ranks[ranks["method"] == COORDINATES].set_index("control")["rank"]
    assert (of_units["planted"] == 1).all() and not (of_units["placebo"] == 1).any()
    medians = planted.median_ranks(ranks.assign(artefact="please"), 1.0)
    assert medians.columns.tolist() == list(METHODS) and medians.loc["please", COORDINATES] == 1
    with pytest.raises(ValueError, match="unknown method 'x'; allowed are SAE latents, residual coordinates"):
        debugging.exposing(pair, "x", Dataset(np.arange(120), y, y == 1))


def by_hand():
    """Two artefacts, two draws, two shares: a is exposed, b in draw 1 at share 1 only; in the placebo b at share 1."""
    rows = []
    for share in (0.5, 1.0):
        for seed in (0, 1):
            for artefact in ("a", "b"):
                is_b_at_1 = artefact == "b" and share == 1.0
                is_exposed = artefact == "a" or (is_b_at_1 and seed == 1)
                rows.append(("planted", share, seed, artefact, 1.0 if is_exposed else np.nan))
                rows.append(("placebo", share, seed, artefact, 3.0 if is_b_at_1 else np.nan))
    return pd.DataFrame(rows, columns=["control", "share", "seed", "artefact", "rank"]).assign(method="m")


def test_recall_and_what_is_net_of_placebo_by_hand():
    ranks = by_hand()
    draws = planted.recall_draws(ranks, 0)
    value = draws.table().set_index(["control", "share"])["value"]
    assert value["planted"].to_dict() == pytest.approx({0.5: 0.5, 1.0: 0.75, "all": 0.625})
    net = planted.over_artefacts(planted.net(draws), ranks).set_index("share")
    assert net["value"].to_dict() == pytest.approx({0.5: 0.5, 1.0: 0.25, "all": 0.375})
    assert (net["n"] == 2).all()
    assert net.loc["all", ["low", "high"]].tolist() == [-1.0, 1.0], "two artefacts tell nothing"
    each = planted.of_artefacts(ranks).set_index(["control", "share", "artefact"])
    row = each.loc[("planted", 1.0, "b")]
    assert row["value"] == 0.5 and (row["low"], row["high"], row["n"]) == (0.0, 1.0, 2)
    assert planted.never_exposed(ranks, "m") == [] and planted.never_exposed(ranks, "another") == []
    assert planted.never_exposed(ranks[ranks["seed"] == 0], "m") == ["b"]


def seeing_latents(artefact, n=160, n_units=40):
    """Latent number ``artefact`` fires on what was planted, no coordinate does; half of the units tell the label."""
    rng = np.random.default_rng(artefact)
    y = np.arange(n) % 2
    clean = rng.random((n, n_units)).astype(np.float32) + 0.1 * y[:, None] * (np.arange(n_units) >= n_units // 2)
    seeing = clean.copy()
    seeing[:, artefact] += 3.0
    token = np.tile(2 * np.arange(n)[:, None] + 2, n_units)  # the second of two tokens, which is the changed one
    peaks = {LATENTS: (Peaks(clean, token), Peaks(seeing, token)), COORDINATES: (Peaks(clean, token),) * 2}
    return Pair(None, None, np.tile([False, True], n), peaks, (None, None)), y


def test_a_world_in_which_latents_expose_artefacts_is_called_so_and_one_in_which_units_do_not_is_not(monkeypatch):
    monkeypatch.setattr(planted, "METHODS", dict.fromkeys((LATENTS, COORDINATES)))
    parts = []
    for artefact in range(7):
        pair, y = seeing_latents(artefact)
        ranks = [planted._ranks(pair, y, [0.25, 0.5], seed) for seed in (0, 1, 2)]
        parts.append(pd.concat(ranks).assign(artefact=str(artefact)))
    ranks = pd.concat(parts)
    net = planted.net(planted.recall_draws(ranks, 0)).where(share=planted.ALL)
    rows = planted.over_artefacts(net, ranks).set_index("method")
    shown = {method: decide("above", Interval(row["low"], row["high"]), 0.1) for method, row in rows.iterrows()}
    assert shown == {LATENTS: REPRODUCED, COORDINATES: NO_DIFFERENCE}
    (ahead,) = planted.over_artefacts(net.against("method", COORDINATES), ranks).itertuples()
    assert ahead.method == LATENTS and decide("above", Interval(ahead.low, ahead.high), 0.1) == REPRODUCED


def test_intervals_over_seven_artefacts_cover_and_plain_percentiles_do_not():
    """Each artefact has its own recall, known from few draws that all share some luck."""
    rng, truth, covered = np.random.default_rng(0), 0.4, {"expanded": 0, "plain": 0}
    for _ in range(400):
        artefact, luck = rng.normal(0, 0.2, (7, 1)), rng.normal(0, 0.05, (1, 5))
        table = truth + artefact + luck + rng.normal(0, 0.1, (7, 5))
        draws = crossed.means(table[None], pd.DataFrame({"method": ["m"]}), 999, int(rng.integers(1 << 30)))
        for name, n_units in (("expanded", 7), ("plain", None)):
            (row,) = families.at_levels(draws, n_units=n_units).itertuples()
            covered[name] += row.low <= truth <= row.high
    assert 0.93 <= covered["expanded"] / 400 <= 0.99
    assert covered["plain"] < covered["expanded"]


def test_without_two_artefacts_there_is_no_interval():
    draws = crossed.means(np.ones((1, 1, 5)), pd.DataFrame({"method": ["m"]}), 10, 0)
    with pytest.raises(ValueError, match="an interval over 1 units is none"):
        families.at_levels(draws, n_units=1)
