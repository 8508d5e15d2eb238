"""Six tasks of ``sae-probes``, from texts to AUROC, beside the package itself: the same model, SAE, rows and split.

Read is what the package reads: the last token of the bare text at one layer. The package's probes are logistic
regression (L2) and the same on 16 latents (L1), each with its C of ten on a fifth of the training rows held out; ours
are those of notebook 09, with C on the same rows. TransformerLens has no HookedTransformer of this model, so the
package gets the bridge that we read with. Of the package's requirements XGBoost is not installed, as neither probe uses
it.
"""

import importlib
import shutil
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from lib.model import models, weights
from lib.probing import many_tasks, on_saes, task_features
from lib.probing.tasks import Probe, Task
from lib.results import task_tables
from lib.sae import finetuning, folders
from lib.stats.metrics import auroc
from lib.texts import task_files

PROFILE = "embedded"  # whose model and SAE are measured
LAYER, K, SEED = 21, 16, 42
SAE_FOLDER = "data/pretrained/SmolLM2-135M-Instruct-layer-21-base"
TASKS = ("96_spam_is", "95_toxic_is", "105_click_bait", "87_glue_cola", "92_glue_sst2", "106_hate_hate")
ROWS, VAL_ROWS, LEAST_TEST = 300, 40, 100  # the package holds out a fifth of the training rows, 100 at most
C_GRID = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
MOST_TOKENS = 1024  # of a text, as in the package


def measure() -> Iterator[tuple[str, str, list[float]]]:
    """Test AUROC of both on each task, their differences, and the ratio of the times of all six."""
    bridge = models.load_model(weights.SMOLLM2)
    bridge.tokenizer.chat_template = None  # The package reads texts as they are.
    with tempfile.TemporaryDirectory() as scratch:
        data = _data(Path(scratch))
        package = _package(data)
        splits = {task: _split(package, task) for task in TASKS}
        began = time.perf_counter()
        theirs = _theirs(package, bridge, Path(scratch))
        seconds = {"sae_probes": time.perf_counter() - began}
        began = time.perf_counter()
        ours = _ours(bridge, data, splits, Path(scratch))
        seconds["ours"] = time.perf_counter() - began
    for name, of_side in (("ours", ours), ("sae_probes", theirs)):
        for probe in ("logreg", f"k_{K}"):
            yield f"auroc_{probe}_{name}", "AUROC", [of_side[task][probe] for task in TASKS]
        yield f"seconds_{name}", "s", [seconds[name]]
    for probe in ("logreg", f"k_{K}"):
        mean = float(np.mean([ours[task][probe] - theirs[task][probe] for task in TASKS]))
        yield f"auroc_difference_{probe}", "AUROC", [mean]
    yield "vs_sae_probes", "ratio", [seconds["sae_probes"] / seconds["ours"]]


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
    root = task_files.package().parent
    package = types.ModuleType("sae_probes")
    package.__path__ = [str(root)]  # So that its __init__, which imports everything, does not run.
    sys.modules["sae_probes"] = package
    importlib.import_module("sae_probes.constants").DATA_PATH = data
    names = ("generate_model_activations", "utils_data", "run_sae_evals", "run_baselines")
    return types.SimpleNamespace(**{name: importlib.import_module(f"sae_probes.{name}") for name in names})


def _split(package: types.SimpleNamespace, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, training rows (the last ``VAL_ROWS`` of which are held out) and test rows, as the package draws them."""
    y = package.utils_data.get_yvals(task)
    n_train = min(len(y) - LEAST_TEST, 1024)
    train, test = package.utils_data.get_train_test_indices(y, n_train, len(y) - n_train - 1, 0.5, SEED)
    return y, train, test


def _theirs(package: types.SimpleNamespace, bridge, scratch: Path) -> dict[str, dict[str, float]]:
    warnings.simplefilter("ignore")  # of scikit-learn, about arguments that the package gives
    hook, cache, results = models.resid_post(LAYER), scratch / "cache", scratch / "results"
    about = {"model_name": "model", "hook_name": hook, "setting": "normal", "datasets": list(TASKS), "device": "cpu"}
    about |= {"model_cache_path": cache, "results_path": results, "seed": SEED}
    package.generate_model_activations.ensure_dataset_activations(
        "model", list(TASKS), [hook], cache, "cpu", model=bridge
    )
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


def _ours(bridge, data: Path, splits: dict, scratch: Path) -> dict[str, dict[str, float]]:
    identity = models.identity(weights.SMOLLM2)
    saes = task_tables.sae_table(finetuning.shipped([SAE_FOLDER], ""))
    reader = task_features.Reader(bridge, identity, LAYER, ("fixed",), saes, (), MOST_TOKENS)
    scores = {}
    for task in TASKS:
        texts = pd.read_csv(data / "cleaned_data" / f"{task}.csv.zst", keep_default_na=False)["prompt"].tolist()
        y, train, test = splits[task]
        rows = pd.DataFrame({"text": texts, "label": y, "group": texts, "split": "train"})
        bundle = [task_files.TaskTexts(task, "", rows, len(rows), {}, [])]
        features = task_features.load(task_features.harvest(reader, bundle, scratch / "features"), texts)
        places = np.arange(len(y))
        fitted = np.isin(places, train[:-VAL_ROWS])
        of_task = Task(y, fitted, places, np.isin(places, train[-VAL_ROWS:]))
        dense = on_saes.tuned_linear(features.resid["fixed"], of_task, C_GRID).scores
        [pooled] = features.latents.values()
        sparse = many_tasks.on_columns(Probe(on_saes.K_SPARSE, variant="base"), pooled, of_task, [K])
        form = on_saes.best_forms(sparse, of_task, K, many_tasks.SELECTIONS)
        [of_latents] = on_saes.in_best_form(sparse, form).values()
        ones = np.ones((1, len(test)))
        scores[task] = {
            name: float(auroc(y[test], of_all[test], ones)[0])
            for name, of_all in (("logreg", dense), (f"k_{K}", of_latents))
        }
    return scores
