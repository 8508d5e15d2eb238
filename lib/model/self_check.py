"""Whether a model is read right: its bridge against Hugging Face, and a packaged model against what is known of it.

A converted file can load and still be wrong (rows of attention in another order, another rope base, a lost template), a
bridge can compute something else than the model, a device can compute wrongly, and nothing downstream would say so. One
text is compared when a model is used for the first time, on a device and in a precision.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from transformer_lens.model_bridge import TransformerBridge

from lib.base.files import relative, value_hash, write_json
from lib.model import chat, weights
from lib.model.forward import HALF_TOLERANCE, TOLERANCE, resid_post_at
from lib.model.models import DTYPES, auto_class, identity, load_config, load_model

SENTENCE = "The Eiffel Tower is located in the city of Paris, which is the capital of France."


class Known(NamedTuple):
    """What is known of a packaged model.

    Attributes:
        bos: id of the token that begins a text.
        eos: id of the token that ends a turn.
        rope_theta: base of the rotary position embedding.
        is_tied: whether embedding and unembedding are one matrix.
        template: how the chat template shows the user's turn ``Hi``.
        tokens: texts and their ids, without BOS.
        loss: mean cross-entropy of ``SENTENCE`` without BOS, in nats a token.
    """

    bos: int
    eos: int
    rope_theta: float
    is_tied: bool
    template: str
    tokens: dict[str, list[int]]
    loss: float


KNOWN = {
    weights.SMOLLM2: Known(
        bos=1,
        eos=2,
        rope_theta=100_000.0,
        is_tied=True,
        template="<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        tokens={
            "1234 apples\n\nHello, world!": [33, 34, 35, 36, 13855, 198, 198, 19556, 28, 905, 17],
            "<|im_start|>user\nHi<|im_end|>": [1, 4093, 198, 26843, 2],
            "  naïve": [216, 15486, 46494],
        },
        loss=2.158,
    )
}


def check(name: str, device: str = "cpu", dtype: str = "float32") -> None:
    """Check a model, unless that was done before, and keep that it was: of one that was converted from a GGUF file in
    its folder, of any other one, or another device or precision, under ``data/raw/models/checked``.

    Raises:
        ValueError: every difference to Hugging Face and to what is known, in one sentence.
    """
    is_converted = weights.is_gguf(name) and (device, dtype) == ("cpu", "float32")
    folder = Path(weights.model_path(name))
    decides = identity(name) | {"device": device, "dtype": dtype}
    kept = folder / weights.CHECKED if is_converted else weights.CHECKS / f"{value_hash(decides)}.json"
    if kept.exists():
        return
    bridge = load_model(name, device, dtype)
    wrong = list(differences(bridge, KNOWN.get(name) if is_converted else None))
    if wrong:
        what = f"delete {relative(folder)} and run again" if weights.is_gguf(name) else "try device cpu, dtype float32"
        raise ValueError(
            f"the model {name!r} is not read right on {device} in {dtype}: {'; '.join(wrong)}; {what}, or try another "
            "version of transformers"
        )
    write_json(kept, {"model": name, "loss": round(loss(bridge), 4)} if is_converted else decides)


def differences(bridge: TransformerBridge, known: Known | None) -> Iterator[str]:
    """What differs between the bridge and Hugging Face, and between the model and what is known of it."""
    largest, tolerance = hidden_difference(bridge), TOLERANCE.get(bridge.original_model.dtype, HALF_TOLERANCE)
    if not largest <= tolerance:
        yield f"hidden states of the bridge differ from Hugging Face's on the CPU by {largest:.2g} of their norm"
    if known is None:
        return
    config, tokenizer = bridge.original_model.config, bridge.tokenizer
    values = {
        "BOS": (tokenizer.bos_token_id, known.bos),
        "EOS": (tokenizer.eos_token_id, known.eos),
        "rope theta": (config.rope_parameters["rope_theta"], known.rope_theta),
        "tied embeddings": (_is_tied(bridge), known.is_tied),
        "chat template": (chat.has_template(tokenizer) and chat.rendered(tokenizer, "Hi")[0], known.template),
    }
    for text, ids in known.tokens.items():
        values[f"tokens of {text!r}"] = (tokenizer(text, add_special_tokens=False)["input_ids"], ids)
    for what, (is_now, should_be) in values.items():
        if is_now != should_be:
            yield f"{what}: {is_now!r} in the place of {should_be!r}"
    if not abs(loss(bridge) - known.loss) <= 0.01:
        yield f"loss of a sentence: {loss(bridge):.3f} nats a token in the place of {known.loss:.3f}"


def _is_tied(bridge: TransformerBridge) -> bool:
    model = bridge.original_model
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def hidden_difference(bridge: TransformerBridge) -> float:
    """Largest difference of a token's hidden state in ``SENTENCE`` after every block but the last, between the bridge
    where it is and Hugging Face on the CPU in the same precision, as a share of its norm."""
    name, _, dtype = bridge.loaded_from
    ids = torch.tensor([bridge.tokenizer(SENTENCE)["input_ids"]])
    layers = list(range(bridge.cfg.n_layers - 1))  # Hugging Face gives the last one behind its final norm only.
    on_device = ids.to(bridge.original_model.device)
    resid = resid_post_at(bridge, on_device, torch.ones_like(on_device), layers)
    path = weights.model_path(name)
    plain = auto_class(load_config(name)).from_pretrained(path, dtype=DTYPES[dtype], use_safetensors=True)
    with torch.inference_mode():
        hidden = plain.eval()(input_ids=ids, output_hidden_states=True).hidden_states
    shares = []
    for layer in layers:
        theirs = hidden[layer + 1].float()
        shares.append(((resid[layer].cpu().float() - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max().item())
    return max(shares, default=0.0)


@torch.inference_mode()
def loss(bridge: TransformerBridge) -> float:
    """Mean cross-entropy of ``SENTENCE`` without BOS, in nats a token."""
    ids = bridge.tokenizer(SENTENCE, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = ids.to(bridge.original_model.device)
    return bridge.original_model(input_ids=ids, labels=ids).loss.item()
