"""Latent cards: what a latent fires on, how often, and what a judge made of it, as HTML for notebooks and as one page.

All text is escaped by the template (jinja2 autoescape); the page needs no network.
"""

from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
import scipy.sparse

from lib.base.files import ROOT
from lib.interp import examples
from lib.interp.examples import LEVELS, Example, Sequences


class Card(NamedTuple):
    """A latent of an SAE: ``facts`` are numbers by name (None: not measured), ``groups`` examples by name."""

    sae: str
    latent: int
    why: str
    facts: dict[str, float | None]
    explanation: str
    groups: dict[str, list[Example]]


def card(
    latents: scipy.sparse.csc_matrix, latent: int, sequences: Sequences, sae: str, why: str, facts: dict[str, float | None], explanation: str = "",
    top: int = 5, n_quantiles: int = 4, per_quantile: int = 1,
) -> Card:  # fmt: skip
    """The card of a latent, with its top sequences and the middle ones of each quantile of its activating sequences."""
    found = examples.peaks(latents, latent, sequences)
    ordered = found.sequence[np.argsort(-found.value, kind="stable")]
    groups = {"top": ordered[:top]}
    for i, group in enumerate(np.array_split(ordered[top:], n_quantiles), 1):
        groups[f"quantile {i} of {n_quantiles}"] = group[len(group) // 2 :][:per_quantile]
    maximum = float(found.value.max()) if len(found.value) else 1.0
    shown = {name: [examples.example(latents, latent, sequences, i, maximum) for i in group.tolist()] for name, group in groups.items() if len(group)}
    return Card(sae, latent, why, facts, explanation, shown)


def pick(scored: pd.DataFrame, n: int) -> dict[str, list[int]]:
    """Latents worth a look, by reason: of highest frequency, and best and worst explained of the sample."""
    judged = scored.dropna(subset=["score"]).sort_values("score", kind="stable")
    return {
        "most frequent": scored.nlargest(n, "frequency")["latent"].tolist(),
        "best explained": judged["latent"].tolist()[-n:][::-1],
        "worst explained": judged["latent"].tolist()[:n],
    }


def cards(
    latents: scipy.sparse.csc_matrix, sequences: Sequences, sae: str, picked: dict[str, list[int]], scored: pd.DataFrame, facts: dict[int, dict[str, float]]
) -> list[Card]:
    """A card for each picked latent, with all reasons why it was, its frequency and score, and further ``facts`` of it."""
    why: dict[int, list[str]] = {}
    for reason, members in picked.items():
        for latent in members:
            why.setdefault(latent, []).append(reason)
    made = []
    for latent, reasons in why.items():
        row = scored.loc[latent]
        known = {"frequency": row["frequency"], "score": None if pd.isna(row["score"]) else row["score"]} | facts.get(latent, {})
        text = row["explanation"] if isinstance(row["explanation"], str) else f"no explanation: {row['status']}"
        made.append(card(latents, latent, sequences, sae, ", ".join(reasons), known, text))
    return made


def fragment(cards: list[Card]) -> str:
    """The cards as HTML, for display in a notebook."""
    return _render(cards, None)


def page(cards: list[Card], title: str) -> str:
    """The cards as a self-contained page with search and sort."""
    return _render(cards, title)


def _render(cards: list[Card], title: str | None) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(ROOT / "lib" / "results" / "templates"), autoescape=True, undefined=jinja2.StrictUndefined)
    facts: dict[str, Any] = dict.fromkeys(name for one in cards for name in one.facts)
    return environment.get_template("cards.html").render(cards=cards, title=title, levels=LEVELS, facts=list(facts))
