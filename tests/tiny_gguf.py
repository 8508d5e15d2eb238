"""A tiny random Llama as a GGUF file, as llama.cpp's converter would write it."""

from pathlib import Path

import gguf
import numpy as np
import torch
import transformers

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TENSORS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
BYTES = "".join(map(chr, [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]))  # GPT-2's alphabet
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e"]
TOKENS = [*SPECIAL, *BYTES, *(merge.replace(" ", "") for merge in MERGES)]


def model(seed: int = 0) -> transformers.LlamaForCausalLM:
    """The random model, whose widths are multiples of a quantisation's block of 32."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rope_theta=5000.0,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def write(path: Path, llama: transformers.LlamaForCausalLM, architecture: str = "llama", quantisation=None) -> Path:
    """Write ``llama`` to ``path``; ``quantisation`` is one of gguf's for the matrices, else they are in float32."""
    config, writer = llama.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    weights = {name: tensor.detach().numpy() for name, tensor in llama.named_parameters()}
    tensors = {"token_embd.weight": weights["model.embed_tokens.weight"]}
    tensors["output_norm.weight"] = weights["model.norm.weight"]
    for i in range(config.num_hidden_layers):
        for short, long in TENSORS.items():
            tensor = weights[f"model.layers.{i}.{long}.weight"]
            if short in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if short == "attn_q" else config.num_key_value_heads
                tensor = _interleaved(tensor, heads)
            tensors[f"blk.{i}.{short}.weight"] = tensor
    for name, tensor in tensors.items():
        if quantisation is not None and tensor.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(tensor, quantisation), raw_dtype=quantisation)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(tensor: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp pairs neighbouring coordinates in its rotary embedding, Hugging Face the two halves of a head."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, tensor.shape[1])
    return halves.swapaxes(1, 2).reshape(tensor.shape)
