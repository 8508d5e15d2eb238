"""What explains a latent and applies the explanation: the interface of all judges, and the judges that there are."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from lib.base.registry import lookup
from lib.interp import llm
from lib.interp.examples import Example, Explanation, Plan
from lib.interp.ngram import NgramJudge


@runtime_checkable
class Judge(Protocol):
    """Explains a latent from examples and answers questions on sequences whose levels it does not see.

    ``workers`` is how many latents may be judged at a time, ``plan`` how many examples are wanted of each. An answer is
    None where none could be read.
    """

    workers: int
    plan: Plan

    def explain(self, examples: list[Example]) -> Explanation | None:
        """An explanation of the examples."""

    def simulate(self, explanation: Explanation, sequences: list[list[str]]) -> list[float] | None:
        """The estimated level (0 to ``MAX_LEVEL``) of the highest-activating token of each sequence."""

    def detect(self, explanation: Explanation, sequences: list[list[str]]) -> list[bool] | None:
        """Whether the latent is active anywhere in each sequence."""

    def fuzz(self, explanation: Explanation, sequences: list[list[str]], marked: list[set[int]]) -> list[bool] | None:
        """Whether the latent is active at the marked tokens of each sequence."""

    def bill(self, prices: tuple[float, float]) -> str:
        """What was used so far, at prices per million input and output tokens; empty for a judge that costs nothing."""


# How each judge is made; one that asks a server reads in the settings which one.
JUDGES: dict[str, Callable[[llm.Settings], Judge]] = {
    "ngram": lambda settings: NgramJudge(),
    "llm": llm.LLMJudge,
}


def make(name: str, settings: llm.Settings) -> Judge:
    """The judge of a name.

    Raises:
        ValueError: unknown name, or settings that the judge cannot work with.
    """
    return lookup(JUDGES, "judge", name)(settings)
