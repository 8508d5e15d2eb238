import re

import numpy as np
import pytest
import scipy.sparse
import torch
from test_latents import example as small_sae

from lib.interp import examples
from lib.interp.examples import Plan, Sequences
from lib.model import models


def sequences(lengths, scoring, d_model=1):
    starts = np.cumsum([0, *lengths])
    return Sequences([f" w{i}" for i in range(starts[-1])], starts, np.array(scoring), np.zeros((starts[-1], d_model), dtype=np.float16))


def column(values):
    return scipy.sparse.csc_matrix(np.array(values, dtype=np.float32)[:, None])


def test_peaks_counts_and_levels_by_hand():
    found = sequences([3, 2, 3], [False, True, True])
    latents = column([0, 4, 1, 0, 0, 2, 0, 3.9])
    at = examples.peaks(latents, 0, found)
    assert at.sequence.tolist() == [0, 2] and at.value.tolist() == pytest.approx([4, 3.9])
    assert examples.activating_counts(latents, found).tolist() == [[1, 1]]
    one = examples.example(latents, 0, found, 2, 4.0)
    assert one.levels.tolist() == [5, 0, 10] and one.peak == 10 and one.tokens == [" w5", " w6", " w7"]
    assert examples.example(latents, 0, found, 0, 4.0).levels.tolist() == [0, 10, 3]
    assert examples.example(latents, 0, found, 1, 4.0).peak == 0


def test_counts_equal_a_dense_loop():
    rng = np.random.default_rng(0)
    found = sequences(rng.integers(1, 6, 40), rng.random(40) < 0.5)
    dense = rng.random((found.starts[-1], 15)) * (rng.random((found.starts[-1], 15)) < 0.1)
    counts = examples.activating_counts(scipy.sparse.csc_matrix(dense), found)
    active = np.add.reduceat(dense > 0, found.starts[:-1], axis=0) > 0
    for latent in range(15):
        assert counts[latent].tolist() == [(active[~found.scoring, latent]).sum(), (active[found.scoring, latent]).sum()]


def many(n=200):
    """Sequence i of two tokens peaks at i; every fifth is silent; odd ones are for scoring."""
    peak = np.where(np.arange(n) % 5 == 0, 0, np.arange(n))
    return sequences([2] * n, np.arange(n) % 2 == 1), column(np.stack([peak, peak / 2], 1).ravel())


def test_a_draw_has_top_quantile_and_silent_sequences_and_never_shares_a_side():
    found, latents = many()
    drawn = examples.draw(latents, 0, found, Plan(top=4, quantiles=4, per_quantile=2, inactive=5, scoring_per_quantile=3, scoring_inactive=6), np.random.default_rng(0))
    explaining, scoring = ([one.index for one in part] for part in drawn)
    assert not any(found.scoring[explaining]) and all(found.scoring[scoring])
    assert len(set(explaining)) == 4 + 8 + 5 and len(set(scoring)) == 12 + 6
    assert explaining[:4] == [198, 196, 194, 192]
    assert [one.peak == 0 for one in drawn.explaining] == [False] * 12 + [True] * 5
    assert [one.peak == 0 for one in drawn.scoring] == [False] * 12 + [True] * 6
    highest, lowest = (np.mean([scoring[i] for i in part]) for part in ((0, 1, 2), (9, 10, 11)))
    assert highest > 150 and lowest < 50


def test_a_latent_with_few_or_no_activating_sequences():
    found, latents = many(24)  # 9 or 10 activating ones on either side
    drawn = examples.draw(latents, 0, found, Plan(), np.random.default_rng(0))
    assert len({one.index for one in drawn.scoring if one.peak}) == 10 and sum(one.peak > 0 for one in drawn.explaining) == 9
    assert examples.draw(latents, 0, found, Plan(least=10), np.random.default_rng(0)) is None
    assert examples.draw(column(np.zeros(48)), 0, found, Plan(), np.random.default_rng(0)) is None


def test_encoding_equals_the_sae():
    sae, tokens = small_sae()
    found = Sequences(["a"] * 18, np.array([0, 18]), np.array([True]), tokens.activations.numpy())
    np.testing.assert_allclose(examples.encode(sae, found).toarray(), sae.encode(tokens.activations.float()).detach().numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="d_in 12"):
        examples.encode(sae, found._replace(activations=np.zeros((18, 5), dtype=np.float16)))


def test_harvested_sequences_keep_texts_on_one_side_and_read_as_the_texts(minilm, tmp_path):
    texts = [f"The {word} passage speaks of {word} things, again and again, in many words of {word}." * 3 for word in ("first", "second", "third", "fourth")]
    identity = models.identity(models.MINILM)
    found = examples.harvest(minilm, identity, texts, 1, tmp_path, 0, seed=0, width=16, context=32)
    assert found.activations.shape == (len(found.tokens), 384) and len(found.scoring) == len(found.starts) - 1
    sides = {side: "".join("".join(found.words(i)) for i in np.flatnonzero(found.scoring == side).tolist()) for side in (False, True)}
    for word in ("first", "second", "third", "fourth"):
        assert sum(word in text for text in sides.values()) == 1
    assert set(found.scoring) == {True, False} and np.diff(found.starts).min() >= examples.SHORTEST and np.diff(found.starts).max() == 16
    squeezed = re.sub(r"\W", "", texts[0].lower())
    assert all(re.sub(r"\W", "", "".join(found.words(i))) in squeezed for i in range(len(found.scoring)) if "first" in "".join(found.words(i)))
    with pytest.raises(ValueError, match="too few"):
        examples.harvest(minilm, identity, texts[:1], 1, tmp_path, 0, seed=0)


def test_activations_belong_to_their_tokens(minilm, tmp_path):
    text = "A sentence of twelve plain words that is read by the model."
    found = examples.harvest(minilm, models.identity(models.MINILM), [text, "Another sentence of plain words, for the other side of the split."], 1, tmp_path, 0, 0)
    own = next(i for i in range(2) if "twelve" in "".join(found.words(i)))
    ids = minilm.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        _, cache = minilm.run_with_cache(ids, names_filter=models.resid_post(1))
    expected = cache[models.resid_post(1)][0, 1:-1]
    span = slice(found.starts[own], found.starts[own + 1])
    np.testing.assert_allclose(found.activations[span], expected, atol=0.02, rtol=0.01)
