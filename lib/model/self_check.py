"""Whether a model was read right: its bridge against Hugging Face, and a packaged model against what is known of it.

A converted file can load and still be wrong (rows of attention in another order, another rope base, a lost template),
and nothing downstream would say so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from transformer_lens.model_bridge import TransformerBridge

from lib.base.files import relative, write_json
from lib.model import chat, weights
from lib.model.forward import resid_post_at
from lib.model.models import DTYPES, auto_class, load_config, load_model

SENTENCE = "The Eiffel Tower is located in the city of Paris, which is the capital of France."
TOLERANCE = 1e-4  # of the standard deviation of the hidden states, between the bridge and Hugging Face


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


def check(name: str) -> None:
    """Check a model that was converted from a GGUF file, and keep in its folder that it was.

    Raises:
        ValueError: every difference to what is known, in one sentence.
    """
    folder, bridge = Path(weights.model_path(name)), load_model(name)
    wrong = list(differences(bridge, KNOWN.get(name)))
    if wrong:
        raise ValueError(
            f"the model {name!r} was not read right: {'; '.join(wrong)}; "
            f"delete {relative(folder)} and run again, or try another version of transformers"
        )
    write_json(folder / weights.CHECKED, {"model": name, "loss": round(loss(bridge), 4)})


def differences(bridge: TransformerBridge, known: Known | None) -> Iterator[str]:
    """What differs between the bridge and Hugging Face, and between the model and what is known of it."""
    largest = hidden_difference(bridge)
    if not largest <= TOLERANCE:
        yield f"hidden states of the bridge differ from Hugging Face's by {largest:.2g} standard deviations"
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
    """Largest difference of the hidden states of ``SENTENCE`` after every block but the last, between bridge and
    Hugging Face, in standard deviations of that block's."""
    model = bridge.original_model
    name, device, dtype = bridge.loaded_from
    ids = torch.tensor([bridge.tokenizer(SENTENCE)["input_ids"]], device=model.device)
    layers = list(range(bridge.cfg.n_layers - 1))  # Hugging Face gives the last one behind its final norm only.
    resid = resid_post_at(bridge, ids, torch.ones_like(ids), layers)
    path = weights.model_path(name)
    plain = auto_class(load_config(name)).from_pretrained(path, dtype=DTYPES[dtype], use_safetensors=True).to(device)
    with torch.inference_mode():
        hidden = plain.eval()(input_ids=ids, output_hidden_states=True).hidden_states
    return max(((resid[layer] - hidden[layer + 1]).abs().max() / hidden[layer + 1].std()).item() for layer in layers)


@torch.inference_mode()
def loss(bridge: TransformerBridge) -> float:
    """Mean cross-entropy of ``SENTENCE`` without BOS, in nats a token."""
    ids = bridge.tokenizer(SENTENCE, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = ids.to(bridge.original_model.device)
    return bridge.original_model(input_ids=ids, labels=ids).loss.item()
