"""What probes read of a classification task's texts: the pooled residual stream of one layer, and the pooled latents of
several SAEs, harvested once for all tasks that share texts.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float
from sae_lens import SAE
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from lib.base.files import locked, replacing_folder, value_hash
from lib.model import activations, chat, models
from lib.probing import controls
from lib.probing.tasks import Task
from lib.sae import folders, latents
from lib.texts import task_files
from lib.texts.task_files import TaskTexts

SAMPLE_TEXTS = 48
CHARACTERS = 4  # of a token, about
RESID, KEYS, TEXTS = "resid.safetensors", "keys.json", "texts.parquet"


class Key(NamedTuple):
    """An SAE, or a dictionary that no SAE training made (``is_control``): its variant and its seed or draw."""

    variant: str
    seed: int
    is_control: bool


class Reader(NamedTuple):
    """What reads the texts.

    Attributes:
        model: ``lib.model.models.identity``.
        saes: columns ``variant``, ``seed``, ``folder``; the first one gives control dictionaries their size and L0.
        dictionaries: names of ``lib.probing.controls.DICTIONARIES``, one draw each.
        most_tokens: of a text, of which the end is kept.
    """

    bridge: TransformerBridge
    model: dict[str, str]
    layer: int
    poolings: tuple[str, ...]
    saes: pd.DataFrame
    dictionaries: tuple[str, ...]
    most_tokens: int
    device: str = "cpu"

    def decides(self) -> dict:
        """All of this that decides what is read, as JSON values."""
        saes = [[row.variant, row.seed, folders.identity(row.folder)] for row in self.saes.itertuples()]
        return self.model | {
            "layer": self.layer, "poolings": list(self.poolings), "saes": saes,
            "dictionaries": list(self.dictionaries), "most_tokens": self.most_tokens,
        }  # fmt: skip


class Features(NamedTuple):
    """Of every text, in their order: the residual stream by pooling, and the latents by SAE and pooling."""

    resid: dict[str, Float[np.ndarray, "texts d_model"]]
    latents: dict[Key, latents.Pooled]


def bundles(tasks: Iterable[TaskTexts]) -> list[list[TaskTexts]]:
    """The tasks in groups that have no text in common, each of which is harvested at once."""
    return _joined((task, set(task.rows["text"])) for task in tasks)


def clusters(tasks: Iterable[TaskTexts]) -> dict[str, str]:
    """What each task is drawn with, by its name: tasks with a text in common, or that the package made of one source,
    tell less than as many others. A cluster is named after its first task."""
    sources = ((task, {("source", task_files.source_of(task.name)), *task.rows["text"]}) for task in tasks)
    return {task.name: members[0].name for members in _joined(sources) for task in members}


def _joined(holding: Iterable[tuple[TaskTexts, set]]) -> list[list[TaskTexts]]:
    """The tasks in groups of which no two hold a thing in common."""
    groups: list[tuple[list[TaskTexts], set]] = []
    for task, things in holding:
        apart = [group for group in groups if not group[1] & things]
        joined = [group for group in groups if group[1] & things]
        members = [member for group in joined for member in group[0]] + [task]
        groups = [*apart, (members, things.union(*(group[1] for group in joined)))]
    return [members for members, _ in groups]


def in_bundles(tasks: list[TaskTexts], what: str) -> Iterator[list[TaskTexts]]:
    """:func:`bundles`, with a bar of how many of the tasks are done."""
    with tqdm(total=len(tasks), desc=what, unit="task") as bar:
        for bundle in bundles(tasks):
            yield bundle
            bar.update(len(bundle))


def sample_tokens(
    bridge: TransformerBridge,
    model: dict[str, str],
    layer: int,
    tasks: list[TaskTexts],
    most_tokens: int,
    parent: Path,
) -> Float[Tensor, "tokens d_model"]:
    """Activations of the tokens of a few texts, the first ones of the first task, of the user's turn where there is
    one: what an SAE is measured on before it is probed. Of each text the end is read, about ``most_tokens``."""
    texts = [text[-CHARACTERS * most_tokens :] for text in tasks[0].rows["text"].iloc[:SAMPLE_TEXTS]]
    tokens = activations.prompt_tokens(bridge, model, texts, layer, parent / "sample")
    return tokens.activations if tokens.in_turn is None else tokens.activations[tokens.in_turn]


def texts_of(tasks: list[TaskTexts]) -> pd.DataFrame:
    """The texts of a bundle, each once: ``text``, and ``is_train``: no task tests or validates on it."""
    rows = pd.concat([task.rows for task in tasks])
    is_train = (rows["split"] == "train").groupby(rows["text"]).all()
    return is_train.rename("is_train").reset_index()


def place_of(reader: Reader, tasks: list[TaskTexts], parent: Path) -> Path:
    """The folder of ``parent`` in which the features of a bundle's texts lie once :func:`harvest` has made it."""
    texts = texts_of(tasks)["text"].tolist()
    decides = reader.decides() | {"texts": activations.texts_hash(texts)}
    return parent / f"features-{value_hash(decides | chat.reading(reader.bridge.tokenizer, texts))}"


def harvest(reader: Reader, tasks: list[TaskTexts], parent: Path) -> Path:
    """The features of a bundle's texts (:func:`texts_of`), in a folder of ``parent`` that is made once.

    Activations of tokens lie beside it while it is made, so that an interrupted harvest goes on.
    """
    texts, folder = texts_of(tasks), place_of(reader, tasks, parent)
    with locked(folder):
        if not folder.exists():
            scratch = parent / f"harvest-{folder.name.removeprefix('features-')}"
            _make(reader, texts, scratch, folder)
            shutil.rmtree(scratch)
    return folder


def _make(reader: Reader, texts: pd.DataFrame, scratch: Path, folder: Path) -> None:
    bridge, layer = reader.bridge, reader.layer
    cut = models.shortened(bridge.tokenizer, texts["text"].tolist(), reader.most_tokens)
    store = activations.harvest_pooled(
        bridge, reader.model, cut, [layer], scratch, poolings=reader.poolings, token_layer=layer
    )
    resid = activations.at_layer(activations.load_pooled(store), layer)
    tokens = activations.prompt_tokens(bridge, reader.model, cut, layer, scratch)
    pooled: dict[Key, latents.Pooled] = {}
    distinct = latents.distinct_rows(tokens.activations)
    first = folders.load(reader.saes["folder"].iloc[0], reader.device)
    for key, sae in _dictionaries(reader, first, resid, tokens, texts["is_train"].to_numpy()):
        pooled[key] = latents.pool_latents(sae, tokens, reader.poolings, distinct)
    with replacing_folder(folder) as temporary:
        save_file({pooling: np.ascontiguousarray(x) for pooling, x in resid.items()}, temporary / RESID)
        for i, of_key in enumerate(pooled.values()):
            for pooling, x in of_key.items():
                scipy.sparse.save_npz(temporary / f"{i}-{pooling}.npz", x)
        (temporary / KEYS).write_text(json.dumps(list(pooled)), encoding="utf-8")
        texts.to_parquet(temporary / TEXTS)


def _dictionaries(
    reader: Reader, first: SAE, resid: dict[str, np.ndarray], tokens: activations.PromptTokens, is_train: np.ndarray
) -> Iterable[tuple[Key, SAE]]:
    for row in reader.saes.itertuples():
        sae = folders.load(row.folder, reader.device)
        folders.check_fits(sae, first.cfg.d_in, models.resid_post(reader.layer), reader.model["model"])
        yield Key(row.variant, row.seed, False), sae
    places = np.arange(len(is_train))
    inputs = controls.Inputs(resid, tokens, Task(places, is_train, places), first, reader.device)
    for name in reader.dictionaries:
        yield Key(name, 0, True), controls.DICTIONARIES[name](inputs, 0)


def load(folder: Path, texts: list[str]) -> Features:
    """The features of some of the texts that :func:`harvest` has read, in the order of ``texts``."""
    keys = [Key(*key) for key in json.loads((folder / KEYS).read_text(encoding="utf-8"))]
    places = pd.Index(pd.read_parquet(folder / TEXTS)["text"]).get_indexer(texts)
    resid = {pooling: x[places] for pooling, x in load_file(folder / RESID).items()}
    pooled = {
        key: {pooling: scipy.sparse.load_npz(folder / f"{i}-{pooling}.npz")[places] for pooling in resid}
        for i, key in enumerate(keys)
    }
    return Features(resid, pooled)


def n_long(bridge: TransformerBridge, tasks: list[TaskTexts], most_tokens: int) -> dict[str, int]:
    """How many texts of each task are longer than ``most_tokens``."""
    counts = {}
    for task in tasks:
        texts = task.rows["text"].tolist()
        cut = models.shortened(bridge.tokenizer, texts, most_tokens)
        counts[task.name] = sum(short != text for short, text in zip(cut, texts, strict=True))
    return counts
