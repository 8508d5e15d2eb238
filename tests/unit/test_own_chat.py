"""A model's chat with itself: what is left out, and what is shipped."""

import json

import pandas as pd
import pytest

from lib.model import models, own_chat, rollouts, weights
from lib.texts import corpora, datasets, sources

CARDS = sorted(own_chat.FOLDER.glob("*.json"))


def test_what_a_turn_is_left_out_for():
    line = "one two three four five six\n"
    assert own_chat.repeats(line * 4) and not own_chat.repeats(line * 3)
    assert own_chat.repeats("a b\n" * 4) and not own_chat.repeats("a b\n" * 3)
    assert own_chat.repeats("x a b c d e y a b c d e z a b c d e w a b c d e") and not own_chat.repeats("")
    assert own_chat.fault("what is a lighthouse", False) == "cut off"
    assert own_chat.fault("two words", True) == "empty" and own_chat.fault("", True) == "empty"
    assert own_chat.fault(line * 9, True) == "repeating"
    assert own_chat.fault("How do I make a BOMB at home", True) == "phrase"
    assert own_chat.fault("what do you know of bombastic style", True) == "phrase"  # The sieve is coarse.
    assert own_chat.fault("what is a lighthouse for", True) == ""


def test_what_is_left_out_is_counted():
    texts = ["a fine turn", "", "a fine turn that ends nowhere", "kill the process please", "one more of them"]
    table = pd.DataFrame({"prompt": "", "response": texts, "finished": [True, True, False, True, True]})
    kept, counts = own_chat.sieve(table, "response")
    assert kept["response"].tolist() == ["a fine turn", "one more of them"]
    assert counts == {"empty": 1, "cut off": 1, "phrase": 1} and sum(counts.values()) + len(kept) == len(table)


def test_near_copies_of_turns_and_of_probe_prompts_are_left_out():
    turns = ["How do I bake bread at home?", "How can I bake bread at home?", "What is a lighthouse for?",
             "Write a poem about autumn.", "Explain how tides work."]  # fmt: skip
    table = pd.DataFrame({"user": turns, "assistant": "so"})
    kept, counts = own_chat.apart(table, ["Write a poem about the autumn", "Plan a city's budget"])
    assert kept["user"].tolist() == [turns[0], turns[2], turns[4]]
    assert counts == {"near a probe prompt": 1, "near another turn": 1}


def test_a_model_writes_its_users_turns(gemma, tmp_path):
    model = {"model": "tiny"}
    turns = rollouts.user_turns(gemma, model, 5, tmp_path, 6, part_prompts=2, seed=1)
    assert len(turns) == 5 and set(turns["prompt"]) == {""} and turns["response"].nunique() > 1
    again = rollouts.user_turns(gemma, model, 5, tmp_path, 6, part_prompts=2, seed=1)
    pd.testing.assert_frame_equal(turns, again)
    with pytest.raises(ValueError, match="top_p 0.0 between 0 and 1"):
        rollouts.user_turns(gemma, model, 5, tmp_path, 6, top_p=0.0)


def test_a_base_model_writes_none(minilm, tmp_path):
    with pytest.raises(ValueError, match="needs a chat model"):
        rollouts.user_turns(minilm, {"model": "m"}, 5, tmp_path, 6)


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_what_is_shipped_is_as_its_card_says(card):
    record, path = json.loads(card.read_text(encoding="utf-8")), card.with_suffix(".parquet")
    table = pd.read_parquet(path)
    assert path.stat().st_size <= 2_000_000 and record["tokens"] >= 300_000 and record["dialogues"] == len(table)
    assert table["user"].is_unique
    assert not any(own_chat.fault(text, True) for text in [*table["user"], *table["assistant"]])
    assert record["phrases"]["in_what_is_kept"] == {} and record["revision"] and record["seed"] == 0
    assert corpora.corpus(f"shipped:{card.stem}")[0] == corpora.chat_turn(table["user"][0], table["assistant"][0])


def test_rollouts_that_are_not_shipped_are_one_sentence():
    with pytest.raises(ValueError, match="no rollouts of 'other' are shipped, only of SmolLM2-135M-Instruct"):
        corpora.corpus("shipped:other")


@pytest.mark.slow
@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_no_shipped_turn_is_near_a_probe_prompt(card):
    turns = pd.read_parquet(card.with_suffix(".parquet"))["user"].tolist()
    probes = sources.base_prompts("embedded")["text"].tolist()
    assert datasets.largest_cosine(datasets.embedded(turns), datasets.embedded(probes)).max() < 0.9


@pytest.mark.slow
def test_the_shipped_tokens_are_counted_by_the_model():
    name = weights.SMOLLM2
    bridge, record = models.load_model(name), json.loads((own_chat.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    windows = models.split_tokens(bridge, corpora.corpus(f"shipped:{name}"), bridge.cfg.n_ctx)
    assert sum(map(len, windows)) == record["tokens"]
    assert models.identity(name)["revision"] == record["revision"]
