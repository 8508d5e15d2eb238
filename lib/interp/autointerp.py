"""Auto-interp scores of latents, and what they say of all latents of an SAE, uniformly and weighted by firing frequency.

After the paper: a judge explains a latent from top-activating, quantile and silent sequences, then estimates the quantised
activation of the highest-activating token of sequences it has not seen; the score is Spearman's correlation with the true
one. Detection and fuzzing (Paulo et al. 2024, arXiv 2410.13928) ask for yes or no instead; their score is true-positive
rate minus false-positive rate. All are 0 at chance and 1 at best; an estimate that never varies scores 0.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import scipy.sparse
import scipy.stats
from tqdm import tqdm

from lib.base import processes
from lib.interp import examples
from lib.interp.examples import Drawn, Example, Sequences
from lib.interp.judges import TASKS, Explanation, Judge
from lib.interp.llm import BudgetSpent
from lib.sae import folders as sae_folders
from lib.stats import populations
from lib.stats.metrics import Estimate

MEANS = ("uniform", "weighted")
UNSCORED = ("never fires", "too few activating sequences", "not drawn", "unparsed", "budget spent")


class Judged(NamedTuple):
    """One latent's outcome: ``status`` is scored or one of ``UNSCORED``."""

    status: str
    score: float | None = None
    explanation: Explanation | None = None


class Scored(NamedTuple):
    """All latents of an SAE (latent, frequency, sequences, stratum, status, score, explanation), and why a run stopped early.

    ``stratum`` is −1 for latents outside the population that the means speak of.
    """

    table: pd.DataFrame
    stopped: str = ""


def judge_latent(judge: Judge, drawn: Drawn, task: str, rng: np.random.Generator) -> Judged:
    """Explain a latent and score the explanation on its scoring examples.

    Raises:
        ValueError: unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown scoring task {task!r}; allowed are {TASKS}")
    explanation = judge.explain(drawn.explaining)
    if explanation is None:
        return Judged("unparsed")
    score = {"simulation": _simulation, "detection": _detection, "fuzzing": _fuzzing}[task](judge, explanation, drawn.scoring, rng)
    return Judged("unparsed", None, explanation) if score is None else Judged("scored", score, explanation)


def spearman(truth: list[int], estimated: list[float]) -> float:
    """Spearman's rank correlation; 0 where one side never varies."""
    if len(set(truth)) < 2 or len(set(estimated)) < 2:
        return 0.0
    return float(scipy.stats.spearmanr(truth, estimated).statistic)


def _simulation(judge: Judge, explanation: Explanation, scoring: list[Example], rng: np.random.Generator) -> float | None:
    order = rng.permutation(len(scoring))
    found = judge.simulate(explanation, [scoring[i].tokens for i in order])
    return None if found is None else spearman([scoring[i].peak for i in order], found)


def _rates(truth: list[bool], answers: list[bool] | None) -> float | None:
    if answers is None:
        return None
    yes, said = np.array(truth), np.array(answers)
    return float(said[yes].mean() - said[~yes].mean()) if yes.any() and not yes.all() else 0.0


def _detection(judge: Judge, explanation: Explanation, scoring: list[Example], rng: np.random.Generator) -> float | None:
    order = rng.permutation(len(scoring))
    return _rates([scoring[i].peak > 0 for i in order], judge.detect(explanation, [scoring[i].tokens for i in order]))


def _fuzzing(judge: Judge, explanation: Explanation, scoring: list[Example], rng: np.random.Generator) -> float | None:
    """Activating sequences only; half of them have as many silent tokens marked, where they have them."""
    shown = [one for one in scoring if one.peak]
    truth = [bool(i % 2) for i in rng.permutation(len(shown))]
    marked = []
    for i, one in enumerate(shown):
        active, silent = np.flatnonzero(one.levels), np.flatnonzero(one.levels == 0)
        truth[i] = truth[i] or not len(silent)
        marked.append(set((active if truth[i] else rng.permutation(silent)[: len(active)]).tolist()))
    return _rates(truth, judge.fuzz(explanation, [one.tokens for one in shown], marked))


def score_sae(judge: Judge, latents: scipy.sparse.csc_matrix, sequences: Sequences, n_latents: int, seed: int, task: str = "simulation") -> Scored:
    """Judge about ``n_latents`` latents of an SAE, drawn by :func:`lib.stats.populations.draw` from those that can be judged.

    Each is shown by as many examples as ``judge.plan`` says. A budget that is spent ends the run: what was judged before
    stands, the rest is marked.

    Raises:
        ValueError: no latent can be judged, or the judge cannot be reached.
    """
    frequency = np.diff(latents.indptr) / latents.shape[0]
    counts = examples.activating_counts(latents, sequences)
    eligible = counts.min(1) >= judge.plan.least
    sample = populations.draw(frequency, eligible, n_latents, np.random.default_rng(seed))
    status = np.where(frequency == 0, UNSCORED[0], np.where(eligible, UNSCORED[2], UNSCORED[1])).astype(object)
    table = pd.DataFrame({"latent": np.arange(len(frequency)), "frequency": frequency, "sequences": counts.sum(1), "stratum": sample.stratum,
                          "status": status, "score": np.nan, "explanation": None})  # fmt: skip
    return judge_also(judge, latents, sequences, Scored(table), sample.latents.tolist(), seed, task)


def judge_also(
    judge: Judge, latents: scipy.sparse.csc_matrix, sequences: Sequences, scored: Scored, chosen: list[int], seed: int, task: str = "simulation"
) -> Scored:
    """``scored`` with the outcome of the latents ``chosen``. Chosen for what they are, they are no sample: take means before."""
    table, stopped = scored.table.copy(), scored.stopped
    for latent, judged in zip(chosen, _outcomes(judge, latents, sequences, chosen, task, seed), strict=True):
        if isinstance(judged, BudgetSpent):
            stopped, judged = str(judged), Judged("budget spent")
        elif judged is None:
            continue  # its status says why
        table.at[latent, "status"] = judged.status
        table.at[latent, "score"] = np.nan if judged.score is None else judged.score
        table.at[latent, "explanation"] = judged.explanation.text if judged.explanation else None
    return Scored(table, stopped)


def _outcomes(judge, latents, sequences, chosen, task, seed) -> Iterator[Judged | BudgetSpent | None]:
    def work(latent: int) -> Judged | BudgetSpent | None:
        rng = np.random.default_rng([seed, latent])
        try:
            drawn = examples.draw(latents, latent, sequences, judge.plan, rng)
            return drawn and judge_latent(judge, drawn, task, rng)
        except BudgetSpent as spent:
            return spent

    if judge.workers == 1:
        yield from map(work, chosen)
        return
    pool = ThreadPoolExecutor(judge.workers)
    try:
        yield from tqdm(pool.map(work, chosen), total=len(chosen), desc="latents judged", unit="latent")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def score_saes(
    judge: Judge, folders: list[str], sequences: Sequences, n_latents: int, seed: int, task: str = "simulation", hook_name: str | None = None, model: str | None = None
) -> list[Scored]:
    """:func:`score_sae` of many SAEs, on all cores; one after the other with a judge that is busy waiting for a server.

    Raises:
        ValueError: an SAE of another width, layer or model than the sequences.
    """
    loop = processes.parallel(1 if judge.workers > 1 else len(folders))
    calls = (joblib.delayed(_score_folder)(judge, folder, sequences, n_latents, seed, task, hook_name, model) for folder in folders)
    return list(tqdm(loop(calls), total=len(folders), desc="SAEs judged", unit="SAE"))


def _score_folder(judge, folder, sequences, n_latents, seed, task, hook_name, model) -> Scored:
    sae = sae_folders.load(folder)
    sae_folders.check_fits(sae, sequences.activations.shape[1], hook_name, model)
    return score_sae(judge, examples.encode(sae, sequences), sequences, n_latents, seed, task)


def means(scored: pd.DataFrame) -> dict[str, Estimate]:
    """Mean score of the latents that can be judged: ``uniform``, and ``weighted`` by firing frequency."""
    return {name: _mean(scored, scored["stratum"].to_numpy(), name == "weighted") for name in MEANS}


def _mean(scored: pd.DataFrame, stratum: np.ndarray, weighted: bool) -> Estimate:
    scores = scored.set_index("latent")["score"].dropna()
    scores = scores[stratum[scores.index] >= 0]
    return populations.estimate(scores, stratum, scored["frequency"].to_numpy(), weighted)


def by_frequency(scored: pd.DataFrame, parts: int = 5) -> pd.DataFrame:
    """Uniform mean score in quantiles of the firing frequency (1: rarest), each with a ``parts``-th of the latents, and with a
    ``parts``-th of the firing mass. Columns: by, quantile, frequency (mean, fraction of tokens), and those of an Estimate.
    """
    inside = scored[scored["stratum"] >= 0].sort_values("frequency", kind="stable")
    mass = inside["frequency"].cumsum() - inside["frequency"] / 2
    place = {"latents": np.arange(len(inside)) / len(inside), "firing mass": (mass / inside["frequency"].sum()).to_numpy()}
    rows = []
    for by, position in place.items():
        label = pd.Series(np.floor(position * parts).astype(int), inside["latent"]).reindex(scored["latent"], fill_value=-1).to_numpy()
        for part in range(parts):
            here = np.where(label == part, scored["stratum"], -1)
            if scored.loc[here >= 0, "score"].notna().any():
                rows.append({"by": by, "quantile": part + 1, "frequency": scored.loc[here >= 0, "frequency"].mean()} | _mean(scored, here, False)._asdict())
    return pd.DataFrame(rows, columns=["by", "quantile", "frequency", *Estimate._fields])


def fall(scored: pd.DataFrame, parts: int = 5) -> float:
    """Uniform mean score of the rarest ``parts``-th of the latents minus that of the most frequent; NaN if one has no score."""
    by_part = by_frequency(scored, parts).query("by == 'latents'").set_index("quantile")["value"].reindex([1, parts]).astype(float)
    return float(by_part.iloc[0] - by_part.iloc[1])


def coverage(scored: pd.DataFrame) -> pd.DataFrame:
    """Latents and share of the firing mass by status. The means speak of those scored and not drawn; the latter are stood for."""
    found = scored.groupby("status")["frequency"].agg(latents="size", firing_mass="sum")
    return found.assign(firing_mass=found["firing_mass"] / max(scored["frequency"].sum(), 1e-12)).reindex(["scored", *UNSCORED]).dropna().reset_index()
