"""Tables of a rotation, in which every wrapper or source of harmful prompts is held out of training in turn."""

import pandas as pd

from lib.results.probe_tables import APART, Finetuning, ahead_of_controls, gains, over_seeds, over_wrappers
from lib.stats import families
from lib.stats.draws import Draws


def over_seeds_of_all(rotated: Draws, seed: int) -> Draws:
    """Means over the seeds of SAEs and the draws of each control, whose spread is its own."""
    names = rotated.where(probe="control").dimensions["variant"].unique()
    return rotated.over_seeds(seed, apart=(*APART, *names))


def of_wrappers(rotated: Draws, dense: Draws, names: Finetuning, n_wrappers: int, seed: int) -> pd.DataFrame:
    """The rows of a rotation of wrappers: mean AUROC within wrapper of every probe, what SAE probes are behind the
    dense ones, what finetuning and the placebo gained (:func:`lib.results.probe_tables.gained`), and what the k-sparse
    probes are ahead of each control.

    ``rotated`` and ``dense`` have the seeds of SAEs as a dimension; intervals are over base prompts, wrappers and
    seeds. ``dense`` has the dense probe beside k-sparse ones in its first row, and the one beside each reconstruction
    by pooling.
    """
    sparse, linear = rotated.where(probe="k-sparse"), rotated.where(probe="reconstruction")
    parts = {
        "auroc_within_wrapper": over_seeds_of_all(rotated, seed),
        "auroc_behind_dense": over_seeds(sparse, seed).behind(dense.first(), ["split"]),
        "auroc_lost": over_seeds(linear, seed).behind(dense, ["pooling", "split"]),
    }
    rows = [over_wrappers(part, n_wrappers).assign(metric=metric) for metric, part in parts.items()]
    rows += [
        over_wrappers(part, n_wrappers).assign(metric=metric, against=reference)
        for metric, reference, part in gains(sparse, names, seed)
        if len(part.values)
    ]
    if n_wrappers > 1 and len(rotated.where(probe="control").values):
        [split] = rotated.dimensions["split"].unique()
        rows.append(ahead_of_controls(rotated, names.before, split, seed, n_wrappers))
    table = pd.concat(rows, ignore_index=True)
    return table if "control" in table else table.assign(control=None)


def of_sources(rotated: Draws, dense: Draws, variant: str, seed: int) -> pd.DataFrame:
    """The rows of a rotation of the sources of harmful prompts: AUROC of every probe on each, and what the k-sparse
    probes of ``variant`` are behind the dense one, all sources as one family."""
    sparse = rotated.where(probe="k-sparse", variant=variant)
    behind = over_seeds(sparse, seed).behind(dense, ["split", "held_out"])
    family = families.estimates(behind).assign(metric="auroc_behind_dense")
    areas = over_seeds_of_all(rotated, seed).estimates().assign(metric="auroc")
    return pd.concat([areas, family], ignore_index=True)
