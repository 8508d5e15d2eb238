"""A probe as a monitor beside the pass over the prompt that it reads: what it adds before the model's first token.

The model is Hugging Face's own and whole, with a prompt at a time, as when it begins to answer one. The probe reads the
output of one block in the user's turn: mean, standardisation, one product, a threshold. Its numbers are random, as they
decide no time. A hook on the block runs it within the pass; no two passes take the same time to a thousandth, and the
probe takes less than that, so it is timed alone as well, on the same activations.
"""

import time
from collections.abc import Callable, Iterator

import torch
import transformers

from lib.model import chat, models, weights
from lib.probing.portable import Portable
from lib.texts import sources

PROFILE = "embedded"  # whose model and prompts are measured
LAYER, N_TEXTS, ROUNDS = 18, 24, 5
TRIALS = 50  # of the probe on one prompt, of which the mean is taken


def measure() -> Iterator[tuple[str, str, list[float]]]:
    """Milliseconds of the pass and of the probe for a prompt, and their ratios; a value for each round."""
    tokenizer = models.load_tokenizer(weights.SMOLLM2)
    model = transformers.AutoModelForCausalLM.from_pretrained(weights.model_path(weights.SMOLLM2)).eval()
    texts = sources.base_prompts(PROFILE)["text"]
    prompts = [chat.encode(tokenizer, text) for text in texts.sample(N_TEXTS, random_state=0)]
    probe, block = _random_probe(model.config.hidden_size), model.model.layers[LAYER]
    _passes(model, prompts[:3])
    seconds: dict[str, list[float]] = {"prompt_pass": [], "probe": [], "with_probe": []}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            seconds["prompt_pass"].append(_time(lambda: _passes(model, prompts)))
            with_probe = 0.0
            for prompt in prompts:
                handle = block.register_forward_hook(lambda _, args, output, at=prompt: _flag(probe, output, at))
                with_probe += _time(lambda at=prompt: _passes(model, [at]))
                handle.remove()
            seconds["with_probe"].append(with_probe)
            seconds["probe"].append(sum(_alone(model, block, probe, prompt) for prompt in prompts))
    for name in ("prompt_pass", "probe"):
        yield f"{name}_ms", "ms", [1e3 * value / N_TEXTS for value in seconds[name]]
    for name in ("probe", "with_probe"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["prompt_pass"], strict=True)]
        yield f"{name}_vs_prompt_pass", "ratio", ratios
    yield "tokens_per_prompt", "tokens", [float(len(prompt.ids)) for prompt in prompts]


def _random_probe(d_model: int) -> Portable:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, d_model, generator=generator)
    return Portable(vectors[0], vectors[1].abs() + 1, vectors[2], torch.tensor(0.0), about={})


def _time(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _passes(model: torch.nn.Module, prompts: list[chat.Encoded]) -> None:
    with torch.inference_mode():
        for prompt in prompts:
            model(input_ids=torch.tensor([prompt.ids]), use_cache=True, logits_to_keep=1)


def _flag(probe: Portable, output: torch.Tensor | tuple, prompt: chat.Encoded) -> None:
    resid = output[0] if isinstance(output, tuple) else output
    _is_above(probe, resid, prompt)


def _is_above(probe: Portable, resid: torch.Tensor, prompt: chat.Encoded) -> bool:
    """The whole work of the probe on one prompt."""
    turn = resid[:, prompt.first : prompt.last]
    return probe.score(turn.mean(1)).item() > 0


def _alone(model: torch.nn.Module, block: torch.nn.Module, probe: Portable, prompt: chat.Encoded) -> float:
    """Seconds of the probe on the activations of one prompt."""
    kept: list[torch.Tensor] = []
    handle = block.register_forward_hook(
        lambda _, args, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    _passes(model, [prompt])
    handle.remove()
    return _time(lambda: [_is_above(probe, kept[0], prompt) for _ in range(TRIALS)]) / TRIALS
