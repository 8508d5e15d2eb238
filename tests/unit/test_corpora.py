import gzip
import json
import zipfile

import pytest

from lib.texts import corpora


def test_docstrings_are_prose_and_deterministic():
    first = corpora.corpus("docstrings")
    assert first == corpora.corpus("docstrings") and len(first) > 1000
    assert not any(">>>" in text for text in first)


def test_prose_keeps_sentences_and_drops_code():
    source = '''"""Return the mean of all the values, which are weighted by their own counts.

    >>> f(1)

    x : int
    """'''
    assert corpora._prose(source) == ["Return the mean of all the values, which are weighted by their own counts."]


def test_passages_lose_nothing_and_hold_out_is_disjoint():
    paragraphs = [f"paragraph {i} " + "x" * 30 for i in range(50)]
    joined = corpora.passages(paragraphs, 100)
    assert " ".join(joined) == " ".join(paragraphs) and all(len(p) >= 100 for p in joined[:-1])
    parts = corpora.split(joined, 0.2, 0)
    assert sorted(sum(parts, [])) == sorted(joined)
    assert len(parts.held_out) == len(parts.calibration) == round(0.2 * len(joined))
    assert all(len(part) == 1 for part in corpora.split(["a", "b", "c"], 0.05, 0))
    with pytest.raises(ValueError, match="2 passages cannot be divided"):
        corpora.split(["a", "b"], 0.05, 0)


def test_first_tokens_is_a_random_subset_within_the_limit():
    windows = [[i] * 10 for i in range(100)]
    chosen = corpora.first_tokens(windows, 95, 0)
    assert len(chosen) == 9 and chosen != windows[:9]
    assert len(corpora.first_tokens(windows, 0, 0)) == 100


def test_detokenise():
    assert corpora.detokenise("well @-@ known ( as `` x '' ) , is n't it ?") == 'well-known (as " x "), isn\'t it?'


@pytest.fixture
def public(tmp_path, monkeypatch):
    """Small files of the public corpora's shapes."""

    def fetch(name):
        path = tmp_path / name
        if name in corpora.ZIPPED:
            member = {"brown": "brown/ca01", "webtext": "webtext/a.txt"}.get(name, f"{name}/x.txt")
            text = "The/at jury/nn said/vbd yes/rb ./." if name == "brown" else f"{name} has one line of text here"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(member, text)
                archive.writestr("../../escape/cats.bin", "no")
        elif name == "hh_rlhf":
            path.write_bytes(gzip.compress(b'{"chosen": "\\n\\nHuman: hi\\n\\nAssistant: hello"}\n'))
        elif name.startswith("alpaca_eval"):
            path.write_text(json.dumps([{"instruction": f"do {i}", "output": f"{name} did {i}"} for i in range(400)]))
        else:
            path.write_text(" = Title = \n\n Some <unk> words @-@ here , there . \n")
        return path

    monkeypatch.setattr(corpora, "fetch", fetch)
    monkeypatch.setattr("lib.texts.sources.fetch", fetch)
    return tmp_path


def test_public_corpora(public):
    texts = corpora.corpus("pretraining")
    assert "The jury said yes." in texts and "Some words-here, there." in " ".join(texts)
    assert len(texts) == 6, "five archives, and the two equal WikiText files once"
    assert not (public.parent / "escape").exists()


def test_rollouts_leave_the_ood_instructions_out(public):
    texts = corpora.corpus("rollouts")
    assert "User: hi\n\nAssistant: hello" in texts
    assert len([t for t in texts if "did" in t]) == 7 * (400 - corpora.N_CHAT_OOD)
    assert not any(t.startswith("User: do 0\n") for t in texts)


def test_unknown_corpus():
    message = "^unknown corpus 'news'; allowed are docstrings, pretraining, rollouts, shipped:<model>, hf:<data set>"
    with pytest.raises(ValueError, match=message):
        corpora.corpus("news")


def test_chat_turn():
    assert corpora.chat_turn("hi ", "yes") == "User: hi\n\nAssistant: yes"
    assert corpora.chat_turn("hi") == "User: hi"


def test_answers_to_one_question_are_held_out_together():
    texts = [corpora.chat_turn(f"question {i}", f"answer {j}") for i in range(40) for j in range(3)]
    parts = corpora.split(texts, 0.25, 0)
    asked = [{text.split("Assistant:")[0] for text in part} for part in parts]
    assert [len(part) for part in parts] == [60, 30, 30]
    assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])


def test_pretraining_text_as_user_prompts_loses_no_word():
    prompts = corpora.as_user_prompts([" ".join(str(i) for i in range(200)), "short text"], words=80)
    assert len(prompts) == 4 and all(text.startswith("User: ") for text in prompts)
    assert " ".join(text.removeprefix("User: ") for text in prompts[:3]).split() == [str(i) for i in range(200)]


def test_a_corpus_has_words_for_captions():
    names = ["docstrings", "pretraining", "shipped:SmolLM2-135M-Instruct", "own:prompts", "hf:NeelNanda/pile-10k"]
    assert [corpora.in_words(name) for name in names] == [
        "docstrings",
        "public prose",
        "chat that SmolLM2-135M-Instruct had with itself",
        "the model's own answers to prompts",
        "NeelNanda/pile-10k",
    ]
