"""Chat templates: a prompt as the chat model reads it, the end of the user's turn, and dialogues as text.

Everything is found from the tokenizer's own template (``chat_template``), nothing is written down per model. A template
that asks for today's date is told ``TODAY``, or a prompt would be another one tomorrow. Where a prompt itself reads
``<|im_end|>``, these are the characters that somebody wrote, and no control token.
"""

import datetime
import functools
import re
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from lib.base.files import cause

TURNS = re.compile(r"(?:^|\n\n)(User|Assistant): ?")
ROLES = {"User": "user", "Assistant": "assistant"}
TODAY = datetime.datetime(2024, 7, 26)  # what the template of Llama 3 says itself where it cannot ask
CLOCK = "strftime_now"  # transformers gives templates this function, and no other clock
DIRECTIVES = ("-d", "-m", "e", *"aAbBcdDFHIjmMpSTuUwWxXyYZ")  # of strftime, without the sign


class Encoded(NamedTuple):
    """A prompt in the chat template.

    Attributes:
        ids: the token ids.
        offsets: first and last character of each token in the *text*; both are 0 for the template's own tokens.
        first: the text's first token.
        last: the token behind the text's last one.
    """

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
        raise ValueError(
            f"{what} needs a chat model, but the tokenizer of {tokenizer.name_or_path!r} has no chat template; "
            "take an instruction-tuned model"
        )


def special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of all special tokens: BOS, EOS, pad, CLS, SEP, and turn markers."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return set(tokenizer.all_special_ids) | added


def reading(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> dict[str, str]:
    """What decides, beside texts and model, how texts are read: something only where one spells a special token.

    Stores that were made when such a text ended the user's turn thus have another name.
    """
    return {"special_tokens": "characters"} if any(spell_special(tokenizer, texts)) else {}


def spell_special(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[bool]:
    """Whether each of the texts holds a special token's characters."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return [any(name in text for name in names) for text in texts]


def rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, int]:
    """The prompt as the user's turn with the header of the model's turn behind it, and the character where it begins.

    Raises:
        ValueError: a template that changes the prompt beyond taking off the spaces around it.
    """
    mark = "\u2063"  # No template holds this character.
    prefix, shown, _ = _render(tokenizer, mark).partition(mark)
    if not shown:
        raise ValueError(f"the chat template of {tokenizer.name_or_path!r} does not show the user's turn")
    whole = _render(tokenizer, text)
    if not whole[len(prefix) :].startswith((text, text.strip())):
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path!r} changes the prompt {text[:60]!r}; it cannot be located"
        )
    return whole, len(prefix)


def user_header(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the template up to the user's first word: what a chat model continues with a turn of its user's.

    Raises:
        ValueError: no chat template, or one that does not show the user's turn.
    """
    require(tokenizer, "a user's turn")
    whole, begin = rendered(tokenizer, "word")
    return tokenizer(whole[:begin], add_special_tokens=False)["input_ids"]


def reads_clock(template: str) -> bool:
    """Whether what a chat template renders depends on the day, so that here it is told :data:`TODAY`."""
    return CLOCK in template


def _render(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    turn = {"role": "user", "content": text}
    try:
        return _in_template(tokenizer, [turn], add_generation_prompt=True)
    except Exception as error:  # Templates raise what they like.
        name, why = tokenizer.name_or_path, cause(error)
        try:
            _in_template(tokenizer, [{"role": "system", "content": "word"}, turn], add_generation_prompt=True)
            why = f"it demands a system turn, and prompts here have none ({why})"
        except Exception:  # The system turn is not what it lacks.
            pass
        raise ValueError(f"the chat template of {name!r} cannot render a user's turn: {why}") from error


def _in_template(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """The turns in the chat template, on the day :data:`TODAY`."""
    options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    template = tokenizer.get_chat_template()
    if reads_clock(template):
        options["chat_template"] = _stopped_clock() + template
    return tokenizer.apply_chat_template(turns, **options)


@functools.cache
def _stopped_clock() -> str:
    """A Jinja macro that takes the clock's place: strftime of :data:`TODAY` (values of a template cannot be called)."""
    parts = ((f"%{directive}", TODAY.strftime(f"%{directive}")) for directive in DIRECTIVES)
    replaced = "".join(f" | replace({directive!r}, {value!r})" for directive, value in parts)
    return f"{{%- macro {CLOCK}(format) -%}}{{{{ format{replaced} }}}}{{%- endmacro %}}"


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoded:
    """Tokens of a prompt in the chat template. The template writes BOS, so the tokenizer adds none: there is one.

    What looks like a control token in the prompt is read as its characters.
    """
    whole, begin = rendered(tokenizer, text)
    is_stripped = not whole[begin:].startswith(text)
    spaces = len(text) - len(text.lstrip()) if is_stripped else 0
    size = len(text.strip()) if is_stripped else len(text)
    end = begin + size
    ids, in_whole = _tokens(tokenizer, whole, [(begin, end)])
    inside = [i for i, (start, stop) in enumerate(in_whole) if start < end and stop > begin and stop > start]
    offsets = [(0, 0)] * len(in_whole)
    for i in inside:
        start, stop = in_whole[i]
        offsets[i] = (max(start - begin, 0) + spaces, min(stop - begin, size) + spaces)
    behind_begin = (i for i, (_, stop) in enumerate(in_whole) if stop > begin)
    first = inside[0] if inside else next(behind_begin, len(offsets))
    return Encoded(ids, offsets, first, first + len(inside))


def _tokens(
    tokenizer: PreTrainedTokenizerBase, whole: str, said: list[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of a rendered text, in which special tokens are characters where something is ``said``: from a
    first character to the one behind a last."""
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    encoding = tokenizer(whole, **options)
    ids, offsets, of_control = encoding["input_ids"], encoding["offset_mapping"], special(tokenizer)
    controls = [i for i, token in enumerate(ids) if token in of_control]
    own = [i for i in controls if not any(begin <= offsets[i][0] < end for begin, end in said)]
    # The template's own control tokens part the text, and what stands between two of them is read by itself.
    for left, right in reversed(list(zip([-1, *own], [*own, len(ids)], strict=True))):
        if not any(left < i < right for i in controls):
            continue
        start = offsets[left][1] if left >= 0 else 0
        stop = offsets[right][0] if right < len(ids) else len(whole)
        between = tokenizer(whole[start:stop], split_special_tokens=True, **options)
        ids[left + 1 : right] = between["input_ids"]
        offsets[left + 1 : right] = [(first + start, last + start) for first, last in between["offset_mapping"]]
    return ids, offsets


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
    """Position of the token that closes the user's turn, counted from the first response token: −1 is just before it.

    It is the first special token after the prompt, or where the template has none, the first token after it. In Gemma 2
    ``<end_of_turn>``, newline, ``<start_of_turn>``, ``model``, newline follow the prompt: −5 (the paper, aggregation).
    """
    require(tokenizer, "the end of the user's turn")
    encoded = encode(tokenizer, "word")
    behind = range(encoded.last, len(encoded.ids))
    closing = (i for i in behind if encoded.ids[i] in special(tokenizer))
    return next(closing, next(iter(behind), encoded.last - 1)) - len(encoded.ids)


def dialogue(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """``User: …\\n\\nAssistant: …`` in the model's chat template, without BOS, which windows of text get anyway.

    Text that is no dialogue, or one that the template refuses, stays as it is; so does all text without a template.
    """
    if not has_template(tokenizer) or not text.startswith("User:"):
        return text
    return _of_turns(tokenizer, _turns(text)) or text


def dialogue_windows(tokenizer: PreTrainedTokenizerBase, text: str, context: int) -> list[list[int]]:
    """Token ids of :func:`dialogue`, in which special tokens that a turn spells are characters, in windows of at most
    ``context`` tokens, each with the special tokens that the tokenizer puts around a text."""
    encoding, ids = tokenizer("word", return_special_tokens_mask=True), _dialogue_ids(tokenizer, text)
    of_word = [i for i, is_special in enumerate(encoding["special_tokens_mask"]) if not is_special]
    before, behind = encoding["input_ids"][: of_word[0]], encoding["input_ids"][of_word[-1] + 1 :]
    room = context - len(before) - len(behind)
    return [before + ids[start : start + room] + behind for start in range(0, len(ids), room)]


def _dialogue_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a dialogue; where the template changes the turns, those of its text without a template."""
    turns, mark = _turns(text), "\u2063"  # No template holds this character.
    of_template = _of_turns(tokenizer, [turn | {"content": mark} for turn in turns]).split(mark)
    whole, said = of_template[0], []
    for turn, behind in zip(turns, of_template[1:]):
        said.append((len(whole), len(whole) + len(turn["content"])))
        whole += turn["content"] + behind
    if whole == dialogue(tokenizer, text):
        return _tokens(tokenizer, whole, said)[0]
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _turns(text: str) -> list[dict[str, str]]:
    parts = TURNS.split(text)[1:]
    return [{"role": ROLES[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _of_turns(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    """The turns in the chat template, without BOS; empty where it refuses them."""
    try:
        in_template = _in_template(tokenizer, turns, add_generation_prompt=False)
    except Exception:  # Templates raise what they like, such as on two user turns in a row.
        return ""
    return in_template.removeprefix(tokenizer.bos_token or "")
