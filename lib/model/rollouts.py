"""Rollouts: the model's own responses to prompts, generated in batches and kept as text.

A folder ``rollouts-<hash>`` holds ``sampling.json`` (model, prompts, sampling parameters) and parquet parts, written
under a temporary name and renamed; an interrupted run goes on at the first missing part.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from lib.base.files import locked, value_hash, write_json, write_table
from lib.model import chat, prefill
from lib.model.activations import texts_hash
from lib.model.forward import batches, padded, plain_model
from lib.model.models import Reader, identity, pad_id, tokenise
from lib.texts import corpora

PART_PROMPTS = 256
# Tokens of a batch, new ones included, each of which keeps its keys and values: on a CPU 1.1 GB of SmolLM2's. A step of
# many rows costs little more than one of few (on 2 cores 65 tokens/s for 16 rows, 122 for 64, 160 for 192).
GENERATION_TOKENS = {"cpu": 24_576, "cuda": 1_048_576}
COLUMNS = ["prompt", "response", "finished"]


def generate(
    bridge: TransformerBridge,
    model: dict[str, str],
    prompts: list[str],
    parent: Path,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    part_prompts: int = PART_PROMPTS,
) -> pd.DataFrame:
    """A row per prompt: prompt, response, and whether the model ended its turn within ``max_new_tokens``.

    Temperature 0 is greedy; tokens are drawn from the most probable ones that hold the share ``top_p`` of the
    probability. A part's draws depend on the seed and the part, so that a resumed run equals an uninterrupted one.
    ``model`` is ``lib.model.models.identity``.

    Raises:
        ValueError: a model without chat template, impossible sampling parameters, or a damaged part.
    """
    draws = Draws(max_new_tokens, temperature, top_p, seed, part_prompts)
    decides = model | {"prompts": texts_hash(prompts)} | chat.reading(bridge.tokenizer, prompts)
    return _in_parts(bridge, decides, prompts, parent, draws, tokenise)


def user_turns(
    bridge: TransformerBridge,
    model: dict[str, str],
    n: int,
    parent: Path,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    part_prompts: int = PART_PROMPTS,
) -> pd.DataFrame:
    """``n`` turns that the model writes in its user's place, given its template up to there (Magpie, arXiv 2406.08464).

    Columns and options as :func:`generate`; ``prompt`` is empty.

    Raises:
        ValueError: see :func:`generate`.
    """
    draws = Draws(max_new_tokens, temperature, top_p, seed, part_prompts)
    return _in_parts(bridge, model | {"user_turns": n}, [""] * n, parent, draws, _headers)


class Draws(NamedTuple):
    """How tokens are drawn; ``part_prompts`` are drawn together, with one seed."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    part_prompts: int


def _headers(bridge: TransformerBridge, texts: list[str], room: int) -> list[list[int]]:
    return [chat.user_header(bridge.tokenizer)] * len(texts)


def _in_parts(
    bridge: TransformerBridge,
    decides: dict[str, Any],
    prompts: list[str],
    parent: Path,
    draws: Draws,
    encode: Callable[[TransformerBridge, list[str], int], list[list[int]]],
) -> pd.DataFrame:
    """What the model writes after each of ``prompts``, whose tokens ``encode`` gives; kept in parts."""
    chat.require(bridge.tokenizer, "a rollout")
    new = draws.max_new_tokens
    if draws.temperature < 0 or not 0 < draws.top_p <= 1 or not 0 < new < bridge.cfg.n_ctx:
        raise ValueError(
            f"temperature {draws.temperature} must be 0 or more, top_p {draws.top_p} between 0 and 1, "
            f"max_new_tokens {new} between 1 and the context of {bridge.cfg.n_ctx}"
        )
    sampling = decides | draws._asdict()
    folder, size = parent / f"rollouts-{value_hash(sampling)}", draws.part_prompts
    write_json(folder / "sampling.json", sampling, only_if_changed=True)
    parts = [range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]
    with locked(folder):
        todo = [i for i in range(len(parts)) if not _part(folder, i).exists()]
        for i in tqdm(todo, desc=folder.name, unit="part", disable=not todo):
            texts = [prompts[j] for j in parts[i]]
            token_ids = encode(bridge, texts, bridge.cfg.n_ctx - new)
            write_table(_part(folder, i), _responses(bridge, texts, token_ids, draws, draws.seed * 100_003 + i))
    tables = [_read(_part(folder, i)) for i in range(len(parts))]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


class Sampling(NamedTuple):
    """How the model's own rollouts are drawn: turns that are answered, new tokens of an answer at most, temperature (0:
    greedy), seed."""

    n: int
    max_new_tokens: int
    temperature: float
    seed: int


# Form of a name -> what the model answers, from the caller's prompts, what stands in the place of <…>, and how many.
OWN: dict[str, Callable[[list[str], str, int], list[str]]] = {
    "own:prompts": lambda prompts, _, n: prompts[:n],
    "own:<corpus>": lambda _, source, n: corpora.first_turns(source, n),
}


def corpus(name: str, reader: Reader, sampling: Sampling, prompts: list[str], parent: Path, tokens: int) -> list[str]:
    """``corpora.corpus``, or dialogues of the model itself (see ``OWN``).

    ``own:prompts`` answers the given prompts, ``own:<corpus>`` the user's first turns of a corpus (such as
    ``own:hf:HuggingFaceH4/ultrachat_200k::train_sft``), ``sampling.n`` of them, whatever ``tokens`` are wanted.

    Raises:
        ValueError: unknown name, or see ``corpora.corpus`` and :func:`generate`.
    """
    form = corpora.form_of(name, [*corpora.CORPORA, *OWN])
    if form not in OWN:
        return corpora.corpus(name, tokens)
    asked = OWN[form](prompts, corpora.argument(name, form), sampling.n)
    options = {"temperature": sampling.temperature, "seed": sampling.seed}
    bridge, model = reader.bridge(), identity(reader.model)
    rollouts = generate(bridge, model, asked, parent, sampling.max_new_tokens, **options)
    answered = rollouts[rollouts["response"] != ""]
    return [corpora.chat_turn(row.prompt, row.response) for row in answered.itertuples()]


def split_corpus(
    name: str, reader: Reader, sampling: Sampling, prompts: list[str], parent: Path, tokens: int, *, share: float
) -> corpora.Split:
    """The passages of :func:`corpus`, divided with the seed of ``sampling``; ``share`` of them are held out.

    Raises:
        ValueError: see :func:`corpus` and ``corpora.split``.
    """
    passages = corpus(name, reader, sampling, prompts, parent, tokens)
    return corpora.split(passages, share, sampling.seed)


def _part(folder: Path, i: int) -> Path:
    return folder / f"part-{i:05d}.parquet"


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, columns=COLUMNS)
    except Exception as error:
        why = type(error).__name__
        raise ValueError(f"{path} is damaged ({why}); delete it and run again, it is generated anew") from error


@torch.inference_mode()
def _responses(
    bridge: TransformerBridge, texts: list[str], token_ids: list[list[int]], draws: Draws, seed: int
) -> pd.DataFrame:
    waiting = sorted(range(len(texts)), key=lambda i: (len(token_ids[i]), i))
    rows: dict[int, dict[str, Any]] = {}
    new, budget = draws.max_new_tokens, GENERATION_TOKENS[bridge.original_model.device.type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        while waiting:
            batch = [waiting[i] for i in next(batches([len(token_ids[i]) + new for i in waiting], budget))]
            try:
                responses = _generate(bridge, [token_ids[i] for i in batch], draws)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    n_tokens = len(token_ids[batch[0]])
                    raise ValueError(
                        f"memory does not suffice for one prompt of {n_tokens} tokens and {new} new ones; "
                        "lower max_new_tokens"
                    ) from error
                budget = len(batch) // 2 * (len(token_ids[batch[-1]]) + new)
                torch.cuda.empty_cache()
                continue
            waiting = waiting[len(batch) :]
            for i, (response, finished) in zip(batch, responses, strict=True):
                rows[i] = {"prompt": texts[i], "response": response, "finished": finished}
    return pd.DataFrame([rows[i] for i in range(len(texts))], columns=COLUMNS)


def _generate(bridge: TransformerBridge, token_ids: list[list[int]], draws: Draws) -> list[tuple[str, bool]]:
    """The response to each prompt, and whether the model ended its turn."""
    model, tokenizer = plain_model(bridge), bridge.tokenizer
    ids, mask = padded(token_ids, pad_id(bridge), model.device, left=True)
    ends = sorted(_ends(bridge))
    sampled = {"do_sample": True, "temperature": draws.temperature, "top_k": 0, "top_p": draws.top_p}
    greedy = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    cache = prefill.cache(bridge, token_ids)
    generated = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=draws.max_new_tokens,
        pad_token_id=pad_id(bridge),
        eos_token_id=ends,
        **(sampled if draws.temperature else greedy),
        **({"past_key_values": cache} if cache else {}),
    )
    responses = []
    for row in generated[:, ids.shape[1] :].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), None)
        text = tokenizer.decode(row[:stop], skip_special_tokens=True).strip()
        responses.append((text, stop is not None))
    return responses


def _ends(bridge: TransformerBridge) -> set[int]:
    """EOS, what the model's own generation configuration ends at, and the token that closes a turn."""
    ends = bridge.original_model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or [])
    closing = chat.encode(bridge.tokenizer, "word").ids[chat.end_of_turn(bridge.tokenizer)]
    ends |= {bridge.tokenizer.eos_token_id} | ({closing} & chat.special(bridge.tokenizer))
    return ends - {None}
