"""A small run of all notebooks on a user's own data, made once for the tests that need one; and an empty project with stubs."""

import random
import shutil

import pandas as pd
import pytest

from lib.base import build_graph
from lib.base.files import ROOT, run_dir
from lib.runs import profiles, runner
from tests import stubs

SMALL = """
layers: [1, 2]
n_bootstrap: 50
max_tokens: 25000
held_out_tokens: 4000
train_tokens: 20000
d_sae: 256
target_l0s: [4, 8, 16]
f0s: [0.1]
comparators: []
seeds: [0]
pretraining_tokens: 5000
chat_tokens: 20000
finetune_tokens: 20000
scratch_tokens: 20000
resample_shares: []
prompt_repeats: []
finetune_seeds: [0]
ks: [1, 2, 5]
show_k: 5
grid_bootstrap: 50
train_sizes: [40, 0]
noise_shares: [0.2]
stress_draws: 2
plant_shares: [0.5]
plant_seeds: [0, 1]
"""


@pytest.fixture(scope="session")
def profile(tmp_path_factory):
    """A profile with a user's CSV files: fruit against tools; its run folder is removed afterwards."""
    tmp_path = tmp_path_factory.mktemp("own")

    rng = random.Random(0)
    words = {1: ["apple", "pear", "cherry", "plum"], 0: ["hammer", "drill", "saw", "chisel"]}
    for name, n, verb in (("train", 160, "buy"), ("ood", 60, "paint")):
        rows = [(f"please {verb} {rng.choice(words[i % 2])} number {i} <script>alert(1)</script>", i % 2) for i in range(n)]
        pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / f"{name}.csv", index=False)
    path = tmp_path / "own-data-test.yaml"
    path.write_text(f"train_csv: {tmp_path / 'train.csv'}\nood_csv: {tmp_path / 'ood.csv'}\n" + SMALL)
    yield path
    shutil.rmtree(run_dir("own-data-test"), ignore_errors=True)
    shutil.rmtree(ROOT / "figures" / "own-data-test", ignore_errors=True)


@pytest.fixture(scope="session")
def small_run(profile):
    """The values of the profile, after all notebooks have run with them."""
    values = profiles.read_profile(profile)
    for notebook in build_graph.notebooks():
        runner.execute(notebook, values)
    return values


@pytest.fixture
def project(tmp_path):
    """A copy of lib and the Makefile with two stub notebooks: 02 reads 01, and only 02 draws."""
    return stubs.project(tmp_path)
