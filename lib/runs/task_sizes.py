"""What notebook 09 will take: the texts of its tasks, read once each, and the probes that are fitted to every task."""

from typing import Any

import torch

from lib.base.files import value_hash
from lib.base.processes import PROCESS_BYTES
from lib.model import models
from lib.probing.controls import BASES
from lib.probing.many_tasks import SELECTIONS, process_bytes
from lib.runs import task_cells
from lib.runs.steps import Step

# Measured on two cores with the chat model. A probe takes so many seconds of a core, with all values of C, and so many
# more for each row of its task.
PROBE_SECONDS, PROBE_ROW_SECONDS = 0.011, 9e-6
CORES = 2
PACE = 2.0  # of reading these texts, which are short and come in full batches, to that of other forward passes
CHARACTERS_PER_TOKEN = 4.5
TURN_TOKENS = 6  # that a chat template puts behind a text
N_DICTIONARIES = 2  # without training, beside the SAEs
LATENT_BYTES = 2600  # of a text's pooled latents, compressed


def steps(v: dict[str, Any], shape: dict[str, Any]) -> list[Step]:
    """Notebook 09: the texts of its tasks are read once each, and then probed in every setting."""
    tasks = task_cells.read(v).every()
    if not tasks:
        return []
    texts = set().union(*(task.rows["text"] for task in tasks))
    tokens = sum(min(len(text) / CHARACTERS_PER_TOKEN, v["task_tokens"]) + TURN_TOKENS for text in texts)
    d_model, poolings, n_read = shape["d_model"], len(v["k_poolings"]), len(_task_saes(v)) + N_DICTIONARIES
    cut, encode = 2 * shape["per_layer"] * (v["layer"] + 1), 2 * d_model * (shape["d_sae"] or v["base_d_sae"])
    pooled_bytes = len(texts) * poolings * (4 * d_model + n_read * LATENT_BYTES)
    rows = sum(len(task.rows) for task in tasks)
    n_processes = min(len(tasks), CORES)
    of_each = PROCESS_BYTES + process_bytes(d_model, shape["d_sae"] or v["base_d_sae"], 2 * v["task_rows"])
    seconds = n_task_probes(v) * (PROBE_SECONDS * len(tasks) + PROBE_ROW_SECONDS * rows) / n_processes
    columns = [v[name] for name in task_cells.COLUMN_PARAMETERS.values()]
    decides = [v[name] for name in ("model", "dtype", "layer", "base_saes", "prompts_sae", "k_poolings", "task_tokens")]
    key = value_hash([sorted(task.name for task in tasks), v["tasks_folder"], v["task_rows"], columns, decides])
    operations = tokens * (cut + n_read * encode) / PACE
    weights = shape["weights"] * torch.finfo(models.DTYPES[v["dtype"]]).bits // 8
    return [
        Step(
            "09",
            f"texts of {len(tasks)} tasks",
            tokens,
            pooled_bytes + tokens * 2 * d_model,
            weights,
            operations,
            key=key,
        ),
        Step("09", f"probes on {rows:,} rows", memory=weights + n_processes * of_each, seconds=seconds),
    ]


def _task_saes(v: dict[str, Any]) -> list[str]:
    return [*v["base_saes"], *([v["prompts_sae"]] if v["prompts_sae"] else [])]


def n_task_probes(v: dict[str, Any]) -> int:
    """Probes that notebook 09 fits to a task with these parameters, in all settings, each for every C.

    In each setting a dense probe for each pooling, TF-IDF, a k-sparse one for each SAE, pooling, selection and k, and
    one on all latents of either kind of SAE in each pooling; in the normal one the same on the controls.
    """
    ks = {1, v["tasks_show_k"], *v["tasks_ks"]}
    of_columns = len(v["k_poolings"]) * len(SELECTIONS) * len(ks)
    kinds = 1 + bool(v["prompts_sae"])
    n_poolings = len(v["k_poolings"])
    alike = n_poolings + 1 + len(_task_saes(v)) * of_columns + kinds * n_poolings
    n_controls = N_DICTIONARIES + sum(v["task_draws"] if basis.is_random else 1 for basis in BASES.values())
    n_settings = 1 + len(v["task_sizes"]) + len(v["task_positives"]) + len(v["task_noise"])
    return n_settings * alike + n_controls * of_columns + N_DICTIONARIES * n_poolings
