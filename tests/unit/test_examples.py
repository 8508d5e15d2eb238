import re

import numpy as np
import pytest
import scipy.sparse
import torch
from test_latents import example as small_sae

from lib.interp import examples
from lib.interp.examples import Encoded, Plan, Sequences
from lib.model import models, weights


def sequences(lengths, scoring, d_model=1):
    starts = np.cumsum([0, *lengths])
    tokens = [f" w{i}" for i in range(starts[-1])]
    return Sequences(tokens, starts, np.array(scoring), np.zeros((starts[-1], d_model), dtype=np.float16))


def column(values):
    return scipy.sparse.csc_matrix(np.array(values, dtype=np.float32)[:, None])


def test_peaks_counts_and_levels_by_hand():
    encoded = Encoded(sequences([3, 2, 3], [False, True, True]), column([0, 4, 1, 0, 0, 2, 0, 3.9]))
    active = examples.activating(encoded, 0)
    assert active.sequence.tolist() == [0, 2] and active.peak.tolist() == pytest.approx([4, 3.9])
    assert examples.activating_counts(encoded).tolist() == [[1, 1]]
    first, silent, last = examples.shown(encoded, 0, [0, 1, 2], 4.0)
    assert last.levels.tolist() == [5, 0, 10] and last.peak == 10 and last.tokens == [" w5", " w6", " w7"]
    assert first.levels.tolist() == [0, 10, 3]
    assert silent.peak == 0


def test_counts_equal_a_dense_loop():
    rng = np.random.default_rng(0)
    text = sequences(rng.integers(1, 6, 40), rng.random(40) < 0.5)
    dense = rng.random((text.starts[-1], 15)) * (rng.random((text.starts[-1], 15)) < 0.1)
    counts = examples.activating_counts(Encoded(text, scipy.sparse.csc_matrix(dense)))
    active = np.add.reduceat(dense > 0, text.starts[:-1], axis=0) > 0
    for latent in range(15):
        assert counts[latent].tolist() == [active[~text.scoring, latent].sum(), active[text.scoring, latent].sum()]


def many(n=200):
    """Sequence i of two tokens peaks at i; every fifth is silent; odd ones are for scoring."""
    peak = np.where(np.arange(n) % 5 == 0, 0, np.arange(n))
    return Encoded(sequences([2] * n, np.arange(n) % 2 == 1), column(np.stack([peak, peak / 2], 1).ravel()))


def test_a_draw_has_top_quantile_and_silent_sequences_and_never_shares_a_side():
    encoded = many()
    plan = Plan(top=4, quantiles=4, per_quantile=2, inactive=5, scoring_per_quantile=3, scoring_inactive=6)
    drawn = examples.draw(encoded, 0, plan, np.random.default_rng(0))
    explaining, scoring = ([example.index for example in side] for side in drawn)
    on_scoring_side = encoded.sequences.scoring
    assert not any(on_scoring_side[explaining]) and all(on_scoring_side[scoring])
    assert len(set(explaining)) == 4 + 8 + 5 and len(set(scoring)) == 12 + 6
    assert explaining[:4] == [198, 196, 194, 192]
    assert [example.peak == 0 for example in drawn.explaining] == [False] * 12 + [True] * 5
    assert [example.peak == 0 for example in drawn.scoring] == [False] * 12 + [True] * 6
    highest, lowest = (np.mean([scoring[i] for i in part]) for part in ((0, 1, 2), (9, 10, 11)))
    assert highest > 150 and lowest < 50


def test_a_latent_with_few_or_no_activating_sequences():
    encoded = many(24)  # 9 or 10 activating ones on either side
    drawn = examples.draw(encoded, 0, Plan(), np.random.default_rng(0))
    assert len({example.index for example in drawn.scoring if example.peak}) == 10
    assert sum(example.peak > 0 for example in drawn.explaining) == 9
    assert examples.draw(encoded, 0, Plan(least=10), np.random.default_rng(0)) is None
    silent = encoded._replace(latents=column(np.zeros(48)))
    assert examples.draw(silent, 0, Plan(), np.random.default_rng(0)) is None


def test_encoding_equals_the_sae():
    sae, tokens = small_sae()
    text = Sequences(["a"] * 18, np.array([0, 18]), np.array([True]), tokens.activations.numpy())
    encoded = examples.encode(sae, text)
    expected = sae.encode(tokens.activations.float()).detach().numpy()
    np.testing.assert_allclose(encoded.latents.toarray(), expected, atol=1e-6)
    assert encoded.sequences is text
    with pytest.raises(ValueError, match="d_in 12"):
        examples.encode(sae, text._replace(activations=np.zeros((18, 5), dtype=np.float16)))


def test_harvested_sequences_keep_texts_on_one_side_and_read_as_the_texts(minilm, tmp_path):
    topics = ("first", "second", "third", "fourth")
    passage = "The {0} passage speaks of {0} things, again and again, in many words of {0}."
    texts = [passage.format(word) * 3 for word in topics]
    identity = models.identity(weights.MINILM)
    text = examples.harvest(minilm, identity, texts, 1, tmp_path, max_tokens=0, seed=0, width=16, context=32)
    assert text.activations.shape == (len(text.tokens), 384) and len(text.scoring) == len(text.starts) - 1
    read = ["".join(text.words(i)) for i in range(len(text.scoring))]
    sides = {side: "".join(read[i] for i in np.flatnonzero(text.scoring == side)) for side in (False, True)}
    for word in topics:
        assert sum(word in side for side in sides.values()) == 1
    assert set(text.scoring) == {True, False}
    assert np.diff(text.starts).min() >= examples.SHORTEST and np.diff(text.starts).max() == 16
    squeezed = re.sub(r"\W", "", texts[0].lower())
    assert all(re.sub(r"\W", "", sequence) in squeezed for sequence in read if "first" in sequence)
    with pytest.raises(ValueError, match="too few"):
        examples.harvest(minilm, identity, texts[:1], 1, tmp_path, max_tokens=0, seed=0)


def test_activations_belong_to_their_tokens(minilm, tmp_path):
    passage = "A sentence of twelve plain words that is read by the model."
    other = "Another sentence of plain words, for the other side of the split."
    identity = models.identity(weights.MINILM)
    text = examples.harvest(minilm, identity, [passage, other], 1, tmp_path, max_tokens=0, seed=0)
    own = next(i for i in range(2) if "twelve" in "".join(text.words(i)))
    ids = minilm.tokenizer(passage, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        _, cache = minilm.run_with_cache(ids, names_filter=models.resid_post(1))
    expected = cache[models.resid_post(1)][0, 1:-1]
    span = slice(text.starts[own], text.starts[own + 1])
    np.testing.assert_allclose(text.activations[span], expected, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("name, text", [(weights.SMOLLM2, "£5 ## for cakes,\nnow"), (weights.MINILM, " unbaked cakes")])
def test_tokens_read_as_they_stand_in_the_text(name, text):
    """Also in a vocabulary of bytes that has the token ``##``."""
    tokenizer = models.load_tokenizer(name)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(examples.token_texts(tokenizer, ids)) == text
