"""Chat templates: a prompt as the chat model reads it, the end of the user's turn, and dialogues as text.

Everything is found from the tokenizer's own template (``chat_template``), nothing is written down per model.
"""

import re
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

TURNS = re.compile(r"(?:^|\n\n)(User|Assistant): ?")
ROLES = {"User": "user", "Assistant": "assistant"}


class Encoded(NamedTuple):
    """A prompt in the chat template: token ids, each token's characters in the *text* (both 0 for the template's own), and
    the range of the text's tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    first: int
    last: int


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts are put into a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def require(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Raise ``ValueError`` if there is no chat template, which ``what`` needs."""
    if not has_template(tokenizer):
        raise ValueError(f"{what} needs a chat model, but the tokenizer of {tokenizer.name_or_path!r} has no chat template; take an instruction-tuned model")


def special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of all special tokens: BOS, EOS, pad, CLS, SEP, and turn markers."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return set(tokenizer.all_special_ids) | added


def rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, int]:
    """The prompt as the user's turn with the header of the model's turn behind it, and the character at which it begins.

    Raises:
        ValueError: a template that changes the prompt beyond taking off the spaces around it.
    """
    mark = "\u2063"  # a character that no template holds
    prefix = _render(tokenizer, mark).partition(mark)[0]
    whole = _render(tokenizer, text)
    if not whole[len(prefix) :].startswith((text, text.strip())):
        raise ValueError(f"the chat template of {tokenizer.name_or_path!r} changes the prompt {text[:60]!r}; it cannot be located")
    return whole, len(prefix)


def _render(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    turns = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoded:
    """Tokens of a prompt in the chat template. The template writes BOS, so the tokenizer adds none: there is one."""
    whole, begin = rendered(tokenizer, text)
    spaces = 0 if whole[begin:].startswith(text) else len(text) - len(text.lstrip())
    size = len(text) if whole[begin:].startswith(text) else len(text.strip())
    found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    inside = [i for i, (start, stop) in enumerate(found["offset_mapping"]) if start < begin + size and stop > begin and stop > start]
    offsets = [(0, 0)] * len(found["input_ids"])
    for i in inside:
        start, stop = found["offset_mapping"][i]
        offsets[i] = (max(start - begin, 0) + spaces, min(stop - begin, size) + spaces)
    first = inside[0] if inside else next((i for i, (_, stop) in enumerate(found["offset_mapping"]) if stop > begin), len(offsets))
    return Encoded(found["input_ids"], offsets, first, first + len(inside))


def cut(encoded: Encoded, limit: int) -> Encoded:
    """At most ``limit`` tokens: of a long text its end is kept, and the whole template.

    Raises:
        ValueError: no room for the text beside the template.
    """
    over = len(encoded.ids) - limit
    if over <= 0:
        return encoded
    first, last = encoded.first, encoded.last
    if over >= last - first:
        raise ValueError(f"a context of {limit} tokens has no room for a prompt beside the chat template")
    ids, offsets = (part[:first] + part[first + over :] for part in (encoded.ids, encoded.offsets))
    return Encoded(ids, offsets, first, last - over)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Position, counted from the first response token (−1 is the last before it), of the token that closes the user's turn.

    It is the first special token after the prompt, or where the template has none, the first token after it. For Gemma 2
    the prompt is followed by ``<end_of_turn>``, newline, ``<start_of_turn>``, ``model``, newline: −5 (the paper, aggregation).
    """
    require(tokenizer, "the end of the user's turn")
    found = encode(tokenizer, "word")
    behind = range(found.last, len(found.ids))
    closing = next((i for i in behind if found.ids[i] in special(tokenizer)), next(iter(behind), found.last - 1))
    return closing - len(found.ids)


def dialogue(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """``User: …\\n\\nAssistant: …`` in the model's chat template, without BOS, which windows of text get anyway.

    Text that is no dialogue, or one that the template refuses, stays as it is; so does all text without a template.
    """
    if not has_template(tokenizer) or not text.startswith("User:"):
        return text
    parts = TURNS.split(text)[1:]
    turns = [{"role": ROLES[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]
    try:
        found = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
    except Exception:  # templates raise what they like, such as on two user turns in a row
        return text
    return found.removeprefix(tokenizer.bos_token or "")
