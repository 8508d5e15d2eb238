"""Six tasks of ``sae-probes``, from texts to AUROC, beside the package itself: the same model, SAE, rows and split.

Read is what the package reads: the last token of the bare text at one layer. The package's probes are logistic
regression (L2) and the same on 16 latents (L1), each with its C of ten on a fifth of the training rows held out; ours
are those of notebook 09, with C on the same rows. The package then fits on the held-out rows, too, and its latents are
chosen on all of them. So are ours here; notebook 09 keeps these rows to choose between probes, and that difference is
``…_held_out``. TransformerLens has no HookedTransformer of this model, so the package gets the bridge that we read
with. Of the package's requirements XGBoost is not installed, as neither probe uses it.
"""

import importlib.util
import shutil
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from lib.model import models, weights
from lib.probing import ksparse, many_tasks, on_saes, task_features
from lib.probing.tasks import Task
from lib.results import task_tables
from lib.sae import finetuning, folders
from lib.stats.metrics import Scores, auroc
from lib.texts import task_files

PROFILE = "embedded"  # whose model and SAE are measured
LAYER, K, SEED = 21, 16, 42
SAE_FOLDER = "data/pretrained/SmolLM2-135M-Instruct-layer-21-base"
TASKS = ("96_spam_is", "95_toxic_is", "105_click_bait", "87_glue_cola", "92_glue_sst2", "106_hate_hate")
ROWS, VAL_ROWS, LEAST_TEST = 300, 40, 100  # the package holds out a fifth of the training rows, 100 at most
HELD_OUT = "_held_out"  # ends the name of a probe that is not fitted on the rows that its C is chosen on
C_GRID = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
MOST_TOKENS = 1024  # of a text, as in the package


def measure() -> Iterator[tuple[str, str, list[float]]]:
    """Test AUROC of both on each task, their differences, and the ratio of the times of all six."""
    bridge = models.load_model(weights.SMOLLM2)
    bridge.tokenizer.chat_template = None  # The package reads texts as they are.
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        data = _data(Path(scratch))
        package = _package(data)
        splits = {task: _split(package, task) for task in TASKS}
        theirs = _theirs(package, bridge, Path(scratch), seconds)
        ours = _ours(bridge, data, splits, Path(scratch), seconds)
    for name, of_side in (("ours", ours), ("sae_probes", theirs)):
        for probe in of_side[TASKS[0]]:
            yield f"auroc_{probe}_{name}", "AUROC", [of_side[task][probe] for task in TASKS]
    for name, of_part in seconds.items():
        yield f"seconds_{name}", "s", [of_part]
    for probe in ours[TASKS[0]]:
        against = probe.removesuffix(HELD_OUT)
        mean = float(np.mean([ours[task][probe] - theirs[task][against] for task in TASKS]))
        yield f"auroc_difference_{probe}", "AUROC", [mean]
    of_side = {name: seconds[f"reading_{name}"] + seconds[f"probes_{name}"] for name in ("ours", "sae_probes")}
    yield "vs_sae_probes", "ratio", [of_side["sae_probes"] / of_side["ours"]]
    yield "vs_sae_probes_probes", "ratio", [seconds["probes_sae_probes"] / seconds["probes_ours"]]


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - began


def _data(scratch: Path) -> Path:
    """The package's data with the first ``ROWS`` different texts of each of the six tasks, as many of either class."""
    data = scratch / "data"
    shutil.copytree(task_files.package(), data)
    for task in TASKS:
        path = data / "cleaned_data" / f"{task}.csv.zst"
        table = pd.read_csv(path, keep_default_na=False).drop_duplicates("prompt")
        n_of_class = min(ROWS // 2, table["target"].value_counts().min())
        even = table[table.groupby("target").cumcount() < n_of_class]
        even.to_csv(path, index=False)
    return data


def _package(data: Path) -> types.SimpleNamespace:
    """The package's modules on other data, which are put in place before it counts their rows at its import."""
    sys.modules.setdefault("xgboost", types.SimpleNamespace(XGBClassifier=None))
    found = importlib.util.find_spec(task_files.PACKAGE)
    package = importlib.util.module_from_spec(found)  # whose __init__, which imports everything, does not run
    sys.modules[task_files.PACKAGE] = package
    importlib.import_module("sae_probes.constants").DATA_PATH = data
    names = ("generate_model_activations", "utils_data", "run_sae_evals", "run_baselines")
    return types.SimpleNamespace(**{name: importlib.import_module(f"sae_probes.{name}") for name in names})


def _split(package: types.SimpleNamespace, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, training rows (the last ``VAL_ROWS`` of which are held out) and test rows, as the package draws them."""
    y = package.utils_data.get_yvals(task)
    n_train = min(len(y) - LEAST_TEST, 1024)
    train, test = package.utils_data.get_train_test_indices(y, n_train, len(y) - n_train - 1, 0.5, SEED)
    return y, train, test


def _theirs(package: types.SimpleNamespace, bridge, scratch: Path, seconds: dict) -> dict[str, dict[str, float]]:
    warnings.simplefilter("ignore")  # of scikit-learn, about arguments that the package gives
    hook, cache, results = models.resid_post(LAYER), scratch / "cache", scratch / "results"
    about = {"model_name": "model", "hook_name": hook, "setting": "normal", "datasets": list(TASKS), "device": "cpu"}
    about |= {"model_cache_path": cache, "results_path": results, "seed": SEED}
    with _timed(seconds, "reading_sae_probes"):
        package.generate_model_activations.ensure_dataset_activations(
            "model", list(TASKS), [hook], cache, "cpu", model=bridge
        )
    with _timed(seconds, "probes_sae_probes"):
        package.run_sae_evals.run_sae_evals(folders.load(SAE_FOLDER), reg_type="l1", ks=[K], **about)
        package.run_baselines.run_baseline_evals(method="logreg", **about)
    scores: dict[str, dict[str, float]] = {}
    for task in TASKS:
        [of_latents] = [path for path in results.rglob(f"{task}_*.json") if "sae_probes_" in str(path)]
        [of_dense] = [path for path in results.rglob(f"*{task}*logreg*.json") if "baseline" in str(path)]
        scores[task] = {f"k_{K}": _auc(of_latents), "logreg": _auc(of_dense)}
    return scores


def _auc(path: Path) -> float:
    table = pd.read_json(path) if path.suffix == ".json" else pd.read_csv(path)
    return float(table["test_auc"].iloc[0])


def _ours(bridge, data: Path, splits: dict, scratch: Path, seconds: dict) -> dict[str, dict[str, float]]:
    scores = {}
    with _timed(seconds, "reading_ours"):
        identity = models.identity(weights.SMOLLM2)
        saes = task_tables.sae_table(finetuning.shipped([SAE_FOLDER], ""))
        reader = task_features.Reader(bridge, identity, LAYER, ("fixed",), saes, (), MOST_TOKENS)
    for task in TASKS:
        texts = pd.read_csv(data / "cleaned_data" / f"{task}.csv.zst", keep_default_na=False)["prompt"].tolist()
        y, train, test = splits[task]
        rows = pd.DataFrame({"text": texts, "label": y, "group": texts, "split": "train"})
        bundle = [task_files.TaskTexts(task, "", rows, len(rows), {}, [])]
        with _timed(seconds, "reading_ours"):
            features = task_features.load(task_features.harvest(reader, bundle, scratch / "features"), texts)
        [pooled] = features.latents.values()
        ones = np.ones((1, len(test)))
        with _timed(seconds, "probes_ours"):
            tasks = _tasks(y, train)
            probes = {"logreg": _dense(features.resid["fixed"], *tasks), f"k_{K}": _sparse(pooled["fixed"], *tasks)}
            scores[task] = {
                name + end: float(auroc(y[test], of_all[test], ones)[0])
                for name, fits in probes.items()
                for end, of_all in zip(("", HELD_OUT), fits, strict=True)
            }
    return scores


def _tasks(y: np.ndarray, train: np.ndarray) -> tuple[Task, Task]:
    """All training rows, and those without the held-out ones, on which C is chosen."""
    places = np.arange(len(y))
    is_val = np.isin(places, train[-VAL_ROWS:])
    return Task(y, np.isin(places, train), places, is_val), Task(y, np.isin(places, train[:-VAL_ROWS]), places, is_val)


def _dense(x: np.ndarray, on_all: Task, without: Task) -> tuple[Scores, Scores]:
    """Scores of all rows by the dense probe of the best C on the held-out rows, fitted on these too, and without."""
    held_out = on_saes.tuned_linear(x, without, C_GRID)
    return on_saes.tuned_linear(x, on_all, [held_out.c]).scores, held_out.scores


def _sparse(x: ksparse.Columns, on_all: Task, without: Task) -> tuple[Scores, Scores]:
    """The same of 16 latents, which are chosen in the better way of ``many_tasks.SELECTIONS`` by the held-out rows."""

    def on_chosen(task: Task, selection: str, c_grid: list[float]) -> on_saes.Tuned:
        chosen = ksparse.select(x[task.train], task.y[task.train], [K], selection)[K]
        return on_saes.tuned_linear(ksparse.dense(x, chosen), task, c_grid)

    fits = {way: on_chosen(without, way, many_tasks.SPARSE_CS) for way in many_tasks.SELECTIONS}
    best = max(fits, key=lambda way: on_saes.val_auroc(fits[way].scores, without))
    return on_chosen(on_all, best, [fits[best].c]).scores, fits[best].scores
