"""Latent cards: what a latent fires on, how often, and what a judge made of it, as HTML for notebooks and as one page.

All text is escaped by the template (jinja2 autoescape); the page needs no network. A latent that Neuronpedia has links
to its page there, which is asked for when somebody follows the link.
"""

import re
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from sae_lens import SAE

from lib.base.files import ROOT, script_hash
from lib.interp import examples
from lib.interp.examples import MAX_LEVEL, Encoded, Example

TEMPLATES = ROOT / "lib" / "results" / "templates"
NEURONPEDIA = "https://www.neuronpedia.org"
NEURONPEDIA_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # of a model, and of an SAE of it


class Card(NamedTuple):
    """A latent of an SAE: ``facts`` are numbers by name (None: not measured), ``groups`` examples by name.

    ``address`` is that of the latent's page at Neuronpedia; empty: it has none.
    """

    sae: str
    latent: int
    why: str
    facts: dict[str, float | None]
    explanation: str
    groups: dict[str, list[Example]]
    address: str = ""

    @property
    def anchor(self) -> str:
        """The card's name on a page."""
        return anchor(self.sae, self.latent)


def anchor(sae: str, latent: int) -> str:
    """The name that a latent's card has on a page, as in ``latents.html#pretraining-SAE-12``."""
    return re.sub(r"\W+", "-", f"{sae}-{latent}")


def neuronpedia_id(sae: SAE) -> str:
    """The name that an SAE has at Neuronpedia, as its record says (``gemma-2-9b-it/20-gemmascope-res-16k``); empty if
    it says none, or something that is no such name."""
    said = str(sae.cfg.metadata.neuronpedia_id or "")
    return said if NEURONPEDIA_ID.fullmatch(said) else ""


def _address(sae_id: str, latent: int) -> str:
    return f"{NEURONPEDIA}/{sae_id}/{latent}" if NEURONPEDIA_ID.fullmatch(sae_id) else ""


def card(
    encoded: Encoded,
    latent: int,
    sae: str,
    why: str,
    facts: dict[str, float | None],
    explanation: str = "",
    *,
    top: int = 5,
    n_quantiles: int = 4,
    per_quantile: int = 1,
    sae_id: str = "",
) -> Card:
    """The card of a latent, with its top sequences and the middle ones of each quantile of its activating sequences.

    ``sae_id`` is the SAE's :func:`neuronpedia_id`.
    """
    active = examples.activating(encoded, latent)
    ordered = active.ordered()
    chosen = {"top": ordered[:top]}
    for i, quantile in enumerate(np.array_split(ordered[top:], n_quantiles), 1):
        chosen[f"quantile {i} of {n_quantiles}"] = quantile[len(quantile) // 2 :][:per_quantile]
    groups = {}
    for name, sequences in chosen.items():
        if len(sequences):
            maximum = float(active.peak.max())
            groups[name] = examples.shown(encoded, latent, sequences.tolist(), maximum)
    return Card(sae, latent, why, facts, explanation, groups, _address(sae_id, latent))


def pick(scored: pd.DataFrame, n: int) -> dict[str, list[int]]:
    """Latents worth a look, by reason: of highest frequency, and best and worst explained of the sample."""
    judged = scored.dropna(subset=["score"]).sort_values("score", kind="stable")
    return {
        "most frequent": scored.nlargest(n, "frequency")["latent"].tolist(),
        "best explained": judged["latent"].tolist()[-n:][::-1],
        "worst explained": judged["latent"].tolist()[:n],
    }


def unjudged(picked: dict[str, list[int]], scored: pd.DataFrame) -> list[int]:
    """The picked latents that have no score, ascending."""
    latents = {latent for members in picked.values() for latent in members}
    return sorted(latents - set(scored.dropna(subset="score")["latent"]))


def cards(
    encoded: Encoded,
    sae: str,
    picked: dict[str, list[int]],
    scored: pd.DataFrame,
    facts: dict[int, dict[str, float]],
    sae_id: str = "",
) -> list[Card]:
    """A card for each picked latent, with all reasons why it was, its frequency and score, and further ``facts``.

    ``sae_id`` is the SAE's :func:`neuronpedia_id`.
    """
    reasons: dict[int, list[str]] = {}
    for reason, members in picked.items():
        for latent in members:
            reasons.setdefault(latent, []).append(reason)
    shown = []
    for latent, why in reasons.items():
        row = scored.loc[latent]
        score = None if pd.isna(row["score"]) else row["score"]
        known = {"frequency": row["frequency"], "score": score} | facts.get(latent, {})
        is_explained = isinstance(row["explanation"], str)
        text = row["explanation"] if is_explained else f"no explanation: {row['status']}"
        shown.append(card(encoded, latent, sae, ", ".join(why), known, text, sae_id=sae_id))
    return shown


def fragment(cards: list[Card]) -> str:
    """The cards as HTML, for display in a notebook."""
    return _render(cards, None)


def page(cards: list[Card], title: str) -> str:
    """The cards as a self-contained page with search and sort."""
    return _render(cards, title)


def _render(cards: list[Card], title: str | None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["digest"] = script_hash
    facts: dict[str, Any] = dict.fromkeys(name for card in cards for name in card.facts)
    template = environment.get_template("cards.html")
    return template.render(cards=cards, title=title, levels=MAX_LEVEL, facts=list(facts))
