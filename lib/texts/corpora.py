"""Texts that SAEs are trained on: pretraining-like prose, docstrings of installed packages, and chat rollouts.

A corpus is a list of passages, a few paragraphs each. Passages, not windows, are held out, so that no passage
is on both sides.
"""

import gzip
import importlib.util
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.texts.sources import N_CHAT_OOD, chat_instructions, fetch, registry

CORPORA = ("docstrings", "pretraining", "rollouts")
CHARACTERS = 5  # of a token, at most, on average
DIALOGUE = ("messages", "conversation", "conversations")  # columns of the hub's chat data sets
TEXT = ("text", "prompt", "instruction", "question")
PASSAGE = 1200  # characters, at least, unless the document ends
PROSE_PACKAGES = ("numpy", "sklearn", "pandas", "matplotlib", "torch", "transformers", "networkx", "sympy", "jupyterlab",
                  "nbconvert", "papermill", "seaborn", "pooch", "tqdm", "openai", "jinja2", "sae_lens")  # fmt: skip
ZIPPED = {"brown": r"brown/c[a-r]\d\d$", "webtext": r"\.txt$", "abc": r"\.txt$", "state_union": r"\.txt$",
          "movie_reviews": r"\.txt$"}  # fmt: skip


def corpus(name: str, tokens: int = 0) -> list[str]:
    """The passages of a corpus, without repeats.

    ``docstrings``: prose paragraphs of the docstrings of installed packages. ``pretraining``: Brown, WikiText, news,
    speeches, web text, film reviews. ``rollouts``: AlpacaEval answers of seven models, without the instructions that
    notebook 01 keeps for OOD, and hh-rlhf dialogues. ``hf:<data set>[:<configuration>[:<split>]]``: a data set of the hub (or a
    local folder of parquet, JSON or CSV), streamed until it holds about ``tokens`` tokens; see :func:`hub_rows`.

    Raises:
        ValueError: unknown name, or a file or data set that cannot be fetched.
    """
    if name.startswith("hf:"):
        return list(dict.fromkeys(hub_rows(name, tokens * CHARACTERS)))
    if name not in CORPORA:
        raise ValueError(f"unknown corpus {name!r}; allowed are {CORPORA}, or hf:<data set>[:<configuration>[:<split>]]")
    makers = {"docstrings": _docstrings, "pretraining": _pretraining, "rollouts": _rollouts}
    return list(dict.fromkeys(makers[name]()))


def hub_rows(name: str, characters: int) -> Iterator[str]:
    """Rows of a hub data set until they hold ``characters``: a column of turns as a dialogue, or a column of text.

    Raises:
        ValueError: the data set cannot be had, or has no such column.
    """
    import datasets as hub

    place, configuration, split = [*name.removeprefix("hf:").split(":"), "", ""][:3]
    try:
        rows = hub.load_dataset(place, configuration or None, split=split or "train", streaming=True)
        seen = 0
        with tqdm(total=characters, desc=place, unit="character", unit_scale=True) as bar:
            for row in rows:
                text = _of_row(row, name)
                yield text
                seen += len(text)
                bar.update(len(text))
                if seen >= characters:
                    return
    except (OSError, hub.exceptions.DatasetsError) as error:
        why = "it is gated: accept its terms on the hub and set HF_TOKEN" if "gated" in str(error).lower() else f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise ValueError(f"the data set {place!r} cannot be had from the hub ({why})") from error


def _of_row(row: dict, name: str) -> str:
    for column in DIALOGUE:
        if row.get(column):
            turns = [{"role": turn.get("role", turn.get("from")), "content": turn.get("content", turn.get("value"))} for turn in row[column]]
            people = {"user": "User", "human": "User", "assistant": "Assistant", "gpt": "Assistant"}
            return "\n\n".join(f"{people[turn['role']]}: {turn['content'].strip()}" for turn in turns if turn["role"] in people)
    text = next((row[column] for column in TEXT if isinstance(row.get(column), str)), None)
    if text is None:
        raise ValueError(f"{name} has the columns {sorted(row)}; one of {DIALOGUE + TEXT} is needed")
    return text


def first_turns(dialogues: list[str]) -> list[str]:
    """The user's first turn of each dialogue (of other text, all of it), without repeats."""
    return list(dict.fromkeys(_user_turn(text).removeprefix("User:").strip() for text in dialogues))


def hold_out(passages: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Divide passages at random into training and held-out ones (``share`` of them, at least one).

    Answers to one user's turn are on one side only.
    """
    groups = list(dict.fromkeys(map(_user_turn, passages)))
    if len(groups) < 2:
        raise ValueError(f"{len(groups)} passages cannot be divided into training and held-out ones; give at least 2")
    order = np.random.default_rng(seed).permutation(len(groups))
    held = {groups[i] for i in order[: max(1, round(share * len(groups)))]}
    parts = ([p for p in passages if (_user_turn(p) in held) == side] for side in (False, True))
    return next(parts), next(parts)


def _user_turn(passage: str) -> str:
    return passage.split("\n\nAssistant:", 1)[0]


def passages(paragraphs: Iterable[str], least: int = PASSAGE) -> list[str]:
    """Join consecutive paragraphs until a passage has ``least`` characters; nothing is lost."""
    found: list[str] = []
    part: list[str] = []
    for paragraph in paragraphs:
        part.append(paragraph)
        if sum(map(len, part)) >= least:
            found.append(" ".join(part))
            part = []
    return found + ([" ".join(part)] if part else [])


def detokenise(text: str) -> str:
    """Undo the spaces that corpora put around punctuation."""
    text = re.sub(r" @([-,.])@ ", r"\1", text).replace("``", '"').replace("''", '"')
    text = re.sub(r" ([,.;:?!%)\]])", r"\1", text)
    return re.sub(r"([(\[]) ", r"\1", text.replace(" n't", "n't").replace(" 's", "'s"))


def _docstrings() -> list[str]:
    found = []
    for name in PROSE_PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            continue
        for path in sorted(Path(spec.submodule_search_locations[0]).rglob("*.py")):
            found += _prose(path.read_text(encoding="utf-8", errors="ignore"))
    return passages(dict.fromkeys(found), 600)


def _prose(source: str) -> list[str]:
    """Paragraphs of triple-quoted strings that read like prose: a sentence of ten words or more, hardly any code."""
    found = []
    for block in re.findall(r'"""(.*?)"""', source, flags=re.DOTALL):
        for paragraph in re.split(r"\n\s*\n", block):
            text = " ".join(paragraph.split())
            if text[:1].isupper() and text.endswith(".") and len(text.split()) >= 10 and _letters(text) > 0.96 * len(text):
                found.append(text)
    return found


def _letters(text: str) -> int:
    return sum(c.isalpha() or c in " ,.'" for c in text)


def _pretraining() -> list[str]:
    found = []
    for name, pattern in ZIPPED.items():
        with zipfile.ZipFile(fetch(name)) as archive:  # read in memory, nothing is unpacked
            members = [member for member in archive.namelist() if re.search(pattern, member)]
            for member in members:
                text = archive.read(member).decode("utf-8", errors="ignore")
                found += passages(_untagged(text) if name == "brown" else _lines(text))
    for name in ("wikitext_valid", "wikitext_test"):
        found += passages(_lines(fetch(name).read_text(encoding="utf-8").replace("<unk>", "")))
    return found


def _lines(text: str) -> list[str]:
    return [detokenise(" ".join(line.split())) for line in text.splitlines() if len(line.split()) > 3]


def _untagged(text: str) -> list[str]:
    """Lines of the Brown corpus without the part-of-speech tags."""
    return _lines("\n".join(" ".join(word.rsplit("/", 1)[0] for word in line.split()) for line in text.splitlines()))


def chat_turn(user: str, assistant: str = "") -> str:
    """A dialogue turn as text, for models without a chat template."""
    return f"User: {user.strip()}\n\nAssistant: {assistant.strip()}".removesuffix("\n\nAssistant: ")


def as_user_prompts(texts: list[str], words: int = 80) -> list[str]:
    """Pretraining text in chat format: every ``words`` words as a user's turn (the paper's IT-formatted data)."""
    pieces = (piece for text in texts for piece in _pieces(text.split(), words))
    return [chat_turn(piece) for piece in pieces]


def _pieces(words: list[str], size: int) -> list[str]:
    return [" ".join(words[start : start + size]) for start in range(0, len(words), size)]


def _rollouts() -> list[str]:
    kept_for_ood = set(chat_instructions()[:N_CHAT_OOD])
    found = []
    for name in registry():
        if name.startswith("alpaca_eval_"):
            rows = json.loads(fetch(name).read_text(encoding="utf-8"))
            found += [chat_turn(row["instruction"], row["output"]) for row in rows if row["instruction"] not in kept_for_ood]
    with gzip.open(fetch("hh_rlhf"), "rt", encoding="utf-8") as lines:
        for line in lines:
            found.append(json.loads(line)["chosen"].strip().replace("Human:", "User:"))
    return found


def first_tokens(windows: list[list[int]], limit: int, seed: int) -> list[list[int]]:
    """Windows in random order, as many as hold ``limit`` tokens together (0: all)."""
    order = np.random.default_rng(seed).permutation(len(windows))
    ends = np.cumsum([len(windows[i]) for i in order])
    return [windows[i] for i, end in zip(order, ends, strict=True) if not limit or end <= limit]
