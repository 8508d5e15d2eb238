"""The tasks of a run of notebook 09, read before it begins: how much text they are, and which can be measured apart."""

import functools
from typing import Any, NamedTuple

from lib.texts import task_files
from lib.texts.labelled import Columns
from lib.texts.task_files import TaskTexts

COLUMN_PARAMETERS = {  # of the notebooks, by field of Columns
    "text": "text_column",
    "label": "label_column",
    "group": "group_column",
    "positive": "positive_label",
    "encoding": "encoding",
}


class Tasks(NamedTuple):
    """The tasks that can be measured: of the package ``sae-probes``, and of a folder."""

    packaged: list[TaskTexts]
    of_folder: list[TaskTexts]

    def every(self) -> list[TaskTexts]:
        """All of them."""
        return self.packaged + self.of_folder


def read(values: dict[str, Any]) -> Tasks:
    """The tasks of a run with these parameters of notebook 09, all of them given; none where there is no SAE.

    Raises:
        ValueError: see :func:`lib.texts.task_files.read`.
    """
    if not values["base_saes"]:
        return Tasks([], [])
    packaged, of_folder = tuple(values["tasks"]), tuple(values["folder_tasks"])
    return _read(packaged, values["tasks_folder"], of_folder, columns_of(values), values["task_rows"])


def columns_of(values: dict[str, Any]) -> Columns:
    """How files are read, by the notebooks' parameters; those that are not given are empty."""
    by_field = {field: values[name] for field, name in COLUMN_PARAMETERS.items() if name in values}
    return Columns(**{field: tuple(value) if isinstance(value, list) else value for field, value in by_field.items()})


@functools.lru_cache(maxsize=8)  # sizes and cells of one sweep ask for the same ones
def _read(tasks: tuple[str, ...], folder: str, of_folder: tuple[str, ...], columns: Columns, most: int) -> Tasks:
    every = task_files.read(tasks, folder, columns, most, of_folder)
    n_packaged = len(task_files.chosen(tasks)) if tasks else 0
    parts = every[:n_packaged], every[n_packaged:]
    return Tasks(*([task for task in part if isinstance(task, TaskTexts)] for part in parts))


def apart(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters in which runs over some of the tasks each differ from one over all of them.

    Tasks that share texts stay together, as their texts are harvested once for all of them. So what each run measures
    is found, by its content, by the one over all tasks.

    Raises:
        ValueError: see :func:`read`.
    """
    from lib.probing import task_features  # late, as it imports all of the model's libraries

    tasks, parts = read(values), []
    is_own = {id(task) for task in tasks.of_folder}
    for bundle in task_features.bundles(tasks.every()):
        own = [task.name for task in bundle if id(task) in is_own]
        part = {"tasks": [task.name for task in bundle if id(task) not in is_own], "folder_tasks": own}
        parts.append(part | {"tasks_folder": values["tasks_folder"] if own else "", "published_results": False})
    return parts
