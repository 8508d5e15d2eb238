"""Token stores of a corpus: what an SAE is trained on, and what is held out from it."""

from pathlib import Path
from typing import NamedTuple

from lib.model import activations, models
from lib.sae.token_blocks import Source
from lib.texts import corpora

HELD_OUT_SHARE = 0.05  # of the passages; as many are for calibration


class Stores(NamedTuple):
    """What an SAE is trained on, measured on, and what its learning rate is chosen on; the last two are on disk."""

    training: Source
    held_out: Path
    calibration: Path | None


def token_stores(
    reader: models.Reader,
    texts: list[str] | corpora.Split,
    layer: int,
    parent: Path,
    *,
    max_tokens: int,
    held_out_tokens: int,
    seed: int,
    calibrates: bool = False,
) -> Stores:
    """The tokens of a corpus at one layer, training, held-out and calibration ones. A passage is in one of them only.

    ``max_tokens`` bounds the first, ``held_out_tokens`` each of the others (0: all there are). Without ``calibrates``
    the third is None.

    Raises:
        ValueError: fewer than three passages, none for a calibration that is wanted, or a layer out of range.
    """
    parts = texts if isinstance(texts, corpora.Split) else corpora.split(texts, HELD_OUT_SHARE, seed)
    if calibrates and not parts.calibration:
        raise ValueError("these texts have no passages from which a learning rate could be chosen; give one")
    on_disk = [
        held_out_store(reader, passages, layer, parent, held_out_tokens, seed) if wanted else None
        for passages, wanted in ((parts.held_out, True), (parts.calibration, calibrates))
    ]
    return Stores(token_store(reader, parts.training, layer, parent, max_tokens, seed), *on_disk)


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
