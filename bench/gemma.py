"""Gemma 2 9B with random weights, cut at layer 20, on one GPU: harvest, SAE training at 3,584 × 131,072, and both.

Without a GPU the same code runs on a small model, as a check that it works; its figures say nothing about Gemma.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers

from lib.model import activations, forward, models
from lib.runs import sizing
from lib.sae import token_blocks
from lib.sae.recipes import Recipe
from lib.sae.trainers import make_trainer
from tests import tiny_gemma

GPU = torch.cuda.is_available()
PROFILE = "gemma-2-9b" if GPU else "tiny-gemma"
DEVICE, DTYPE = ("cuda", "bfloat16") if GPU else ("cpu", "float32")
LAYER = 20 if GPU else 1
WIDE = {
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "vocab_size": 256_000,
}
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 64,
    "vocab_size": 2_000,
}
D_SAE, BATCH = (131_072, 4096) if GPU else (2048, 512)
CONTEXT, SEQUENCES, ROUNDS = (1024, 128, 5) if GPU else (128, 64, 3)


def measure() -> Iterator[tuple[str, str, list[float]]]:
    """Harvest beside plain Hugging Face, then training, then both."""
    bridge = _bridge()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 1500, (SEQUENCES, CONTEXT), generator=generator).tolist()
    options = {"special": False, "shuffle_seed": 0, "shard_tokens": SEQUENCES * CONTEXT // 4}
    shards = activations.token_shards(bridge, {"model": "random"}, "ids", ids, LAYER, **options)
    plain = transformers.AutoModel.from_config(bridge.original_model.config)  # It has the blocks up to LAYER only.
    plain = plain.to(DEVICE, models.DTYPES[DTYPE]).eval()
    per_batch = max(1, forward.BATCH_TOKENS // CONTEXT)
    groups = [torch.tensor(ids[i : i + per_batch], device=DEVICE) for i in range(0, SEQUENCES // 4, per_batch)]

    @torch.inference_mode()
    def hugging_face():
        for group in groups:
            plain(input_ids=group).last_hidden_state.to("cpu")

    ours, theirs = _rounds(lambda: shards.make(0), hugging_face)
    tokens = [shards.counts[0] / s for s in ours]
    yield "harvest_tokens_per_s", "tokens/s", tokens
    yield "harvest_vs_hf_cut", "ratio", [t / o for o, t in zip(ours, theirs, strict=True)]
    blocks = sum(p.numel() for p in plain.layers.parameters())
    peak = sizing.peak_flops(DEVICE, DTYPE)
    yield "harvest_share_of_peak", "fraction", [2 * blocks * rate / peak for rate in tokens]
    del plain
    recipe = Recipe(d_sae=D_SAE, target_l0=80.0, tokens=1000 * BATCH, batch_tokens=BATCH, lr=4e-4)
    x = token_blocks.Blocks([shards])
    trainer = make_trainer(recipe, x.sample(4 * BATCH, 0).to(DEVICE).float())
    for step in range(10):  # Thresholds settle, and kernels are compiled.
        _step(trainer, x, step)
    seconds = [_time(lambda step=step: _step(trainer, x, step)) for step in range(10, 10 + 4 * ROUNDS)]
    yield "sae_training_tokens_per_s", "tokens/s", [BATCH / s for s in seconds]
    both = [statistics.median(ours) / shards.counts[0] + s / BATCH for s in seconds]
    yield "end_to_end_tokens_per_s", "tokens/s", [1 / s for s in both]
    yield "hours_per_billion_tokens", "hours", [1e9 * s / 3600 for s in both]
    if GPU:
        yield "peak_memory_gib", "GiB", [torch.cuda.max_memory_allocated() / 2**30]


def _bridge():
    folder = Path(tempfile.mkdtemp())
    tokenizer = tiny_gemma.tokenizer(["a few words for a tokenizer"])
    config = transformers.Gemma2Config(
        **(WIDE if GPU else SMALL),
        num_hidden_layers=LAYER + 1,
        max_position_embeddings=8192,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    config.architectures = ["Gemma2ForCausalLM"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=models.DTYPES[DTYPE]).eval()
    return models.wrap(str(folder), model, transformers.AutoTokenizer.from_pretrained(folder))


def _step(trainer, x: token_blocks.Blocks, step: int) -> None:
    trainer.step(x.batch(step, BATCH, 0).to(DEVICE).float(), 1.0)


def _rounds(*calls: Callable[[], object]) -> list[list[float]]:
    """Seconds of each call, in turn, after one that does not count."""
    rounds = [[_time(call) for call in calls] for _ in range(ROUNDS + 1)][1:]
    return [list(column) for column in zip(*rounds, strict=True)]


def _time(call: Callable[[], object]) -> float:
    if GPU:
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - began
