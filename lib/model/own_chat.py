"""A chat model's own chat: it writes its users' turns and answers them (Magpie, arXiv 2406.08464). ``make rollouts``.

What is kept stands in ``data/rollouts/<model>.parquet`` (user, assistant), and what was left out, why, and how often
in ``<model>.json`` beside it: a chat corpus without a data set, whose prompts are none of the probes'.
"""

import argparse
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.base.files import run_dir, write_json, write_table
from lib.model import models, rollouts, weights
from lib.texts import corpora, datasets, sources

FOLDER = corpora.ROLLOUTS
TURN_TOKENS, ANSWER_TOKENS = 64, 384
TURNS = {"temperature": 0.9, "top_p": 0.95}
ANSWERS = {"temperature": 0.7, "top_p": 0.95}
PART_PROMPTS = 2048
NEAR = 0.9  # cosine of MiniLM's embeddings from which two turns are nearly the same
LEAST_WORDS = 3
# Beginnings of words that stand in no turn or answer that is shipped. The sieve is coarse: it loses harmless ones too.
PHRASES = (
    *("suicid", "self-harm", "kill", "murder", "terroris", "bomb", "explosive", "weapon", "firearm", "gun ", "poison"),
    *("hack", "malware", "phish", "ransomware", "exploit a", "steal", "fraud", "counterfeit", "launder", "smuggl"),
    *("drug", "cocaine", "heroin", "meth ", "methamphetamine", "porn", "sexual", "sexy", "erotic", "nude", "rape"),
    *("racis", "racial slur", "nazi", "genocid", "hate speech", "slur", "tortur", "abuse", "blackmail", "stalk"),
)
PHRASE = re.compile("|".join(rf"\b{re.escape(phrase)}" for phrase in PHRASES), re.IGNORECASE)


def repeats(text: str, size: int = 5, most: int = 3) -> bool:
    """Whether some ``size`` words in a row stand more than ``most`` times in a text, or a line of theirs does."""
    words = text.lower().split()
    runs = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    lines = Counter(line.strip() for line in text.splitlines() if line.strip())
    return max(runs.values(), default=0) > most or max(lines.values(), default=0) > most


def fault(text: str, finished: bool) -> str:
    """Why a turn is not kept: ``cut off``, ``empty``, ``repeating``, ``phrase``; nothing if it is."""
    if not finished:
        return "cut off"
    if len(text.split()) < LEAST_WORDS:
        return "empty"
    if repeats(text):
        return "repeating"
    return "phrase" if PHRASE.search(text) else ""


def sieve(table: pd.DataFrame, column: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows whose ``column`` has no :func:`fault`, and how many others have which."""
    faults = pd.Series([fault(*row) for row in table[[column, "finished"]].itertuples(index=False)], dtype=object)
    return table[(faults == "").to_numpy()], faults[faults != ""].value_counts().to_dict()


def written(bridge: Any, model: dict[str, str], n: int, parent: Path, seed: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Dialogues (user, assistant) from ``n`` turns that the model writes, and the counts of what was left out."""
    turns = rollouts.user_turns(
        bridge, model, n, parent, TURN_TOKENS, seed=seed, part_prompts=PART_PROMPTS, **TURNS
    )
    asked, of_turns = sieve(turns, "response")
    prompts = list(dict.fromkeys(asked["response"]))
    answers = rollouts.generate(
        bridge, model, prompts, parent, ANSWER_TOKENS, seed=seed, part_prompts=PART_PROMPTS, **ANSWERS
    )
    kept, of_answers = sieve(answers, "response")
    table = kept.rename(columns={"prompt": "user", "response": "assistant"})[["user", "assistant"]]
    left_out = {"turns": of_turns, "same turn": len(asked) - len(prompts), "answers": of_answers}
    return table.reset_index(drop=True), left_out


def apart(table: pd.DataFrame, probes: list[str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """The dialogues whose turn is at a cosine below ``NEAR`` to every probe prompt and to every turn kept before."""
    embeddings = datasets.embedded(table["user"].tolist())
    is_away = datasets.largest_cosine(embeddings, datasets.embedded(probes)) < NEAR
    table, embeddings = table[is_away], embeddings[is_away]
    is_near, is_new = embeddings @ embeddings.T >= NEAR, np.ones(len(table), dtype=bool)
    for i in range(len(table)):
        is_new[i] = not (is_near[i, :i] & is_new[:i]).any()
    counts = {"near a probe prompt": int((~is_away).sum()), "near another turn": int((~is_new).sum())}
    return table[is_new].reset_index(drop=True), counts


def make(name: str, n: int, seed: int, device: str = "cpu") -> Path:
    """Write ``data/rollouts/<model>.parquet`` and ``<model>.json``; returns the former."""
    bridge, model = models.load_model(name, device), models.identity(name)
    table, left_out = written(bridge, model, n, run_dir("rollouts"), seed)
    probes = sources.base_prompts("embedded")["text"].tolist()
    table, near = apart(table, probes)
    tokens = sum(map(len, models.split_tokens(bridge, table_texts(table), bridge.cfg.n_ctx)))
    phrases = Counter(match.lower() for text in table_texts(table) for match in PHRASE.findall(text))
    record = {
        **model,
        "user_turns": n,
        "sampling": {"user": TURNS | {"max_new_tokens": TURN_TOKENS}}
        | {"assistant": ANSWERS | {"max_new_tokens": ANSWER_TOKENS}},
        "seed": seed,
        "part_prompts": PART_PROMPTS,
        "left_out": left_out | near,
        "dialogues": len(table),
        "tokens": tokens,
        "phrases": {"looked_for": len(PHRASES), "in_what_is_kept": dict(phrases)},
    }
    path = write_table(FOLDER / f"{name}.parquet", table)
    write_json(FOLDER / f"{name}.json", record)
    return path


def table_texts(table: pd.DataFrame) -> list[str]:
    """The dialogues as text."""
    return [corpora.chat_turn(row.user, row.assistant) for row in table.itertuples()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=weights.SMOLLM2)
    parser.add_argument("--turns", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(make(arguments.model, arguments.turns, arguments.seed, arguments.device))
