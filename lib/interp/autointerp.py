"""Auto-interp scores of the latents of SAEs: how well a judge's explanation predicts where a latent is active.

After the paper: a judge explains a latent from top-activating, quantile and silent sequences, then estimates the
quantised activation of the highest-activating token of sequences it has not seen; the score is Spearman's correlation
with the true one. Detection and fuzzing (Paulo et al. 2024, arXiv 2410.13928) ask for yes or no instead; their score is
true-positive rate minus false-positive rate. All are 0 at chance and 1 at best; an estimate that never varies scores 0.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import scipy.stats
from tqdm import tqdm

from lib.base import processes
from lib.base.registry import lookup
from lib.interp import examples
from lib.interp.examples import Drawn, Encoded, Example, Explanation, Sequences
from lib.interp.judges import Judge
from lib.interp.llm import BudgetSpent
from lib.sae import folders as sae_folders
from lib.stats import populations

SCORED = "scored"
NEVER_FIRES = "never fires"
TOO_FEW = "too few activating sequences"
NOT_DRAWN = "not drawn"
UNPARSED = "unparsed"
BUDGET_SPENT = "budget spent"
UNSCORED = (NEVER_FIRES, TOO_FEW, NOT_DRAWN, UNPARSED, BUDGET_SPENT)


class Judged(NamedTuple):
    """One latent's outcome: ``status`` is scored or one of ``UNSCORED``."""

    status: str
    score: float | None = None
    explanation: Explanation | None = None


class Scored(NamedTuple):
    """The latents of an SAE with their scores, and why a run stopped early.

    Columns: latent, frequency, sequences, stratum, status, score, explanation. ``stratum`` is −1 for latents outside
    the population that the means speak of.
    """

    table: pd.DataFrame
    stopped: str = ""


class Trial(NamedTuple):
    """How many latents of an SAE are judged, the seed that draws them and their examples, and the scoring task."""

    n_latents: int
    seed: int
    task: str = "simulation"


def spearman(truth: list[int], estimated: list[float]) -> float:
    """Spearman's rank correlation; 0 where one side never varies."""
    if len(set(truth)) < 2 or len(set(estimated)) < 2:
        return 0.0
    return float(scipy.stats.spearmanr(truth, estimated).statistic)


def _simulation(
    judge: Judge, explanation: Explanation, scoring: list[Example], rng: np.random.Generator
) -> float | None:
    order = rng.permutation(len(scoring))
    estimated = judge.simulate(explanation, [scoring[i].tokens for i in order])
    return None if estimated is None else spearman([scoring[i].peak for i in order], estimated)


def _rates(truth: list[bool], answers: list[bool] | None) -> float | None:
    """True-positive rate minus false-positive rate; 0 where only one answer is true."""
    if answers is None:
        return None
    is_yes, says_yes = np.array(truth), np.array(answers)
    if not is_yes.any() or is_yes.all():
        return 0.0
    return float(says_yes[is_yes].mean() - says_yes[~is_yes].mean())


def _detection(
    judge: Judge, explanation: Explanation, scoring: list[Example], rng: np.random.Generator
) -> float | None:
    order = rng.permutation(len(scoring))
    answers = judge.detect(explanation, [scoring[i].tokens for i in order])
    return _rates([scoring[i].peak > 0 for i in order], answers)


def _fuzzing(judge: Judge, explanation: Explanation, scoring: list[Example], rng: np.random.Generator) -> float | None:
    """Activating sequences only; half of them have as many silent tokens marked, where they have them."""
    shown = [example for example in scoring if example.peak]
    truth = [bool(i % 2) for i in rng.permutation(len(shown))]
    marked = []
    for i, example in enumerate(shown):
        active, silent = np.flatnonzero(example.levels), np.flatnonzero(example.levels == 0)
        truth[i] = truth[i] or not len(silent)
        marks = active if truth[i] else rng.permutation(silent)[: len(active)]
        marked.append(set(marks.tolist()))
    return _rates(truth, judge.fuzz(explanation, [example.tokens for example in shown], marked))


class ScoringTask(NamedTuple):
    """``score`` tests an explanation on the scoring examples, ``measure`` names what it is.

    It is None where an answer could not be read.
    """

    score: Callable[[Judge, Explanation, list[Example], np.random.Generator], float | None]
    measure: str


TASKS = {
    "simulation": ScoringTask(_simulation, "Spearman ρ"),
    "detection": ScoringTask(_detection, "true minus false positive rate"),
    "fuzzing": ScoringTask(_fuzzing, "true minus false positive rate"),
}


def measure(task: str) -> str:
    """What the score of a task is.

    Raises:
        ValueError: unknown task.
    """
    return lookup(TASKS, "scoring task", task).measure


def judge_latent(judge: Judge, drawn: Drawn, task: str, rng: np.random.Generator) -> Judged:
    """Explain a latent and score the explanation on its scoring examples.

    Raises:
        ValueError: unknown task.
    """
    scoring_task = lookup(TASKS, "scoring task", task)
    explanation = judge.explain(drawn.explaining)
    if explanation is None:
        return Judged(UNPARSED)
    score = scoring_task.score(judge, explanation, drawn.scoring, rng)
    return Judged(UNPARSED if score is None else SCORED, score, explanation)


def score_sae(judge: Judge, encoded: Encoded, trial: Trial) -> Scored:
    """Judge latents of an SAE, drawn by :func:`lib.stats.populations.draw` from those that can be judged.

    Each is shown by as many examples as ``judge.plan`` says. A budget that is spent ends the run: what was judged
    before stands, the rest is marked.

    Raises:
        ValueError: no latent can be judged, an unknown task, or the judge cannot be reached.
    """
    frequency = np.diff(encoded.latents.indptr) / encoded.latents.shape[0]
    counts = examples.activating_counts(encoded)
    eligible = counts.min(1) >= judge.plan.least
    sample = populations.draw(frequency, eligible, trial.n_latents, np.random.default_rng(trial.seed))
    status = np.where(frequency == 0, NEVER_FIRES, np.where(eligible, NOT_DRAWN, TOO_FEW)).astype(object)
    table = pd.DataFrame({
        "latent": np.arange(len(frequency)),
        "frequency": frequency,
        "sequences": counts.sum(1),
        "stratum": sample.stratum,
        "status": status,
        "score": np.nan,
        "explanation": None,
    })
    return judge_also(judge, encoded, Scored(table), sample.latents.tolist(), trial)


def judge_also(judge: Judge, encoded: Encoded, scored: Scored, chosen: list[int], trial: Trial) -> Scored:
    """``scored`` with the outcome of the latents ``chosen``.

    Latents that are chosen for what they are make no sample: take means before.
    """
    table, stopped = scored.table.copy(), scored.stopped
    for latent, outcome in zip(chosen, _outcomes(judge, encoded, chosen, trial), strict=True):
        if outcome is None:
            continue  # its status says why
        if isinstance(outcome, BudgetSpent):
            stopped, outcome = str(outcome), Judged(BUDGET_SPENT)
        table.at[latent, "status"] = outcome.status
        table.at[latent, "score"] = np.nan if outcome.score is None else outcome.score
        table.at[latent, "explanation"] = outcome.explanation.text if outcome.explanation else None
    return Scored(table, stopped)


def _outcomes(
    judge: Judge, encoded: Encoded, chosen: list[int], trial: Trial
) -> Iterator[Judged | BudgetSpent | None]:
    """The outcome of each latent in order; None where it has too few activating sequences."""

    def outcome(latent: int) -> Judged | BudgetSpent | None:
        rng = np.random.default_rng([trial.seed, latent])
        try:
            drawn = examples.draw(encoded, latent, judge.plan, rng)
            return drawn and judge_latent(judge, drawn, trial.task, rng)
        except BudgetSpent as spent:
            return spent

    if judge.workers == 1:
        yield from map(outcome, chosen)
        return
    pool = ThreadPoolExecutor(judge.workers)
    try:
        yield from tqdm(pool.map(outcome, chosen), total=len(chosen), desc="latents judged", unit="latent")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def score_saes(
    judge: Judge,
    folders: list[str],
    sequences: Sequences,
    trial: Trial,
    *,
    hook_name: str | None = None,
    model: str | None = None,
) -> list[Scored]:
    """:func:`score_sae` of many SAEs, on all cores; one after the other with a judge that is busy waiting for a server.

    Raises:
        ValueError: an SAE of another width, layer or model than the sequences.
    """
    loop = processes.parallel(1 if judge.workers > 1 else len(folders))
    calls = (joblib.delayed(_score_folder)(judge, folder, sequences, trial, hook_name, model) for folder in folders)
    return list(tqdm(loop(calls), total=len(folders), desc="SAEs judged", unit="SAE"))


def _score_folder(
    judge: Judge, folder: str, sequences: Sequences, trial: Trial, hook_name: str | None, model: str | None
) -> Scored:
    sae = sae_folders.load(folder)
    sae_folders.check_fits(sae, sequences.activations.shape[1], hook_name, model)
    return score_sae(judge, examples.encode(sae, sequences), trial)
