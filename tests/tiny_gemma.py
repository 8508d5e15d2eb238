"""A tiny random Gemma 2 with Gemma's turn tokens and template, and a Gemma-Scope-shaped SAE.

``python -m tests.tiny_gemma FOLDER`` writes it. Nothing in it is trained but the tokenizer. It stands for Gemma 2
wherever only the handling is tested.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lib.base.files import DATA
from lib.model import forward
from lib.model.models import load_model, tokenise
from lib.texts import sources

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
D_MODEL, D_SAE, LAYER = 32, 256, 1


def tokenizer(texts: list[str], vocab_size: int = 1500) -> transformers.PreTrainedTokenizerFast:
    """Byte-fallback BPE with '▁' for spaces, as Gemma's; newline, ``user`` and ``model`` are single tokens."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    newlines = pre_tokenizers.Split(Regex(r"\n"), "isolated")
    spaces = pre_tokenizers.Metaspace(prepend_scheme="never")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([newlines, spaces])
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    alphabet = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL + alphabet, show_progress=False)
    bpe.train_from_iterator([*texts, *["user\nmodel\n"] * 500], trainer)
    written = json.loads(bpe.to_str())  # The bytes are in the vocabulary, and no special tokens.
    written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] in SPECIAL]
    bpe = Tokenizer.from_str(json.dumps(written))
    bos = ("<bos>", SPECIAL.index("<bos>"))
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def common(words: transformers.PreTrainedTokenizerFast) -> dict[str, Any]:
    """What the configurations of tiny Gemmas with this tokenizer have in common."""
    return {
        "vocab_size": len(words),
        "hidden_size": D_MODEL,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "max_position_embeddings": 512,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": [words.eos_token_id, words.convert_tokens_to_ids("<end_of_turn>")],
        "pad_token_id": words.pad_token_id,
        "initializer_range": 0.2,
    }


def build(folder: Path) -> Path:
    """Write config, weights and tokenizer, and ``gemma-scope/layer_1/…/params.npz``; returns the folder."""
    texts = sources.base_prompts("embedded")["text"].tolist()
    words = tokenizer(texts)
    config = transformers.Gemma2Config(
        num_hidden_layers=3,
        num_key_value_heads=2,
        sliding_window=64,
        **common(words),
    )
    torch.manual_seed(0)
    transformers.Gemma2ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    _scope(folder, texts[:200])
    return folder


def _scope(folder: Path, texts: list[str]) -> None:
    """Random unit decoder rows, tied encoder, thresholds for an L0 of about 10: an SAE that was never trained."""
    bridge = load_model(str(folder))
    ids, mask = forward.padded(tokenise(bridge, texts), bridge.tokenizer.pad_token_id)
    x = forward.resid_post_at(bridge, ids, mask, [LAYER])[LAYER][mask.bool()]
    directions = torch.randn(D_SAE, D_MODEL, generator=torch.Generator().manual_seed(1))
    W_dec, b_dec = torch.nn.functional.normalize(directions, dim=1), x.mean(0)
    threshold = torch.quantile((x - b_dec) @ W_dec.T, 1 - 10 / D_SAE, dim=0).clamp(min=0.01)
    arrays = {"W_enc": W_dec.T, "W_dec": W_dec, "b_enc": -(W_dec @ b_dec), "threshold": threshold, "b_dec": b_dec}
    target = folder / "gemma-scope" / f"layer_{LAYER}" / f"width_{D_SAE}" / "average_l0_10" / "params.npz"
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, **{name: tensor.numpy().astype(np.float32) for name, tensor in arrays.items()})


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "raw" / "tiny-gemma"))
