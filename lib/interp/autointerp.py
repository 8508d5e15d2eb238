"""Auto-interp scores of the latents of SAEs: how well a judge's explanation predicts where a latent is active.

After the paper: a judge explains a latent from top-activating, quantile and silent sequences, then estimates the
quantised activation of the highest-activating token of sequences it has not seen; the score is Spearman's correlation
with the true one. Detection and fuzzing (Paulo et al. 2024, arXiv 2410.13928) ask for yes or no instead; their score is
true-positive rate minus false-positive rate. All are 0 at chance and 1 at best; an estimate that never varies scores 0.

Each latent is also scored with **shuffled** explanations, those of other latents of about its frequency (a mean over
``judge.plan.shuffled`` of them): what of a score is owed to the latent's frequency, and to what the judge says of any
latent, is in the shuffled one as well.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

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

    Columns: latent, frequency, sequences, stratum, status, score, shuffled (the score with another latent's
    explanation), explanation. ``stratum`` is −1 for latents outside the population that the means speak of.
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
    return float(np.corrcoef(scipy.stats.rankdata([truth, estimated], axis=1))[0, 1])


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
    (scored,) = score_kin(judge, [encoded], trial)
    return scored


def score_kin(judge: Judge, kin: list[Encoded], trial: Trial) -> list[Scored]:
    """:func:`score_sae` of SAEs that began as one, with one sample of latents for all of them.

    Latent i of a finetuned SAE began as latent i of the SAE that was finetuned: the same latents are drawn, by their
    mean frequency, so that a difference of two SAEs is one of pairs. A latent that can be judged in some of the SAEs
    only is outside the others' populations.

    Raises:
        ValueError: as :func:`score_sae`.
    """
    frequencies = [np.diff(encoded.latents.indptr) / encoded.latents.shape[0] for encoded in kin]
    counts = [examples.activating_counts(encoded) for encoded in kin]
    eligible = [of_sae.min(1) >= judge.plan.least for of_sae in counts]
    rng = np.random.default_rng(trial.seed)
    sample = populations.draw(np.mean(frequencies, axis=0), np.any(eligible, axis=0), trial.n_latents, rng)
    scored = []
    for encoded, frequency, of_sae, can_be in zip(kin, frequencies, counts, eligible, strict=True):
        status = np.where(frequency == 0, NEVER_FIRES, np.where(can_be, NOT_DRAWN, TOO_FEW)).astype(object)
        table = pd.DataFrame({
            "latent": np.arange(len(frequency)),
            "frequency": frequency,
            "sequences": of_sae.sum(1),
            "stratum": np.where(can_be, sample.stratum, -1),
            "status": status,
            "score": np.nan,
            "shuffled": np.nan,
            "explanation": None,
        })
        drawn = sample.latents[can_be[sample.latents]]
        judged, explanations = _judged(judge, encoded, Scored(table), drawn.tolist(), trial)
        scored.append(_shuffled(judge, encoded, judged, explanations, trial))
    return scored


def judge_also(judge: Judge, encoded: Encoded, scored: Scored, chosen: list[int], trial: Trial) -> Scored:
    """``scored`` with the outcome of the latents ``chosen``.

    Latents that are chosen for what they are make no sample: take means before.
    """
    return _judged(judge, encoded, scored, chosen, trial)[0]


def _judged(
    judge: Judge, encoded: Encoded, scored: Scored, chosen: list[int], trial: Trial
) -> tuple[Scored, dict[int, Explanation]]:
    """``scored`` with the outcome of the latents ``chosen``, and the explanations by latent."""
    table, stopped, explanations = scored.table.copy(), scored.stopped, {}

    def act(latent: int, drawn: Drawn, rng: np.random.Generator) -> Judged:
        return judge_latent(judge, drawn, trial.task, rng)

    for latent, outcome in zip(chosen, _of_each(judge, encoded, chosen, trial, act), strict=True):
        if outcome is None:
            continue  # its status says why
        if isinstance(outcome, BudgetSpent):
            stopped, outcome = str(outcome), Judged(BUDGET_SPENT)
        table.at[latent, "status"] = outcome.status
        table.at[latent, "score"] = np.nan if outcome.score is None else outcome.score
        if outcome.explanation:
            table.at[latent, "explanation"] = outcome.explanation.text
            explanations[latent] = outcome.explanation
    return Scored(table, stopped), explanations


def _shuffled(
    judge: Judge, encoded: Encoded, scored: Scored, explanations: dict[int, Explanation], trial: Trial
) -> Scored:
    """``scored`` with the mean score that each latent gets by the explanations of its partners."""
    table, stopped = scored.table.copy(), scored.stopped
    explained, rng = np.array(sorted(explanations), dtype=int), np.random.default_rng([trial.seed, 1])
    partners = populations.partners(explained, table["frequency"].to_numpy(), judge.plan.shuffled, rng)
    score = lookup(TASKS, "scoring task", trial.task).score

    def act(latent: int, drawn: Drawn, rng: np.random.Generator) -> float | None:
        scores = [score(judge, explanations[other], drawn.scoring, rng) for other in partners[latent]]
        known = [value for value in scores if value is not None]
        return float(np.mean(known)) if known else None

    latents = sorted(partners)
    for latent, outcome in zip(latents, _of_each(judge, encoded, latents, trial, act), strict=True):
        if isinstance(outcome, BudgetSpent):
            stopped = str(outcome)
        elif outcome is not None:
            table.at[latent, "shuffled"] = outcome
    return Scored(table, stopped)


Act = Callable[[int, Drawn, np.random.Generator], Any]


def _of_each(judge: Judge, encoded: Encoded, latents: list[int], trial: Trial, act: Act) -> Iterator[Any]:
    """What ``act`` makes of each latent in order, or BudgetSpent; None where it has too few activating sequences.

    A latent has the same examples whenever it is its turn.
    """

    def outcome(latent: int) -> Any:
        rng = np.random.default_rng([trial.seed, latent])
        try:
            drawn = examples.draw(encoded, latent, judge.plan, rng)
            return drawn and act(latent, drawn, rng)
        except BudgetSpent as spent:
            return spent

    if judge.workers == 1:
        yield from map(outcome, latents)
        return
    pool = ThreadPoolExecutor(judge.workers)
    try:
        yield from tqdm(pool.map(outcome, latents), total=len(latents), desc="latents judged", unit="latent")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def score_saes(
    judge: Judge,
    kin: list[list[str]],
    sequences: Sequences,
    trial: Trial,
    *,
    hook_name: str | None = None,
    model: str | None = None,
) -> dict[str, Scored]:
    """:func:`score_kin` of the folders of each list, on all cores, by folder; the lists one after the other with a
    judge that is busy waiting for a server.

    Raises:
        ValueError: an SAE of another width, layer or model than the sequences.
    """
    longest_first = sorted(kin, key=len, reverse=True)  # so that none begins late and is waited for
    loop = processes.parallel(1 if judge.workers > 1 else len(kin))
    score = joblib.delayed(_score_folders)
    calls = (score(judge, folders, sequences, trial, hook_name, model) for folders in longest_first)
    scored = tqdm(loop(calls), total=len(kin), desc="SAEs judged, with their kin", unit="SAE")
    return {
        folder: of_sae
        for folders, of_kin in zip(longest_first, scored, strict=True)
        for folder, of_sae in zip(folders, of_kin, strict=True)
    }


def _score_folders(
    judge: Judge, folders: list[str], sequences: Sequences, trial: Trial, hook_name: str | None, model: str | None
) -> list[Scored]:
    kin = []
    for folder in folders:
        sae = sae_folders.load(folder)
        sae_folders.check_fits(sae, sequences.activations.shape[1], hook_name, model)
        kin.append(examples.encode(sae, sequences))
    return score_kin(judge, kin, trial)
