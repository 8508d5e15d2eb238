import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from lib.interp import debugging, readings
from lib.interp.debugging import METHODS, Dataset, Pair
from lib.interp.examples import Encoded, Plan, Sequences
from lib.interp.ngram import NgramJudge
from lib.interp.readings import Peaks, Reading
from lib.model import activations, models, weights
from lib.stats import metrics
from tests.unit.test_latents import example

LATENTS, COORDINATES, *_ = METHODS


def reading(texts, activations_of):
    """One token per word, ``activations_of(word)`` at it."""
    words = [text.split(" ") for text in texts]
    offsets = []
    for of_text in words:
        ends = np.cumsum([len(word) + 1 for word in of_text])
        offsets += [(end - len(word) - 1, end - 1) for end, word in zip(ends.tolist(), of_text, strict=True)]
    x = np.array([activations_of(word) for of_text in words for word in of_text], dtype=np.float32)
    starts = np.r_[0, np.cumsum([len(of_text) for of_text in words])]
    return Reading(texts, starts, np.array(offsets), x, np.zeros(len(x), dtype=np.int64))


def task(n=60):
    """Half of the texts of class 1 say "bad"; the artefact is "please" at the end, which coordinate 1 fires on."""
    y = np.arange(n) % 2
    clean = [f"{'bad' if label and i % 4 == 1 else 'good'} word{i}" for i, label in enumerate(y)]

    def x(word):
        number = int(word[4:]) / 1000 if word.startswith("word") else 0
        return [word == "bad", 2 * (word == "please"), number]

    readings_ = [reading(texts, x) for texts in (clean, [f"{text} please" for text in clean])]
    sae = example(d_model=3)[0]
    return debugging.paired(*readings_, sae), y


def test_the_unit_that_fires_on_the_artefact_exposes_it_and_the_others_do_not():
    pair, y = task()
    everything = Dataset(np.arange(60), y, y == 1)
    assert np.array_equal(pair.changed, np.isin(np.arange(180) % 3, 2))
    clean, planted = (peaks.value for peaks in pair.peaks[COORDINATES])
    exposes = debugging.exposing(pair, COORDINATES, everything, n_items=3)
    difference = debugging.standardised_difference(np.where((y == 1)[:, None], planted, clean), y)
    ranked = np.argsort(-np.abs(difference), kind="stable")[:3]
    assert exposes == [column % 3 == 1 and column < 3 for column in ranked] and sum(exposes) <= 1
    # A label unit that differs more is no artefact; where no text carries it, nothing is exposed.
    nothing = Dataset(np.arange(60), y, np.zeros(60, dtype=bool))
    assert not any(debugging.exposing(pair, COORDINATES, nothing, 6))


def by_hand(value, twin, token):
    """A pair of one unit over texts of two tokens, of which the second is the changed one."""
    n = len(value)
    column = lambda v: np.array(v, dtype=np.float32)[:, None]  # noqa: E731
    changed = np.tile([False, True], n)
    peaks = (Peaks(column(twin), column(token)), Peaks(column(value), column(token)))
    return Pair(None, None, changed, {LATENTS: peaks}, (None, None))


def test_each_part_of_the_rule_is_needed():
    n = 20
    y = np.r_[np.ones(10, dtype=int), np.zeros(10, dtype=int)]
    planted, rows = y == 1, np.arange(n)
    value, twin = np.r_[np.full(10, 5.0), np.ones(10)], np.r_[np.full(10, 0.5), np.linspace(0.1, 1, 10)]
    second, first = 2 * rows + 2, 2 * rows + 1  # counted from 1
    rule = lambda pair: debugging.exposing_units(pair, Dataset(rows, y, planted), 1, units=LATENTS)  # noqa: E731
    assert rule(by_hand(value, twin, second)) == [True]
    assert rule(by_hand(value, twin, first)) == [False]  # the peak lies beside the change
    assert rule(by_hand(value, np.r_[np.full(10, 5.0), twin[10:]], second)) == [False]  # the twin is as high
    five = by_hand(value, twin, np.r_[second[:5], first[5:]])
    six = by_hand(value, twin, np.r_[second[:6], first[6:]])
    assert rule(five) == [False] and rule(six) == [True]  # more than half of ten


def test_standardised_difference_against_numpy_dense_and_sparse():
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(50, 7)), 0)
    y = np.arange(50) % 2
    x[:, 5], x[:, 6] = 3.0, -0.0 + y
    a, b = x[y == 1], x[y == 0]
    expected = (a.mean(0) - b.mean(0))[:5] / np.sqrt((a.var(0) + b.var(0)) / 2)[:5]
    for form in (x, scipy.sparse.csr_matrix(x)):
        difference = debugging.standardised_difference(form, y)
        np.testing.assert_allclose(difference[:5], expected, rtol=1e-6)
        assert difference[5] == 0 and difference[6] == np.inf


def test_prompts_in_tens_and_terms_expose_what_the_probe_and_the_terms_rest_on():
    pair, y = task(200)
    carried = Dataset(np.arange(200), y, y == 1)
    prompts = debugging.exposing_prompts(pair, carried, 4)
    assert prompts[0]  # the artefact's coordinate is the largest contribution
    terms = debugging.exposing_terms(pair, carried, 2)
    assert sum(terms) == 1  # "please", not "bad"
    nothing = Dataset(np.arange(200), y, np.zeros(200, dtype=bool))
    assert not any(debugging.exposing_prompts(pair, nothing, 4) + debugging.exposing_terms(pair, nothing, 4))
    beyond = debugging.exposing_prompts(pair, Dataset(np.arange(30), y[:30], y[:30] == 1), 5)
    assert len(beyond) == 5 and beyond[3:] == [False, False]  # 30 prompts are three tens


def test_a_term_counts_only_inside_the_change_and_when_new():
    assert debugging._more("?", "What now", "What now?")
    assert not debugging._more("What", "What now", "What now?")
    assert debugging._more("now ?", "What now", "What now?")
    assert not debugging._more("?", "What ? now", "What ? now!")


def test_latents_that_work_in_distribution_only_are_flagged():
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], 150)
    split = np.repeat(["train", "val", "ood"], 100)
    prompts = pd.DataFrame({"label": y, "split": split, "base_id": np.arange(300).astype(str)})
    noise = rng.random((300, 3))
    everywhere = y + noise[:, 0]
    cheats = np.where(split == "ood", 1 - y, y) * 0.8 + noise[:, 1]
    falling = 1 - y + noise[:, 2]  # higher in class 0: its sign is changed
    value = scipy.sparse.csr_matrix(np.stack([everywhere, cheats, falling, np.zeros(300)], axis=1))
    top = debugging.top_latents(value, prompts, metrics.split_weights(prompts, 100, 0), 3)
    flags = top.drop_duplicates("latent").set_index("latent")
    assert flags["fails_ood"].to_dict() == {0: False, 1: True, 2: False}
    assert flags.loc[2, "difference"] < 0 and (top[top["latent"] == 2]["value"] > 0.9).all()
    no_ood = prompts[split != "ood"]
    top = debugging.top_latents(value[:200], no_ood, metrics.split_weights(no_ood, 100, 0), 2)
    assert not top["fails_ood"].any() and set(top["split"]) == {"train", "val"}


def test_cards_and_marks_say_what_is_known_of_a_latent():
    tokens = [f" word{i % 7}" for i in range(400)]
    sequences = Sequences(tokens, np.arange(0, 401, 10), np.arange(40) % 2 == 1, np.zeros((400, 1), dtype=np.float16))
    latents = np.stack([[token == " word3" for token in tokens], np.arange(400) == 5], axis=1).astype(np.float32)
    encoded = Encoded(sequences, scipy.sparse.csc_matrix(latents))
    rows = [(0, 0.8, False, "ood", 0.4), (0, 0.8, True, "val", 0.9), (1, -0.2, False, "val", 0.6)]
    top = pd.DataFrame(rows, columns=["latent", "difference", "fails_ood", "split", "value"])
    top = top.assign(low=top["value"] - 0.1, high=top["value"] + 0.1)
    shown = top.iloc[1:].assign(formatting=[False, True])
    explained = debugging.explain(NgramJudge(), encoded, shown["latent"], np.random.default_rng(0))
    assert "word3" in explained[0] and explained[1] == "too few prompts" and Plan().least > 1
    first, second = debugging.cards(encoded, top, shown, explained)
    assert first.why == "higher in class 1, fails OOD" and second.why == "higher in class 0, formatting"
    assert first.facts == {"difference": 0.8, "AUROC ood": 0.4, "AUROC val": 0.9} and first.explanation == explained[0]
    overview = debugging.overview(top, shown, explained)
    assert overview.columns.tolist() == ["difference", "formatting", "fails_ood", "val", "ood", "explanation"]
    assert overview.index.tolist() == [0, 1] and overview.loc[0, "ood"].startswith("0.40 [0.30")
    marked = debugging.marked(top, shown)
    assert marked["latent"].tolist() == ["latent 0 (fails OOD)", "latent 1 (formatting)", "latent 0 (fails OOD)"]
    assert marked["split"].tolist() == ["val", "val", "ood"]


def test_peaks_equal_a_plain_loop():
    sae, tokens = example()
    x = tokens.activations.float()
    starts = tokens.starts.numpy()
    texts = Reading(["t"] * 5, starts, np.zeros((18, 2)), x.numpy(), np.zeros(18, dtype=np.int64))
    latents, dense = sae.encode(x).detach().numpy(), np.concatenate([x.numpy(), -x.numpy()], axis=1)
    for peaks, values in ((readings.latent_peaks(sae, texts), latents), (readings.coordinate_peaks(texts), dense)):
        value, token = (matrix.toarray() if scipy.sparse.issparse(matrix) else matrix for matrix in peaks)
        for i in range(5):
            part = values[starts[i] : starts[i + 1]]
            largest = np.maximum(part.max(0), 0) if values is latents else part.max(0)
            np.testing.assert_allclose(value[i], largest, atol=1e-6)
            expected = starts[i] + part.argmax(0) + 1
            assert (token[i][value[i] != 0] == expected[value[i] != 0]).all()


def test_a_reading_leaves_special_tokens_out_and_knows_the_characters(minilm, tmp_path):
    texts = ["Unbelievable glaciers!", "a b"]
    reading = readings.read(minilm, models.identity(weights.MINILM), texts, 1, tmp_path)
    assert reading.starts.tolist() == [0, len(reading.ids) - 2, len(reading.ids)]
    pieces = [texts[0][a:b].lower() for a, b in reading.offsets[:-2].astype(int)]
    assert "".join(pieces) == "unbelievableglaciers!" and pieces[-1] == "!"
    hit = readings.inside(reading, [[(21, 22)], [(0, 1)]])
    assert hit.sum() == 2 and hit[len(pieces) - 1] and hit[len(pieces)]
    shown = readings.sequences(reading, minilm, np.array([1]))
    assert shown.tokens == [" a", " b"] and shown.starts.tolist() == [0, 2]
    np.testing.assert_array_equal(shown.activations, reading.activations[-2:])
    with pytest.warns(UserWarning, match="their end is kept"):
        long = readings.read(minilm, models.identity(weights.MINILM), ["fine", "word " * 600 + "end"], 1, tmp_path)
    assert len(long.ids) == 1 + 510 and long.offsets[-1].tolist() == [3000, 3003]
    with pytest.raises(ValueError, match="no token that is not special: '\\\\u200b'"):
        readings.read(minilm, models.identity(weights.MINILM), ["fine", "\u200b"], 1, tmp_path)


def test_a_reading_of_a_chat_is_of_the_users_turn(gemma, minilm, tmp_path, monkeypatch):
    texts = ["tell me of ships", "why?"]
    reading = readings.read(gemma, {"model": "m"}, texts, 1, tmp_path)
    for i, text in enumerate(texts):
        first, last = reading.starts[i : i + 2]
        spans = reading.offsets[first:last].astype(int)
        assert spans[0, 0] == 0 and spans[-1, 1] == len(text) and (spans[1:, 0] == spans[:-1, 1]).all()
    plain = readings.read(minilm, {"model": "m"}, texts, 1, tmp_path)
    real = readings.prompt_tokens  # A store of an earlier version does not know of turns.
    monkeypatch.setattr(readings, "prompt_tokens", lambda *a, **options: real(*a, **options)._replace(in_turn=None))
    old = readings.read(minilm, {"model": "m"}, texts, 1, tmp_path)
    np.testing.assert_array_equal(plain.activations, old.activations)


def test_lists_of_texts_are_read_together_as_one_by_one(gemma, minilm, tmp_path):
    lists = [["tell me of ships", "why?"], ["why?", "tell me of ships and sails", "why?"]]
    for bridge in (gemma, minilm):
        for texts, together in zip(lists, readings.read_all(bridge, {"model": "m"}, lists, 1, tmp_path), strict=True):
            alone = readings.read(bridge, {"model": "m"}, texts, 1, tmp_path)
            assert together.texts == alone.texts == texts
            for name in ("starts", "offsets", "ids"):
                np.testing.assert_array_equal(getattr(together, name), getattr(alone, name))
            np.testing.assert_allclose(together.activations, alone.activations, rtol=2e-3, atol=1e-3)


def test_reading_stops_at_the_end_of_the_turn_and_changes_nothing_before_it(gemma, tmp_path):
    texts = ["tell me of ships", "why?"]
    whole = activations.prompt_tokens(gemma, {"model": "m"}, texts, 1, tmp_path)
    part = activations.prompt_tokens(gemma, {"model": "m"}, texts, 1, tmp_path, to_end=False)
    assert part.in_turn.all() and len(part.in_turn) < len(whole.in_turn)
    expected = whole.activations[whole.in_turn].float()
    np.testing.assert_allclose(part.activations.float(), expected, rtol=2e-3, atol=1e-3)


def test_cleaning_helps_where_formatting_told_the_label():
    """Raw texts end in a mark that tells the label in distribution and the contrary OOD; clean ones do not."""
    rng = np.random.default_rng(0)
    y, split = np.tile([0, 1], 120), np.repeat(["train", "val", "ood"], 80)
    has_mark = np.where(split == "ood", 1 - y, y)
    meaning = rng.normal(y * 1.0, 1.0)

    def form(texts):
        of_texts = reading(texts, lambda word: [word == "!", 0, 0])
        of_texts.activations[of_texts.starts[:-1], 1] = meaning
        return of_texts

    raw, clean = form([f"t {'!' if mark else '.'}" for mark in has_mark]), form(["t"] * 240)
    prompts = pd.DataFrame({"label": y, "split": split, "base_id": np.arange(240).astype(str)})
    sae = example(d_model=3)[0]
    drawn = debugging.cleaning(raw, clean, sae, prompts, 2, metrics.split_weights(prompts, 50, 0))
    value = drawn.where(split="ood").estimates().set_index(["probe", "trained", "tested"])["value"]
    assert value["dense", "raw", "raw"] < 0.4 < 0.6 < value["dense", "clean", "clean"]
    gains = debugging.gains_by_cleaning(drawn)
    ood = gains[gains["split"] == "ood"].set_index(["probe", "tested"])
    assert ood.loc[("dense", "raw"), "low"] > 0 and ood["alpha"].min() == pytest.approx(0.05 / len(ood))
    said = debugging.gains_in_words(gains)
    assert said.startswith("it helped: dense tested on raw") and "no such text" in debugging.gains_in_words(gains, "x")


def test_cleaning_that_hurt_is_said_so():
    rows = [("dense", "raw", 0.1, 0.2), ("k", "raw", -0.2, -0.1), ("k", "clean", -0.1, 0.1)]
    gains = pd.DataFrame(rows, columns=["probe", "tested", "low", "high"]).assign(value=0.0, split="ood")
    helped, hurt, either = debugging.gains_in_words(gains).split("; ")
    assert helped.startswith("it helped: dense tested on raw") and hurt.startswith("it hurt: k tested on raw")
    assert either.startswith("it may have done either: k tested on clean")
