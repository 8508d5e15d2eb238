"""The loss of a k-sparse probe in parts: they add up, orders respect what needs what, planted causes get the loss."""

import numpy as np
import pandas as pd
import pytest

from lib.probing import loss_parts
from lib.probing.loss_parts import DECODER, ERROR, LATENTS, LOSS, NUMBER, PARTS, THRESHOLD, WEIGHTS, Folds, Readable
from lib.probing.stress import Contender
from lib.stats import metrics

WRAPPERS = {"train": ["plain", "known"], "val": ["plain", "known"], "ood": ["plain", "new", "other"]}
D_MODEL, D_SAE, K = 12, 40, 3
C_GRID = [1e-2, 1.0]


@pytest.fixture
def prompts():
    rows = [
        (split, transform, i % 2, f"{split} {i}")
        for split, n in (("train", 200), ("val", 60), ("ood", 200))
        for i in range(n)
        for transform in WRAPPERS[split]
    ]
    return pd.DataFrame(rows, columns=["split", "transform", "label", "base_id"])


class World:
    """Random latents of which none tells the classes apart, and a residual stream whose first coordinate does."""

    def __init__(self, prompts, rng):
        self.rng, n = rng, len(prompts)
        self.is_ood = (prompts["split"] == "ood").to_numpy()
        self.wrapper = prompts["transform"].to_numpy()
        self.y = prompts["label"].to_numpy()
        self.concept = self.y + 0.3 * rng.standard_normal(n)
        self.latents = np.abs(rng.standard_normal((n, D_SAE))) * (rng.random((n, D_SAE)) < 0.5)
        self.resid = rng.standard_normal((n, D_MODEL))
        self.resid[:, 0] = 3 * self.concept
        self.reconstruction = self.resid.copy()

    def readable(self):
        x = [part.astype(np.float32) for part in (self.latents, self.reconstruction, self.resid)]
        return Readable(x[0], K, "standardised gap", *x[1:])


def threshold_only(world):
    """The concept's latent is as good as ever within a wrapper, and lies elsewhere in each; its row is what the
    dictionary reconstructs."""
    shift = 4.0 * (world.wrapper == "new") + 8.0 * (world.wrapper == "other")
    world.latents[:, 0] = 2 * world.concept + 10 - shift
    world.reconstruction[:, 0] = 1.5 * world.latents[:, 0]


def silent_only(world):
    """The latents that fire for one class fall silent OOD, where others fire that never did before."""
    fires = np.where(world.y == 1, 2 + world.concept, 0)
    world.latents[:, 0] = np.where(world.is_ood, 0, fires)
    world.latents[:, 1:3] = np.where(world.is_ood, fires, 0)[:, None]


def missing_only(world):
    """In distribution a latent tells the classes apart by something that is gone OOD; the concept is in the error."""
    gone = np.where(world.is_ood, world.rng.random(len(world.y)) < 0.5, world.y == 1)
    world.latents[:, 0] = gone + 0.1 * np.abs(world.rng.standard_normal(len(gone)))
    world.reconstruction[:, 0] = 0


PLANTED = {THRESHOLD: threshold_only, LATENTS: silent_only, ERROR: missing_only}


def parts_of(prompts, world, replicates=20):
    weights = {"ood": metrics.split_weights(prompts, replicates, 0)["ood"]}
    dense = Contender(world.readable().resid, c=1.0)
    return loss_parts.taken_apart(prompts, {"SAE": world.readable()}, dense, weights, C_GRID, 0)


@pytest.mark.parametrize("cause", PLANTED)
def test_the_loss_is_given_to_the_planted_cause(prompts, cause):
    for seed in range(10):
        world = World(prompts, np.random.default_rng(seed))
        PLANTED[cause](world)
        parts = parts_of(prompts, world).table().set_index("part")["value"]
        assert parts[LOSS] > 0.1 and parts[cause] >= 0.9 * parts[LOSS], (seed, parts)
        assert parts.drop([LOSS, cause]).abs().max() <= 0.25 * parts[LOSS], "the rest is noise of refitting"


def test_parts_add_up_in_every_replicate_for_every_dictionary(prompts):
    worlds = [World(prompts, np.random.default_rng(seed)) for seed in range(2)]
    silent_only(worlds[0])
    weights = {"ood": metrics.split_weights(prompts, 50, 0)["ood"]}
    dense = Contender(worlds[0].readable().resid, c=1.0)
    readable = {str(i): world.readable() for i, world in enumerate(worlds)}
    drawn = loss_parts.taken_apart(prompts, readable, dense, weights, C_GRID, 0)
    for variant in readable:
        of_one = drawn.where(variant=variant)
        loss = of_one.where(part=LOSS).values
        assert np.abs(of_one.without(part=LOSS).values.sum(0) - loss).max() < 1e-9
    fitted = loss_parts.draws(prompts, readable, dense, weights, C_GRID, 0)
    start = fitted.where(repairs=frozenset())
    by_hand = start.where(variant=None).values - start.where(variant="0").values
    assert np.array_equal(drawn.where(variant="0", part=LOSS).values, by_hand), "the probes of notebook 05"


def test_the_mean_over_base_saes_has_their_spread_and_other_dictionaries_stay():
    parts = (WEIGHTS, ERROR, LOSS)
    planted = {"SAE": (0.1, 0.2, 0.3), "SAE, base 1": (0.2, 0.2, 0.4), "SAE, base 2": (0.3, 0.2, 0.5)}
    planted["other"] = (0.0, 0.1, 0.1)
    rows = [{"variant": name, "part": part, "split": "ood"} for name in planted for part in parts]
    values = np.repeat(np.concatenate(list(planted.values()))[:, None], 1000, axis=1)
    drawn = loss_parts.Draws(pd.DataFrame(rows, dtype=object), values)
    table = loss_parts.over_bases(drawn, "SAE", {"SAE, base 1": 1, "SAE, base 2": 2}, 0).estimates()
    table = table.set_index(["variant", "part"])
    assert list(dict.fromkeys(table.index.get_level_values("variant"))) == ["SAE", "other"]
    assert table.loc["SAE", "value"].tolist() == pytest.approx([0.2, 0.2, 0.4])
    for column in ("value", "low", "high"):
        assert table.loc["other", column].tolist() == pytest.approx([0.0, 0.1, 0.1])
    of_seeds = metrics.t_interval(np.array([0.1, 0.2, 0.3]))
    assert table.loc[("SAE", WEIGHTS), "high"] == pytest.approx(of_seeds.high, abs=0.01)
    assert table.loc[("SAE", ERROR), ["low", "high"]].tolist() == pytest.approx([0.2, 0.2])


def test_what_a_part_has_beyond_a_control():
    rows = [{"variant": name, "part": part, "split": "ood"} for name in ("SAE", "control") for part in (WEIGHTS, LOSS)]
    values = np.array([[0.3, 0.4], [0.5, 0.6], [0.1, 0.3], [0.2, 0.2]])
    drawn = loss_parts.Draws(pd.DataFrame(rows, dtype=object), values)
    beyond = loss_parts.beyond(drawn, "SAE", "control")
    assert beyond.dimensions["part"].tolist() == [WEIGHTS, LOSS]
    np.testing.assert_allclose(beyond.values, [[0.2, 0.1], [0.3, 0.4]])
    assert loss_parts.beyond(drawn, "SAE", "none").table().empty


def test_a_part_is_the_mean_gain_over_the_orders():
    none, threshold, weights = frozenset(), frozenset({THRESHOLD}), frozenset({WEIGHTS})
    areas = {none: 0.5, threshold: 0.7, weights: 0.6, threshold | weights: 0.75}
    values = {made: np.array([area]) for made, area in areas.items()}
    gains = loss_parts._gains(values, (THRESHOLD, WEIGHTS))
    assert gains[THRESHOLD] == pytest.approx((0.2 + 0.15) / 2) and gains[WEIGHTS] == pytest.approx((0.05 + 0.1) / 2)


def test_no_repair_comes_before_one_that_it_needs():
    every = loss_parts.orders()
    assert len(every) == 6 and all(sorted(order) == sorted(PARTS) for order in every)
    for order in every:
        place = {part: order.index(part) for part in PARTS}
        assert place[WEIGHTS] < place[LATENTS] < place[NUMBER] < min(place[DECODER], place[ERROR])
        assert place[THRESHOLD] < place[NUMBER]
    assert len({order.index(THRESHOLD) for order in every}) == 3


def test_folds_keep_base_prompts_together_and_have_every_wrapper(prompts):
    parts = Folds.of(prompts, "ood", 0).parts
    assert sorted(np.concatenate([tested for _, tested in parts])) == np.flatnonzero(prompts["split"] == "ood").tolist()
    for fitted, tested in parts:
        assert not set(prompts["base_id"][fitted]) & set(prompts["base_id"][tested])
        assert set(prompts["transform"][tested]) == set(WRAPPERS["ood"])
    few = prompts[(prompts["split"] != "ood") | prompts["base_id"].isin(["ood 0", "ood 1", "ood 2"])]
    with pytest.raises(ValueError, match="5 folds need as many base prompts of either class; split ood has 1"):
        Folds.of(few.reset_index(drop=True), "ood", 0)


def test_a_wrapper_of_one_class_shares_the_threshold_of_plain_prompts(prompts):
    prompts.loc[prompts["transform"] == "other", "label"] = 0
    folds = Folds.of(prompts, "ood", 0)
    number = dict(zip(prompts["transform"], folds.wrapper))
    assert number["new"] != number["other"] == number["plain"]
    scores = prompts["label"] + 5.0 * (prompts["transform"] == "new") + 3.0 * (prompts["transform"] == "other")
    shifted = folds.shifted(scores.to_numpy())
    rows = (prompts["split"] == "ood").to_numpy()
    means = pd.Series(shifted[rows]).groupby([prompts["transform"][rows].to_numpy(), folds.y[rows]]).mean()
    assert means["new"].tolist() == pytest.approx([-0.5, 0.5])
    middle = (1 + 2) / 2  # of the plain prompts' positives at 1, and of the negatives: a third at 0, the others at 3
    assert means["plain"].tolist() == pytest.approx([-middle, 1 - middle], abs=0.1)
    assert means["other"].tolist() == pytest.approx([3 - middle], abs=0.1)
