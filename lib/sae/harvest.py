"""Token stores of a corpus: what an SAE is trained on, and what is held out from it."""

from pathlib import Path

from lib.model import activations, models
from lib.sae.token_blocks import Source
from lib.texts import corpora

HELD_OUT_SHARE = 0.05  # of the passages


def token_stores(
    reader: models.Reader,
    texts: list[str],
    layer: int,
    parent: Path,
    *,
    max_tokens: int,
    held_out_tokens: int,
    seed: int,
) -> tuple[Source, Path]:
    """Training and held-out tokens of a corpus at one layer. Passages are on one side only; the held-out are on disk.

    ``max_tokens`` and ``held_out_tokens`` bound the tokens of the two (0: all there are).

    Raises:
        ValueError: fewer than two passages, or a layer out of range.
    """
    training, held_out = corpora.hold_out(texts, HELD_OUT_SHARE, seed)
    store = token_store(reader, training, layer, parent, max_tokens, seed)
    return store, held_out_store(reader, held_out, layer, parent, held_out_tokens, seed)


def held_out_store(
    reader: models.Reader, texts: list[str], layer: int, parent: Path, max_tokens: int, seed: int
) -> Path:
    """:func:`token_store` on disk."""
    return token_store(reader._replace(keeping="disk"), texts, layer, parent, max_tokens, seed)


def token_store(
    reader: models.Reader, texts: list[str], layer: int, parent: Path, max_tokens: int, seed: int
) -> Source:
    """The shuffled tokens of texts at one layer, ``max_tokens`` of them (0: all), special tokens left out.

    Raises:
        ValueError: unknown ``store``, or a layer out of range.
    """
    bridge = reader.bridge()
    token_ids = corpora.first_tokens(models.split_tokens(bridge, texts, reader.context), max_tokens, seed)
    content = activations.texts_hash([str(ids) for ids in token_ids])
    identity = models.identity(reader.model)
    if not reader.keeps():
        return activations.token_shards(bridge, identity, content, token_ids, layer, special=False, shuffle_seed=seed)
    return activations.harvest_tokens(
        bridge, identity, content, token_ids, layer, parent, special=False, shuffle_seed=seed
    )
