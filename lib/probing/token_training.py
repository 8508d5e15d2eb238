"""Training of token probes: their batches, the settings that are rows of one matrix, and AdamW with a rate for each.

All settings of all aggregations read the same tokens, so one product of a batch with that matrix serves them all;
their losses are added, and no gradient passes between them.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.model.activations import PromptTokens
from lib.probing.aggregations import AGGREGATIONS, Option
from lib.stats.metrics import Labels

BETAS, EPSILON = (0.9, 0.999), 1e-8  # AdamW's, as in torch
INITIAL_SCALE = 0.01  # standard deviation of a weight before training


class Setting(NamedTuple):
    """How a probe is trained; ``option`` is the value of its aggregation's own hyperparameter, None if it has none."""

    learning_rate: float
    weight_decay: float
    option: Option = None
    epochs: int | None = None


class Standardiser(NamedTuple):
    """Mean and standard deviation of every coordinate, over the tokens of some prompts' turns."""

    mean: Float[Tensor, " d_model"]
    scale: Float[Tensor, " d_model"]

    @classmethod
    def of(cls, tokens: PromptTokens, prompts: Int[np.ndarray, " rows"]) -> "Standardiser":
        """That of ``prompts``, which are positions in ``tokens``."""
        sample = tokens.activations[torch.cat(_turns(tokens, prompts))].float()
        mean = sample.mean(0)
        variance = sample.sub_(mean).square_().mean(0)  # some times faster than torch's std
        return cls(mean, variance.sqrt_().clamp(min=1e-6))


class Batch(NamedTuple):
    """Standardised tokens of a few prompts, one prompt after the other without padding, and where they go with it.

    Attributes:
        rows: which prompts these are.
        z: the tokens of their turns.
        place: position of each token in the padded (batch · pos).
        mask: which padded positions are tokens; padding is on the right.
    """

    rows: Int[Tensor, " batch"]
    z: Float[Tensor, "tokens d_model"]
    place: Int[Tensor, " tokens"]
    mask: Bool[Tensor, "batch pos"]


def batches(
    tokens: PromptTokens, prompts: Int[np.ndarray, " rows"], standardiser: Standardiser, batch_prompts: int = 64
) -> Iterator[Batch]:
    """Batches of the turns of ``prompts``, which are positions in ``tokens``, in their order.

    Raises:
        ValueError: a prompt has no token in its turn.
    """
    for start in range(0, len(prompts), batch_prompts):
        rows = torch.from_numpy(prompts[start : start + batch_prompts])
        turns = _turns(tokens, rows.numpy())
        lengths = torch.tensor([len(turn) for turn in turns])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        z = (tokens.activations[torch.cat(turns)].float() - standardiser.mean) / standardiser.scale
        yield Batch(rows, z, mask.flatten().nonzero()[:, 0], mask)


def through_fixed(tokens: PromptTokens) -> PromptTokens:
    """The same tokens, where the one at the fixed position is read as part of a prompt's turn.

    With a chat template that position is the token that ends the user's turn, which is not among the turn's own; the
    last token then is the one of the pooling ``fixed``.
    """
    if tokens.in_turn is None:
        return tokens
    in_turn = tokens.in_turn.clone()
    in_turn[torch.maximum(tokens.starts[1:] + tokens.fixed, tokens.starts[:-1])] = True
    return tokens._replace(in_turn=in_turn)


def _turns(tokens: PromptTokens, prompts: Int[np.ndarray, " rows"]) -> list[Tensor]:
    """For each prompt, which tokens its turn has."""
    turns = []
    for prompt in prompts.tolist():
        turn = torch.arange(int(tokens.starts[prompt]), int(tokens.starts[prompt + 1]))
        turns.append(turn if tokens.in_turn is None else turn[tokens.in_turn[turn]])
        if not len(turns[-1]):
            raise ValueError(f"prompt {prompt} has no token in its turn; a prompt needs 1 at least")
    return turns


class Block(NamedTuple):
    """Settings of one aggregation with the same ``option``, so that they read equally many projections."""

    name: str
    settings: tuple[Setting, ...]

    @property
    def projections(self) -> int:
        """How many projections each of its settings reads."""
        return AGGREGATIONS[self.name].projections(self.settings[0].option)


class Bank(NamedTuple):
    """Probes that are scored together, in the order of the blocks and of their settings.

    ``weights`` has the projections of the first setting of the first block, then those of the second …
    """

    blocks: tuple[Block, ...]
    weights: Float[Tensor, "all_projections d_model"]
    bias: Float[Tensor, " probes"]

    @classmethod
    def untrained(cls, blocks: tuple[Block, ...], d_model: int, seed: int) -> "Bank":
        """Small normal weights, the same for all settings of a block and whatever other blocks there are."""
        weights = []
        for block in blocks:
            generator = torch.Generator().manual_seed(seed)
            of_one = INITIAL_SCALE * torch.randn(block.projections, d_model, generator=generator)
            weights.append(of_one.repeat(len(block.settings), 1))
        return cls(blocks, torch.cat(weights), torch.zeros(sum(len(block.settings) for block in blocks)))

    def logits(self, batch: Batch) -> Float[Tensor, "batch probes"]:
        """Scores of a batch's prompts by every probe."""
        padded = batch.z.new_zeros(batch.mask.numel(), len(self.weights))
        padded = padded.index_copy(0, batch.place, batch.z @ self.weights.T).view(*batch.mask.shape, -1)
        widths = [len(block.settings) * block.projections for block in self.blocks]
        pooled = [
            AGGREGATIONS[block.name].pool(
                projected.unflatten(-1, (len(block.settings), block.projections)), batch.mask, block.settings[0].option
            )
            for block, projected in zip(self.blocks, padded.split(widths, dim=-1), strict=True)
        ]
        return torch.cat(pooled, dim=1) + self.bias

    def scores(self, of_batches: Iterable[Batch]) -> Float[np.ndarray, "rows probes"]:
        """Scores of the batches' prompts, one batch after the other."""
        with torch.inference_mode():
            return torch.cat([self.logits(batch) for batch in of_batches]).numpy()

    def probe(self, i: int) -> tuple[Float[Tensor, "projections d_model"], Float[Tensor, ""]]:
        """A copy of the weights and of the bias of the i-th probe."""
        counts = [block.projections for block in self.blocks for _ in block.settings]
        first = sum(counts[:i])
        return self.weights[first : first + counts[i]].detach().clone(), self.bias[i].detach().clone()


def train(blocks: tuple[Block, ...], data: list[Batch], y: Labels, epochs: int, seed: int) -> Iterator[Bank]:
    """Yield the bank after each epoch (the same tensors, trained on).

    Every probe minimises the mean of log(1 + exp(−ỹᵢ sᵢ)), sᵢ the score of prompt i and ỹᵢ = ±1, with the learning
    rate and the weight decay of its setting. Batches come in an order that ``seed`` decides.

    Args:
        y: labels of all prompts, of which those of the batches' ``rows`` are read.
    """
    bank = Bank.untrained(blocks, data[0].z.shape[1], seed)
    settings = [(setting, block.projections) for block in blocks for setting in block.settings]
    rates = torch.tensor([setting.learning_rate for setting, _ in settings])
    decays = torch.tensor([setting.weight_decay for setting, _ in settings])
    counts = torch.tensor([count for _, count in settings])
    of_weights = AdamW(bank.weights, rates.repeat_interleave(counts), decays.repeat_interleave(counts))
    of_bias = AdamW(bank.bias, rates, torch.zeros_like(decays))
    targets = [torch.from_numpy(y[batch.rows.numpy()]).float()[:, None].expand(-1, len(settings)) for batch in data]
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for i in torch.randperm(len(data), generator=generator).tolist():
            loss = loss_of(bank.logits(data[i]), targets[i], reduction="sum") / len(targets[i])
            loss.backward()
            of_weights.step()
            of_bias.step()
        yield bank


class AdamW:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) with a learning rate η and a weight decay λ for each row of θ.

    θ ← (1 − ηλ) θ; m ← β₁m + (1 − β₁)g; v ← β₂v + (1 − β₂)g²; θ ← θ − η m̂ / (√v̂ + ε), with m̂ = m / (1 − β₁ⁱ) and
    v̂ = v / (1 − β₂ⁱ) at step i. torch's own has one rate for a whole tensor, so that it would take a tensor, and about
    ten small operations a step, for each setting.
    """

    def __init__(self, theta: Tensor, rates: Float[Tensor, " rows"], decays: Float[Tensor, " rows"]):
        shape = (-1, *(1,) * (theta.ndim - 1))
        self.theta, self.rates, self.decays = theta.requires_grad_(), rates.view(shape), decays.view(shape)
        self.first, self.second, self.steps = torch.zeros_like(theta), torch.zeros_like(theta), 0

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradient, which is then forgotten."""
        gradient, self.steps = self.theta.grad, self.steps + 1
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        root = (self.second / (1 - BETAS[1] ** self.steps)).sqrt_().add_(EPSILON)
        self.theta.mul_(1 - self.rates * self.decays)
        self.theta.sub_(self.rates / (1 - BETAS[0] ** self.steps) * self.first / root)
        self.theta.grad = None
