"""Dense probes and SAE probes on many classification tasks, as they are and under stress, by the same rules for all.

Settings after Kantamneni et al. 2025 (arXiv 2502.16681): all training rows, few, few positives, wrong labels, and texts
out of distribution. Whatever is chosen (pooling, selection, C, which probe) is chosen on the setting's own validation
rows, which are as few, as skewed or as wrong as its training rows; test rows are never changed.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from lib.base import build_graph, cluster, processes
from lib.base.files import value_hash, write_table
from lib.probing import controls, ksparse, on_saes, task_features
from lib.probing.controls import CONTROL
from lib.probing.on_saes import BEST, K_SPARSE
from lib.probing.task_features import Features
from lib.probing.tasks import Probe, Task
from lib.results.task_tables import DENSE, IMBALANCE, NOISE, NORMAL, OOD, QUIVER, SCARCITY, WITHOUT
from lib.stats.metrics import Scores, auroc, bootstrap_weights
from lib.stats.verdicts import p_values
from lib.texts.task_files import TaskTexts

TFIDF, ALL_LATENTS = "TF-IDF", "all latents"
SELECTIONS = (ksparse.STANDARDISED_GAP, ksparse.MEAN_DIFFERENCE)
TFIDF_CS = [0.1, 1.0, 10.0, 100.0]
SPARSE_CS = [1e-3, 1e-2, 0.1, 1.0, 10.0]
VAL_SHARE = 0.2  # of the rows that a setting keeps, those that something is chosen on
FEWEST = 2  # rows of each class that a setting's training and its validation rows must hold
CODE = ("probing/many_tasks", "probing/on_saes", "probing/ksparse", "probing/controls", "stats/metrics")


class Setting(NamedTuple):
    """A setting and its level: training and validation rows, share of positives, or share of wrong labels."""

    name: str
    level: float | None = None


class Plan(NamedTuple):
    """What is measured on every task.

    Attributes:
        ks: latents of the k-sparse probes, of which ``show_k`` decides on pooling and selection.
        bases: names of ``lib.probing.controls.BASES``; random ones are drawn ``draws`` times.
        replicates: bootstrap draws of the test rows.
    """

    settings: list[Setting]
    ks: list[int]
    show_k: int
    c_grid: list[float]
    bases: tuple[str, ...]
    draws: int
    replicates: int
    seed: int


def settings(sizes: list[int], positive_shares: list[float], noise_shares: list[float]) -> list[Setting]:
    """All settings, the normal one first."""
    return [
        Setting(NORMAL),
        *(Setting(SCARCITY, size) for size in sizes),
        *(Setting(IMBALANCE, share) for share in positive_shares),
        *(Setting(NOISE, share) for share in noise_shares),
    ]


def under(setting: Setting, rows: pd.DataFrame, rng: np.random.Generator) -> Task | None:
    """The task of a setting, whose labels of training and validation rows may be wrong; None if too few rows are left.

    Scarcity keeps ``level`` of the training and validation rows, with equal shares of both classes as far as there are;
    class imbalance keeps as many positives as make the share ``level`` of what is left; label noise flips the share
    ``level``.
    """
    split, y = rows["split"].to_numpy(), rows["label"].to_numpy().copy()
    is_val = split == "val"
    kept = np.isin(split, ["train", "val"])
    if setting.name == NOISE:
        flipped = rng.permutation(np.flatnonzero(kept))[: round(setting.level * kept.sum())]
        y[flipped] = 1 - y[flipped]
    elif setting.name != NORMAL:
        of_class = [rng.permutation(np.flatnonzero(kept & (y == label))) for label in (0, 1)]
        if setting.name == SCARCITY:
            wanted = [int(setting.level) // 2] * 2
        else:
            wanted = [len(of_class[0]), round(setting.level / (1 - setting.level) * len(of_class[0]))]
        if any(len(places) < n for places, n in zip(of_class, wanted, strict=True)):
            return None
        kept, is_val = np.zeros(len(y), dtype=bool), np.zeros(len(y), dtype=bool)
        for places, n in zip(of_class, wanted, strict=True):
            kept[places[:n]] = True
            is_val[places[: max(FEWEST, round(VAL_SHARE * n))]] = True
        is_val &= kept
    task = Task(y, kept & ~is_val, rows["group"].to_numpy(), is_val)
    counts = [np.bincount(y[part], minlength=2).min() for part in (task.train, task.val)]
    return task if min(counts) >= FEWEST else None


def fit(features: Features, texts: list[str], task: Task, plan: Plan, *, with_controls: bool) -> dict[Probe, Scores]:
    """Scores of all texts by every probe, each in the form that is best on validation, and the candidates of the
    quiver: dense probes of each pooling."""
    probes = {
        Probe(DENSE, pooling): on_saes.tuned_linear(x, task, plan.c_grid).scores
        for pooling, x in features.resid.items()
    }
    probes[Probe(TFIDF)] = _tfidf(texts, task)
    of_saes = {key: pooled for key, pooled in features.latents.items() if with_controls or not key.is_control}
    sparse: dict[Probe, Scores] = {}
    for key, pooled in of_saes.items():
        kind = CONTROL if key.is_control else K_SPARSE
        sparse |= on_columns(Probe(kind, None, key.variant, key.seed), pooled, task, plan.ks)
    for name in plan.bases if with_controls else ():
        basis = controls.BASES[name]
        n_columns = next(iter(next(iter(features.latents.values())).values())).shape[1]
        for draw in range(plan.draws if basis.is_random else 1):
            columns = {p: basis.columns(x, task, n_columns, draw) for p, x in features.resid.items()}
            sparse |= on_columns(Probe(CONTROL, None, name, draw), columns, task, plan.ks)
    forms = on_saes.best_forms(sparse, task, plan.show_k, SELECTIONS)
    probes |= on_saes.in_best_form(sparse, forms)
    firsts = {key.variant: key for key in reversed(of_saes) if not key.is_control}
    for key in firsts.values():
        pooling = forms[key.variant, key.seed].pooling
        scores = on_saes.tuned_linear(of_saes[key][pooling], task, plan.c_grid).scores
        probes[Probe(ALL_LATENTS, BEST, key.variant, key.seed)] = scores
    return probes


def on_columns(
    key: Probe, by_pooling: Mapping[str, ksparse.Columns], task: Task, ks: list[int]
) -> dict[Probe, Scores]:
    """A probe for each pooling, selection and k, on columns chosen on training rows, with C chosen on validation.

    Unlike notebook 05's, which follow the paper, they have a penalty: 128 columns of a few hundred rows need one.
    """
    probes, y = {}, task.y[task.train]
    for pooling, columns in by_pooling.items():
        training = columns[task.train]
        possible = [k for k in ks if k <= len(ksparse.live_columns(training))]
        if not possible:
            continue
        best = ksparse.best_column(training, y)
        for selection in SELECTIONS:
            for k, chosen in ksparse.select(training, y, possible, selection, best).items():
                tuned = on_saes.tuned_linear(ksparse.dense(columns, chosen), task, SPARSE_CS)
                probes[key._replace(pooling=pooling, selection=selection, k=k)] = tuned.scores
    return probes


def _tfidf(texts: list[str], task: Task) -> Scores:
    """Logistic regression on TF-IDF of words and word pairs, C chosen on validation."""
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
    columns = vectors.fit([text for text, kept in zip(texts, task.train, strict=True) if kept]).transform(texts)
    return on_saes.best_c(LogisticRegression(max_iter=2000), columns, task, TFIDF_CS).scores


def quivers(scores: Mapping[Probe, Scores], task: Task) -> dict[Probe, Scores]:
    """The probe of best validation AUROC among dense probes and TF-IDF, and among these and others: SAE probes, or as
    their control, probes on dictionaries without training.

    It is the "quiver of arrows" of Kantamneni et al.: whether having SAE probes to choose from makes the choice better.
    Of equal ones the first is chosen, so that a dense probe is kept where nothing speaks for another.
    """
    base = {probe: of_all for probe, of_all in scores.items() if probe.kind in (DENSE, TFIDF)}
    kinds = {WITHOUT: (), "with SAE probes": (K_SPARSE, ALL_LATENTS), "with controls": (CONTROL,)}
    chosen_of = {}
    for name, added in kinds.items():
        arrows = base | {probe: of_all for probe, of_all in scores.items() if probe.kind in added}
        if added and len(arrows) == len(base):
            continue
        chosen = max(arrows, key=lambda probe: on_saes.val_auroc(arrows[probe], task))
        chosen_of[Probe(QUIVER, BEST, name)] = arrows[chosen]
    return chosen_of


def best_dense(scores: Mapping[Probe, Scores], task: Task) -> dict[Probe, Scores]:
    """The dense probe in the pooling of best validation AUROC, in the place of those of each pooling."""
    dense = {probe: of_all for probe, of_all in scores.items() if probe.kind == DENSE}
    chosen = max(dense, key=lambda probe: on_saes.val_auroc(dense[probe], task))
    others = {probe: of_all for probe, of_all in scores.items() if probe.kind != DENSE}
    return {Probe(DENSE, BEST): dense[chosen]} | others


def measure(task: TaskTexts, features: Features, plan: Plan) -> pd.DataFrame:
    """AUROC on test rows (and on those out of distribution, by the probes of the normal setting) of every probe.

    Columns: task, kind, setting, level, probe, variant, seed, k, n_train, n_test, value, low, high; ``ahead`` and its
    p-value ``p``: the value minus that of the dense probe (of a choice: minus that of the choice without others), on
    the same replicates over the groups of the test rows; ``val``: AUROC on the setting's own validation rows.
    """
    rows, texts, tables = task.rows, task.rows["text"].tolist(), []
    truth, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
    for number, setting in enumerate(plan.settings):
        changed = under(setting, rows, np.random.default_rng([plan.seed, number]))
        if changed is None:
            continue
        fitted = fit(features, texts, changed, plan, with_controls=setting.name == NORMAL)
        scores = best_dense(fitted, changed) | quivers(fitted, changed)
        for split in ("test", OOD) if setting.name == NORMAL else ("test",):
            tested = (rows["split"] == split).to_numpy()
            if not tested.any():
                continue
            name = OOD if split == OOD else setting.name
            weights = bootstrap_weights(groups[tested], plan.replicates, plan.seed)
            table = _estimates(scores, truth[tested], tested, weights)
            table["val"] = [on_saes.val_auroc(of_all, changed) for of_all in scores.values()]
            about = {"task": task.name, "kind": task.kind, "setting": name, "level": setting.level}
            about |= {"n_train": int(changed.train.sum()), "n_test": int(tested.sum())}
            tables.append(table.assign(**about))
    return pd.concat(tables, ignore_index=True)


def _estimates(scores: Mapping[Probe, Scores], y: np.ndarray, tested: np.ndarray, weights: np.ndarray) -> pd.DataFrame:
    """A row for each probe, with the difference to the dense one, or of a choice to that without others."""
    with_value = np.concatenate([np.ones((1, len(y)), dtype=np.float32), weights])
    areas = {probe: auroc(y, of_all[tested], with_value) for probe, of_all in scores.items()}
    lines = []
    for probe, area in areas.items():
        reference = areas[Probe(QUIVER, BEST, WITHOUT) if probe.kind == QUIVER else Probe(DENSE, BEST)]
        ahead = area - reference
        low, high = np.nanpercentile(area[1:], [2.5, 97.5])
        p = p_values(ahead[None, 1:][:, ~np.isnan(ahead[1:])])[0]
        lines.append(probe.columns() | {"value": area[0], "low": low, "high": high, "ahead": ahead[0], "p": p})
    return pd.DataFrame(lines).drop(columns=["pooling", "selection"])


class Job(NamedTuple):
    """A task whose features lie in a folder, and where its results go."""

    task: TaskTexts
    folder: Path
    result: Path


def job(task: TaskTexts, folder: Path, plan: Plan, parent: Path) -> Job:
    """The job of a task, whose result is named by all that decides it, the code included."""
    code = build_graph.code_hash(build_graph.LIB / f"{name}.py" for name in CODE)
    table = value_hash([list(row) for row in task.rows.astype(str).itertuples(index=False)])
    decides = {"features": folder.name, "rows": table, "plan": json_of(plan), "code": code}
    return Job(task, folder, parent / f"task-{value_hash(decides)}.parquet")


def json_of(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values."""
    return plan._asdict() | {"settings": [list(setting) for setting in plan.settings], "bases": list(plan.bases)}


def _run(plan: Plan, item: Job) -> Path:
    """Measure the task of a job, unless that is done."""
    if not item.result.exists():
        features = task_features.load(item.folder, item.task.rows["text"].tolist())
        write_table(item.result, measure(item.task, features, plan))
    return item.result


def run(jobs: Iterable[Job], plan: Plan) -> Iterator[pd.DataFrame]:
    """The results of all jobs, in the order in which they are done: on the cores of this machine, or on the workers of
    ``WORKERS`` and ``CLUSTER``."""
    jobs = list(jobs)
    work = functools.partial(_run, plan)
    if cluster.workers() > 1:
        results = (result for _, result in cluster.each(work, jobs))
    else:
        results = processes.parallel(len(jobs))(joblib.delayed(work)(item) for item in jobs)
    for path in tqdm(results, total=len(jobs), desc="tasks measured", unit="task"):
        yield pd.read_parquet(path)
