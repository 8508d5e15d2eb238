"""A profile's best dense probe, fitted again from the outputs of notebooks 01 and 02 and held to their scores.

What it reads, its thresholds and what was measured of it go along, as ``probe.json`` of ``lib.probing.portable``.
"""

import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from lib.base.files import file_hash, relative
from lib.model import activations, chat, models, poolings
from lib.model.shards import read_manifest
from lib.probing import dense, portable
from lib.probing.portable import FPRS, Portable
from lib.probing.tasks import Task
from lib.results import probe_tables, records, thresholds
from lib.stats import metrics
from lib.texts import datasets

TOLERANCE = 1e-5  # of a score, in standard deviations of the scores, between the probe and what notebook 02 stored
ROUNDING = 1e-4  # in standard deviations of the scores; in float32 other batches move a score by a hundredth of that
UNUSUAL = 0.01  # the share of training prompts whose distance is above the largest usual one


def best(run: records.Run) -> Portable:
    """The dense probe of best validation AUROC of a profile, fitted on the training split.

    Layer and pooling are chosen as in notebook 05; C is what notebook 02 chose for them in training folds. Thresholds
    are set on the validation negatives.

    Raises:
        ValueError: notebook 01 or 02 has not been run, they are of different prompts or of another model than the one
            that is here, or the probe does not score every prompt as notebook 02 did.
    """
    harvest = records.read(run, "02_activations")
    prompts_path = records.output(run, "01_datasets", "prompts")
    store, grid_path, scores_path = (
        records.output(run, "02_activations", name) for name in ("pooled", "dense", "dense_scores")
    )
    again = f"run make reproduce PROFILE={run.profile} again"
    if file_hash(prompts_path) not in harvest["inputs"].values():
        raise ValueError(f"notebook 02 has read other prompts than those of {relative(prompts_path)}; {again}")
    prompts, grid = datasets.load(prompts_path), pd.read_parquet(grid_path)
    cell = probe_tables.best_cell(grid[grid["metric"] == "auroc"])
    layer, pooling = int(cell["layer"]), str(cell["pooling"])
    reading = _reading(harvest["parameters"], store, layer, pooling)
    x, task = activations.load_pooled(store)[layer, pooling], Task.of(prompts)
    stored = dense.load_scores(scores_path)[layer, pooling]
    probe, difference = _nearest(x, task, float(cell["c"]), stored)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the probe that was fitted here scores a prompt {difference:.2g} standard deviations from where notebook "
            f"02 did, and {TOLERANCE:g} is allowed; {again}, on this machine"
        )
    scores, distances = (read(torch.from_numpy(x)).numpy() for read in (probe.score, probe.distance))
    of_cell = grid[(grid["layer"] == layer) & (grid["pooling"] == pooling)]
    about = {
        "profile": run.profile,
        "target": _target(records.read(run, "01_datasets")["parameters"]),
        **reading,
        "c": float(cell["c"]),
        **_measured(prompts, scores, harvest["parameters"], _rows(of_cell)),
        "distance": _distance(distances, prompts["split"]),
        "training": {
            "prompts": int(task.train.sum()),
            "base_prompts": len(np.unique(task.groups[task.train])),
            "prompts_sha256": file_hash(prompts_path),
        },
        "commit": records.commit(),
        "commit_of_scores": harvest["commit"],
    }
    return probe._replace(about=about)


def _nearest(
    x: Float[np.ndarray, "prompts d_model"], task: Task, c: float, stored: metrics.Scores
) -> tuple[Portable, float]:
    """The fit that scores as the stored scores do, or else the nearest, and its largest difference in their standard
    deviations.

    A product on several threads is summed in another order, which moves where the solver stops: by 0.03 standard
    deviations on two. How many notebook 02's fits had follows from the cores, and from how many of them ran at a time.
    """
    nearest, least = None, np.inf
    for threads in dict.fromkeys(joblib.cpu_count() // n for n in range(joblib.cpu_count(), 0, -1)):
        with threadpool_limits(threads):
            probe = _fitted(x, task, c)
        difference = float(np.abs(probe.score(torch.from_numpy(x)).numpy() - stored).max() / stored.std())
        if nearest is None or difference < least:
            nearest, least = probe, difference
        if least <= TOLERANCE:
            break
    return nearest, least


def _fitted(x: Float[np.ndarray, "prompts d_model"], task: Task, c: float) -> Portable:
    scaler, regression = (step for _, step in dense.logistic(c).fit(x[task.train], task.y[task.train]).steps)
    arrays = scaler.mean_, scaler.scale_, regression.coef_[0], regression.intercept_[0]
    return Portable(*(torch.tensor(array, dtype=torch.float32) for array in arrays), about={})


def _target(parameters: dict[str, Any]) -> str:
    own = parameters.get("train_csv")
    return f"label 1 of {Path(own).name}" if own else "harmful intent"


def _reading(parameters: dict[str, Any], store: Path, layer: int, pooling: str) -> dict[str, Any]:
    """What is read of a text: model, chat template, block, tokens."""
    harvested = read_manifest(store)["parameters"]
    identity = {name: harvested[name] for name in ("model", "revision", "date") if name in harvested}
    portable.check_model(identity)
    tokenizer = models.load_tokenizer(identity["model"])
    has_template, entry = chat.has_template(tokenizer), poolings.pooling(pooling)
    position = entry.position(chat.end_of_turn(tokenizer) if has_template else -1) if entry.position else None
    over = parameters["pool_over"] if has_template else "sequence"
    tokens = "the tokens of the user's turn, without those of the chat template"
    tokens = tokens if over == "turn" else "all tokens but a causal model's BOS"
    meaning = {"mean": f"the mean over {tokens}", "max": f"for each coordinate its maximum over {tokens}"}
    at_position = f"the token at position {position}, counted from the first one behind the prompt"
    return {
        "model": identity,
        "dtype": parameters["dtype"],
        "layer": layer,
        "hook_name": models.resid_post(layer),
        "pooling": pooling,
        "pool_over": over,
        "position": position,
        "meaning": at_position if position is not None else meaning.get(pooling, f"{pooling} over {tokens}"),
        "template": portable.template(tokenizer),
    }


def _measured(
    prompts: pd.DataFrame, scores: metrics.Scores, parameters: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """The thresholds, set on the validation negatives, and ``rows`` with what passes them outside training.

    They are raised by ``ROUNDING``: the prompt whose score sets one must not pass when it is scored again.
    """
    weights = metrics.split_weights(prompts, parameters["n_bootstrap"], parameters["seed"])
    negatives = scores[((prompts["split"] == "val") & (prompts["label"] == 0)).to_numpy()]
    least_scores = {}
    for name, fpr in FPRS.items():
        least = metrics.threshold_at_fpr(negatives, np.ones((1, len(negatives))), fpr)[0]
        least_scores[name] = float(least + ROUNDING * scores.std())
        passing = thresholds.table(prompts, {"dense": scores}, weights, fpr)
        rows = rows + _rows(passing.assign(fpr=fpr))
    return {"thresholds": least_scores, "validation_negatives": len(negatives), "metrics": rows}


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    columns = ["metric", "split", "fpr", "value", "low", "high", "n", "n_groups"]
    return json.loads(table.reindex(columns=columns).to_json(orient="records", double_precision=12))


def _distance(distances: Float[np.ndarray, " prompts"], split: pd.Series) -> dict[str, Any]:
    """The largest usual distance, the share of training prompts above it, and that of the other splits."""
    usual = float(np.quantile(distances[split == "train"], 1 - UNUSUAL))
    shares = {name: float((distances[split == name] > usual).mean()) for name in split.unique() if name != "train"}
    return {"usual": usual, "above": UNUSUAL, "above_by_split": shares}
