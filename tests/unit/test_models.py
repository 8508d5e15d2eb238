"""Models as people have them: without BOS, EOS or pad, with tied weights, in half precision, of unknown kinds."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from lib.base.files import file_hash
from lib.model import activations, chat, forward, models, weights
from lib.sae import splice
from lib.texts import corpora
from tests.unit.test_chat import DATED

WORDS = [f"w{i}" for i in range(60)]
TEXTS = ["w1 w2 w3 w4 w5 w6", "w7", "w1 w2 w3 w8 w9 w1 w2 w3 w4 w5 w6 w7 w8"]
SMOLLM2_REVISION = "872be49dbb63-a672150fb4f9"  # which names every store of the embedded profile


def llama(folder, special, dtype="float32", **options):
    """A small random Llama in a folder, whose tokenizer has the ``special`` tokens alone."""
    vocabulary = {word: i for i, word in enumerate([*dict.fromkeys(special.values()), *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), initializer_range=0.2, max_position_embeddings=64, **sizes, **options
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return models.load_model(str(folder), dtype=dtype)


def hidden_states(folder, dtype=torch.float32):
    """Hugging Face's hidden states of token ids, alone and without padding."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def of(ids):
        with torch.inference_mode():
            return model(torch.tensor([ids]), output_hidden_states=True).hidden_states

    return of


def check_equal(bridge, folder, tolerance=1e-4, dtype=torch.float32):
    """All tokens' residual streams are Hugging Face's, in batches and in packs."""
    of, token_ids = hidden_states(folder, dtype), models.tokenise(bridge, TEXTS)
    reader = forward.pack_reader(bridge)
    assert reader is not None
    for batches in (
        forward._in_batches(bridge, token_ids, [0, 1]), forward._in_packs(bridge, reader, token_ids, [0, 1])
    ):
        for rows, _, resid in batches:
            for place, row in enumerate(rows):
                hidden = of(token_ids[row])
                for layer in (0, 1):
                    ours, theirs = resid[layer][place, : len(token_ids[row])].float(), hidden[layer + 1][0].float()
                    assert (ours - theirs).abs().max() <= tolerance * theirs.std()


@pytest.mark.parametrize(
    "special",
    [
        {},
        {"eos_token": "<eos>"},
        {"bos_token": "<bos>"},
        {"pad_token": "<pad>"},
        {"bos_token": "<s>", "eos_token": "<s>"},
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    ],
    ids=lambda special: ", ".join(special) or "none",
)
def test_a_tokenizer_without_some_special_tokens(special, tmp_path):
    bridge = llama(tmp_path, special)
    for name in ("bos_token", "eos_token"):
        assert getattr(bridge.tokenizer, name) == special.get(name), "nothing is made up"
    assert len(bridge.tokenizer) <= bridge.original_model.config.vocab_size
    check_equal(bridge, tmp_path)
    ids = torch.arange(10)[None]
    if "bos_token" not in special:
        assert models.seeing(bridge, ids).all(), "without BOS every token sees something, also the one that ends turns"
    else:
        assert (~models.seeing(bridge, ids)).sum() == 1
    assert models.special_ids(bridge).dtype == torch.long
    windows = models.split_tokens(bridge, TEXTS, 4)
    assert sum(map(len, windows)) == sum(len(text.split()) for text in TEXTS) + ("bos_token" in special) * len(windows)
    assert splice.Sequences(bridge, windows, 1).losses().shape == (len(windows),)
    drawn = splice.windows(bridge, {"all": TEXTS, "first": TEXTS[:1]}, 4, 6, 0)
    assert drawn["all"] == corpora.first_tokens(windows, 6, 0) and drawn["first"] and set(drawn) == {"all", "first"}
    store = activations.harvest_pooled(bridge, {"model": "m"}, TEXTS, [1], tmp_path / "stores")
    assert all(len(values) == len(TEXTS) for values in activations.load_pooled(store).values())


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights(tied, tmp_path):
    bridge = llama(tmp_path, {"eos_token": "<eos>"}, tie_word_embeddings=tied)
    check_equal(bridge, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([models.tokenise(bridge, TEXTS)[2]])
    with torch.inference_mode():
        torch.testing.assert_close(forward.plain_model(bridge)(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_half_precision(tmp_path):
    bridge = llama(tmp_path, {"bos_token": "<bos>", "eos_token": "<eos>"}, "bfloat16")
    assert bridge.original_model.dtype == torch.bfloat16
    check_equal(bridge, tmp_path, tolerance=0.1, dtype=torch.bfloat16)
    store = activations.harvest_pooled(bridge, {"model": "m"}, TEXTS, [1], tmp_path / "stores", token_layer=1)
    for values in activations.load_pooled(store).values():
        assert str(values.dtype) in ("float32", "torch.float32")
    tokens = activations.prompt_tokens(bridge, {"model": "m"}, TEXTS, 1, tmp_path / "stores")
    assert tokens.activations.dtype == torch.bfloat16


def test_a_slow_tokenizer_is_one_sentence(tmp_path):
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ValueError, match=r"^the tokenizer of '.*', ByT5Tokenizer, is no fast one .*; take a model"):
        models.load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    "files, load, sentence",
    [
        ({}, models.load_config, "cannot be loaded: it is neither packaged"),
        ({"config.json": "{}"}, models.load_config, "cannot be loaded: .*ValueError: "),
        ({"config.json": '{"model_type": "nosuchmodel"}'}, models.load_config, "cannot be loaded: .*nosuchmodel"),
        ({"config.json": "{nonsense"}, models.load_config, "cannot be loaded: "),
        ({"config.json": '{"model_type": "llama"}'}, models.load_tokenizer, "cannot be loaded: "),
        ({"tokenizer.json": "{}", "config.json": '{"model_type": "llama"}'}, models.load_tokenizer, "cannot be loaded"),
    ],
)
def test_a_folder_that_is_no_model_is_one_sentence(files, load, sentence, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_a_model_of_another_kind_is_one_sentence(tmp_path):
    llama(tmp_path, {"eos_token": "<eos>"})
    sizes = {"d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16, "vocab_size": 70}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the kind 'T5ForConditionalGeneration' cannot be read; allowed are causal"):
        models.load_model(str(tmp_path))


def test_a_model_that_transformer_lens_does_not_know_is_one_sentence(tmp_path, monkeypatch):
    bridge = llama(tmp_path, {"eos_token": "<eos>"})

    def unknown(*_, **__):
        raise ValueError("Could not determine\nsupported architecture" + 100 * ", FutureForCausalLM")

    monkeypatch.setattr(models.TransformerBridge, "boot_transformers", unknown)
    with pytest.raises(ValueError, match="LlamaForCausalLM, cannot be read by TransformerLens: ") as error:
        models.wrap(str(tmp_path), bridge.original_model, bridge.tokenizer)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_a_missing_weight_file_is_one_sentence(tmp_path):
    llama(tmp_path, {"eos_token": "<eos>"})
    models.load_model.cache_clear()
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be loaded: ") as error:
        models.load_model(str(tmp_path))
    assert "\n" not in str(error.value)


def test_the_identity_of_the_packaged_models_stays():
    """A change makes every store of theirs anew."""
    assert models.identity(weights.SMOLLM2) == {"model": weights.SMOLLM2, "revision": SMOLLM2_REVISION}
    assert set(models.identity(weights.MINILM)) == {"model", "revision"}


def test_the_identity_of_a_folder_follows_from_all_that_decides_its_activations(tiny_gemma, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_gemma, folder)
    before = models.identity(str(folder))["revision"]
    assert before.startswith(file_hash(folder / "chat_template.jinja")[:12])
    for name in ("README.md", "generation_config.json"):
        (folder / name).write_text("{}")
    assert models.identity(str(folder))["revision"] == before
    (folder / "additional_chat_templates").mkdir()
    revisions = {before}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "additional_chat_templates/tools.jinja"):
        with (folder / name).open("a") as file:
            file.write("\n")
        revisions.add(models.identity(str(folder))["revision"])
    assert len(revisions) == 5


@pytest.mark.parametrize("in_config", [False, True])
def test_the_date_that_a_template_is_told_is_part_of_the_identity(in_config, tiny_gemma, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_gemma)
    assert set(models.identity(str(tiny_gemma))) == {"model", "revision"}
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(tmp_path, save_jinja_files=not in_config)
    assert (tmp_path / "chat_template.jinja").exists() != in_config
    identity = models.identity(str(tmp_path))
    assert identity["date"] == "2024-07-26" == f"{chat.TODAY:%Y-%m-%d}"


def test_the_identity_of_a_model_of_the_hub(monkeypatch, tiny_gemma):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_gemma)
    monkeypatch.setattr(models, "load_config", lambda name: SimpleNamespace(_commit_hash="c"))
    monkeypatch.setattr(models, "load_tokenizer", lambda name: tokenizer)
    assert models.identity("a/b") == {"model": "a/b", "revision": "c"}
    tokenizer.chat_template = DATED
    assert models.identity("a/b") == {"model": "a/b", "revision": "c", "date": "2024-07-26"}
