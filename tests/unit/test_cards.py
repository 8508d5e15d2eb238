import base64
import hashlib
import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

from lib.interp import cards
from lib.interp.cards import Card
from lib.interp.examples import Encoded, Example, Sequences

HOSTILE = '<script>alert("x")</script>'


def hostile(latent=3, score=0.5):
    example = Example([" say", f" {HOSTILE}", " now"], np.array([0, 10, 4]), 0)
    facts, groups = {"frequency": 0.01 * latent, "score": score}, {f"top {HOSTILE}": [example]}
    return Card(f"SAE {HOSTILE}", latent, f"because {HOSTILE}", facts, f"fires at {HOSTILE}", groups)


def test_all_text_is_escaped_in_page_and_fragment():
    for html in (cards.page([hostile()], f"title {HOSTILE}"), cards.fragment([hostile()])):
        assert HOSTILE not in html and "&lt;script&gt;" in html
    assert len(re.findall("<script", cards.page([hostile()], "t"))) == 1
    assert "<script" not in cards.fragment([hostile()])


def test_only_the_template_s_script_may_run_on_a_page():
    html = cards.page([hostile()], "t")
    (script,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert "=> document" in script, "it is not escaped"


def test_a_page_needs_no_network():
    html = cards.page([hostile()], "t")
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)|url\(|@import|https?://", html)


SMALL = StandardSAE(StandardSAEConfig(d_in=2, d_sae=2))


def of_id(said):
    """An SAE whose record has ``said`` as its name at Neuronpedia."""
    SMALL.cfg.metadata = SAEMetadata() if said is None else SAEMetadata(neuronpedia_id=said)
    return SMALL


def test_every_name_in_saelens_registry_gives_a_link():
    ids = {name for release in get_pretrained_saes_directory().values() for name in release.neuronpedia_id.values()}
    assert len(ids) > 1000 and {cards.neuronpedia_id(of_id(name)) for name in ids if name} == ids - {None}


NO_NAMES = [None, "", 3, "gemma-2-9b", "a/b/c", "a/../b", "../b", "a/b?x=1", 'a/b"x=', "//evil.org/b", "a/b\n", "ä/b"]


@pytest.mark.parametrize("said", NO_NAMES)
def test_what_is_no_name_at_neuronpedia_gives_none(said):
    assert cards.neuronpedia_id(of_id(said)) == ""


def test_a_latent_at_neuronpedia_links_there_and_asks_for_nothing_before():
    linked = hostile(7)._replace(address=cards._address("gemma-2-9b-it/20-gemmascope-res-16k", 7))
    link = "https://www.neuronpedia.org/gemma-2-9b-it/20-gemmascope-res-16k/7"
    for html in (cards.page([linked, hostile()], "t"), cards.fragment([linked, hostile()])):
        assert re.findall(r'<a href="([^"]*)" rel="noopener noreferrer">Neuronpedia</a>', html) == [link]
        assert html.count("://") == 1 and not re.search(r"\bsrc=|prefetch|preconnect|url\(|@import", html)
    assert cards._address('a"/b', 7) == "" and '"x' not in cards.fragment([hostile()._replace(address='"x')])


def test_a_card_has_an_anchor_that_others_link_to():
    html = cards.page([hostile(7)], "t")
    anchor = cards.anchor(f"SAE {HOSTILE}", 7)
    assert f'id="{anchor}"' in html and re.fullmatch(r"[\w-]+", anchor)
    assert cards.anchor("pretraining SAE", 12) == "pretraining-SAE-12"


def test_marks_show_levels_and_missing_facts_are_named():
    html = cards.fragment([hostile(score=None)])
    assert '--level:1.00" title="10 of 10"' in html and '--level:0.40" title="4 of 10"' in html
    assert "score n/a" in html and "frequency 0.03" in html


def test_cards_of_picked_latents():
    tokens = [f" t{i}" for i in range(40)]
    text = Sequences(tokens, np.arange(0, 41, 4), np.arange(10) % 2 == 1, np.zeros((40, 1), dtype=np.float16))
    rng = np.random.default_rng(0)
    dense = rng.random((40, 4)) * (rng.random((40, 4)) < [0.9, 0.5, 0.3, 0.0])
    encoded = Encoded(text, scipy.sparse.csc_matrix(dense.astype(np.float32)))
    scored = pd.DataFrame({
        "latent": range(4),
        "frequency": (dense > 0).mean(0),
        "score": [0.1, 0.9, np.nan, np.nan],
        "status": ["scored", "scored", "not drawn", "never fires"],
        "explanation": ["a", "b", None, None],
    })
    picked = cards.pick(scored, 2)
    assert picked == {"most frequent": [0, 1], "best explained": [1, 0], "worst explained": [0, 1]}
    assert cards.unjudged({"chosen": [3, 1, 2]} | picked, scored) == [2, 3]
    silent, second, first = cards.cards(encoded, "mine", {"chosen": [3, 1]} | picked, scored, {1: {"AUROC": 0.7}})
    assert [silent.latent, second.latent, first.latent] == [3, 1, 0]
    assert silent.groups == {} and silent.explanation == "no explanation: never fires" and silent.facts["score"] is None
    assert second.why == "chosen, most frequent, best explained, worst explained" and second.facts["AUROC"] == 0.7
    top = first.groups["top"][0]
    assert top.peak == 10 and top.index == int(np.argmax(dense[:, 0])) // 4
    shown = [example.index for group in first.groups.values() for example in group]
    assert len(shown) == len(set(shown))
    assert first.address == ""
    linked = cards.cards(encoded, "mine", {"chosen": [2]}, scored, {}, "a-model/an-sae")
    assert [card.address for card in linked] == ["https://www.neuronpedia.org/a-model/an-sae/2"]
