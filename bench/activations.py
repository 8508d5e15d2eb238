"""Harvest and generation beside the plain Hugging Face model cut at the same layer, and beside ``run_with_cache``.

Prompts are those of notebook 01 before near-duplicates are taken out. They lie in shards as in a whole harvest, and
of shards of short, middling and long prompts one pack each is read: all of it by us, a part of it by the peer. Packs
share more or less than the whole does, so what is compared is the time of the whole harvest: its computed tokens at our
rate, and all of its tokens at the peer's.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers

from lib.model import activations, collectors, forward, models, poolings, prefixes, rollouts, weights
from lib.texts import corpora, datasets, sources

PROFILE = "embedded"  # whose data are measured
PROMPTS_OF = ("embedded", "public")  # profiles whose prompts are read
ENCODER_LAYER, CHAT_LAYER = 3, 15
ENCODER_ROUNDS, CHAT_ROUNDS = 9, 3
N_TEXTS = 1500
PLACES = (1 / 6, 1 / 2, 5 / 6)  # of the shards whose packs are read, from the shortest prompts to the longest
PEER_TOKENS = 3000  # of each pack
PEER_BATCHES = (1024, 2048, 4096, 8192)  # padded tokens of the peer's batches, of which the fastest is taken
N_WINDOWS, CONTEXT = 64, 128  # of unwrapped text
N_ANSWERS, NEW_TOKENS, PEER_ROWS = 96, 16, (32, 96)
LIMITS = {"harmful": 400, "harmless": 1130, "ood_harmful": 440, "ood_toxic_looking": 420, "ood_chat": 405}


class Work(NamedTuple):
    """Prompts of one pack and those of them that the peer reads, as token ids, and how many tokens we compute."""

    ours: list[list[int]]
    peers: list[list[int]]
    computed: int


def measure() -> Iterator[tuple[str, str, list[float]]]:
    """Rates on the same texts, in turn; a ratio is taken within a round. Ours includes all poolings."""
    yield from _encoder()
    bridge, hf = models.load_model(weights.SMOLLM2), _cut_causal(weights.SMOLLM2, CHAT_LAYER)
    yield from _unwrapped_text(bridge, hf)
    differences = []
    for profile in PROMPTS_OF:
        token_ids = models.tokenise(bridge, _prompts(profile))
        works, saving = _packs(token_ids), sum(map(len, token_ids)) / activations.computed_tokens(token_ids)
        yield f"prefix_tokens_saved_{profile}", "ratio", [saving]
        yield f"prefix_vs_hf_cut_{profile}", "ratio", _prefix_ratios(bridge, hf, works, saving)
        differences += [_difference(bridge, work.peers) for work in works]
    yield "prefix_max_difference", "standard deviations", differences
    yield from _generation(bridge)


def _encoder() -> Iterator[tuple[str, str, list[float]]]:
    bridge, hf = models.load_model(weights.MINILM), _cut_encoder(weights.MINILM, ENCODER_LAYER)
    token_ids = sorted(models.tokenise(bridge, sources.base_prompts("embedded")["text"].tolist()[:N_TEXTS]), key=len)
    lengths = [len(ids) for ids in token_ids]
    pad = bridge.tokenizer.pad_token_id
    work = [forward.padded([token_ids[i] for i in rows], pad) for rows in forward.batches(lengths)]

    def ours(ids, mask):
        resid = forward.resid_post_at(bridge, ids, mask, [ENCODER_LAYER])[ENCODER_LAYER]
        return [poolings.pool(resid, mask.bool(), name) for name in poolings.POOLINGS]

    steps = {
        "ours": ours,
        "hf_cut": lambda ids, mask: hf(input_ids=ids, attention_mask=mask),
        "run_with_cache": lambda ids, mask: bridge.run_with_cache(ids, attention_mask=mask),
    }
    for step in steps.values():
        _rate(lambda step=step: [step(*batch) for batch in work[:3]], 1)
    rates = {name: [] for name in steps}
    for _ in range(ENCODER_ROUNDS):
        for name, step in steps.items():
            rates[name].append(_rate(lambda step=step: [step(*batch) for batch in work], sum(lengths)))
    yield "encoder_harvest_tokens_per_s", "tokens/s", rates["ours"]
    for peer in ("hf_cut", "run_with_cache"):
        ratios = [a / b for a, b in zip(rates["ours"], rates[peer], strict=True)]
        yield f"encoder_harvest_vs_{peer}", "ratio", ratios


def _cut_encoder(name: str, layer: int) -> torch.nn.Module:
    """The HF encoder with the blocks after ``layer`` taken away."""
    model = transformers.AutoModel.from_pretrained(weights.model_path(name)).eval()
    model.encoder.layer = model.encoder.layer[: layer + 1]
    return model


def _cut_causal(name: str, layer: int) -> torch.nn.Module:
    model = transformers.AutoModel.from_pretrained(weights.model_path(name)).eval()
    model.layers, model.config.num_hidden_layers = model.layers[: layer + 1], layer + 1
    return model


def _rate(work: Callable[[], object], n_tokens: int) -> float:
    """Tokens per second."""
    started = time.perf_counter()
    with torch.inference_mode():
        work()
    return n_tokens / (time.perf_counter() - started)


def _read_by_peer(hf: torch.nn.Module, token_ids: list[list[int]], batch_tokens: int) -> None:
    token_ids = sorted(token_ids, key=len)
    for rows in forward.batches([len(ids) for ids in token_ids], batch_tokens):
        ids, mask = forward.padded([token_ids[i] for i in rows], 0)
        hf(input_ids=ids, attention_mask=mask, use_cache=False)


def _fastest_batch(hf: torch.nn.Module, token_ids: list[list[int]]) -> int:
    """The padded tokens per batch with which the peer is fastest."""
    _read_by_peer(hf, token_ids[:4], PEER_BATCHES[0])
    n_tokens = sum(map(len, token_ids))
    return max(PEER_BATCHES, key=lambda size: _rate(lambda: _read_by_peer(hf, token_ids, size), n_tokens))


def _pooled(bridge, token_ids: list[list[int]]) -> None:
    whole = torch.tensor([(0, len(ids)) for ids in token_ids])
    prompts, chunk = collectors.Prompts(token_ids, whole), list(range(len(token_ids)))
    collector = collectors.PooledShard(bridge, prompts, chunk, [CHAT_LAYER], poolings.ALL_POOLINGS)
    for batch in forward.run(bridge, token_ids, [CHAT_LAYER]):
        collector.add(*batch)


def _unwrapped_text(bridge, hf: torch.nn.Module) -> Iterator[tuple[str, str, list[float]]]:
    """Windows of text, which share nothing but BOS."""
    documents = corpora.corpus("docstrings", N_WINDOWS * CONTEXT * 2)
    windows = [ids for ids in models.split_tokens(bridge, documents, CONTEXT) if len(ids) == CONTEXT][:N_WINDOWS]
    n_tokens, size = sum(map(len, windows)), _fastest_batch(hf, windows)
    _pooled(bridge, windows[:2])
    rates, peers = [], []
    for _ in range(CHAT_ROUNDS):
        rates.append(_rate(lambda: _pooled(bridge, windows), n_tokens))
        peers.append(_rate(lambda: _read_by_peer(hf, windows, size), n_tokens))
    yield "harvest_tokens_per_s", "tokens/s", rates
    yield "harvest_vs_hf_cut", "ratio", [a / b for a, b in zip(rates, peers, strict=True)]


def _prompts(profile: str) -> list[str]:
    rng = np.random.default_rng(0)
    drawn = datasets.draw(sources.base_prompts(profile), sources.limits(**LIMITS), True, rng)
    drawn = drawn.assign(text=drawn["text"].map(datasets.normalise)).drop_duplicates("text")
    clean = datasets.split_base(drawn, 0.2, rng)
    return datasets.augment(clean, datasets.load_templates(profile), 1.0, rng)["text"].tolist()


def _packs(token_ids: list[list[int]]) -> list[Work]:
    chunks = activations._by_tokens(activations._by_length(token_ids), token_ids, activations.SHARD_TOKENS)
    works, rng = [], np.random.default_rng(0)
    for place in PLACES:
        shard = [token_ids[i] for i in chunks[int(place * len(chunks))]]
        waiting, packs = prefixes.lexicographic(shard), []
        while waiting:
            packs.append([shard[row.prompt] for row in prefixes.next_pack(shard, waiting, forward.PACK_TOKENS)])
            waiting = waiting[len(packs[-1]) :]
        ours = packs[rng.integers(len(packs))]
        order = rng.permutation(len(ours))
        enough = np.cumsum([len(ours[i]) for i in order]) <= PEER_TOKENS
        works.append(Work(ours, [ours[i] for i in order[enough]], forward.computed_tokens(ours)))
    return works


def _prefix_ratios(bridge, hf: torch.nn.Module, works: list[Work], saving: float) -> list[float]:
    """The peer's time for all tokens over ours for those computed, ``saving`` times fewer, by round."""
    size = _fastest_batch(hf, works[len(works) // 2].peers)
    _pooled(bridge, works[0].peers)
    ratios = []
    for _ in range(CHAT_ROUNDS):
        ours = sum(1 / _rate(lambda work=work: _pooled(bridge, work.ours), work.computed) for work in works)
        peer = sum(
            1 / _rate(lambda work=work: _read_by_peer(hf, work.peers, size), sum(map(len, work.peers)))
            for work in works
        )
        ratios.append(saving * peer / ours)
    return ratios


def _difference(bridge, token_ids: list[list[int]]) -> float:
    """Largest difference of the tokens that count between packs and batches, in their standard deviations."""
    packed, plain = (
        _by_prompt(batches, len(token_ids))
        for batches in (
            forward._in_packs(bridge, forward.pack_reader(bridge), token_ids, [CHAT_LAYER]),
            forward._in_batches(bridge, token_ids, [CHAT_LAYER]),
        )
    )
    return ((packed - plain).abs().max() / plain.std()).item()


def _by_prompt(batches: Iterator[forward.Batch], n: int) -> torch.Tensor:
    tokens: list[torch.Tensor] = [torch.empty(0)] * n
    for rows, mask, resid in batches:
        for place, row in enumerate(rows):
            tokens[row] = resid[CHAT_LAYER][place, mask[place]]
    return torch.cat(tokens)


def _generation(bridge) -> Iterator[tuple[str, str, list[float]]]:
    """New tokens per second, answers that end early counted whole in both."""
    texts = sources.base_prompts("embedded")["text"].tolist()[:N_ANSWERS]
    token_ids = sorted(models.tokenise(bridge, texts), key=len)
    peer = transformers.AutoModelForCausalLM.from_pretrained(weights.model_path(weights.SMOLLM2)).eval()
    pad, n_tokens = bridge.tokenizer.pad_token_id, N_ANSWERS * NEW_TOKENS

    def theirs(n_rows: int, new: int) -> None:
        for start in range(0, N_ANSWERS, n_rows):
            ids, mask = forward.padded(token_ids[start : start + n_rows], pad, left=True)
            options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": pad}
            peer.generate(input_ids=ids, attention_mask=mask, **options)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            options = {"temperature": 0.0, "part_prompts": N_ANSWERS}
            rollouts.generate(bridge, models.identity(weights.SMOLLM2), texts, Path(folder), NEW_TOKENS, **options)

    size = max(PEER_ROWS, key=lambda n_rows: _rate(lambda: theirs(n_rows, 4), n_tokens))
    rates, peers = [], []
    for _ in range(CHAT_ROUNDS):
        rates.append(_rate(ours, n_tokens))
        peers.append(_rate(lambda: theirs(size, NEW_TOKENS), n_tokens))
    yield "generation_tokens_per_s", "tokens/s", rates
    yield "generation_vs_hf_generate", "ratio", [a / b for a, b in zip(rates, peers, strict=True)]
