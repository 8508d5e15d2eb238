"""A sweep's file, its cells and what they share, and what becomes of their tables."""

import copy
import functools
import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
import yaml

from lib.base import build_graph, files
from lib.runs import profiles, sizing, sweep_cells, sweeps, task_sizes
from lib.texts import task_files

SHIPPED = sorted(sweeps.SWEEPS.glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """No test here changes a source, so each is parsed once for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("imported", "upstream", "parameters"):
            patch.setattr(build_graph, name, remembered(getattr(build_graph, name)))
        yield


def remembered(read):
    """Each caller gets a copy, which it may change."""
    cached = functools.cache(read)
    return lambda path: copy.deepcopy(cached(path))


@pytest.fixture
def sweep(tmp_path):
    def write(**content):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"notebooks": ["05_probing"]} | content, sort_keys=False))
        return path

    return write


def test_grid_and_zips_multiply(sweep):
    zips = [{"n_harmful": [5, 6], "n_harmless": [7, 8]}, {"layer": [1]}]
    both = sweep_cells.read(sweep(grid={"seed": [0, 1]}, zip=zips))
    assert both.points == [
        {"seed": seed, "n_harmful": a, "n_harmless": b, "layer": 1} for seed in (0, 1) for a, b in ((5, 7), (6, 8))
    ]
    assert sweep_cells.read(sweep()).points == [{}], "without a grid there is one cell"


def test_cells_share_what_they_read(sweep):
    cells, wanted = sweep_cells.plan(sweep_cells.read(sweep(grid={"show_k": [5, 20], "n_harmful": [50, 60]})))
    count = pd.Series([cell.notebook for cell in cells.values()]).value_counts()
    assert count.to_dict() == {"01_datasets": 2, "02_activations": 2, "04_chat_finetune": 2, "05_probing": 4}
    assert len({name for _, name in wanted}) == 4
    order = list(cells)
    assert all(order.index(need) < order.index(name) for name, cell in cells.items() for need in cell.needs)
    small = {name for point, name in wanted if point["n_harmful"] == 50}
    assert len({cells[name].needs for name in small}) == 1


def test_a_cells_name_is_its_content(sweep, monkeypatch):
    names = set(sweep_cells.plan(sweep_cells.read(sweep(grid={"show_k": [5, 20]})))[0])
    default = sweep(zip={"show_k": [5, 20]}, fixed={"c_grid": [1e-4, 1e-3, 1e-2, 1e-1, 1.0]})
    assert names == set(sweep_cells.plan(sweep_cells.read(default))[0]), "a default is no change"
    hashed = files.file_hash
    monkeypatch.setattr(sweep_cells, "file_hash", lambda path: "new" if path.name == "ksparse.py" else hashed(path))
    changed = set(sweep_cells.plan(sweep_cells.read(sweep(grid={"show_k": [5, 20]})))[0])
    kept = {name.split("-")[0] for name in names & changed}
    assert kept == {"01_datasets", "02_activations", "04_chat_finetune"}, "a changed module changes what uses it"


def test_a_changed_csv_is_another_cell(sweep, csv):
    names = []
    for text in ("a,1", "b,1"):
        path = csv([text])
        names.append(set(sweep_cells.plan(sweep_cells.read(sweep(fixed={"train_csv": path})))[0]))
    assert not names[0] & names[1]


def test_a_changed_sae_is_another_cell(sweep, tmp_path):
    names = []
    for weights in (b"a", b"b"):
        (tmp_path / "sae").mkdir(exist_ok=True)
        (tmp_path / "sae" / "sae_weights.safetensors").write_bytes(weights)
        names.append(set(sweep_cells.plan(sweep_cells.read(sweep(fixed={"base_saes": [str(tmp_path / "sae")]})))[0]))
    assert {name.split("-")[0] for name in names[0] & names[1]} == {"01_datasets", "02_activations"}


def test_a_cell_whose_code_changed_meanwhile_is_not_run(sweep, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "DATA", tmp_path)
    cells, _ = sweep_cells.plan(sweep_cells.read(sweep()))
    cell = next(iter(cells.values()))
    assert "is not what it was when the sweep began" in sweep_cells.CellRunner()((cell._replace(code="other"), []))


@pytest.mark.parametrize(
    "content, message",
    [
        ({"grid": {"layre": [1]}}, r"unknown parameter \['layre'\]"),
        ({"grid": {"layer": ["two"]}}, "parameter layer: 'two' is str, the default is 2"),
        ({"grid": {"layer": []}}, r"\{'layer': \[\]\} must give lists of equal length, one value or more"),
        ({"zip": {"layer": [1, 2], "seed": [0]}}, "must give lists of equal length"),
        ({"grid": {"layer": [1]}, "zip": {"layer": [2]}}, r"a parameter stands twice in \['layer', 'layer'\]"),
        ({"notebooks": ["05"]}, r"notebooks is \['05'\]; give a list of some of \['01_datasets'"),
        ({"gird": {}}, r"with keys of \['by_task', 'figure', 'fixed', 'grid', 'notebooks', 'profile', 'zip'\]; it "),
        ({"by_task": "yes"}, "by_task is 'yes'; it must be true or false"),
        ({"fixed": [1]}, r"fixed must be a mapping of names, it is \[1\]"),
        ({"profile": "nope"}, "unknown profile 'nope'"),
    ],
)
def test_a_wrong_sweep_is_one_sentence(sweep, content, message):
    with pytest.raises(ValueError, match=message):
        sweep_cells.read(sweep(**content))


def test_no_yaml_is_one_sentence(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe: [")
    for name in ("x.yaml", "nowhere.yaml"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            sweep_cells.read(tmp_path / name)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps(path):
    sweep = sweep_cells.read(path)
    if sweep.by_task and importlib.util.find_spec(task_files.PACKAGE) is None:
        pytest.skip("make tasks installs the tasks")
    cells, wanted = sweep_cells.plan(sweep)
    assert len(cells) >= 12 and len({name for _, name in wanted}) == len(wanted), "every point is a cell of its own"
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_six_sweeps_are_shipped():
    names = {"layer_by_k", "seed_by_recipe", "training_size", "label_noise", "sparsity_by_penalty", "tasks"}
    assert {path.stem for path in SHIPPED} == names


def test_drawn_means_over_cells_and_single_intervals():
    rows = [("a", 1, 0, 0.2), ("a", 1, 1, 0.4), ("b", 1, 0, 0.5), ("b", 1, 0, 0.5)]
    table = pd.DataFrame(rows, columns=["variant", "cell.x", "cell.seed", "value"])
    table = table.assign(low=0.1, high=0.9, split="ood", other=range(4), cell=["c1", "c2", "c1", "c2"])
    about = {"x": "cell.x", "hue": "variant", "where": {"split": ["ood"]}, "distinct": ["variant", "cell.seed"]}
    shown = sweeps.drawn(table, about).set_index("variant")
    half = 12.706204736 * np.sqrt(0.02) / np.sqrt(2)  # t of one degree of freedom
    interval = shown.loc["a", ["value", "low", "high"]].astype(float)
    np.testing.assert_allclose(interval, [0.3, 0.3 - half, 0.3 + half], rtol=1e-6)
    columns = ["value", "low", "high", "n"]
    single = shown.loc["b", columns].tolist()
    assert single == [0.5, 0.1, 0.9, 1], "equal in 'distinct': one measurement, its own interval"
    same = sweeps.drawn(table.assign(other=0), {"x": "cell.x", "hue": "variant"}).set_index("variant")
    assert same.loc["b", columns].tolist() == [0.5, 0.1, 0.9, 1], "a parameter that does not matter is no replicate"
    with pytest.raises(ValueError, match=r"2 rows of one cell at .*; where must also choose by \['other'\]"):
        sweeps.drawn(table.assign(cell="c1"), {"x": "cell.x", "hue": "variant"})
    with pytest.raises(ValueError, match=r"no row .* with a value of \['other'\]"):
        sweeps.drawn(table.assign(other=np.nan), {"x": "other"})
    with pytest.raises(ValueError, match=r"\['nope'\] are not among"):
        sweeps.drawn(table, {"x": "nope"})
    with pytest.raises(ValueError, match="no row of the table fits"):
        sweeps.drawn(table, about | {"where": {"split": "val"}})


def test_gather_takes_finished_cells_only(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DATA", tmp_path)
    grid = {"layer": [1, 2], "k_poolings": [["max"], ["max", "mean"]]}
    cells, wanted = sweep_cells.plan(sweep_cells.read(sweep(grid=grid)))
    assert sweeps.gather(wanted, cells).empty
    for point, name in wanted[:2]:
        cell = cells[name]
        for path, text in ((cell.executed, "{}"), (cell.record, json.dumps({"wall_time_s": 4.0}))):
            files.write_text(path, text)
        result = pd.DataFrame({"layer": [5], "value": [float(point["layer"])]})
        files.write_table(cell.record.with_suffix(".parquet"), result)
    table = sweeps.gather(wanted, cells)[["cell.layer", "layer", "value", "cell.k_poolings"]]
    assert table.to_numpy().tolist() == [[1, 5, 1.0, '["max"]'], [1, 5, 1.0, '["max", "mean"]']]
    assert sweeps.seconds(list(cells.values())) == {"05_probing": 4.0}
    monkeypatch.setattr(sizing, "peak_flops", lambda *_: 1e11)
    sizes = sweeps.estimates(sweep_cells.read(tmp_path / "mine.yaml"), wanted, cells).set_index("notebook")
    assert sizes.loc["05_probing", ["cells", "finished"]].tolist() == [4, 2]
    assert sizes.loc["05_probing", "hours"] == pytest.approx(2 * 4 / 3600)
    assert sizes.loc["05_probing", "from"] == "measured"
    assert sizes.loc["04_chat_finetune", "cells"] == 2 and sizes.loc["04_chat_finetune", "hours"] > 0


def test_a_dry_run_counts_a_harvest_that_cells_share_once(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DATA", tmp_path)
    monkeypatch.setattr(sizing, "peak_flops", lambda *_: 1e11)
    defaults = profiles.complete({})
    n_tokens = defaults["pretraining_tokens"] + defaults["chat_tokens"]

    def sizes(**content):
        read = sweep_cells.read(sweep(notebooks=["04_chat_finetune"], **content))
        cells, wanted = sweep_cells.plan(read)
        table = sweeps.estimates(read, wanted, cells).set_index("notebook").loc["04_chat_finetune"]
        values = [profiles.complete(read.shared | point) for point in read.points]
        trained = [sizing.estimate(of_point, 1e11).set_index(["notebook", "step"]) for of_point in values]
        at = ("04", "SAE training")
        harvested = table["tokens"] - sum(of_point.loc[at, "tokens"] for of_point in trained)
        return cells, wanted, table, harvested, sum(of_point.loc[at, "disk_gib"] for of_point in trained)

    # Four ways to finetune on the same tokens, and the same four at each of two layers.
    rates = {"finetune_lr": [0.001, 0.002, 0.003, 0.004]}
    cells, wanted, table, harvested, of_saes = sizes(grid=rates)
    assert table["cells"] == 4 and harvested == n_tokens
    half = 2 * 576  # bytes of a token
    assert table["disk_gib"] == pytest.approx(of_saes + n_tokens * half / sizing.GIB)
    with pytest.raises(ValueError, match="layer: 20, but the SAE"):
        sizes(grid=rates | {"layer": [20, 21]})
    assert sizes(grid=rates | {"layer": [20, 21]}, fixed={"insist": True})[3] == 2 * n_tokens
    assert sizes(grid=rates, fixed={"store": "stream"})[3] == 4 * n_tokens, "made anew for each"
    done = cells[wanted[0].name]
    for path, text in ((done.executed, "{}"), (done.record, json.dumps({"wall_time_s": 4.0}))):
        files.write_text(path, text)
    table = sizes(grid=rates)[2]
    assert table["finished"] == 1
    assert table["disk_gib"] == pytest.approx(of_saes * 3 / 4), "a finished cell has made the tokens"


@pytest.fixture
def folder_of_tasks(tmp_path):
    """Three tasks, of which a and b share texts."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, first in (("a", 0), ("b", 40), ("c", 200)):
        rows = [f"text {i},{i % 2}" for i in range(first, first + 80)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


def test_tasks_have_cells_of_their_own_and_one_over_all_of_them(sweep, folder_of_tasks, monkeypatch):
    fixed = {"tasks_folder": str(folder_of_tasks)}
    path = sweep(notebooks=["09_many_tasks"], by_task=True, fixed=fixed, grid={"seed": [0, 1]})
    read = sweep_cells.read(path)
    cells, wanted = sweep_cells.plan(read)
    assert len(cells) == 6 and len(wanted) == 2
    over_all = cells[wanted[1].name]
    assert over_all.values == fixed | {"seed": 1}, "what a run without cells has as its parameters"
    parts = [cells[need].values for need in over_all.needs]
    assert parts == [fixed | {"seed": 1, "folder_tasks": names} for names in (["a", "b"], ["c"])]
    monkeypatch.setattr(sizing, "peak_flops", lambda *_: 1e11)
    tokens = sweeps.estimates(read, wanted, cells).loc[0, "tokens"]
    texts = {f"text {i}" for i in [*range(120), *range(200, 280)]}
    of_texts = sum(map(len, texts)) / task_sizes.CHARACTERS_PER_TOKEN + len(texts) * task_sizes.TURN_TOKENS
    assert tokens == pytest.approx(of_texts), "each text once"


def test_sources_hold_what_a_notebook_reads():
    paths = set(build_graph.sources(build_graph.NOTEBOOKS / "05_probing.py"))
    assert {"notebooks/05_probing.py", "lib/probing/ksparse.py", "lib/stats/draws.py", "data/sources.yaml"} <= paths
    assert "lib/runs/sweeps.py" not in paths
