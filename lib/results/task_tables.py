"""Tables over many classification tasks: averages with intervals over tasks, win rates, what a choice gains.

The tasks are the units: an interval says what another draw of tasks of this sort would show, of these SAEs and this
model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.base.files import relative
from lib.results import records, tables
from lib.stats import families, verdicts
from lib.stats.draws import Draws
from lib.stats.metrics import bootstrap_weights, t_interval

NORMAL, SCARCITY, IMBALANCE, NOISE, OOD = "normal", "scarcity", "class imbalance", "label noise", "ood"
STRESS = (SCARCITY, IMBALANCE, NOISE)
DENSE, K_SPARSE, CONTROL, QUIVER = "dense", "k-sparse", "control", "quiver"
FEW = 20  # tasks, below which an interval is Student's
HERE, WITHOUT = "here", "without"
MAIN = "pretraining SAE"  # the kind of SAE that figures and verdicts are of
WORDS = {
    verdicts.REPRODUCED: "ahead", verdicts.OPPOSITE: "behind",
    verdicts.NO_DIFFERENCE: "no difference", verdicts.INCONCLUSIVE: "inconclusive",
}  # fmt: skip


def sae_table(saes: Mapping[str, Mapping[int, Path | str]]) -> pd.DataFrame:
    """The SAEs, of which it is told where each kind and seed lies, as a table: ``variant``, ``seed``, ``folder``."""
    rows = [(kind, seed, relative(place)) for kind, by_seed in saes.items() for seed, place in by_seed.items()]
    return pd.DataFrame(rows, columns=["variant", "seed", "folder"])


def margin() -> float:
    """The smallest difference in AUROC that matters, of ``data/claims.yaml``."""
    return float(records.claims()["margins"]["auroc"]["value"])


# Means over tasks


def draws(table: pd.DataFrame, by: list[str], replicates: int, seed: int) -> Draws:
    """Means of ``value`` over the tasks that a row of ``by`` has, and their replicates over tasks.

    All rows share their replicates: a task that is drawn twice counts twice in each row that has it.
    """
    wide = table.pivot_table("value", by, "task", sort=False, dropna=False).dropna(how="all")
    values, is_there = wide.to_numpy(), wide.notna().to_numpy()
    weights = bootstrap_weights(np.array(wide.columns), replicates, seed)
    weights = np.concatenate([np.ones((1, wide.shape[1])), weights]).T
    with np.errstate(invalid="ignore", divide="ignore"):
        averages = (np.nan_to_num(values) @ weights) / (is_there @ weights)
    dimensions = wide.index.to_frame(index=False).astype(object)
    return Draws(dimensions.where(dimensions.notna(), None), averages)


def means(table: pd.DataFrame, by: list[str], replicates: int, seed: int) -> pd.DataFrame:
    """:func:`draws` as estimates, with ``n`` tasks; there is no interval over a single one."""
    return _estimates(table, by, draws(table, by, replicates, seed), is_family=False)


def family(table: pd.DataFrame, by: list[str], replicates: int, seed: int) -> pd.DataFrame:
    """:func:`means` at Holm's levels over all rows."""
    return _estimates(table, by, draws(table, by, replicates, seed), is_family=True)


def _estimates(table: pd.DataFrame, by: list[str], drawn: Draws, is_family: bool) -> pd.DataFrame:
    """With intervals over tasks: of the bootstrap, or Student's where there are fewer than ``FEW`` of them, beyond
    whose values a bootstrap never goes."""
    groups = table.dropna(subset="value").groupby(by, sort=False, dropna=False)["value"]
    samples = [values.to_numpy() for _, values in groups]
    n = np.array([len(values) for values in samples])
    estimates = drawn.table().assign(low=np.nan, high=np.nan, alpha=verdicts.ALPHA)
    if n.min() < FEW:
        levels, of_samples = verdicts.holm_t_intervals(samples)
        levels = levels if is_family else np.full(len(n), verdicts.ALPHA)
        of_samples = of_samples if is_family else [t_interval(values) for values in samples]
        ends = np.array([[estimate.low, estimate.high] for estimate in of_samples], dtype=float)
        estimates = estimates.assign(low=ends[:, 0], high=ends[:, 1], alpha=levels)
    else:
        estimates = families.estimates(drawn) if is_family else families.at_levels(drawn)
    return estimates.assign(n=n, n_groups=n, unit="AUROC")


def _without_seeds(table: pd.DataFrame, apart: list[str]) -> pd.DataFrame:
    """The rows averaged over seeds of an SAE and draws of a control, and over all else that is not ``apart``."""
    by = ["task", "kind", "setting", "probe", "variant", "k", *apart]
    columns = ["value", "low", "high", "ahead", "val"]
    return table.groupby(by, sort=False, dropna=False)[columns].mean().reset_index()


def of_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """A row per task, setting, level and probe: values and intervals averaged over seeds of an SAE and draws of a
    control; without choices."""
    return _without_seeds(table[table["probe"] != QUIVER], ["level", "n_train", "n_test"])


def by_level(table: pd.DataFrame, smallest: float, replicates: int, seed: int) -> pd.DataFrame:
    """Test AUROC minus that of the dense probe, averaged over tasks, for each setting and level.

    With the interval over tasks, ``win_rate`` (share of tasks in which the probe is ahead) and a ``verdict`` in words
    (``WORDS``), given the ``smallest`` difference that matters. Metric ``auroc_ahead_of_dense``.
    """
    by = ["setting", "level", "probe", "variant", "k"]
    rows = _without_seeds(table[~table["probe"].isin([DENSE, QUIVER])], ["level"])
    estimates = means(rows.assign(value=rows["ahead"]), by, replicates, seed)
    wins = means(rows.assign(value=(rows["ahead"] > 0).astype(float)), by, 1, seed)
    verdict = [_verdict(row.low, row.high, smallest) for row in estimates.itertuples()]
    return estimates.assign(win_rate=wins["value"], verdict=verdict, metric="auroc_ahead_of_dense", source=HERE)


def _verdict(low: float, high: float, smallest: float) -> str:
    if np.isnan(low) or np.isnan(high):
        return WORDS[verdicts.INCONCLUSIVE]
    return WORDS[verdicts.decide("above", verdicts.Interval(low, high), smallest)]


def by_kind(table: pd.DataFrame, k: int, replicates: int, seed: int) -> pd.DataFrame:
    """AUROC of the main SAE's probe minus dense in the normal setting by kind of task, with the number of tasks in its
    name."""
    rows = _without_seeds(table, [])
    is_shown = (rows["setting"] == NORMAL) & (rows["probe"] == K_SPARSE) & (rows["variant"] == MAIN)
    rows = rows[is_shown & (rows["k"] == k)].assign(value=lambda t: t["ahead"])
    estimates = means(rows, ["kind", "setting"], replicates, seed).sort_values("value", ascending=False)
    return estimates.assign(kind=estimates["kind"] + " (" + estimates["n"].astype(str) + ")")


# What rules of claims ask for


def behind_dense(table: pd.DataFrame, replicates: int, seed: int) -> pd.DataFrame:
    """What probes are behind the dense probe of the same task and setting, a mean over levels; metric
    ``auroc_behind_dense``. The settings of stress are one family for each probe, variant and k; others stand alone."""
    rows = _without_seeds(table[~table["probe"].isin([DENSE, QUIVER])], []).assign(value=lambda t: -t["ahead"])
    by, parts = ["setting", "probe", "variant", "k"], []
    for _, of_probe in rows.groupby(["probe", "variant", "k"], sort=False, dropna=False):
        is_stress = of_probe["setting"].isin(STRESS)
        groups = [of_probe[is_stress], *(part for _, part in of_probe[~is_stress].groupby("setting", sort=False))]
        parts += [family(part, by, replicates, seed) for part in groups if len(part)]
    return pd.concat(parts, ignore_index=True).assign(metric="auroc_behind_dense", source=HERE)


def ahead_of_controls(table: pd.DataFrame, k: int, replicates: int, seed: int) -> pd.DataFrame:
    """What probes on k latents of the main SAE are ahead of those on k columns of each control, in the normal setting;
    one family, metric ``auroc_ahead_of_control``."""
    rows = _without_seeds(table, [])
    rows = rows[(rows["setting"] == NORMAL) & (rows["k"] == k)]
    of_sae = rows[(rows["probe"] == K_SPARSE) & (rows["variant"] == MAIN)].set_index("task")["value"]
    controls = rows[rows["probe"] == CONTROL]
    ahead = controls.assign(value=of_sae.reindex(controls["task"]).to_numpy() - controls["value"])
    by = ["setting", "variant", "k"]
    return family(ahead, by, replicates, seed).assign(metric="auroc_ahead_of_control", source=HERE, probe=CONTROL)


def gained_by_choice(table: pd.DataFrame, replicates: int, seed: int) -> pd.DataFrame:
    """Test AUROC of the probe that validation chooses among dense, TF-IDF and others, minus that of the one it chooses
    among dense and TF-IDF; metric ``auroc_gained_by_choice``, and ``choices_changed``: of which share of tasks."""
    rows = _without_seeds(table[(table["probe"] == QUIVER) & (table["variant"] != WITHOUT)], [])
    by = ["setting", "variant"]
    gained = means(rows.assign(value=rows["ahead"]), by, replicates, seed).assign(metric="auroc_gained_by_choice")
    changed = means(rows.assign(value=(rows["ahead"] != 0).astype(float)), by, replicates, seed)
    changed = changed.assign(metric="choices_changed", unit="fraction")
    return pd.concat([gained, changed], ignore_index=True).assign(probe=QUIVER, source=HERE)


def not_measured(has_published: bool, has_tasks: bool, k: int) -> pd.DataFrame:
    """Rows without a value for what a run does not measure, with ``why``, so that a rule says so; ``k`` is the one that
    rules ask for."""
    lines = []
    if not has_published:
        why = "the parameter published_results is false in this run"
        stands_for = [(NORMAL, "best latent"), (OOD, "SAE"), (SCARCITY, "k = 128")]
        lines += [_missing("auroc_behind_dense", "published", s, why) | {"probe": probe} for s, probe in stands_for]
    if not has_tasks:
        why = "no task was measured in this run: make tasks"
        of_latents = {"probe": K_SPARSE, "variant": MAIN, "k": k}
        lines += [_missing("auroc_behind_dense", HERE, s, why) | of_latents for s in (NORMAL, SCARCITY, OOD)]
        lines += [_missing("auroc_ahead_of_control", HERE, NORMAL, why) | {"k": k}]
        lines += [_missing("auroc_gained_by_choice", HERE, NORMAL, why) | {"variant": "with SAE probes"}]
    return pd.DataFrame(lines)


def _missing(metric: str, source: str, setting: str, why: str) -> dict[str, Any]:
    numbers = dict.fromkeys(["value", "low", "high", "alpha", "n", "n_groups"])
    return {"metric": metric, "source": source, "setting": setting, "why": why, "unit": "AUROC"} | numbers


# What the notebook shows


def why_none(tasks: list[str], folder: str, base_saes: list[str], n_left_out: int) -> str:
    """Why no task is measured, as Markdown."""
    if not tasks and not folder:
        return "Not measured: `tasks` is empty. `make tasks TASKS=core` runs twelve of sae-probes, `DIR=folder` yours."
    if not base_saes:
        return "Not measured: `base_saes` is empty, and SAEs are needed."
    return f"Not measured: all {n_left_out} tasks are left out, for the reasons above."


def overview(tasks: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows read, dropped by reason, and in each split, of tasks as dictionaries (``task_files.TaskTexts``)."""
    lines = []
    for task in tasks:
        counts = task["rows"]["split"].value_counts().to_dict()
        lines.append({"task": task["name"], "kind": task["kind"], "read": task["n_read"]} | task["dropped"] | counts)
    table = pd.DataFrame(lines).set_index("task")
    numbers = table.columns.drop("kind")
    return table.assign(**{name: table[name].fillna(0).astype(int) for name in numbers})


def beside_dense(rows: pd.DataFrame, k: int) -> pd.DataFrame:
    """AUROC of the dense probe (``x``) and of the main SAE's probe (``y``) of each task in the normal setting, of rows
    of :func:`of_tasks`."""
    rows = rows[rows["setting"] == NORMAL]
    dense = rows[rows["probe"] == DENSE].set_index("task")["value"]
    sparse = rows[(rows["probe"] == K_SPARSE) & (rows["variant"] == MAIN) & (rows["k"] == k)]
    return sparse.assign(x=dense.reindex(sparse["task"]).to_numpy(), y=sparse["value"])[["task", "kind", "x", "y"]]


def for_figure(averages: pd.DataFrame, k: int) -> pd.DataFrame:
    """The averages with ``panel`` (one latent, k, all), ``place`` (setting and level) and ``what`` (SAE or control);
    of controls those at k."""
    is_shown = averages["k"].isna() | (averages["k"] == k) | ((averages["k"] == 1) & (averages["probe"] == K_SPARSE))
    rows = averages[is_shown]
    panel = rows["k"].map(lambda k: "all columns" if pd.isna(k) else f"{k:.0f} column{'s' * (k > 1)}")
    return rows.assign(panel=panel, place=_places(rows), what=rows["variant"].fillna(rows["probe"]))


def _places(rows: pd.DataFrame) -> list[str]:
    """What a setting and its level are called in figures and tables."""
    name = {
        NORMAL: "all training rows", OOD: "out of distribution", SCARCITY: "{:.0f} rows",
        IMBALANCE: "{:.0%} positive", NOISE: "{:.0%} wrong labels",
    }  # fmt: skip
    return [name[row.setting].format(row.level) for row in rows.itertuples()]


def in_words(averages: pd.DataFrame, k: int) -> pd.DataFrame:
    """Difference to the dense probe, win rate and verdict of the main SAE's probe at k, a row per setting and level."""
    rows = averages[(averages["probe"] == K_SPARSE) & (averages["variant"] == MAIN) & (averages["k"] == k)]
    shown = {
        "setting": _places(rows), "tasks": rows["n"], "AUROC minus dense": tables.texts(rows),
        "ahead of dense in": rows["win_rate"].map("{:.0%} of tasks".format), "verdict": rows["verdict"],
    }  # fmt: skip
    return pd.DataFrame(shown).set_index("setting")


def tasks_that_gain(table: pd.DataFrame) -> pd.DataFrame:
    """Of which tasks the choice with SAE probes, or with controls, is better or worse by more than chance: those whose
    p-value is at most Holm's level over all tasks; one row for each of the two."""
    rows = table[(table["probe"] == QUIVER) & (table["setting"] == NORMAL) & (table["variant"] != WITHOUT)]
    lines = []
    for variant, part in rows.groupby("variant", sort=False):
        shown = part[part["p"] <= verdicts.holm_levels(part["p"].to_numpy())]
        better, worse = (shown.loc[sign * shown["ahead"] > 0, "task"].tolist() for sign in (1, -1))
        line = {"choice": variant, "tasks": len(part), "changed": int((part["ahead"] != 0).sum())}
        lines.append(line | {"better": ", ".join(better) or "none", "worse": ", ".join(worse) or "none"})
    return pd.DataFrame(lines).set_index("choice")


def notes(measured: list[dict[str, Any]], left_out: list[dict[str, Any]]) -> list[str]:
    """What was dropped or left out, in sentences."""
    lines = [f"{task['name']}: left out, {task['why']}" for task in left_out]
    for task in measured:
        dropped = [f"{n} {reason}" for reason, n in task["dropped"].items()]
        lines += [f"{task['name']}: of {task['n_read']} rows not used: {', '.join(dropped)}"] if dropped else []
        lines += [f"{task['name']}: {sentence}" for sentence in task["said"]]
    return lines


def summary(averages: pd.DataFrame, ahead: pd.DataFrame, gained: pd.DataFrame, k: int) -> str:
    """Settings by verdict, controls that the latents are ahead of, and what the choice gains, as Markdown."""
    rows = averages[(averages["probe"] == K_SPARSE) & (averages["variant"] == MAIN) & (averages["k"] == k)]
    places = pd.Series(_places(rows), index=rows.index).groupby(rows["verdict"], sort=False).agg(", ".join)
    lines = [f"- {verdict}: {settings}" for verdict, settings in places.items()]
    beaten = ahead.loc[ahead["low"] > 0, "variant"].tolist()
    lines.append(f"- Controls that {k} latents are ahead of: {', '.join(beaten) or 'none'} (of {len(ahead)}).")
    choice = gained[(gained["metric"] == "auroc_gained_by_choice") & (gained["setting"] == NORMAL)]
    texts = [f"{row.variant} {tables.text(row, 4)}" for row in choice.itertuples()]
    lines.append(f"- AUROC gained by choosing among more probes: {'; '.join(texts)}.")
    return f"Probes on {k} latents beside the dense probe, by setting:\n\n" + "\n".join(lines)
