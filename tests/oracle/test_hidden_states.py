"""Our residual streams equal Hugging Face's hidden states: for MiniLM and for a small random causal model."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from lib.model import forward, models, weights

TEXTS = ["what is a lighthouse for", "tell", "a much longer prompt that goes on and on about the sea and its ships"]


def compare(bridge, reference, layers):
    token_ids = models.tokenise(bridge, TEXTS)
    ids, mask = forward.padded(token_ids, bridge.tokenizer.pad_token_id)
    resid = forward.resid_post_at(bridge, ids, mask, layers)
    assert sorted(resid) == sorted(layers)
    for row, tokens in enumerate(token_ids):  # each prompt alone, without padding
        with torch.inference_mode():
            alone = reference(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        for layer in layers:
            torch.testing.assert_close(resid[layer][row, : len(tokens)], alone[layer + 1][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", [[0], [5], [1, 3, 4], list(range(6))])
def test_minilm(minilm, layers):
    reference = transformers.AutoModel.from_pretrained(weights.model_path(weights.MINILM)).eval()
    compare(minilm, reference, layers)


def test_a_local_causal_model(tmp_path):
    torch.manual_seed(0)
    words = ["<pad>", "<eos>", "<unk>", *sorted({w for t in TEXTS for w in t.split()})]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    wrapped.save_pretrained(tmp_path)
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    bridge = models.load_model(str(tmp_path))
    reference = transformers.LlamaModel.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    compare(bridge, reference, [0, 1])  # HF normalises its last hidden state
    identity = models.identity(str(tmp_path))
    assert identity["model"] == str(tmp_path) and len(identity["revision"]) == 25
