"""Texts that SAEs are trained on: pretraining-like prose, docstrings of installed packages, and chat rollouts.

A corpus is a list of passages, a few paragraphs each; its name is of one of the forms of ``CORPORA``. Passages, not
windows, are held out, so that no passage is on both sides.
"""

import gzip
import importlib.util
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib.base.files import DATA, cause
from lib.base.registry import lookup
from lib.texts.sources import N_CHAT_OOD, chat_instructions, fetch, public_files

ROLLOUTS = DATA / "rollouts"
CHARACTERS = 5  # of a token, at most, on average
DIALOGUE = ("messages", "conversation", "conversations")  # columns of the hub's chat data sets
TEXT = ("text", "prompt", "instruction", "question")
PASSAGE = 1200  # characters, at least, unless the document ends
PROSE_PACKAGES = (
    *("numpy", "sklearn", "pandas", "matplotlib", "torch", "transformers", "networkx", "sympy", "jupyterlab"),
    *("nbconvert", "papermill", "seaborn", "pooch", "tqdm", "openai", "jinja2", "sae_lens"),
)
ZIPPED = {  # archive -> the texts in it
    "brown": r"brown/c[a-r]\d\d$",
    "webtext": r"\.txt$",
    "abc": r"\.txt$",
    "state_union": r"\.txt$",
    "movie_reviews": r"\.txt$",
}
EMPTY_ROWS = 1000  # of a hub data set, after which it is given up if none has held a text
ROLES = {  # of hub data sets, in any case -> ours
    **dict.fromkeys(("user", "human", "prompter"), "User"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "chatbot", "ai"), "Assistant"),
}


def corpus(name: str, tokens: int = 0) -> list[str]:
    """The passages of the corpus of this name (see ``CORPORA``), without repeats.

    A corpus of the hub is read until it holds about ``tokens`` tokens; the others are read whole.

    Raises:
        ValueError: unknown name, or a file or data set that cannot be fetched.
    """
    form = form_of(name, CORPORA)
    passages = CORPORA[form](argument(name, form), tokens * CHARACTERS)
    return list(dict.fromkeys(passages))


def form_of(name: str, forms: Iterable[str]) -> str:
    """The form that the name of a corpus has, such as ``hf:<data set>`` for ``hf:NeelNanda/pile-10k``.

    Raises:
        ValueError: no such form; the sentence lists those that there are.
    """
    for form in forms:
        prefix, opens, _ = form.partition("<")
        if name == form or (opens and name.startswith(prefix)):
            return form
    return lookup(dict.fromkeys(forms, ""), "corpus", name)


def argument(name: str, form: str) -> str:
    """What stands in the name of a corpus in the place of the form's ``<…>``."""
    return name.removeprefix(form.partition("<")[0])


def in_words(name: str) -> str:
    """A corpus as captions call it, also one of ``lib.model.rollouts``; the name where it says as much."""
    kind, _, of = name.partition(":")
    words = {
        "pretraining": "public prose",
        "rollouts": "public chat",
        "shipped": f"chat that {of} had with itself",
        "own": f"the model's own answers to {of}",
    }
    return words.get(kind, of or name)


def hub_rows(address: str, characters: int | None) -> Iterator[str]:
    """Rows of a hub data set until they hold ``characters`` (None: all): a column of turns as a dialogue, or of text.

    ``address`` is ``<data set>[:<configuration>[:<split>]]``; a local folder of parquet, JSON or CSV is a data set too.
    Rows without a text are left out, and a warning says how many.

    Raises:
        ValueError: the data set cannot be had, has no such column, or holds no text in its first ``EMPTY_ROWS`` rows.
    """
    import datasets as hub

    place, configuration, split = [*address.split(":"), "", ""][:3]
    try:
        rows = hub.load_dataset(place, configuration or None, split=split or "train", streaming=True)
        read, n_empty, roles = 0, 0, set()
        with tqdm(total=characters, desc=place, unit="character", unit_scale=True) as bar:
            for row in rows:
                text = _of_row(row, address)
                if not text.strip():
                    n_empty += 1
                    roles |= {role for column in DIALOGUE for role, _ in _turns(row.get(column))}
                    if not read and n_empty == EMPTY_ROWS:
                        break
                    continue
                yield text
                read += len(text)
                bar.update(len(text))
                if characters is not None and read >= characters:
                    break
    except (OSError, hub.exceptions.DatasetsError) as error:
        why = cause(error)
        if "gated" in str(error).lower():
            why = "it is gated: accept its terms on the hub and set HF_TOKEN"
        raise ValueError(f"the data set {place!r} cannot be had from the hub ({why})") from error
    if not read:
        of_turns = f", whose turns have the roles {sorted(roles)}; allowed are {', '.join(ROLES)}" if roles else ""
        raise ValueError(f"hf:{address} holds no text in its first {n_empty} rows{of_turns}")
    if n_empty:
        warnings.warn(f"{n_empty} rows of hf:{address} hold no text and are left out", stacklevel=2)


def _of_row(row: dict, address: str) -> str:
    """A row's text; empty where the row holds none in a column that may hold one."""
    for column in DIALOGUE:
        if row.get(column):
            return _dialogue(row[column])
    text = next((row[column] for column in TEXT if isinstance(row.get(column), str)), None)
    if text is None and not any(column in row and not row[column] for column in DIALOGUE + TEXT):
        raise ValueError(f"hf:{address} has the columns {sorted(row)}; one of {DIALOGUE + TEXT} is needed")
    return text or ""


def _dialogue(turns: Any) -> str:
    """User's and assistant's turns as text; what is one string already stays as it is."""
    if isinstance(turns, str):
        return turns
    spoken = [(role, said.strip()) for role, said in _turns(turns) if role in ROLES]
    return "\n\n".join(f"{ROLES[role]}: {said}" for role, said in spoken if said)


def _turns(turns: Any) -> list[tuple[str, str]]:
    """Role and text of each turn, from the ways in which the hub's data sets write them.

    They are objects with either of two pairs of names, one object of lists, or strings of user and assistant by turns.
    The text may be missing, or stand in parts.
    """
    if isinstance(turns, dict):
        is_of_lists = all(isinstance(values, list) for values in turns.values())
        turns = [dict(zip(turns, values)) for values in zip(*turns.values())] if is_of_lists else [turns]
    spoken = []
    for i, turn in enumerate(turns if isinstance(turns, list) else []):
        if isinstance(turn, str):
            turn = {"role": ("user", "assistant")[i % 2], "content": turn}
        elif not isinstance(turn, dict):
            continue
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        parts = content if isinstance(content, list) else [content]
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        spoken.append((str(role).casefold(), "".join(text for text in texts if isinstance(text, str))))
    return spoken


def first_turns(name: str, n: int) -> list[str]:
    """The first turns of a corpus's users (of other text, all of it), the first ``n`` different ones.

    A corpus of the hub is read until it has given them.

    Raises:
        ValueError: see :func:`corpus`.
    """
    form = form_of(name, CORPORA)
    turns: dict[str, None] = {}
    for text in CORPORA[form](argument(name, form), None):
        if len(turns) >= n:
            break
        turns.setdefault(_user_turn(text).removeprefix("User:").strip())
    return list(turns)


class Split(NamedTuple):
    """Passages by what they are for: training, measuring (held out), and choosing hyperparameters (calibration)."""

    training: list[str]
    held_out: list[str]
    calibration: list[str]


def split(passages: list[str], share: float, seed: int) -> Split:
    """Divide passages at random; ``share`` of them, at least one, are held out, and as many are for calibration.

    Answers to one user's turn are in one part only.

    Raises:
        ValueError: fewer than three passages.
    """
    groups = list(dict.fromkeys(map(_user_turn, passages)))
    if len(groups) < 3:
        raise ValueError(
            f"{len(groups)} passages cannot be divided into training, held-out and calibration ones; give at least 3"
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    n = max(1, round(share * len(groups)))
    part_of = {groups[i]: "held_out" for i in order[:n]} | {groups[i]: "calibration" for i in order[n : 2 * n]}
    parts: dict[str, list[str]] = {name: [] for name in Split._fields}
    for passage in passages:
        parts[part_of.get(_user_turn(passage), "training")].append(passage)
    return Split(**parts)


def _user_turn(passage: str) -> str:
    return passage.split("\n\nAssistant:", 1)[0]


def passages(paragraphs: Iterable[str], least: int = PASSAGE) -> list[str]:
    """Join consecutive paragraphs until a passage has ``least`` characters; nothing is lost."""
    joined: list[str] = []
    part: list[str] = []
    for paragraph in paragraphs:
        part.append(paragraph)
        if sum(map(len, part)) >= least:
            joined.append(" ".join(part))
            part = []
    return joined + ([" ".join(part)] if part else [])


def detokenise(text: str) -> str:
    """Undo the spaces that corpora put around punctuation."""
    text = re.sub(r" @([-,.])@ ", r"\1", text).replace("``", '"').replace("''", '"')
    text = re.sub(r" ([,.;:?!%)\]])", r"\1", text)
    return re.sub(r"([(\[]) ", r"\1", text.replace(" n't", "n't").replace(" 's", "'s"))


def _docstrings() -> list[str]:
    """Prose paragraphs of the docstrings of installed packages."""
    paragraphs = []
    for name in PROSE_PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            continue
        for path in sorted(Path(spec.submodule_search_locations[0]).rglob("*.py")):
            paragraphs += _prose(path.read_text(encoding="utf-8", errors="ignore"))
    return passages(dict.fromkeys(paragraphs), 600)


def _prose(source: str) -> list[str]:
    """Paragraphs of triple-quoted strings that read like prose: a sentence of ten words or more, hardly any code."""
    paragraphs = []
    for block in re.findall(r'"""(.*?)"""', source, flags=re.DOTALL):
        for paragraph in re.split(r"\n\s*\n", block):
            text = " ".join(paragraph.split())
            is_sentence = text[:1].isupper() and text.endswith(".") and len(text.split()) >= 10
            if is_sentence and _letters(text) > 0.96 * len(text):
                paragraphs.append(text)
    return paragraphs


def _letters(text: str) -> int:
    return sum(c.isalpha() or c in " ,.'" for c in text)


def _pretraining() -> list[str]:
    """Brown, WikiText, news, speeches, web text, film reviews."""
    texts = []
    for name, pattern in ZIPPED.items():
        with zipfile.ZipFile(fetch(name)) as archive:  # It is read in memory; nothing is unpacked.
            members = [member for member in archive.namelist() if re.search(pattern, member)]
            for member in members:
                text = archive.read(member).decode("utf-8", errors="ignore")
                texts += passages(_untagged(text) if name == "brown" else _lines(text))
    for name in ("wikitext_valid", "wikitext_test"):
        texts += passages(_lines(fetch(name).read_text(encoding="utf-8").replace("<unk>", "")))
    return texts


def _lines(text: str) -> list[str]:
    return [detokenise(" ".join(line.split())) for line in text.splitlines() if len(line.split()) > 3]


def _untagged(text: str) -> list[str]:
    """Lines of the Brown corpus without the part-of-speech tags."""
    lines = (" ".join(word.rsplit("/", 1)[0] for word in line.split()) for line in text.splitlines())
    return _lines("\n".join(lines))


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
    """AlpacaEval answers of seven models, without the instructions kept for the OOD split, and hh-rlhf dialogues."""
    kept_for_ood = set(chat_instructions()[:N_CHAT_OOD])
    dialogues = []
    for name in public_files():
        if name.startswith("alpaca_eval_"):
            for row in json.loads(fetch(name).read_text(encoding="utf-8")):
                if row["instruction"] not in kept_for_ood:
                    dialogues.append(chat_turn(row["instruction"], row["output"]))
    with gzip.open(fetch("hh_rlhf"), "rt", encoding="utf-8") as lines:
        for line in lines:
            dialogues.append(json.loads(line)["chosen"].strip().replace("Human:", "User:"))
    return dialogues


def _shipped(model: str) -> list[str]:
    """The dialogues that a chat model had with itself, which are shipped (see ``lib.model.own_chat``).

    Raises:
        ValueError: none are shipped for this model.
    """
    path = ROLLOUTS / f"{model}.parquet"
    if not path.exists():
        there = ", ".join(sorted(path.stem for path in ROLLOUTS.glob("*.parquet")))
        raise ValueError(f"no rollouts of {model!r} are shipped, only of {there}; take own:prompts or rollouts")
    return [chat_turn(row.user, row.assistant) for row in pd.read_parquet(path).itertuples()]


def first_tokens(windows: list[list[int]], limit: int, seed: int) -> list[list[int]]:
    """Windows in random order, as many as hold ``limit`` tokens together (0: all)."""
    order = np.random.default_rng(seed).permutation(len(windows))
    ends = np.cumsum([len(windows[i]) for i in order])
    return [windows[i] for i, end in zip(order, ends, strict=True) if not limit or end <= limit]


# Form of a name -> its passages, from what stands in the place of <…> and the characters that are wanted.
CORPORA: dict[str, Callable[[str, int | None], Iterable[str]]] = {
    "docstrings": lambda _, characters: _docstrings(),
    "pretraining": lambda _, characters: _pretraining(),
    "rollouts": lambda _, characters: _rollouts(),
    "shipped:<model>": lambda model, _: _shipped(model),
    "hf:<data set>[:<configuration>[:<split>]]": hub_rows,
}
