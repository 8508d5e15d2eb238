import json

import pandas as pd
import pytest
import torch

from lib.model import models, rollouts
from lib.model.rollouts import Sampling
from lib.texts import corpora

PROMPTS = [f"Write about ship number {i}" for i in range(7)]
MODEL = {"model": "tiny", "revision": "r"}


def test_rollouts_are_kept_as_text_with_their_sampling_parameters(gemma, tmp_path):
    generated = rollouts.generate(gemma, MODEL, PROMPTS, tmp_path, 8, temperature=0.7, seed=3)
    (folder,) = tmp_path.glob("rollouts-*")
    sampling = json.loads((folder / "sampling.json").read_text())
    expected = MODEL | {"max_new_tokens": 8, "temperature": 0.7, "top_p": 1.0, "seed": 3, "part_prompts": 256}
    assert sampling | {"prompts": ""} == expected | {"prompts": ""}
    kept = pd.read_parquet(folder / "part-00000.parquet")
    pd.testing.assert_frame_equal(kept, generated)
    assert generated["prompt"].tolist() == PROMPTS and generated["response"].nunique() > 1
    for mark in ("<|turn|>", "<end_of_turn>"):
        assert not generated["response"].str.contains(mark, regex=False).any()
    again = rollouts.generate(gemma, MODEL, PROMPTS, tmp_path, 8, temperature=0.7, seed=4)
    assert len(list(tmp_path.glob("rollouts-*"))) == 2 and again["response"].tolist() != generated["response"].tolist()


def test_an_interrupted_run_goes_on_to_the_same_text(gemma, tmp_path, monkeypatch):
    whole = rollouts.generate(gemma, MODEL, PROMPTS, tmp_path / "whole", 6, part_prompts=3)
    real, calls = rollouts._generate, []

    def dies(*a):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*a)

    monkeypatch.setattr(rollouts, "_generate", dies)
    with pytest.raises(KeyboardInterrupt):
        rollouts.generate(gemma, MODEL, PROMPTS, tmp_path / "cut", 6, part_prompts=3)
    resumed = rollouts.generate(gemma, MODEL, PROMPTS, tmp_path / "cut", 6, part_prompts=3)
    pd.testing.assert_frame_equal(resumed, whole)
    assert len(calls) == 4, "three parts, the second begun twice"
    part = next((tmp_path / "cut").rglob("part-00001.parquet"))
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"part-00001.parquet is damaged .*; delete it and run again"):
        rollouts.generate(gemma, MODEL, PROMPTS, tmp_path / "cut", 6, part_prompts=3)


def test_batches_shrink_when_memory_does_not_suffice(gemma, tmp_path, monkeypatch):
    expected = rollouts.generate(gemma, MODEL, PROMPTS, tmp_path / "a", 6, temperature=0.0)
    real, sizes = rollouts._generate, []

    def small(bridge, token_ids, *rest):
        sizes.append(len(token_ids))
        if len(token_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(bridge, token_ids, *rest)

    monkeypatch.setattr(rollouts, "_generate", small)
    generated = rollouts.generate(gemma, MODEL, PROMPTS, tmp_path / "b", 6, temperature=0.0)
    pd.testing.assert_frame_equal(generated, expected)
    assert sizes[0] == 7 and sizes.count(7) == 1 and max(sizes[2:]) <= 3

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rollouts, "_generate", never)
    with pytest.raises(ValueError, match="memory does not suffice for one prompt of .* lower max_new_tokens"):
        rollouts.generate(gemma, MODEL, PROMPTS, tmp_path / "c", 6)


def test_the_models_own_dialogues_as_a_corpus(gemma, tiny_gemma, tmp_path):
    reader, sampling = models.Reader(str(tiny_gemma)), Sampling(4, 8, 1.0, 0)
    dialogues = rollouts.corpus("own:prompts", reader, sampling, PROMPTS, tmp_path, 1000)
    assert 1 <= len(dialogues) <= 4
    assert all(text.startswith("User: Write about ship number") and "\n\nAssistant: " in text for text in dialogues)
    answer = {"role": "assistant", "content": "answer"}
    rows = [{"messages": [{"role": "user", "content": f"question {i}"}, answer]} for i in range(9)]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.json").write_text("\n".join(map(json.dumps, rows)))
    dialogues = rollouts.corpus(f"own:hf:{tmp_path / 'hub'}", reader, sampling, [], tmp_path, 1000)
    assert dialogues[0].startswith("User: question 0\n\nAssistant: ")
    assert not dialogues[0].endswith("Assistant: answer")


def test_a_corpus_is_divided_with_the_seed_of_its_sampling(tmp_path):
    name, unread = "shipped:SmolLM2-135M-Instruct", models.Reader("no model is read")
    for seed in (0, 1):
        parts = rollouts.split_corpus(name, unread, Sampling(4, 8, 1.0, seed), [], tmp_path, 1000, share=0.1)
        assert parts == corpora.split(corpora.corpus(name), 0.1, seed)


def test_an_unknown_corpus_is_one_sentence_with_the_models_own_among_the_allowed(tiny_gemma, tmp_path):
    reader, sampling = models.Reader(str(tiny_gemma)), Sampling(4, 8, 1.0, 0)
    allowed = "docstrings, pretraining, rollouts, shipped:<model>, hf:.*, own:prompts, own:<corpus>"
    for name in ("news", "own", "docstrings:x"):
        with pytest.raises(ValueError, match=f"^unknown corpus '{name}'; allowed are {allowed}$"):
            rollouts.corpus(name, reader, sampling, PROMPTS, tmp_path, 1000)
    with pytest.raises(ValueError, match="^unknown corpus 'news'; allowed are docstrings, pretraining, rollouts, "):
        rollouts.corpus("own:news", reader, sampling, PROMPTS, tmp_path, 1000)


def test_impossible_sampling_and_models_are_named(gemma, minilm, tmp_path):
    for new, temperature in ((0, 1.0), (600, 1.0), (8, -1.0)):
        message = f"temperature {temperature} must be 0 or more, top_p 1.0 between 0 and 1, "
        message += f"max_new_tokens {new} between 1 and the context of 512"
        with pytest.raises(ValueError, match=message):
            rollouts.generate(gemma, MODEL, PROMPTS, tmp_path, new, temperature=temperature)
    with pytest.raises(ValueError, match="a rollout needs a chat model"):
        rollouts.generate(minilm, MODEL, PROMPTS, tmp_path, 8)


HI = "User: hi\n\nAssistant: hello"


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        ([{"role": "Human", "content": "hi"}, {"role": "BOT", "content": "hello"}], HI),
        ([{"role": "prompter", "content": "hi"}, {"role": "model", "content": "hello"}], HI),
        ([{"role": "user", "content": ["hi"]}, {"role": "assistant", "content": "hello"}], HI),
        ([{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "image"}, {"text": "i"}]}], "User: hi"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}], "User: hi"),
        ({"from": ["human", "gpt"], "value": ["hi", "hello"]}, HI),
        (["hi", "hello"], HI),
        ("said in one string", "said in one string"),
    ],
)
def test_the_ways_to_write_a_dialogue(turns, text):
    assert corpora._of_row({"conversation": turns}, "x") == text


def test_rows_without_a_text_are_counted_and_a_data_set_of_them_is_given_up(tmp_path, monkeypatch):
    rows = [{"text": None}, {"text": "one text"}, {"text": " "}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match="2 rows of hf:.* hold no text and are left out"):
        assert corpora.corpus(f"hf:{tmp_path}", tokens=100) == ["one text"]
    (tmp_path / "chat").mkdir()
    turns = [{"role": "Narrator", "content": "hi"}, {"role": "chorus", "content": "hello"}]
    (tmp_path / "chat" / "train.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 9))
    sentence = r"no text in its first {} rows, whose turns have the roles \['chorus', 'narrator'\]; allowed are user"
    for most, n in ((1000, 9), (5, 5)):
        monkeypatch.setattr(corpora, "EMPTY_ROWS", most)
        with pytest.raises(ValueError, match=sentence.format(n)):
            corpora.corpus(f"hf:{tmp_path / 'chat'}", tokens=100)


def test_an_error_without_words_is_one_sentence(monkeypatch):
    def silent(*_, **__):
        raise OSError

    monkeypatch.setattr("datasets.load_dataset", silent)
    with pytest.raises(ValueError, match=r"the data set 'x/y' cannot be had from the hub \(OSError: ?\)"):
        corpora.corpus("hf:x/y", tokens=10)


def test_first_turns_are_read_until_there_are_enough_however_long_the_answers(tmp_path):
    def dialogue(question):
        return [{"role": "user", "content": question}, {"role": "assistant", "content": "a long answer " * 500}]

    questions = ["hi", "hi", "why?", "how?", "who?"]
    pd.DataFrame({"messages": [dialogue(question) for question in questions]}).to_parquet(tmp_path / "train.parquet")
    assert corpora.first_turns(f"hf:{tmp_path}", 3) == ["hi", "why?", "how?"]
    assert corpora.first_turns(f"hf:{tmp_path}", 9) == ["hi", "why?", "how?", "who?"]
    (tmp_path / "texts").mkdir()
    pd.DataFrame({"text": ["plain text"]}).to_parquet(tmp_path / "texts" / "train.parquet")
    assert corpora.first_turns(f"hf:{tmp_path / 'texts'}", 3) == ["plain text"]


def test_hub_data_sets_are_streamed_until_they_hold_enough(tmp_path):
    documents = pd.DataFrame({"text": [f"document {i} " * 20 for i in range(50)], "id": range(50)})
    documents.to_parquet(tmp_path / "train.parquet")
    passages = corpora.corpus(f"hf:{tmp_path}", tokens=200)
    assert 4 <= len(passages) < 10 and passages[0].startswith("document 0")
    turns = [{"from": "human", "value": " hi "}, {"from": "gpt", "value": "hello"}, {"from": "system", "value": "x"}]
    (tmp_path / "chat").mkdir()
    pd.DataFrame({"conversations": [turns]}).to_parquet(tmp_path / "chat" / "train.parquet")
    assert corpora.corpus(f"hf:{tmp_path / 'chat'}", tokens=10) == ["User: hi\n\nAssistant: hello"]
    (tmp_path / "numbers").mkdir()
    pd.DataFrame({"n": [1]}).to_parquet(tmp_path / "numbers" / "train.parquet")
    with pytest.raises(ValueError, match=r"has the columns \['n'\]; one of .* is needed"):
        corpora.corpus(f"hf:{tmp_path / 'numbers'}", tokens=10)
    with pytest.raises(ValueError, match="the data set '.*nothing' cannot be had from the hub"):
        corpora.corpus(f"hf:{tmp_path / 'nothing'}", tokens=10)
