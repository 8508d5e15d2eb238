"""Token probes: aggregations by hand, planted worlds in which one or another must win, and what is kept apart."""

import numpy as np
import pytest
import scipy.sparse
import torch

from lib.model.activations import MappedTokens, PromptTokens
from lib.probing import cascade, combined, dense, token_probes, token_training
from lib.probing.aggregations import AGGREGATIONS
from lib.probing.cascade import Cascade
from lib.probing.tasks import Task
from lib.probing.token_probes import Grid, Inputs, fit_all, fit_seeds, table_of_choices
from lib.stats.metrics import auroc, bootstrap_weights, threshold_at_fpr

QUICK = Grid(learning_rates=(1e-2, 3e-2), weight_decays=(1e-2, 1.0), epochs=12, patience=4, batch_prompts=32)


def prompt_tokens(rows: list[np.ndarray], in_turn: list[np.ndarray] | None = None, fixed: int = -1) -> PromptTokens:
    starts = torch.tensor([0, *np.cumsum([len(tokens) for tokens in rows])])
    flags = None if in_turn is None else torch.from_numpy(np.concatenate(in_turn))
    return PromptTokens(torch.from_numpy(np.concatenate(rows).astype(np.float32)), starts, fixed, flags)


def area(y: np.ndarray, scores: np.ndarray) -> float:
    return auroc(y, scores, np.ones((1, len(y))))[0]


def world(signal, n=360, d=12, longest=30, seed=0) -> tuple[Inputs, list[np.ndarray]]:
    """Prompts of noise, three variants of each base prompt, the last third not for training; ``signal`` adds labels."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n) // 3
    y = rng.integers(0, 2, n // 3)[groups]
    rows = [rng.normal(size=(rng.integers(4, longest), d)).astype(np.float32) for _ in range(n)]
    for tokens, label in zip(rows, y, strict=True):
        signal(tokens, label, rng)
    train, val = groups < n // 3 * 2 / 3, groups >= n // 3 * 2 / 3
    return Inputs(prompt_tokens(rows), Task(y, train, groups, val)), rows


def one_token(tokens, label, rng):
    tokens[rng.integers(len(tokens)), 0] += 8.0 * label


def every_token(tokens, label, rng):
    tokens[:, 0] += label - 0.5
    tokens[rng.integers(len(tokens)), 0] += rng.choice([-8.0, 8.0])  # an outlier that says nothing


def val_areas(inputs: Inputs, names, grid=QUICK, seed=0) -> dict[str, float]:
    y, val = inputs.task.y, inputs.task.val
    return {name: area(y[val], probe.scores[val]) for name, probe in fit_all(inputs, names, grid, seed).items()}


# Two prompts, of 3 tokens and of 1; the padding holds what must not be read.
SCORES = torch.tensor([[1.0, 3.0, 2.0, 50.0], [-1.0, 99.0, -99.0, 7.0]])
MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])
LN2, LN3 = np.log(2), np.log(3)


@pytest.mark.parametrize(
    ("name", "option", "expected"),
    [
        ("mean", None, [2.0, -1.0]),
        ("max", None, [3.0, -1.0]),
        ("last", None, [2.0, -1.0]),
        ("rolling mean, max", 1, [3.0, -1.0]),
        ("rolling mean, max", 2, [2.5, -1.0]),
        ("rolling mean, max", 3, [2.0, -1.0]),
        ("rolling mean, max", 9, [2.0, -1.0]),  # a window longer than the prompt
        ("EMA, max", 1.0, [3.0, -1.0]),
        ("EMA, max", 0.5, [2.0, -1.0]),  # 1, 1/2 · 3 + 1/2 · 1 = 2, 1/2 · 2 + 1/2 · 2 = 2
        ("EMA, max", 0.25, [1.625, -1.0]),  # 1, 3/4 + 3/4 = 1.5, 2/4 + 4.5/4
        ("softmax", 1e-3, [3.0, -1.0]),
        ("softmax", 1e6, [2.0, -1.0]),
        ("softmax", 1 / LN2, [(2 * 1 + 8 * 3 + 4 * 2) / 14, -1.0]),  # weights 2^s
    ],
)
def test_aggregations_of_a_score_by_hand(name, option, expected):
    pooled = AGGREGATIONS[name].pool(SCORES[..., None, None], MASK, option)
    torch.testing.assert_close(pooled[:, 0], torch.tensor(expected).float(), atol=1e-4, rtol=1e-4)
    assert not AGGREGATIONS[name].has_own_parameters and AGGREGATIONS[name].projections(option) == 1


def test_attention_by_hand():
    """Queries 0, ln 2, ln 3 weigh the values by 1, 2, 3 of 6; two heads are added."""
    queries = torch.tensor([[0.0, LN2, LN3, 9.0], [5.0, 9.0, 9.0, 9.0]]).float()
    projected = torch.stack([SCORES, queries], dim=-1)[:, :, None]
    one = AGGREGATIONS["attention"].pool(projected, MASK, 1)
    torch.testing.assert_close(one[:, 0], torch.tensor([(1 + 6 + 6) / 6, -1.0]))
    twice = torch.stack([SCORES, 10 * SCORES, queries, 0 * queries], dim=-1)[:, :, None]
    two = AGGREGATIONS["attention"].pool(twice, MASK, 2)
    torch.testing.assert_close(two[:, 0], torch.tensor([(1 + 6 + 6) / 6 + 20, -1.0 - 10]))
    assert AGGREGATIONS["attention"].has_own_parameters and AGGREGATIONS["attention"].projections(3) == 6


def test_multimax_by_hand():
    projected = torch.stack([SCORES, -SCORES], dim=-1)[:, :, None]
    pooled = AGGREGATIONS["MultiMax"].pool(projected, MASK, 2)
    torch.testing.assert_close(pooled[:, 0], torch.tensor([3.0 - 1.0, -1.0 + 1.0]))
    assert AGGREGATIONS["MultiMax"].has_own_parameters and AGGREGATIONS["MultiMax"].projections(3) == 3


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_padding_and_other_settings_change_nothing(name):
    """Neither the pooled score nor its gradient depends on what stands in padding, or on how much there is of it."""
    entry = AGGREGATIONS[name]
    for option in entry.values:
        generator = torch.Generator().manual_seed(0)
        projected = torch.randn(2, 4, 3, entry.projections(option), generator=generator).requires_grad_()
        alone = entry.pool(projected, MASK, option)
        alone.sum().backward()
        assert (projected.grad[~MASK] == 0).all() and (projected.grad[MASK] != 0).any()
        wide = torch.full((2, 9, 3, entry.projections(option)), 77.0)
        wide[:, :4] = torch.where(MASK[..., None, None], projected.detach(), -55.0)
        wide_mask = torch.nn.functional.pad(MASK, (0, 5))
        torch.testing.assert_close(entry.pool(wide, wide_mask, option), alone.detach())
        torch.testing.assert_close(entry.pool(wide[:, :, 1:2], wide_mask, option), alone[:, 1:2].detach())


def test_one_token_prompts_have_that_token_s_score():
    projected = torch.randn(5, 1, 2, 1, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(5, 1, dtype=torch.bool)
    for name, entry in AGGREGATIONS.items():
        if not entry.has_own_parameters:
            for option in entry.values:
                torch.testing.assert_close(entry.pool(projected, mask, option), projected[:, 0, :, 0], msg=name)


def test_adamw_is_torch_s_with_a_rate_for_each_row():
    generator = torch.Generator().manual_seed(0)
    start, target = (torch.randn(3, 4, generator=generator) for _ in range(2))
    rates, decays = torch.tensor([1e-2, 1e-1, 1e-3]), torch.tensor([0.0, 1.0, 10.0])
    ours = start.clone()
    optimizer = token_training.AdamW(ours, rates, decays)
    for _ in range(20):
        ((ours - target) ** 4).sum().backward()
        optimizer.step()
    for row in range(3):
        theirs = start[row].clone().requires_grad_()
        options = {"lr": rates[row].item(), "weight_decay": decays[row].item()}
        reference = torch.optim.AdamW([theirs], **options)
        for _ in range(20):
            reference.zero_grad()
            ((theirs - target[row]) ** 4).sum().backward()
            reference.step()
        torch.testing.assert_close(ours[row], theirs)


def test_settings_side_by_side_are_each_as_if_alone():
    inputs, _ = world(one_token, n=90)
    everyone = np.arange(90)
    standardiser = token_training.Standardiser.of(inputs.tokens, everyone)
    data = list(token_training.batches(inputs.tokens, everyone, standardiser, 32))
    together = Grid(options={"attention": (2,)}).blocks(["max", "attention", "MultiMax"])
    *_, bank = token_training.train(together, data, inputs.task.y, 3, seed=0)
    places = [(block.name, setting) for block in together for setting in block.settings]
    for i in (1, 6, 11):
        name, setting = places[i]
        *_, alone = token_training.train((token_training.Block(name, (setting,)),), data, inputs.task.y, 3, seed=0)
        for ours, theirs in zip(bank.probe(i), alone.probe(0), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_where_one_token_carries_the_signal_max_and_attention_beat_the_mean():
    inputs, _ = world(one_token)
    areas = val_areas(inputs, ["mean", "max", "attention", "MultiMax", "last"])
    assert min(areas["max"], areas["attention"], areas["MultiMax"]) > max(0.95, areas["mean"] + 0.03)
    assert areas["last"] < 0.75


def test_where_all_tokens_carry_it_the_mean_wins():
    inputs, _ = world(every_token, n=540)
    areas = val_areas(inputs, ["mean", "max", "last", "rolling mean, max"])
    assert areas["mean"] > max(0.75, areas["max"] + 0.05, areas["last"] + 0.05)
    assert areas["rolling mean, max"] > areas["max"]


def test_scores_are_the_written_equation_and_those_of_all_prompts():
    inputs, rows = world(one_token, n=120)
    probe = fit_all(inputs, ["attention"], QUICK._replace(options={"attention": (2,)}), seed=0)["attention"]
    sample = np.concatenate([tokens for tokens, kept in zip(rows, inputs.task.train, strict=True) if kept])
    z = torch.from_numpy((rows[100] - sample.mean(0)) / sample.std(0))
    values, queries = (z @ probe.weights[:2].T), (z @ probe.weights[2:].T)
    by_hand = (queries.softmax(0) * values).sum() + probe.bias
    np.testing.assert_allclose(probe.scores[100], by_hand.item(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(probe.score(inputs.tokens, np.array([100, 7])), probe.scores[[100, 7]], atol=1e-5)
    assert probe.flops_per_token == 2 * 4 * 12 and len(probe.scores) == 120


def test_seeds_that_are_fitted_on_all_cores_are_each_the_plain_ones():
    inputs, _ = world(one_token, n=120)
    together = fit_seeds(inputs, iter(["max", "softmax"]), QUICK, range(2))
    assert list(together) == [0, 1]
    for seed, of_seed in together.items():
        for name, alone in fit_all(inputs, ["max", "softmax"], QUICK, seed).items():
            assert of_seed[name].setting == alone.setting
            np.testing.assert_allclose(of_seed[name].scores, alone.scores, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tokens_come_back_from_their_arrays(dtype):
    tokens = PromptTokens(torch.randn(6, 3).to(dtype), torch.tensor([0, 2, 6]), -2, torch.arange(6) > 1)
    back = MappedTokens.of(tokens).tokens()
    assert torch.equal(back.activations, tokens.activations) and back.activations.dtype == dtype
    assert torch.equal(back.starts, tokens.starts) and torch.equal(back.in_turn, tokens.in_turn) and back.fixed == -2
    assert MappedTokens.of(tokens._replace(in_turn=None)).tokens().in_turn is None


def test_equal_seeds_give_equal_scores_and_the_choice_can_be_shown():
    inputs, _ = world(one_token, n=120)
    first, again, other = (fit_all(inputs, ["max", "softmax"], QUICK, seed) for seed in (0, 0, 1))
    for name in first:
        np.testing.assert_array_equal(first[name].scores, again[name].scores)
        assert not np.array_equal(first[name].scores, other[name].scores)
    table = table_of_choices(first).set_index("aggregation")
    assert list(table.index) == ["max", "softmax"] and table.loc["softmax", "hyperparameter"] == "temperature"
    for name, probe in first.items():
        assert table.loc[name, "held_auroc"] == probe.tried["held_auroc"].max() == probe.held_auroc
        assert probe.setting.learning_rate in QUICK.learning_rates and 1 <= probe.setting.epochs <= QUICK.epochs
    assert len(first["max"].tried) == 4 and len(first["softmax"].tried) == 8


def test_nothing_but_training_prompts_decides_a_choice_or_a_weight():
    """Labels of validation permuted, and its tokens made senseless: settings and weights stay as they are."""
    inputs, _ = world(one_token, n=150)
    y, train, groups, val = inputs.task
    first = fit_all(inputs, ["max", "attention"], QUICK, seed=0)
    permuted = y.copy()
    permuted[~train] = np.random.default_rng(1).permutation(1 - y[~train])
    activations = inputs.tokens.activations.clone()
    activations[inputs.tokens.starts[np.flatnonzero(train)[-1] + 1] :] = 1e3
    changed = Inputs(inputs.tokens._replace(activations=activations), Task(permuted, train, groups, val))
    again = fit_all(changed, ["max", "attention"], QUICK, seed=0)
    for name, probe in first.items():
        assert probe.setting == again[name].setting and probe.tried.equals(again[name].tried)
        assert torch.equal(probe.weights, again[name].weights) and torch.equal(probe.bias, again[name].bias)
        np.testing.assert_array_equal(probe.scores[train], again[name].scores[train])


def test_settings_are_chosen_on_base_prompts_that_were_not_trained_on():
    """Copies with one random label would look learnable, if some of them were held out and others not."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 6)
    base = [rng.normal(size=(5, 60)) for _ in range(40)]
    tokens = prompt_tokens([base[group] for group in groups])
    y = rng.permutation([0, 1] * 20)[groups]
    train = np.ones(len(y), dtype=bool)
    grouped = fit_all(Inputs(tokens, Task(y, train, groups)), ["mean"], QUICK, seed=0)["mean"]
    leaking = fit_all(Inputs(tokens, Task(y, train, np.arange(240))), ["mean"], QUICK, seed=0)
    assert grouped.held_auroc < 0.9 < 0.99 < leaking["mean"].held_auroc
    inner, held = token_probes._split(np.arange(240), y, groups, 0.2, 0)
    assert not set(groups[inner]) & set(groups[held]) and len(np.unique(groups[held])) == 8


def test_only_the_turn_is_read_and_the_fixed_position_if_wanted():
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(6, 3)) for _ in range(2)]
    in_turn = [np.array([True, True, True, False, False, False])] * 2
    tokens = prompt_tokens(rows, in_turn, fixed=-3)
    nothing = token_training.Standardiser(torch.zeros(3), torch.ones(3))
    (batch,) = token_training.batches(tokens, np.array([1]), nothing)
    np.testing.assert_allclose(batch.z, rows[1][:3], rtol=1e-6)
    through = token_training.through_fixed(tokens)
    (batch,) = token_training.batches(through, np.array([1]), nothing)
    np.testing.assert_allclose(batch.z, rows[1][:4], rtol=1e-6)
    assert tokens.in_turn.sum() == 6 and token_training.through_fixed(prompt_tokens(rows)).in_turn is None


def test_training_prompts_of_one_token_each():
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    tokens = prompt_tokens([rng.normal(size=(1, 4)) + 3 * label for label in y])
    fitted = fit_all(Inputs(tokens, Task(y, np.arange(80) < 60, np.arange(80))), AGGREGATIONS, QUICK, seed=0)
    assert all(area(y[60:], probe.scores[60:]) > 0.95 for probe in fitted.values())


@pytest.mark.parametrize(
    ("grid", "names", "sentence"),
    [
        ({}, ["median"], "unknown aggregation 'median'; allowed are mean, max, last"),
        ({}, [], "no aggregation is given; allowed are mean, max"),
        ({"learning_rates": (0.0,)}, ["mean"], r"learning_rates \(0.0,\) must be above 0"),
        ({"weight_decays": ()}, ["mean"], r"weight_decays \(\) must be 0 or more"),
        ({"epochs": 0}, ["mean"], r"epochs \(0,\) must be 1 or more"),
        ({"held_share": 1.0}, ["mean"], r"held_share \(1.0,\) must be between 0 and 1"),
        ({"options": {"attention": (0,)}}, ["attention"], r"heads \(0,\) of 'attention' must be a whole number from 1"),
        ({"options": {"EMA, max": (1.5,)}}, ["EMA, max"], r"alpha \(1.5,\) .* must be above 0 and at most 1"),
        ({"options": {"mean": (1,)}}, ["mean"], "'mean' has no hyperparameter of its own"),
    ],
)
def test_bad_grids_are_named(grid, names, sentence):
    with pytest.raises(ValueError, match=sentence):
        Grid(**grid).blocks(names)


def test_bad_prompts_are_named():
    inputs, rows = world(one_token, n=180)
    y, train, groups, _ = inputs.task
    with pytest.raises(ValueError, match="1 base prompts in the training split are too few"):
        fit_all(inputs._replace(task=Task(y, train, np.zeros(180))), ["mean"], QUICK, 0)
    with pytest.raises(ValueError, match=r"have labels \[0\] only, and must have both"):
        fit_all(inputs._replace(task=Task(y * 0, train, groups)), ["mean"], QUICK, 0)
    outside = prompt_tokens(rows, [np.arange(len(tokens)) >= (0 if i != 2 else 99) for i, tokens in enumerate(rows)])
    with pytest.raises(ValueError, match="prompt 2 has no token in its turn"):
        fit_all(inputs._replace(tokens=outside), ["mean"], QUICK, 0)


def planted_cells(n=240, d=6):
    """Two cells with half of the signal each."""
    rng = np.random.default_rng(0)
    y, groups = np.arange(n) % 2, np.arange(n) // 2
    pooled = {(layer, "mean"): rng.normal(size=(n, d)) for layer in (1, 2)}
    for x in pooled.values():
        x[:, 0] += 1.5 * y
    return pooled, Task(y, np.arange(n) < 160, groups)


def test_several_layers_together_beat_each_and_are_one_logistic_regression():
    pooled, task = planted_cells()
    y, train, groups, _ = task
    both = combined.multi_layer(pooled, task)
    x = np.concatenate([*pooled.values()], axis=1)
    alone = dense.fit_logistic(x[train], y[train], groups[train])
    np.testing.assert_allclose(both.scores, alone.decision_function(x))
    assert both.c == dense.chosen_c(alone) in dense.C_GRID
    each = [area(y[~train], probe.scores[~train]) for probe in dense.of_cells(pooled, task).values()]
    assert area(y[~train], both.scores[~train]) > max(each)
    with pytest.raises(ValueError, match="no cell"):
        combined.multi_layer({}, task)
    with pytest.raises(ValueError, match=r"\{\"\(1, 'mean'\)\": 9\} must be the task's 240 prompts"):
        combined.multi_layer({(1, "mean"): np.zeros((9, 2))}, task)


def test_latents_beside_the_residual_stream_add_what_it_lacks():
    pooled, task = planted_cells()
    resid, latents = pooled[1, "mean"], np.maximum(pooled[2, "mean"], 0)
    y, train, *_ = task
    alone = dense.of_cells({(1, "mean"): resid}, task)[1, "mean"]
    both = combined.dense_plus_latents(resid, latents, task, (1e-2, 1.0))
    assert area(y[~train], both.scores[~train]) > area(y[~train], alone.scores[~train]) and both.c in (1e-2, 1.0)
    sparse = combined.dense_plus_latents(resid, scipy.sparse.csr_matrix(latents), task, (1e-2, 1.0))
    np.testing.assert_allclose(sparse.scores, both.scores)


# The cheap probe errs on prompts 2 (harmful, just below the threshold 0) and 3 (harmless, just above it).
LABELS = np.array([0, 0, 1, 0, 1, 1])
CASCADE = Cascade(np.array([-3.0, -2.0, -0.5, 0.6, 2.0, 4.0]), np.array([5.0, 0.0, 9.0, 1.0, 3.0, 2.0]), 0.0)


def test_a_cascade_by_hand():
    np.testing.assert_array_equal(CASCADE.unsure(1 / 3), [False, False, True, True, False, False])
    np.testing.assert_array_equal(CASCADE.scores(1 / 3), [1, 2, 4, 3, 5, 6])  # prompts 2 and 3 change places
    np.testing.assert_array_equal(CASCADE.scores(0.0), [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(CASCADE.scores(1.0), [5, 1, 6, 2, 4, 3])
    np.testing.assert_array_equal(CASCADE.unsure(0.25), [False, False, True, True, False, False])  # 1.5 rounds to 2
    rows = cascade.by_share(LABELS, CASCADE, (0.0, 1 / 3, 1.0), np.arange(6), bootstrap_weights(LABELS, 20, 0))
    value = rows.pivot(index="share_passed_on", columns="metric", values="value")
    # Of nine pairs, the cheap probe has one in the wrong order, and the expensive one two (prompt 0 above 4 and 5).
    np.testing.assert_allclose(value["auroc"], [8 / 9, 1.0, 7 / 9])
    np.testing.assert_allclose(value["recall_at_1pct_fpr"], [2 / 3, 1.0, 1 / 3])
    np.testing.assert_allclose(value["auroc_gained_by_cascade"], [0, 1 / 9, -1 / 9])
    unmeasured = cascade.unmeasured([0.0, 0.2], "nobody is asked", split="ood")
    assert unmeasured["value"].isna().all() and unmeasured["share_passed_on"].to_list() == [0.0, 0.2]
    threshold = threshold_at_fpr(CASCADE.cheap[LABELS == 0], np.ones((1, 3)))[0]
    assert threshold == 0.6 and CASCADE._replace(threshold=threshold).unsure(1 / 6).argmax() == 3


def test_bad_cascades_are_named():
    with pytest.raises(ValueError, match="share 1.5 of the prompts must be between 0 and 1"):
        CASCADE.scores(1.5)
    with pytest.raises(ValueError, match="threshold nan must be a number"):
        CASCADE._replace(threshold=float("nan")).scores(0.5)
    with pytest.raises(ValueError, match="6 cheap and 5 expensive scores must be equally many"):
        CASCADE._replace(expensive=np.zeros(5)).scores(0.5)


def test_a_refit_on_all_prompts_and_on_few_or_wrong_labels_reads_no_other_prompt():
    inputs, _ = world(every_token)
    y, val = inputs.task.y, inputs.task.val
    training = np.flatnonzero(inputs.task.train)
    fitted = [fit_all(inputs, ["mean", "max"], Grid(), seed) for seed in range(2)]
    refit = token_probes.steadiest(fitted, inputs.tokens, len(training), 0)
    assert refit.name == "mean" and refit.setting == fitted[0]["mean"].setting
    scores = refit.fit_scores(training, y[training])
    assert area(y[val], scores[val]) == pytest.approx(area(y[val], fitted[0]["mean"].scores[val]), abs=0.03)
    np.testing.assert_array_equal(scores, refit.fit_scores(training, y[training]))
    flipped = refit.fit_scores(training, 1 - y[training])
    assert area(y[val], flipped[val]) == pytest.approx(1 - area(y[val], scores[val]), abs=0.01)
    few = training[:24]
    assert 0.5 < area(y[val], refit.fit_scores(few, y[few])[val]) < area(y[val], scores[val])


def test_the_standardiser_holds_with_a_mean_far_from_zero():
    rows = [np.random.default_rng(0).normal(3000, 0.5, (500, 4)).astype(np.float32)]
    standardiser = token_training.Standardiser.of(prompt_tokens(rows), np.array([0]))
    np.testing.assert_allclose(standardiser.scale, rows[0].astype(float).std(0), rtol=1e-3)
