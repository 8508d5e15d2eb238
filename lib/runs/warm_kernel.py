"""A kernel that stays: notebooks run in it one after the other without starting Python and importing torch each time.

Between notebooks its name space and figures are emptied. What remains are imported modules and their caches of models
and stores, which are looked up by content. So a notebook's results are those of a kernel of its own; a test compares
them.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbformat.v4 import new_code_cell
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

ENGINE = "warm"
KERNEL = "python3"
# What the imports leave stays for good, and is no garbage: once it is set aside, a collection looks at the rest alone.
BEGIN = """
import gc
if not gc.get_freeze_count():
    exec({imports!r}, {{}})
    gc.collect()
    gc.freeze()
del gc
"""
EMPTY = """
import matplotlib.pyplot
matplotlib.pyplot.close("all")
get_ipython().reset(new_session=True)
import gc
gc.collect()
del gc
"""


def check_interpreter() -> None:
    """Whether Jupyter's kernel ``python3`` is this Python: a user's folder may hold one of another environment, which
    comes first.

    Raises:
        ValueError: it is another one.
    """
    spec = KernelSpecManager().get_kernel_spec(KERNEL)
    program = Path(spec.argv[0])
    # A bare name is this Python to Jupyter. An environment is its folder: programs in there are links to one file.
    if program.name != spec.argv[0] and program.parent.resolve() != Path(sys.executable).parent.resolve():
        raise ValueError(
            f"Jupyter's kernel {KERNEL!r} in {spec.resource_dir} starts {spec.argv[0]}, and notebooks need "
            f"{sys.executable}; remove that kernel (jupyter kernelspec remove {KERNEL}), or give it another name"
        )


class _Client(PapermillNotebookClient):
    """Runs a notebook between two cells that it does not have: ``BEGIN`` and ``EMPTY``."""

    def papermill_execute_cells(self) -> None:
        """See papermill."""
        imports = next((cell.source for cell in self.nb.cells if cell.cell_type == "code"), "")
        # Imports that fail do so again in the notebook itself, which shows why.
        self._beside(BEGIN.format(imports=imports), tags=["raises-exception"])
        super().papermill_execute_cells()
        self._beside(EMPTY)

    def _beside(self, source: str, tags: Sequence[str] = ()) -> None:
        self.nb.cells.append(new_code_cell(source, metadata={"tags": list(tags)}))  # nbclient asks for its place
        try:
            self.execute_cell(self.nb.cells[-1], len(self.nb.cells) - 1, store_history=False)
        finally:
            self.nb.cells.pop()


class WarmEngine(NBClientEngine):
    """papermill's engine ``warm``: the notebook runs in the kernel of ``km``, which goes on afterwards, emptied."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, km: AsyncKernelManager | None = None, **kwargs: Any
    ) -> None:
        """See papermill's ``Engine``."""
        client = _Client(nb_man, km=km, kernel_name=kernel_name, timeout=None)
        # papermill would save before and after every cell; it does so once more at the end.
        nb_man.save = lambda **_: None
        try:
            client.execute()
        finally:
            del nb_man.save
            if client.kc is not None:
                client.kc.stop_channels()


class WarmKernel:
    """A kernel that is started when it is needed, and anew after it died or a notebook failed."""

    def __init__(self) -> None:
        papermill_engines.register(ENGINE, WarmEngine)
        self.manager: AsyncKernelManager | None = None

    @contextmanager
    def hold(self, limit: float = 0.0) -> Iterator[AsyncKernelManager]:
        """The running kernel with an empty name space, killed once it was held for ``limit`` seconds (0: no limit).

        Raises:
            TimeoutError: the limit was reached.
        """
        manager, late = self._ready(), threading.Event()

        def end() -> None:
            late.set()
            os.kill(manager.provisioner.pid, signal.SIGKILL)

        timer = threading.Timer(limit or threading.TIMEOUT_MAX, end)
        timer.daemon = True
        timer.start()
        try:
            yield manager
        except BaseException as error:
            self.kill()  # what an error left behind is not the next notebook's
            if late.is_set():
                raise TimeoutError(f"the limit of {limit:g} s was reached") from error
            raise
        finally:
            timer.cancel()

    def kill(self) -> None:
        """End the kernel at once."""
        if self.manager is not None and self.manager.has_kernel:
            run_sync(self.manager.shutdown_kernel)(now=True)

    def _ready(self) -> AsyncKernelManager:
        if self.manager is None or not run_sync(self.manager.is_alive)():
            check_interpreter()
            self.manager = AsyncKernelManager(kernel_name=KERNEL)
            run_sync(self.manager.start_kernel)()
        return self.manager
