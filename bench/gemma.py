"""Gemma 2 9B with random weights, cut at layer 20, on one GPU: harvest, SAE training at 3,584 × 131,072, and both.

Training steps (optimiser included) are measured in turn with SAELens' JumpReLU on the same batches. The share of the
matrix peak counts the five dense products of a step, of which ours computes active entries only.

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
from lib.sae.architectures import make_trainer
from lib.sae.recipes import Recipe
from tests import tiny_gemma

GPU = torch.cuda.is_available()
PROFILE = "gemma-2-9b" if GPU else "tiny-gemma"
DEVICE, DTYPE = ("cuda", "bfloat16") if GPU else ("cpu", "float32")
LAYER = 20 if GPU else 1
WIDE = {
    "hidden_size": 3584, "intermediate_size": 14336, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096, "vocab_size": 256_000,
}  # fmt: skip
SMALL = {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64, "vocab_size": 2_000,
}  # fmt: skip
D_SAE, BATCH = (131_072, 4096) if GPU else (2048, 512)
CONTEXT, SEQUENCES, ROUNDS = (1024, 128, 5) if GPU else (128, 64, 3)


def measure() -> Iterator[tuple[str, str, list[float]]]:
    """Harvest beside plain Hugging Face, then training, then both."""
    bridge = _bridge()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 1500, (SEQUENCES, CONTEXT), generator=generator).tolist()
    per_shard = SEQUENCES * CONTEXT // 4
    shards = activations.token_shards(
        bridge, {"model": "random"}, "ids", ids, LAYER, special=False, shuffle_seed=0, shard_tokens=per_shard
    )
    plain = transformers.AutoModel.from_config(bridge.original_model.config)  # of the blocks up to LAYER only
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
    blocks_of_tokens = token_blocks.Blocks([shards])
    x = blocks_of_tokens.sample(4 * BATCH, 0).to(DEVICE).float()
    trainer, saelens = make_trainer(recipe, x), _saelens(x.shape[1])

    def batch(step: int) -> torch.Tensor:
        return blocks_of_tokens.batch(step, BATCH, 0).to(DEVICE).float()

    for step in range(10):  # thresholds settle, and kernels are compiled
        trainer.step(batch(step), 1.0)
        saelens(batch(step))
    seconds, theirs = [], []
    for step in range(10, 10 + 4 * ROUNDS):
        tokens_of_step = batch(step)
        seconds.append(_time(lambda x=tokens_of_step: trainer.step(x, 1.0)))
        theirs.append(_time(lambda x=tokens_of_step: saelens(x)))
    yield "sae_training_tokens_per_s", "tokens/s", [BATCH / s for s in seconds]
    yield "saelens_tokens_per_s", "tokens/s", [BATCH / s for s in theirs]
    yield "sae_training_vs_saelens", "ratio", [t / s for s, t in zip(seconds, theirs, strict=True)]
    dense_step = 5 * 2 * BATCH * x.shape[1] * D_SAE  # operations
    yield "sae_training_share_of_peak", "fraction", [dense_step / s / peak for s in seconds]
    both = [statistics.median(ours) / shards.counts[0] + s / BATCH for s in seconds]
    yield "end_to_end_tokens_per_s", "tokens/s", [1 / s for s in both]
    yield "hours_per_billion_tokens", "hours", [1e9 * s / 3600 for s in both]
    if GPU:
        yield "peak_memory_gib", "GiB", [torch.cuda.max_memory_allocated() / 2**30]


def _saelens(d_model: int) -> Callable[[torch.Tensor], None]:
    """A step of SAELens' JumpReLU training class at the same width."""
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=d_model, d_sae=D_SAE, device=DEVICE))
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-4)
    dead = torch.zeros(D_SAE, dtype=torch.bool, device=DEVICE)

    def step(batch: torch.Tensor) -> None:
        inputs = TrainStepInput(
            sae_in=batch, coefficients={"l0": 1.0}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
        )
        output = sae.training_forward_pass(inputs)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()

    return step


def _bridge():
    folder = Path(tempfile.mkdtemp())
    tokenizer = tiny_gemma.tokenizer(["a few words for a tokenizer"])
    shape = WIDE if GPU else SMALL
    special = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.Gemma2Config(
        **shape, **special, num_hidden_layers=LAYER + 1, max_position_embeddings=8192
    )
    config.architectures = ["Gemma2ForCausalLM"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=models.DTYPES[DTYPE]).eval()
    return models.wrap(str(folder), model, transformers.AutoTokenizer.from_pretrained(folder))


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
