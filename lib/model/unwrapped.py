"""The Hugging Face model inside a bridge, without the bridge's hooks, and with the attention that one wants.

A bridge computes attention and norms step by step, so that hooks see each. Where only the residual stream or the next
token is wanted, the model's own modules over the same weights are faster.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")


class _Stop(Exception):
    """Ends a forward pass once the last wanted block has been read."""


class Unwrapped:
    """A second tree of modules over the same weights, and its blocks.

    Attributes:
        model: the Hugging Face model; its configuration is its own.
        blocks: its transformer blocks, in order.
    """

    def __init__(self, bridge: TransformerBridge, attention: str | None = None):
        """``attention`` is a name in transformers' ``ALL_ATTENTION_FUNCTIONS``, by default the model's own."""
        twins: dict[int, nn.Module] = {}
        configs: dict[int, Any] = {}
        self.model = _twin(bridge.original_model, twins, configs)
        if attention:
            for config in configs.values():
                config._attn_implementation = attention
        self.blocks = [twins[id(_original(block))] for block in bridge.blocks]
        self.returns_tuples = False  # A block's output; what the first pass finds.

    @torch.inference_mode()
    def resid_post(self, layers: list[int], **inputs: Any) -> dict[int, Tensor]:
        """The output of the blocks ``layers`` (ascending), from one forward pass that stops at the last one."""
        resid: dict[int, Tensor] = {}

        def keep(layer: int, output: Any) -> None:
            self.returns_tuples = isinstance(output, tuple)
            resid[layer] = output[0] if self.returns_tuples else output
            if layer == layers[-1]:
                raise _Stop

        def hook_of(layer: int):
            return lambda module, args, output: keep(layer, output)

        handles = [self.blocks[layer].register_forward_hook(hook_of(layer)) for layer in layers]
        try:
            self.model(**inputs, use_cache=False)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return resid

    @torch.inference_mode()
    def logits_from(self, layer: int, resid: Tensor, **inputs: Any) -> Tensor:
        """The logits of the model on ``inputs`` if its block ``layer`` puts out ``resid``.

        Blocks up to that one are skipped; embeddings, masks and positions are the model's own.
        """
        skipped = self.blocks[: layer + 1]
        for i, block in enumerate(skipped):
            block.forward = _skipped(resid if i == layer else None, self.returns_tuples)
        try:
            return self.model(**inputs, use_cache=False).logits
        finally:
            for block in skipped:
                del block.forward


def _skipped(output: Tensor | None, as_tuple: bool) -> Callable:
    """The forward pass of a block that hands on what it is given, or ``output``."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        handed_on = hidden_states if output is None else output
        return (handed_on,) if as_tuple else handed_on

    return forward


def _original(module: nn.Module) -> nn.Module:
    """What a component of the bridge wraps; any other module is itself."""
    while isinstance(module, GeneralizedComponent) and module.original_component is not None:
        module = module.original_component
    return module


def _twin(module: nn.Module, twins: dict[int, nn.Module], configs: dict[int, Any]) -> nn.Module:
    """A copy of ``module`` with its parameters, without hooks and without the bridge's components below it."""
    module = _original(module)
    if id(module) not in twins:
        twin = twins[id(module)] = copy.copy(module)
        for name in HOOKS:
            setattr(twin, name, OrderedDict())
        config = getattr(module, "config", None)
        if config is not None:
            twin.config = configs.setdefault(id(config), copy.deepcopy(config))
        children = {name: child for name, child in module._modules.items() if child is not None}
        twin._modules = {name: _twin(child, twins, configs) for name, child in children.items()}
    return twins[id(module)]
