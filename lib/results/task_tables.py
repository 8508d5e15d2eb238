"""Tables over many classification tasks: averages with intervals over tasks, win rates, what a choice gains.

The units are clusters of tasks, those of a column ``cluster`` where there is one: tasks that share texts are drawn
together. An interval says what another draw of such clusters would show, of these SAEs and this model.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from lib.base.files import relative
from lib.results import records, tables
from lib.stats import families, verdicts
from lib.stats.draws import Draws
from lib.stats.metrics import bootstrap_weights, t_interval

NORMAL, SCARCITY, IMBALANCE, NOISE, OOD = "normal", "scarcity", "class imbalance", "label noise", "ood"
STRESS = (SCARCITY, IMBALANCE, NOISE)
DENSE, K_SPARSE, CONTROL, QUIVER = "dense", "k-sparse", "control", "quiver"
FEW = 20  # clusters of tasks, below which an interval is Student's
FEWEST = 3  # of a kind of task that an interval is given for
HERE = "here"
WITHOUT, WITH_SAES, WITH_CONTROLS = "without", "with SAE probes", "with controls"
OVER_CONTROLS = "SAE probes over controls"
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
    """Means of ``value`` over the tasks that a row of ``by`` has, and their replicates over clusters of tasks.

    All rows share their replicates: a cluster that is drawn twice counts twice in each row that has it.
    """
    return _drawn(_by_task(table, by), _clusters(table), replicates, seed)


def means(table: pd.DataFrame, by: list[str], replicates: int, seed: int) -> pd.DataFrame:
    """:func:`draws` as estimates, with ``n`` tasks and ``n_groups`` clusters; there is no interval over a single one.

    Intervals are of the bootstrap, or Student's where a row has fewer than ``FEW`` clusters, beyond whose values a
    bootstrap never goes.
    """
    return _estimates(table, by, replicates, seed, is_family=False)


def family(table: pd.DataFrame, by: list[str], replicates: int, seed: int) -> pd.DataFrame:
    """:func:`means` at Holm's levels over all rows."""
    return _estimates(table, by, replicates, seed, is_family=True)


def shares(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Means of ``value`` from 0 to 1 over the tasks that a row of ``by`` has, with Wilson's interval (Wilson 1927):
    (p + z²/2G ± z √(p(1 − p)/G + z²/4G²)) / (1 + z²/G), where G is the number of clusters, as if each were one task."""
    wide, cluster = _by_task(table, by), _clusters(table)
    drawn = _drawn(wide, cluster, 0, 0)
    n_groups = np.array([cluster[row.dropna().index].nunique() for _, row in wide.iterrows()])
    p, z = drawn.values[:, 0], scipy.stats.norm.ppf(1 - verdicts.ALPHA / 2)
    middle, half = p + z**2 / (2 * n_groups), z * np.sqrt(p * (1 - p) / n_groups + (z / (2 * n_groups)) ** 2)
    low, high = (np.clip((middle + sign * half) / (1 + z**2 / n_groups), 0, 1) for sign in (-1, 1))
    counts = {"n": wide.notna().sum(axis=1).to_numpy(), "n_groups": n_groups}
    return drawn.table().assign(low=low, high=high, alpha=verdicts.ALPHA, unit="fraction", **counts)


def _by_task(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """``value`` with a row for each of ``by`` and a column for each task."""
    return table.pivot_table("value", by, "task", sort=False, dropna=False).dropna(how="all")


def _clusters(table: pd.DataFrame) -> pd.Series:
    """The cluster of each task; its own where the table tells none."""
    of_rows = table.get("cluster", table["task"])
    return of_rows.groupby(table["task"], sort=False).first()


def _drawn(wide: pd.DataFrame, cluster: pd.Series, replicates: int, seed: int) -> Draws:
    values, is_there = wide.to_numpy(), wide.notna().to_numpy()
    weights = bootstrap_weights(cluster[wide.columns].to_numpy(), replicates, seed)
    weights = np.concatenate([np.ones((1, wide.shape[1])), weights]).T
    with np.errstate(invalid="ignore", divide="ignore"):
        averages = (np.nan_to_num(values) @ weights) / (is_there @ weights)
    dimensions = wide.index.to_frame(index=False).astype(object)
    return Draws(dimensions.where(dimensions.notna(), None), averages)


def _estimates(table: pd.DataFrame, by: list[str], replicates: int, seed: int, is_family: bool) -> pd.DataFrame:
    wide, cluster = _by_task(table, by), _clusters(table)
    drawn = _drawn(wide, cluster, replicates, seed)
    samples = [_sample(row.dropna(), cluster) for _, row in wide.iterrows()]
    n_groups = np.array([len(sample) for sample in samples])
    if n_groups.min() < FEW:
        levels, of_samples = verdicts.holm_t_intervals(samples)
        levels = levels if is_family else np.full(len(samples), verdicts.ALPHA)
        of_samples = of_samples if is_family else [t_interval(values) for values in samples]
        ends = np.array([[estimate.low, estimate.high] for estimate in of_samples], dtype=float)
        estimates = drawn.table().assign(low=ends[:, 0], high=ends[:, 1], alpha=levels)
    else:
        estimates = families.estimates(drawn) if is_family else families.at_levels(drawn)
    return estimates.assign(n=wide.notna().sum(axis=1).to_numpy(), n_groups=n_groups, unit="AUROC")


def _sample(values: pd.Series, cluster: pd.Series) -> np.ndarray:
    """A number for each cluster, whose mean is that of all tasks, and whose variance that of the mean over clusters
    drawn: m + (Σ over the cluster's tasks of (v − m)) G / N, of N tasks in G clusters (linearisation of a ratio). Of
    clusters of one task they are the values."""
    apart = (values - values.mean()).groupby(cluster[values.index]).sum()
    return values.mean() + apart.to_numpy() * len(apart) / len(values)


def averaged(table: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """Means of ``columns`` of each task by ``by``, over all else, such as levels."""
    kept = ["task", *(["cluster"] if "cluster" in table else []), *by]
    return table.groupby(kept, sort=False, dropna=False)[columns].mean().reset_index()


def _without_seeds(table: pd.DataFrame, apart: list[str]) -> pd.DataFrame:
    """The rows averaged over seeds of an SAE and draws of a control, and over all else that is not ``apart``."""
    by = ["kind", "setting", "probe", "variant", "k", *apart]
    return averaged(table, by, ["value", "low", "high", "ahead", "val", "changed"])


def of_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """A row per task, setting, level and probe: values and intervals averaged over seeds of an SAE and draws of a
    control; without choices."""
    return _without_seeds(table[table["probe"] != QUIVER], ["level", "n_train", "n_test"])


def by_level(table: pd.DataFrame, smallest: float, replicates: int, seed: int) -> pd.DataFrame:
    """Test AUROC minus that of the dense probe, averaged over tasks, for each setting and level.

    With the interval over tasks, ``win_rate`` (share of tasks in which the probe is ahead, ``win_low`` to ``win_high``)
    and a ``verdict`` in words (``WORDS``), given the ``smallest`` difference that matters. Metric
    ``auroc_ahead_of_dense``.
    """
    by = ["setting", "level", "probe", "variant", "k"]
    rows = _without_seeds(table[~table["probe"].isin([DENSE, QUIVER])], ["level"])
    estimates = _with_wins(rows, by, replicates, seed)
    verdict = [_verdict(row.low, row.high, smallest) for row in estimates.itertuples()]
    return estimates.assign(verdict=verdict, metric="auroc_ahead_of_dense", source=HERE)


def _with_wins(rows: pd.DataFrame, by: list[str], replicates: int, seed: int) -> pd.DataFrame:
    estimates = means(rows.assign(value=rows["ahead"]), by, replicates, seed)
    wins = shares(rows.assign(value=(rows["ahead"] > 0).astype(float)), by)
    return estimates.assign(win_rate=wins["value"], win_low=wins["low"], win_high=wins["high"])


def _verdict(low: float, high: float, smallest: float) -> str:
    if np.isnan(low) or np.isnan(high):
        return WORDS[verdicts.INCONCLUSIVE]
    return WORDS[verdicts.decide("above", verdicts.Interval(low, high), smallest)]


def by_kind(table: pd.DataFrame, k: int, replicates: int, seed: int) -> pd.DataFrame:
    """:func:`by_level` of the main SAE's probe at k by kind of task and setting, a mean over levels.

    The number of tasks is in the kind's name. Kinds come in the order of the normal setting; metric
    ``auroc_ahead_of_dense_by_kind``. There is no interval of fewer than ``FEWEST`` clusters: Student's of two has 12.7
    standard errors to either side.
    """
    rows = _without_seeds(table, [])
    rows = rows[(rows["probe"] == K_SPARSE) & (rows["variant"] == MAIN) & (rows["k"] == k)]
    n_tasks = rows.groupby("kind")["task"].nunique()
    estimates = _with_wins(rows, ["kind", "setting"], replicates, seed)
    estimates.loc[estimates["n_groups"] < FEWEST, ["low", "high"]] = np.nan
    normal = estimates[estimates["setting"] == NORMAL].set_index("kind")["value"]
    order = {setting: place for place, setting in enumerate((NORMAL, *STRESS, OOD))}
    estimates = estimates.assign(of_normal=estimates["kind"].map(normal), order=estimates["setting"].map(order))
    estimates = estimates.sort_values(["of_normal", "order"], ascending=[False, True])
    named = estimates["kind"] + " (" + estimates["kind"].map(n_tasks).astype(str) + ")"
    more = {"probe": K_SPARSE, "variant": MAIN, "k": k, "metric": "auroc_ahead_of_dense_by_kind", "source": HERE}
    return estimates.drop(columns=["of_normal", "order"]).assign(kind=named, **more)


# What rules of claims ask for


def behind_dense(table: pd.DataFrame, replicates: int, seed: int) -> pd.DataFrame:
    """What probes are behind the dense probe of the same task and setting, a mean over levels; metric
    ``auroc_behind_dense``. The settings of stress are one family for each probe, variant and k; others stand alone. Of
    a task without rows for some level the mean is over the others."""
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
    among dense and TF-IDF; metric ``auroc_gained_by_choice``, and ``choices_changed``: of which share of tasks.

    The variant ``OVER_CONTROLS`` is what SAE probes gain minus what as many probes on controls do, task by task.
    """
    rows = _without_seeds(table[(table["probe"] == QUIVER) & (table["variant"] != WITHOUT)], [])
    by = ["setting", "variant"]
    ahead, changed = rows.assign(value=rows["ahead"]), rows.assign(value=rows["changed"])
    of_controls = ahead[ahead["variant"] == WITH_CONTROLS].set_index(["task", "setting"])["value"]
    over = ahead[ahead["variant"] == WITH_SAES].assign(variant=OVER_CONTROLS)
    places = pd.MultiIndex.from_frame(over[["task", "setting"]])
    over = over.assign(value=over["value"].to_numpy() - of_controls.reindex(places).to_numpy()).dropna(subset="value")
    gained = means(pd.concat([ahead, over], ignore_index=True), by, replicates, seed)
    gained = gained.assign(metric="auroc_gained_by_choice")
    changed = shares(changed, by).assign(metric="choices_changed")
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
        lines += [_missing("auroc_gained_by_choice", HERE, NORMAL, why) | {"variant": WITH_SAES}]
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
    return [_place(row.setting, row.level) for row in rows.itertuples()]


def _place(setting: str, level: float | int | None) -> str:
    """What a setting and its level are called in figures and tables."""
    name = {
        NORMAL: "all training rows", OOD: "out of distribution", SCARCITY: "{:.0f} rows",
        IMBALANCE: "{:.0%} positive", NOISE: "{:.0%} wrong labels",
    }  # fmt: skip
    return name[setting].format(level)


def in_words(averages: pd.DataFrame, k: int) -> pd.DataFrame:
    """Difference to the dense probe, win rate and verdict of the main SAE's probe at k, a row per setting and level."""
    rows = averages[(averages["probe"] == K_SPARSE) & (averages["variant"] == MAIN) & (averages["k"] == k)]
    wins = [f"{row.win_rate:.0%} [{row.win_low:.0%}, {row.win_high:.0%}]" for row in rows.itertuples()]
    shown = {
        "setting": _places(rows), "tasks": rows["n"], "AUROC minus dense": tables.texts(rows),
        "ahead of dense in": wins, "verdict": rows["verdict"],
    }  # fmt: skip
    return pd.DataFrame(shown).set_index("setting")


def tasks_that_gain(table: pd.DataFrame, replicates: int) -> pd.DataFrame:
    """Of which tasks the choice with SAE probes, or with controls, is better or worse by more than chance: those whose
    p-value is at most Holm's level over all tasks; one row for each of the two.

    ``replicates`` are those of the p-values, of which too few cannot show anything of so many tasks.
    """
    rows = table[(table["probe"] == QUIVER) & (table["setting"] == NORMAL) & (table["variant"] != WITHOUT)]
    lines = []
    for variant, part in rows.groupby("variant", sort=False):
        shown = part[part["p"] <= verdicts.holm_levels(part["p"].to_numpy())]
        better, worse = (shown.loc[sign * shown["ahead"] > 0, "task"].tolist() for sign in (1, -1))
        can_show = 2 / (replicates + 1) <= verdicts.ALPHA / len(part)
        none = "none" if can_show else f"none can be shown with {replicates:,} replicates"
        line = {"choice": variant, "tasks": len(part), "changed": f"{part['changed'].mean():.0%}"}
        lines.append(line | {"better": ", ".join(better) or none, "worse": ", ".join(worse) or none})
    return pd.DataFrame(lines).set_index("choice")


def coverage(table: pd.DataFrame, settings: Iterable[tuple[str, float | int | None]], n_tasks: int) -> list[str]:
    """Which of the planned settings and levels were measured on how many of the tasks, where not on all."""
    lines = []
    for setting, level in settings:
        is_there = (table["setting"] == setting) & (table["level"].isna() if level is None else table["level"] == level)
        n = table.loc[is_there, "task"].nunique()
        if n < n_tasks:
            lines.append(f"{setting}, {_place(setting, level)}: measured on {n} of {n_tasks} tasks, for want of rows")
    return lines


def notes(measured: list[dict[str, Any]], left_out: list[dict[str, Any]], n_long: dict[str, int]) -> list[str]:
    """What was dropped, cut or left out, in sentences; ``n_long`` of each task's texts keep their end."""
    lines = [f"{task['name']}: left out, {task['why']}" for task in left_out]
    for task in measured:
        dropped = [f"{n} {reason}" for reason, n in task["dropped"].items()]
        lines += [f"{task['name']}: of {task['n_read']} rows not used: {', '.join(dropped)}"] if dropped else []
        cut = n_long.get(task["name"], 0)
        lines += [f"{task['name']}: of {cut} long texts the end is kept"] if cut else []
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
