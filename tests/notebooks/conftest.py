"""A small run of all notebooks on a user's own data, made once for the tests; and an empty project with stubs."""

import functools
import random
import shutil

import pandas as pd
import pytest
import yaml

from lib.base import build_graph
from lib.base.files import ROOT, run_dir
from lib.runs import profiles, runner, warm_kernel
from tests import stubs

SMALL = """
layers: [1, 2]
c_grid: [0.01, 1.0]
n_bootstrap: 50
max_tokens: 12000
held_out_tokens: 4000
train_tokens: 20000
d_sae: 256
target_l0s: [4, 16]
f0s: [0.1]
comparators: []
seeds: [0]
pretraining_tokens: 5000
chat_tokens: 12000
finetune_tokens: 12000
scratch_tokens: 12000
resample_shares: []
prompt_repeats: []
ks: [1, 5]
show_k: 5
grid_bootstrap: 50
train_sizes: [40, 0]
noise_shares: [0.2]
positive_shares: [0.1]
control_draws: 2
dictionary_draws: 1
token_shares: [0.5]
sae_widths: [64]
aggregations: [mean, attention]
stress_draws: 2
plant_shares: [0.5]
plant_seeds: [0, 1]
n_planted: 80
interp_tokens: 4000
n_latents: 10
n_cards: 2
task_rows: 120
tasks_ks: [5]
tasks_show_k: 5
task_sizes: [16]
task_positives: []
task_noise: [0.1]
task_draws: 1
"""


@pytest.fixture(scope="session")
def profile(tmp_path_factory):
    """A profile with a user's CSV files: fruit against tools; its run folder is removed afterwards."""
    tmp_path = tmp_path_factory.mktemp("own")

    rng = random.Random(0)
    words = {1: ["apple", "pear", "cherry", "plum"], 0: ["hammer", "drill", "saw", "chisel"]}
    for name, n, verb in (("train", 160, "buy"), ("ood", 60, "paint")):
        rows = []
        for i in range(n):
            text = f"please {verb} {rng.choice(words[i % 2])} number {i} <script>alert(1)</script>"
            rows.append((text, i % 2))
        table = pd.DataFrame(rows, columns=["text", "label"])
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        task = tmp_path / "tasks" / {"train": "fruit.csv", "ood": "fruit.ood.csv"}[name]
        task.parent.mkdir(exist_ok=True)
        table.to_csv(task, index=False)
    path = tmp_path / "own-data-test.yaml"
    own = {"train_csv": str(tmp_path / "train.csv"), "ood_csv": str(tmp_path / "ood.csv")}
    own |= {"tasks_folder": str(tmp_path / "tasks")}
    of_encoder = profiles.read_profile(profiles.profile_path("minilm"))
    path.write_text(yaml.safe_dump(of_encoder | yaml.safe_load(SMALL) | own | {"profile": path.stem}))
    yield path
    shutil.rmtree(run_dir("own-data-test"), ignore_errors=True)
    shutil.rmtree(ROOT / "figures" / "own-data-test", ignore_errors=True)


def execute_all(warm, values, cold=(), left_out=()):
    """Run all notebooks in one warm kernel, which imports everything once; ``cold`` ones run in their own.

    As there are no other processes, kernels have no other threads: small fits are done before these have begun.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for notebook in build_graph.notebooks():
            if notebook.stem in left_out:
                continue
            if notebook.stem in cold:
                runner.execute(notebook, values)
            else:
                with warm.hold() as manager:
                    options = {"engine_name": warm_kernel.ENGINE, "km": manager, "progress_bar": False}
                    runner.execute(notebook, values, **options)


@pytest.fixture(scope="session")
def run_all():
    """:func:`execute_all` in a kernel that the tests share."""
    warm = warm_kernel.WarmKernel()
    yield functools.partial(execute_all, warm)
    warm.kill()


@pytest.fixture(scope="session")
def small_run(profile, run_all):
    """The values of the profile, after all notebooks have run with them.

    Notebook 03 ran in a kernel of its own: a test compares it with one in a warm kernel.
    """
    values = profiles.read_profile(profile)
    run_all(values, cold=("03_sae_training",))
    return values


@pytest.fixture(scope="session")
def beside(small_run):
    """Make a profile that reads what the small run made; what it writes itself leaves that run's own results alone."""
    made = []

    def make(profile):
        made.append(run_dir(profile))
        shutil.copytree(run_dir(small_run["profile"]) / "results", made[-1] / "results", dirs_exist_ok=True)
        return small_run | {"profile": profile}

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def project(tmp_path):
    """A copy of lib and the Makefile with two stub notebooks: 02 reads 01, and only 02 draws."""
    return stubs.project(tmp_path)
