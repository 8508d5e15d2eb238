"""Any Hugging Face model, local folder, GGUF file or packaged model as a TransformerLens ``TransformerBridge``."""

import copy
import copyreg
import functools
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.tokenize_utils import get_tokenizer_with_bos
from transformers import PreTrainedTokenizerBase

from lib.base.files import cause
from lib.base.registry import lookup
from lib.model import chat
from lib.model.weights import PACKAGED, folder_revision, model_path

KEEPING = {"disk": True, "stream": False}  # parameter store -> whether training activations are kept as stores on disk
TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja", "tokenizer_config.json")  # where they stand
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def identity(name: str) -> dict[str, str]:
    """Name and revision of a model: the hub's commit, or hashes of a folder's files.

    Where the chat template asks for today's date, also the ``date`` that it is told (``lib.model.chat``).
    """
    path = Path(model_path(name))
    if path.is_dir():
        revision = folder_revision(name, path)
        templates = [file.read_text(encoding="utf-8") for pattern in TEMPLATES for file in path.glob(pattern)]
    else:
        revision, templates = load_config(name)._commit_hash, [str(load_tokenizer(name).chat_template)]
    is_dated = any(chat.reads_clock(template) for template in templates)
    return {"model": name, "revision": revision} | ({"date": f"{chat.TODAY:%Y-%m-%d}"} if is_dated else {})


def check_device(device: str) -> str:
    """The device, if tensors can be put there.

    Raises:
        ValueError: an unknown device, or one that this machine or this torch lacks.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = f"device {device!r} cannot be used here ({cause(error)})"
        raise ValueError(f"{why}; with a GPU it is cuda, else cpu") from error
    return device


def load_config(name: str):
    """The model's ``transformers`` configuration.

    Raises:
        ValueError: no such model, no access, or the hub cannot be reached.
    """
    import transformers

    path = model_path(name)
    try:
        return transformers.AutoConfig.from_pretrained(path)
    except Exception as error:  # transformers raises what it likes.
        raise ValueError(_cannot_load(name, error)) from error


def load_tokenizer(name: str):
    """The model's tokenizer.

    Raises:
        ValueError: see :func:`load_config`; a tokenizer that does not say which characters its tokens stand for; or a
            chat template that cannot render a user's turn.
    """
    import transformers

    path = model_path(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    except Exception as error:  # transformers raises what it likes, also for a package that a tokenizer needs.
        raise ValueError(_cannot_load(name, error)) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer of {name!r}, {type(tokenizer).__name__}, is no fast one (tokenizer.json), and so does not "
            "say where in the text a token stands; take a model that has one"
        )
    if chat.has_template(tokenizer):
        chat.rendered(tokenizer, "word")
    return tokenizer


def _cannot_load(name: str, error: Exception) -> str:
    """One sentence on why a model cannot be had, and what to do."""
    from huggingface_hub.errors import GatedRepoError

    causes, current = [], error
    while current is not None:
        causes.append(current)
        current = current.__cause__ or current.__context__
    if any(isinstance(current, GatedRepoError) for current in causes) or "gated repo" in str(error):
        return (
            f"the model {name!r} is gated: accept its licence at https://huggingface.co/{name}, "
            "then set HF_TOKEN (or run hf auth login)"
        )
    return (
        f"the model {name!r} cannot be loaded: it is neither packaged ({', '.join(PACKAGED)}), nor a GGUF file, nor a "
        "folder with config, tokenizer and safetensors, nor a hub id that can be reached "
        f"({cause(error)})"
    )


@functools.lru_cache(maxsize=1)  # The notebooks ask for one model again and again, and it may be large.
def load_model(name: str, device: str = "cpu", dtype: str = "float32") -> TransformerBridge:
    """Load weights (safetensors only) and tokenizer, and wrap them.

    Attention is the model's default kernel: a fused one, but not for models such as Gemma 2, whose capped logits it
    does not know. ``cfg.n_layers``, ``cfg.d_model`` and ``cfg.n_ctx`` of the bridge describe the model.

    Raises:
        ValueError: unknown dtype, a device that is not there, or no such model.
    """
    import transformers

    torch_dtype = lookup(DTYPES, "dtype", dtype)
    check_device(device)
    path, config, tokenizer = model_path(name), load_config(name), load_tokenizer(name)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        hf_model = auto_class(config).from_pretrained(path, dtype=torch_dtype, use_safetensors=True)
        hf_model = hf_model.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"the model {name!r} in {dtype} does not fit into the memory of {device!r}; "
            "take dtype bfloat16, or a smaller model"
        ) from error
    except Exception as error:  # transformers raises what it likes.
        raise ValueError(_cannot_load(name, error)) from error
    bridge = wrap(path, hf_model, tokenizer)
    bridge.loaded_from = name, device, dtype
    return bridge


def send_by_name() -> None:
    """From now on pickle a loaded bridge as the call that loads it: a worker then loads its own copy, once."""
    copyreg.pickle(TransformerBridge, lambda bridge: (load_model, bridge.loaded_from))


def wrap(path: str, hf_model, tokenizer) -> TransformerBridge:
    """A Hugging Face model and tokenizer as a bridge; ``path`` is where their configuration lies.

    The bridge's tokenizer puts BOS in front, if there is one. BOS, EOS and pad that a tokenizer lacks stay missing:
    TransformerLens would make up tokens that the model has no embedding of, or take the end of a turn for BOS.

    Raises:
        ValueError: a model that TransformerLens cannot wrap.
    """
    tokenizer = get_tokenizer_with_bos(tokenizer)
    lacks_some = None in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    theirs = copy.deepcopy(tokenizer) if lacks_some else tokenizer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = {"hf_model": hf_model, "tokenizer": theirs, "dtype": hf_model.dtype}
            bridge = TransformerBridge.boot_transformers(path, **options)
    except Exception as error:  # It raises what it likes on an architecture that it does not know.
        kind = type(hf_model).__name__
        raise ValueError(f"the model {path!r}, a {kind}, cannot be read by TransformerLens: {cause(error)}") from error
    bridge._tokenizer = tokenizer  # The property would make them up again.
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return bridge.eval()


def pad_id(bridge: TransformerBridge) -> int:
    """Id of the token that fills up a batch; as such places are masked, any will do where the model has none."""
    pad = bridge.tokenizer.pad_token_id
    return 0 if pad is None else pad


class Reader(NamedTuple):
    """How texts are read for SAE training.

    Attributes:
        model: name of the model.
        device: where it runs.
        dtype: of the forward pass.
        context: tokens of a window of text.
        keeping: the notebooks' parameter ``store``: whether the activations are kept on ``disk`` or made anew
            (``stream``) whenever a training needs them.
    """

    model: str
    device: str = "cpu"
    dtype: str = "float32"
    context: int = 128
    keeping: str = "disk"

    def keeps(self) -> bool:
        """Whether the activations are kept on disk.

        Raises:
            ValueError: neither ``disk`` nor ``stream``.
        """
        return lookup(KEEPING, "store", self.keeping)

    def bridge(self) -> TransformerBridge:
        """The loaded model.

        Raises:
            ValueError: see :func:`keeps` and :func:`load_model`.
        """
        self.keeps()
        return load_model(self.model, self.device, self.dtype)


def auto_class(config):
    """Causal or masked language model, by the architecture that the checkpoint names.

    Raises:
        ValueError: neither.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as masked

    architecture = (config.architectures or [""])[0]
    is_causal = architecture.endswith("ForCausalLM") or architecture in causal.values()
    if not is_causal and config.model_type not in masked:
        raise ValueError(
            f"a model of the kind {architecture or config.model_type!r} cannot be read; allowed are causal and masked "
            "language models"
        )
    return transformers.AutoModelForCausalLM if is_causal else transformers.AutoModelForMaskedLM


def resid_post(layer: int) -> str:
    """Hook name of the residual stream after block ``layer`` (counted from 0)."""
    return f"blocks.{layer}.hook_resid_post"


def check_layers(bridge: TransformerBridge, layers: list[int]) -> list[int]:
    """The sorted layers.

    Raises:
        ValueError: a layer that the model does not have, or none at all.
    """
    wrong = [layer for layer in layers if not 0 <= layer < bridge.cfg.n_layers]
    if wrong or not layers:
        raise ValueError(f"layer {wrong or layers} out of range; the model has layers 0 to {bridge.cfg.n_layers - 1}")
    return sorted(set(layers))


def tokenise(bridge: TransformerBridge, texts: list[str], max_length: int | None = None) -> list[list[int]]:
    """Token ids of each text with the model's special tokens; of a text over ``max_length`` the end is kept.

    A chat model reads the text as the user's turn, with the header of its own turn behind it (see ``lib.model.chat``).
    Special tokens that a text spells out, such as ``[SEP]``, are read as characters. ``max_length`` (tokens, special
    ones included) is at most the model's context. A warning says how many were cut.
    """
    limit = min(max_length or bridge.cfg.n_ctx, bridge.cfg.n_ctx)
    tokenizer = bridge.tokenizer
    if chat.has_template(tokenizer):
        return [encoded.ids for encoded in _encoded(bridge, texts, limit)]
    side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    full = tokenizer(texts, split_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    long = [i for i, ids in enumerate(full) if len(ids) > limit]
    if long:
        message = f"{len(long)} of {len(texts)} texts are longer than {limit} tokens; their end is kept"
        warnings.warn(message, stacklevel=2)
        cut = tokenizer([texts[i] for i in long], split_special_tokens=True, truncation=True, max_length=limit)
        for i, ids in zip(long, cut["input_ids"], strict=True):
            full[i] = ids
    tokenizer.truncation_side = side
    return full


def _encoded(bridge: TransformerBridge, texts: list[str], limit: int) -> list[chat.Encoded]:
    prompts = [chat.encode(bridge.tokenizer, text) for text in texts]
    long = sum(len(encoded.ids) > limit for encoded in prompts)
    if long:
        warnings.warn(f"{long} of {len(texts)} texts are longer than {limit} tokens; their end is kept", stacklevel=3)
    return [chat.cut(encoded, limit) for encoded in prompts]


POOLED_OVER = ("turn", "sequence")


def tokenise_with_spans(
    bridge: TransformerBridge, texts: list[str], over: str = "turn"
) -> tuple[list[list[int]], Int[Tensor, "texts 2"]]:
    """``tokenise(bridge, texts)``, and of each text the first token, and the one behind the last, of what is pooled.

    It is the user's turn, since the system turn and the template say nothing of a prompt; the whole sequence for a
    model without a chat template, or if ``over`` says so.

    Raises:
        ValueError: an unknown ``over``.
    """
    lookup(dict.fromkeys(POOLED_OVER, ""), "pool_over", over)
    if over == "turn" and chat.has_template(bridge.tokenizer):
        encoded = _encoded(bridge, texts, bridge.cfg.n_ctx)
        spans = [(prompt.first, max(prompt.last, prompt.first + 1)) for prompt in encoded]
        return [prompt.ids for prompt in encoded], torch.tensor(spans)
    token_ids = tokenise(bridge, texts)
    return token_ids, torch.tensor([(0, len(ids)) for ids in token_ids])


def token_offsets(bridge: TransformerBridge, texts: list[str]) -> list[list[tuple[int, int]]]:
    """First and last character of every token of ``tokenise(bridge, texts)``; both 0 for special tokens."""
    tokenizer = bridge.tokenizer
    if chat.has_template(tokenizer):
        return [encoded.offsets for encoded in _encoded(bridge, texts, bridge.cfg.n_ctx)]
    side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    options = {"split_special_tokens": True, "truncation": True, "max_length": bridge.cfg.n_ctx}
    encoding = tokenizer(texts, return_offsets_mapping=True, **options)
    tokenizer.truncation_side = side
    return encoding["offset_mapping"]


def shortened(tokenizer: PreTrainedTokenizerBase, texts: list[str], most_tokens: int) -> list[str]:
    """The texts, of which those of more than ``most_tokens`` tokens keep their end; the model's special tokens, and a
    chat template's, do not count.

    Raises:
        ValueError: fewer than one token.
    """
    if most_tokens < 1:
        raise ValueError(f"{most_tokens} tokens of a text are to be kept; it must be at least 1")
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    of_texts = tokenizer(texts, return_offsets_mapping=True, **options)["offset_mapping"]
    starts = [spans[-most_tokens][0] if len(spans) > most_tokens else 0 for spans in of_texts]
    return [text[start:] for text, start in zip(texts, starts, strict=True)]


def split_tokens(bridge: TransformerBridge, texts: list[str], context: int) -> list[list[int]]:
    """Token ids of documents cut into windows of at most ``context`` tokens, special ones included.

    Each window gets the model's special tokens (of a chat template's, BOS); nothing of a document is dropped. Dialogues
    are put into the model's chat template. Special tokens that a document or a turn spells are read as characters.

    Raises:
        ValueError: a context beyond the model's, or with room for special tokens only.
    """
    tokenizer = bridge.tokenizer
    if not tokenizer.num_special_tokens_to_add() < context <= bridge.cfg.n_ctx:
        raise ValueError(f"context {context} must leave room beside special tokens and be at most {bridge.cfg.n_ctx}")
    windows: list[list[list[int]]] = [[] for _ in texts]
    in_template = [chat.dialogue(tokenizer, text) for text in texts]
    options = {"truncation": True, "max_length": context, "return_overflowing_tokens": True}
    for is_plain in (True, False):
        of_kind = [i for i, text in enumerate(texts) if (in_template[i] == text) == is_plain]
        if of_kind:
            encoding = tokenizer([in_template[i] for i in of_kind], split_special_tokens=is_plain, **options)
            for place, ids in zip(encoding["overflow_to_sample_mapping"], encoding["input_ids"], strict=True):
                windows[of_kind[place]].append(ids)
    for i, is_spelled in enumerate(chat.spell_special(tokenizer, texts)):
        if is_spelled and in_template[i] != texts[i]:
            windows[i] = chat.dialogue_windows(tokenizer, texts[i], context)
    return [ids for of_text in windows for ids in of_text]


def special_ids(bridge: TransformerBridge) -> Int[Tensor, " special"]:
    """Ids of the special tokens (BOS, EOS, pad, CLS, SEP, turn markers), left out of SAE training data."""
    return torch.tensor(sorted(chat.special(bridge.tokenizer)), dtype=torch.long)


def is_causal(bridge: TransformerBridge) -> bool:
    """Whether a token sees only what stands before it."""
    return type(bridge.original_model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def seeing(bridge: TransformerBridge, ids: Int[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Which tokens see something of the text: all but a causal model's BOS.

    BOS is the same in all prompts, and in Gemma it has a norm that hides the others under max pooling. In encoders
    every token counts, since [CLS] reads the whole text.
    """
    bos = bridge.tokenizer.bos_token_id
    return ids != bos if is_causal(bridge) and bos is not None else torch.ones_like(ids, dtype=torch.bool)


def fixed_position(bridge: TransformerBridge) -> int:
    """The paper's fixed position, counted from the end: a chat model's end of the user's turn, else the last token."""
    return chat.end_of_turn(bridge.tokenizer) if chat.has_template(bridge.tokenizer) else -1
