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
from lib.probing.task_features import Features, Key
from lib.probing.tasks import Probe, Task
from lib.results.task_tables import (
    DENSE,
    IMBALANCE,
    NOISE,
    NORMAL,
    OOD,
    QUIVER,
    SCARCITY,
    WITH_CONTROLS,
    WITH_SAES,
    WITHOUT,
)
from lib.stats.metrics import Scores, auroc, bootstrap_weights
from lib.stats.verdicts import p_values
from lib.texts.task_files import TaskTexts

TFIDF, ALL_LATENTS, ALL_COLUMNS = "TF-IDF", "all latents", "all columns of a control"
SELECTIONS = (ksparse.STANDARDISED_GAP, ksparse.MEAN_DIFFERENCE)
TFIDF_CS = [0.1, 1.0, 10.0, 100.0]
SPARSE_CS = [1e-3, 1e-2, 0.1, 1.0, 10.0]
VAL_SHARE = 0.2  # of the rows that a setting keeps, those that something is chosen on
FEWEST = 2  # rows of each class that a setting's training and its validation rows must hold
CHOICE_REPLICATES = 10_000  # of the test rows of a choice: Holm's level of one of 250 tasks is within their reach
CONTROL_DRAWS = 20  # of as many arrows among the controls as there are SAE probes
CODE = ("probing/many_tasks", "probing/on_saes", "probing/ksparse", "probing/controls", "stats/metrics")


class Setting(NamedTuple):
    """A setting and its level: training and validation rows, share of positives, or share of wrong labels."""

    name: str
    level: float | None = None


class Plan(NamedTuple):
    """What is measured on every task.

    Attributes:
        ks: latents of the k-sparse probes.
        bases: names of ``lib.probing.controls.BASES``; random ones are drawn ``draws`` times.
        replicates: bootstrap draws of the test rows.
    """

    settings: list[Setting]
    ks: list[int]
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
    """Scores of all texts by every probe, each in the pooling and selection that are best on validation; dense probes
    of each pooling."""
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
            for pooling, x in features.resid.items():  # one at a time, as wide SAEs have many columns
                columns = {pooling: basis.columns(x, task, n_columns, draw)}
                sparse |= on_columns(Probe(CONTROL, None, name, draw), columns, task, plan.ks)
    for k in plan.ks:
        at_k = {probe: scores for probe, scores in sparse.items() if probe.k == k}
        if at_k:
            probes |= on_saes.in_best_form(at_k, on_saes.best_forms(at_k, task, k, SELECTIONS))
    firsts: dict[str, Key] = {}
    for key in of_saes:
        firsts.setdefault(key.variant, key)
    for key in firsts.values():
        kind = ALL_COLUMNS if key.is_control else ALL_LATENTS
        tuned = [on_saes.tuned_linear(x, task, plan.c_grid).scores for x in of_saes[key].values()]
        best = max(tuned, key=lambda scores: on_saes.val_auroc(scores, task))
        probes[Probe(kind, BEST, key.variant, key.seed)] = best
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


def quivers(scores: Mapping[Probe, Scores], task: Task, seed: int) -> dict[str, list[Probe]]:
    """The probe of best validation AUROC among dense probes and TF-IDF (``WITHOUT``), and among these and SAE probes
    (``WITH_SAES``).

    It is the "quiver of arrows" of Kantamneni et al.: whether having SAE probes to choose from makes the choice better.
    The more arrows, the more often one is best by chance on few validation rows. So the control (``WITH_CONTROLS``)
    has as many: probes on as many dictionaries without training as there are SAEs, at the same k, and on all columns of
    as many; drawn ``CONTROL_DRAWS`` times, each with its choice. Of equal probes the first is chosen, so that a dense
    one is kept where nothing speaks for another.
    """
    ranks = {probe: on_saes.val_auroc(of_all, task) for probe, of_all in scores.items()}
    of_kind = {kind: [probe for probe in scores if probe.kind == kind] for kind in {probe.kind for probe in scores}}
    base = [probe for probe in scores if probe.kind in (DENSE, TFIDF)]
    sparse, whole = of_kind.get(K_SPARSE, []), of_kind.get(ALL_LATENTS, [])
    chosen = {WITHOUT: [max(base, key=ranks.get)], WITH_SAES: [max(base + sparse + whole, key=ranks.get)]}
    by_basis: dict[on_saes.Basis, list[Probe]] = {}
    for probe in of_kind.get(CONTROL, []):
        by_basis.setdefault((probe.variant, probe.seed), []).append(probe)
    bases, all_columns = list(by_basis.values()), of_kind.get(ALL_COLUMNS, [])
    n_saes, rng = len({(probe.variant, probe.seed) for probe in sparse}), np.random.default_rng(seed)
    for _ in range(CONTROL_DRAWS if bases else 0):
        arrows = [probe for i in rng.permutation(len(bases))[:n_saes] for probe in bases[i]]
        arrows += [all_columns[i] for i in rng.permutation(len(all_columns))[: len(whole)]]
        chosen.setdefault(WITH_CONTROLS, []).append(max(base + arrows, key=ranks.get))
    return chosen


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
    the same replicates over the groups of the test rows; ``val``: AUROC on the setting's own validation rows;
    ``changed``: of a choice, the share of its draws in which it is another probe than without others. What is drawn
    several times has the mean over its draws.
    """
    rows, texts, tables = task.rows, task.rows["text"].tolist(), []
    truth, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
    for number, setting in enumerate(plan.settings):
        changed = under(setting, rows, np.random.default_rng([plan.seed, number]))
        if changed is None:
            continue
        fitted = fit(features, texts, changed, plan, with_controls=setting.name == NORMAL)
        scores, choices = best_dense(fitted, changed), quivers(fitted, changed, plan.seed)
        for split in ("test", OOD) if setting.name == NORMAL else ("test",):
            tested = (rows["split"] == split).to_numpy()
            if not tested.any():
                continue
            weights = bootstrap_weights(groups[tested], plan.replicates, plan.seed)
            table = _estimates(scores, truth[tested], tested, weights)
            table["val"] = [on_saes.val_auroc(of_all, changed) for of_all in scores.values()]
            weights = bootstrap_weights(groups[tested], CHOICE_REPLICATES, plan.seed)
            of_choices = _of_choices(choices, fitted, truth[tested], tested, weights)
            of_choices["val"] = [_mean_val(arrows, fitted, changed) for arrows in choices.values()]
            about = {"task": task.name, "kind": task.kind, "setting": OOD if split == OOD else setting.name}
            about |= {"level": setting.level, "n_train": int(changed.train.sum()), "n_test": int(tested.sum())}
            tables += [table.assign(**about), of_choices.assign(**about)]
    return pd.concat(tables, ignore_index=True).drop(columns=["pooling", "selection"])


def _mean_val(arrows: list[Probe], scores: Mapping[Probe, Scores], task: Task) -> float:
    return float(np.mean([on_saes.val_auroc(scores[probe], task) for probe in arrows]))


def _estimates(scores: Mapping[Probe, Scores], y: np.ndarray, tested: np.ndarray, weights: np.ndarray) -> pd.DataFrame:
    """A row for each probe, with the difference to the dense one."""
    areas = _areas(scores, y, tested, weights)
    return pd.DataFrame([probe.columns() | _beside(area, areas[Probe(DENSE, BEST)]) for probe, area in areas.items()])


def _of_choices(
    choices: Mapping[str, list[Probe]], scores: Mapping[Probe, Scores], y: np.ndarray, tested: np.ndarray,
    weights: np.ndarray,
) -> pd.DataFrame:  # fmt: skip
    """A row for each choice, with the difference to that without others."""
    chosen = dict.fromkeys(probe for arrows in choices.values() for probe in arrows)
    areas = _areas({probe: scores[probe] for probe in chosen}, y, tested, weights)
    [without] = choices[WITHOUT]
    lines = []
    for name, arrows in choices.items():
        area = np.mean([areas[probe] for probe in arrows], axis=0)
        changed = float(np.mean([probe != without for probe in arrows]))
        lines.append(Probe(QUIVER, BEST, name).columns() | _beside(area, areas[without]) | {"changed": changed})
    return pd.DataFrame(lines)


def _areas(
    scores: Mapping[Probe, Scores], y: np.ndarray, tested: np.ndarray, weights: np.ndarray
) -> dict[Probe, np.ndarray]:
    """AUROC of each probe, and behind it those of the replicates."""
    with_value = np.concatenate([np.ones((1, len(y)), dtype=np.float32), weights])
    return {probe: auroc(y, of_all[tested], with_value) for probe, of_all in scores.items()}


def _beside(area: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The value with its interval, and how far it is ahead of the reference, with its p-value."""
    ahead = area - reference
    low, high = np.nanpercentile(area[1:], [2.5, 97.5])
    p = p_values(ahead[None, 1:][:, ~np.isnan(ahead[1:])])[0]
    return {"value": area[0], "low": low, "high": high, "ahead": ahead[0], "p": p}


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


def process_bytes(d_model: int, d_sae: int, rows: int) -> int:
    """What measuring a task takes: random directions in double and single precision, and their columns twice."""
    return d_sae * (12 * d_model + 8 * rows)


def run(jobs: Iterable[Job], plan: Plan, of_each: int = 0) -> Iterator[pd.DataFrame]:
    """The results of all jobs, in the order in which they are done: on the cores of this machine, where one takes
    ``of_each`` bytes (:func:`process_bytes`), or on the workers of ``WORKERS`` and ``CLUSTER``."""
    jobs = list(jobs)
    work = functools.partial(_run, plan)
    if cluster.workers() > 1:
        results = (result for _, result in cluster.each(work, jobs))
    else:
        results = processes.parallel(len(jobs), of_each)(joblib.delayed(work)(item) for item in jobs)
    for path in tqdm(results, total=len(jobs), desc="tasks measured", unit="task"):
        yield pd.read_parquet(path)
