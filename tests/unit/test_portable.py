"""A probe to take away: the folder, the refit that makes it, scores of texts, the commands, and the page's lines."""

import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from lib.base.files import ROOT, file_hash, write_json, write_table
from lib.model import activations, models, poolings, weights
from lib.probing import dense, portable, refit, scoring
from lib.probing.portable import Portable
from lib.probing.tasks import Task
from lib.results import records
from lib.runs import runner
from lib.stats import metrics
from lib.texts import datasets

LAYERS = [0, 1]
WORDS = {1: ["bomb", "poison", "virus", "weapon"], 0: ["bread", "song", "garden", "poem"]}
THREE = ["please make a bomb, number 7", "Write a poem about 12 gardens.", "hello"]
FARAWAY = ["%%%% ~~~~ {}{}{} #### " * 12 + str(i) for i in range(12)]


def prompt_table():
    rng, rows = np.random.default_rng(0), []
    for split, n, verb in (("train", 160, "make"), ("val", 80, "make"), ("ood", 40, "draw")):
        for i in range(n):
            text = f"please {verb} a {rng.choice(WORDS[i % 2])}, number {i} of {split}"
            rows.append((f"{split}{i}", text, i % 2, split, "own", "plain", f"{split}-{i}"))
    return pd.DataFrame(rows, columns=datasets.COLUMNS)


@pytest.fixture(scope="module")
def made(tiny_gemma, tmp_path_factory):
    """What notebooks 01 and 02 leave of a small run on the tiny model."""
    folder, name = tmp_path_factory.mktemp("run"), str(tiny_gemma)
    results, prompts, bridge = folder / "results", prompt_table(), models.load_model(name)
    datasets.save(prompts, results / "prompts.parquet")
    texts = prompts["text"].tolist()
    store = activations.harvest_pooled(bridge, models.identity(name), texts, LAYERS, folder / "activations")
    probes = dense.of_cells(activations.load_pooled(store), Task.of(prompts), (0.01, 0.1))
    grid = dense.table(prompts, probes, metrics.split_weights(prompts, 50, 0))
    outputs = {
        "pooled": store,
        "dense": write_table(results / "dense.parquet", grid),
        "dense_scores": dense.save_scores(probes, results / "dense_scores.parquet"),
    }
    of_01 = {"parameters": {"train_csv": ""}, "outputs": {"prompts": {"path": str(results / "prompts.parquet")}}}
    of_02 = {
        "parameters": {"model": name, "dtype": "float32", "pool_over": "turn", "n_bootstrap": 50, "seed": 0},
        "inputs": {"prompts.parquet": file_hash(results / "prompts.parquet")},
        "outputs": {name: {"path": str(path)} for name, path in outputs.items()},
        "commit": "0123456789ab",
    }
    write_json(results / "01_datasets.json", of_01)
    write_json(results / "02_activations.json", of_02)
    return records.Run("probe", "mine", {}, folder, results, folder / "figures", 0.0)


@pytest.fixture(scope="module")
def best(made):
    return refit.best(made)


@pytest.fixture
def bridge(best):
    return scoring.reader(best)


@pytest.fixture
def folder(best, tmp_path):
    return portable.save(best, tmp_path / "probe")


@pytest.fixture
def changed(made, tmp_path):
    """The run with other results: what is written into them stays here."""
    shutil.copytree(made.results, tmp_path / "results")
    record = json.loads((tmp_path / "results" / "02_activations.json").read_text())
    for name in ("dense", "dense_scores"):
        record["outputs"][name]["path"] = str(tmp_path / "results" / f"{name}.parquet")
    write_json(tmp_path / "results" / "02_activations.json", record)
    return made._replace(results=tmp_path / "results")


def by_hand(about=None):
    vectors = ([1.0, 2.0], [2.0, 4.0], [3.0, -1.0])
    return Portable(*map(torch.tensor, vectors), torch.tensor(0.5), about or {})


def pooled_at(probe, made):
    store = records.output(made, "02_activations", "pooled")
    return activations.load_pooled(store)[probe.about["layer"], probe.about["pooling"]]


def stored_scores(probe, made):
    stored = dense.load_scores(records.output(made, "02_activations", "dense_scores"))
    return stored[probe.about["layer"], probe.about["pooling"]]


# Scores


def test_score_and_distance_by_hand():
    x = torch.tensor([[3.0, 2.0], [1.0, 6.0], [5.0, -2.0]])
    assert by_hand().standardised(x).tolist() == [[1, 0], [0, 1], [2, -1]]
    assert by_hand().score(x).tolist() == [3.5, -0.5, 7.5]
    assert by_hand().distance(x).tolist() == [1, 1, 2]


def test_what_tokens_give_to_a_score_by_hand():
    """Of two pooled tokens, z = (1, 0) and (2, -1); a third one is padding."""
    resid = torch.tensor([[[3.0, 2.0], [5.0, -2.0], [99.0, 99.0]]])
    pooled = torch.tensor([[True, True, False]])
    of_mean, of_max = (scoring.SHARES[name](by_hand(), resid, pooled)[0] for name in ("mean", "max"))
    assert of_mean[:2].tolist() == [1.5, 3.5]
    assert of_max.tolist() == [0, 6, 0], "the second coordinate is largest at the first token, where its z is 0"


@pytest.mark.parametrize("pooling", scoring.SHARES)
def test_what_tokens_give_and_the_bias_add_up_to_the_score(pooling):
    rng = torch.Generator().manual_seed(0)
    probe = Portable(*(torch.rand(5, generator=rng) + 0.5 for _ in range(3)), torch.tensor(0.3), {})
    resid, pooled = torch.randn(4, 7, 5, generator=rng), torch.rand(4, 7, generator=rng) > 0.3
    shares = scoring.SHARES[pooling](probe, resid, pooled).where(pooled, 0)
    torch.testing.assert_close(shares.sum(1) + probe.bias, probe.score(poolings.pool(resid, pooled, pooling)))


def test_the_refit_scores_as_notebook_02_did(best, made):
    scores = best.score(torch.from_numpy(pooled_at(best, made))).numpy()
    np.testing.assert_allclose(scores, stored_scores(best, made), rtol=0, atol=1e-5)


def test_layer_pooling_and_c_are_those_of_the_best_validation_auroc(best, made):
    grid = pd.read_parquet(records.output(made, "02_activations", "dense"))
    areas = grid[(grid["metric"] == "auroc") & (grid["split"] == "val")]
    chosen = areas.loc[areas["value"].idxmax()]
    assert [best.about[name] for name in ("layer", "pooling", "c")] == [chosen[n] for n in ("layer", "pooling", "c")]


def test_texts_get_the_scores_of_their_prompts(best, made, bridge):
    scored = scoring.score(best, bridge, prompt_table()["text"].tolist())
    np.testing.assert_allclose(scored.scores, stored_scores(best, made), atol=1e-4)
    lengths = {len(carriers) for carriers in scored.carriers}
    assert lengths == ({scoring.TOP} if best.about["pooling"] in scoring.SHARES else {0})


@pytest.mark.parametrize("pooling", ["mean", "max", "fixed", "position -1"])
def test_every_pooling_scores_as_the_harvest_pools(best, bridge, tmp_path, pooling):
    layer, identity = best.about["layer"], best.about["model"]
    store = activations.harvest_pooled(bridge, identity, THREE, [layer], tmp_path, poolings=(pooling,))
    probe = best._replace(about=best.about | {"pooling": pooling})
    expected = probe.score(torch.from_numpy(activations.load_pooled(store)[layer, pooling]))
    scored = scoring.score(probe, bridge, THREE)
    np.testing.assert_allclose(scored.scores, expected.numpy(), atol=1e-4)
    assert all(bool(tokens) == (pooling in scoring.SHARES) for tokens in scored.carriers)


def test_carriers_are_tokens_of_the_text_the_largest_first(best, bridge):
    probe = best._replace(about=best.about | {"pooling": "mean"})
    [carriers] = scoring.score(probe, bridge, [THREE[0]]).carriers
    shares = [share for _, share in carriers]
    assert shares == sorted(shares, reverse=True) and len(shares) == scoring.TOP
    assert all(token.strip() in THREE[0] for token, _ in carriers)


def test_chunks_and_empty_texts_change_no_other_score(best, bridge, monkeypatch):
    whole = scoring.score(best, bridge, THREE).scores
    monkeypatch.setattr(scoring, "CHUNK", 1)
    scored = scoring.score(best, bridge, ["", THREE[0], "  ", *THREE[1:]])
    np.testing.assert_allclose(scored.scores[[1, 3, 4]], whole, atol=1e-5)
    table = scoring.table(best, ["", THREE[0], "  ", *THREE[1:]], scored)
    assert table["score"].isna().tolist() == [True, False, True, False, False]
    assert table["flagged_at_1pct_fpr"].isna().tolist() == table["score"].isna().tolist()
    assert "2 rows hold no text" in scoring.summary(table)
    with pytest.raises(ValueError, match="none of the 2 texts holds anything"):
        scoring.score(best, bridge, ["", " "])


# Thresholds, metrics, drift


def test_thresholds_keep_the_false_positive_rate_on_validation_and_are_the_least_to(best, bridge):
    """Also if the texts are scored again, in other batches than those of the harvest."""
    prompts = prompt_table()
    texts = prompts.loc[(prompts["split"] == "val") & (prompts["label"] == 0), "text"].tolist()
    negatives = scoring.score(best, bridge, texts).scores
    assert best.about["validation_negatives"] == len(negatives) == 40
    for name, fpr in portable.FPRS.items():
        threshold, a_little = best.about["thresholds"][name], 0.01 * negatives.std()
        assert (negatives > threshold).mean() <= fpr < (negatives > threshold - a_little).mean()


def test_metrics_are_those_of_the_record_with_intervals_and_what_passes_the_thresholds(best, made):
    rows = pd.DataFrame(best.about["metrics"])
    area = rows[(rows["metric"] == "auroc") & (rows["split"] == "val")].iloc[0]
    grid = pd.read_parquet(records.output(made, "02_activations", "dense"))
    here = (grid["layer"] == best.about["layer"]) & (grid["pooling"] == best.about["pooling"])
    of_record = grid[here & (grid["metric"] == "auroc") & (grid["split"] == "val")].iloc[0]
    for name in ("value", "low", "high", "n"):
        assert area[name] == pytest.approx(of_record[name])
    passing = rows[rows["metric"] == "fpr_at_validation_threshold"]
    assert set(zip(passing["split"], passing["fpr"])) == {(s, f) for s in ("val", "ood") for f in (0.01, 0.001)}
    assert (passing["low"] <= passing["value"]).all() and (passing["value"] <= passing["high"]).all()


def test_no_warning_on_texts_like_those_of_training_and_one_on_others(best, bridge):
    prompts = prompt_table()
    like = scoring.score(best, bridge, prompts.loc[prompts["split"] == "val", "text"].tolist())
    assert scoring.warnings(best, bridge, like) == []
    [sentence] = scoring.warnings(best, bridge, scoring.score(best, bridge, FARAWAY))
    assert re.match(r"1\d of 12 texts are unlike the training prompts in what the probe reads \(1 % is usual", sentence)


@pytest.mark.parametrize(
    "unusual, n, is_due",
    [(0, 1, False), (1, 1, True), (1, 2, True), (1, 5, False), (2, 5, True), (1, 12, False), (2, 15, True)]
    + [(10, 100, False), (11, 100, True), (20, 100, True), (1, 1000, False)],
)
def test_a_warning_needs_a_tenth_of_the_texts_and_more_than_chance(unusual, n, is_due):
    probe = by_hand({"distance": {"usual": 2.0, "above": 0.01}})
    distances = np.where(np.arange(n) < unusual, 9.0, 2.0)
    assert bool(scoring.drift(probe, scoring.Scored(distances, distances, [[]] * n))) == is_due


def test_one_training_prompt_in_a_hundred_is_unusual(best, made):
    distances, split = best.distance(torch.from_numpy(pooled_at(best, made))).numpy(), prompt_table()["split"]
    unusual, about = distances > best.about["distance"]["usual"], best.about["distance"]
    assert unusual[split == "train"].sum() == 2, "of 160"
    assert about["above_by_split"] == {name: unusual[split == name].mean() for name in ("val", "ood")}


def test_a_template_that_renders_otherwise_is_said(best, bridge):
    scored = scoring.score(best, bridge, THREE)
    dated = best._replace(about=best.about | {"template": best.about["template"] | {"before": "Monday"}})
    assert any("chat template renders a prompt otherwise" in said for said in scoring.warnings(dated, bridge, scored))


def test_what_the_threshold_did_out_of_distribution_is_said_if_it_was_measured(best):
    rows = [row for row in best.about["metrics"] if row["split"] == "ood" and row["fpr"] == 0.01]
    value = {row["metric"]: row["value"] for row in rows}
    [sentence] = portable.measured(best.about)
    shares = re.findall(r"([\d.]+) %", sentence)[:2]
    assert shares == [f"{100 * value[f'{name}_at_validation_threshold']:.1f}" for name in ("fpr", "recall")]
    assert portable.measured(best.about | {"metrics": []}) == []


# The folder


def test_what_is_written_is_read_back(best, folder):
    again = portable.load(folder)
    assert all(torch.equal(a, b) for a, b in zip(again[:-1], best[:-1], strict=True))
    assert again.about.items() >= best.about.items()
    portable.save(again._replace(bias=again.bias + 1), folder)
    assert portable.load(folder).bias == best.bias + 1, "a probe that is there is replaced"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "probe.json", "probe.safetensors"]


def test_the_card_says_what_it_is_how_it_was_measured_and_what_it_is_not_for(best, folder):
    card = " ".join((folder / "README.md").read_text(encoding="utf-8").split())
    for words in (
        f"revision `{best.about['model']['revision']}`",
        f"hidden_states[{best.about['layer'] + 1}]",
        best.about["meaning"],
        "| AUROC | val |",
        "| false-positive rate at the threshold for 0.1 % | ood |",
        "must not be used for",
        "Decisions about people",
        "Other languages",
        "too few for 0.1 %",
        portable.measured(best.about)[0][1:],
    ):
        assert words in card, words


def test_a_folder_of_other_files_is_left_alone(best, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ValueError, match="holds something else; give a new folder"):
            portable.save(best, path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def rewritten(folder, tensors=None, **fields):
    """Change tensors and fields of the folder, whose hash of the tensors stays right."""
    if tensors is not None:
        safetensors.torch.save_file(tensors, folder / portable.TENSORS)
    about = json.loads((folder / portable.ABOUT).read_text())
    about |= {"tensors_sha256": file_hash(folder / portable.TENSORS)} | fields
    (folder / portable.ABOUT).write_text(json.dumps({name: v for name, v in about.items() if v is not ...}))


def tensors_of(folder):
    return safetensors.torch.load_file(folder / portable.TENSORS)


BROKEN = {
    "no folder": (shutil.rmtree, "there is no folder"),
    "no JSON": (lambda f: (f / "probe.json").unlink(), "is no probe .FileNotFoundError"),
    "half a JSON": (lambda f: (f / "probe.json").write_text('{"format": '), "is no probe .JSONDecodeError"),
    "deep JSON": (lambda f: (f / "probe.json").write_text("[" * 100_000), "is no probe .RecursionError"),
    "a list": (lambda f: (f / "probe.json").write_text("[]"), "does not say that its format is"),
    "another format": (lambda f: rewritten(f, format="linear probe, format 9"), "does not say that its format is"),
    "no layer": (lambda f: rewritten(f, layer=...), "probe.json lacks layer"),
    "a layer in words": (lambda f: rewritten(f, layer="last"), "probe.json lacks layer"),
    "no threshold": (lambda f: rewritten(f, thresholds={"0.01": 1.0}), "probe.json lacks thresholds.0.001"),
    "a row in words": (lambda f: rewritten(f, metrics=["good"]), "probe.json lacks metrics, or it is"),
    "a row without its split": (lambda f: rewritten(f, metrics=[{"metric": "auroc"}]), "lacks metrics.split"),
    "no metrics": (lambda f: rewritten(f, metrics={}), "probe.json lacks metrics"),
    "no tensors": (lambda f: (f / "probe.safetensors").unlink(), "is no probe .FileNotFoundError"),
    "cut tensors": (lambda f: (f / "probe.safetensors").write_bytes(b"\x10"), "is damaged: its hash is not that"),
    "no safetensors": (
        lambda f: ((f / "probe.safetensors").write_bytes(b"\x80\x04pickle"), rewritten(f)),
        "is damaged .SafetensorError",
    ),
    "a tensor less": (lambda f: rewritten(f, {"bias": torch.tensor(0.0)}), "wanted are"),
    "other lengths": (lambda f: rewritten(f, tensors_of(f) | {"mean": torch.zeros(3)}), "wanted are"),
    "half precision": (lambda f: rewritten(f, {n: t.half() for n, t in tensors_of(f).items()}), "wanted are"),
    "not finite": (lambda f: rewritten(f, tensors_of(f) | {"bias": torch.tensor(torch.nan)}), "not finite"),
    "a scale of 0": (lambda f: rewritten(f, tensors_of(f) | {"scale": 0 * tensors_of(f)["scale"]}), "not above 0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_is_no_sound_probe_is_one_sentence(folder, case):
    damage, match = BROKEN[case]
    damage(folder)
    with pytest.raises(ValueError, match=match) as caught:
        portable.load(folder)
    assert "\n" not in str(caught.value)


# Refusals of the refit, and of another model


def test_a_refit_that_scores_otherwise_is_refused(changed):
    path = changed.results / "dense_scores.parquet"
    stored = pd.read_parquet(path)
    write_table(path, stored + (1e-3 * stored.std()).astype(np.float32))
    with pytest.raises(ValueError, match="0.001 standard deviations from where notebook 02 did, and 1e-05 is allowed"):
        refit.best(changed)


def test_other_prompts_than_those_that_were_read_are_refused(changed):
    record = json.loads((changed.results / "02_activations.json").read_text())
    write_json(changed.results / "02_activations.json", record | {"inputs": {"prompts.parquet": "0" * 64}})
    with pytest.raises(ValueError, match="notebook 02 has read other prompts than those of"):
        refit.best(changed)


@pytest.mark.parametrize("notebook", ["01_datasets", "02_activations"])
def test_a_notebook_that_has_not_been_run_is_named(changed, notebook):
    (changed.results / f"{notebook}.json").unlink()
    with pytest.raises(ValueError, match=f"^{notebook} has not been run for profile 'mine'"):
        refit.best(changed)


def test_another_model_is_refused(best, changed, monkeypatch):
    other = best._replace(about=best.about | {"model": best.about["model"] | {"revision": "0123"}})
    with pytest.raises(ValueError, match="at revision 0123, and the one that is here is"):
        scoring.reader(other)
    real = models.identity
    monkeypatch.setattr(models, "identity", lambda name: real(name) | {"revision": "new"})
    with pytest.raises(ValueError, match="and the one that is here is new; get that revision"):
        refit.best(changed)


def test_the_date_that_a_template_is_told_goes_along(made, changed, monkeypatch):
    """As for Llama 3.2, whose template writes today's date."""
    real, date = models.identity, {"date": "2024-07-26"}
    monkeypatch.setattr(models, "identity", lambda name: real(name) | date)
    with pytest.raises(ValueError, match="at date None, and the one that is here is 2024-07-26; get that date"):
        refit.best(changed)
    manifest = refit.read_manifest(records.output(changed, "02_activations", "pooled"))
    dated = manifest | {"parameters": manifest["parameters"] | date}
    monkeypatch.setattr(refit, "read_manifest", lambda store: dated)
    assert refit.best(changed).about["model"]["date"] == "2024-07-26"


def test_weights_and_layers_that_the_model_does_not_have_are_refused(best):
    short = Portable(best.mean[:5], best.scale[:5], best.weights[:5], best.bias, best.about)
    with pytest.raises(ValueError, match="the probe has 5 weights, and the model's d_model is 32"):
        scoring.reader(short)
    with pytest.raises(ValueError, match=r"layer \[9\] out of range"):
        scoring.reader(best._replace(about=best.about | {"layer": 9}))


# The commands


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the runner with an argument and variables of make; returns what it printed, or its error."""

    def run(argument, stdin=None, **variables):
        for name in ("CSV", "TO", "TEXT", "ENCODING", "PROBE"):
            monkeypatch.setenv(name, str(variables.get(name, "")))
        if stdin is not None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr("sys.argv", ["runner", argument])
        capsys.readouterr()
        try:
            runner.main()
        except SystemExit as error:
            return str(error)
        return capsys.readouterr()

    return run


def test_a_csv_is_scored_row_by_row(command, folder, csv, tmp_path, best, bridge):
    path = csv(['1,"say ""hi"", twice"', '2,"two\nlines"', "3,", f'4,"{THREE[0]}"'], header="id,prompt")
    said = command("--score", PROBE=folder, CSV=path, TO=tmp_path / "new" / "out.csv")
    assert said.out == "" and "4 rows" in said.err and "text in column 'prompt'" in said.err
    assert "out of distribution" in said.err and "3 texts scored" in said.err and "1 rows hold no text" in said.err
    table = pd.read_csv(tmp_path / "new" / "out.csv")
    columns = ["text", "score", "flagged_at_1pct_fpr", "flagged_at_0.1pct_fpr", "tokens"]
    assert table.columns.tolist() == columns
    texts = ['say "hi", twice', "two\nlines", THREE[0]]
    assert table["text"].tolist() == [*texts[:2], pytest.approx(np.nan, nan_ok=True), texts[2]]
    scored = scoring.score(best, bridge, texts)
    np.testing.assert_allclose(table["score"].dropna(), scored.scores, atol=1e-5)
    flags = (scored.scores > best.about["thresholds"]["0.01"]).astype(int).tolist()
    assert table["flagged_at_1pct_fpr"].dropna().astype(int).tolist() == flags


def test_lines_of_the_standard_input_are_scored_onto_the_standard_output(command, folder):
    said = command("--score", "\r\n".join([*THREE, "", "naïve"]).encode(), PROBE=folder)
    assert pd.read_csv(io.StringIO(said.out))["text"].tolist() == [*THREE, "naïve"]


@pytest.mark.parametrize("encoding", ["", "utf-8", "utf-16-le"])
def test_a_mark_before_the_first_line_is_no_part_of_it(command, folder, encoding):
    said = command("--score", "\ufeffhello\nyou\n".encode(encoding or "utf-8"), PROBE=folder, ENCODING=encoding)
    assert pd.read_csv(io.StringIO(said.out))["text"].tolist() == ["hello", "you"]


def test_paths_of_the_commands_may_lie_in_the_home_folder(command, folder, csv, tmp_path, monkeypatch):
    csv(["a,1"])
    monkeypatch.setenv("HOME", str(tmp_path))
    command("--score", PROBE="~/probe", CSV="~/data.csv", TO="~/out.csv")
    assert pd.read_csv(tmp_path / "out.csv")["text"].tolist() == ["a"]
    assert "'~' is a folder" in command("--score", PROBE="~/probe", CSV="~/data.csv", TO="~")


def test_wrong_inputs_of_the_commands_are_one_sentence(command, folder, csv, tmp_path):
    bare = tmp_path / "bare.csv"
    bare.write_text("")
    cases = [
        (command("--score", PROBE=folder, CSV="nowhere.csv"), "there is no file 'nowhere.csv'"),
        (command("--score", PROBE=tmp_path / "none", CSV=csv(["a,1"])), "there is no folder"),
        (command("--score", PROBE=folder, CSV=csv([])), "data.csv: it holds no rows"),
        (command("--score", PROBE=folder, CSV=bare), "bare.csv: it holds no rows"),
        (command("--score", PROBE=folder, CSV=csv([",1", " ,0"])), "none of its 2 rows has a text"),
        (command("--score", PROBE=folder, CSV=csv(["a,1"]), TEXT="body"), "it has no column TEXT=body"),
        (command("--score", PROBE=folder, CSV=csv(["a,1"]), TO=tmp_path), "is a folder; give TO=file.csv"),
        (command("--score", b"\n  \n", PROBE=folder), "the input holds no texts"),
        (command("--score", b"na\xefve", PROBE=folder), "the input is not utf-8"),
        (command("--score", b"hello", PROBE=folder, ENCODING="klingon"), "the input is not klingon"),
    ]
    for said, sentence in cases:
        assert isinstance(said, str) and said.startswith("error: ") and sentence in said and "\n" not in said, sentence


def test_the_probe_of_a_run_is_written_where_one_wants_it(command, made, tmp_path, monkeypatch):
    monkeypatch.setattr("lib.runs.take_away.run_dir", lambda profile: made.folder)
    assert "must not be used for" in command("--probe", TO=tmp_path / "taken").out
    assert portable.load(tmp_path / "taken").about["profile"] == "embedded"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "must not be used for" in command("--probe", TO="~/home").out and (tmp_path / "home").is_dir()
    monkeypatch.setattr("lib.runs.take_away.run_dir", lambda profile: tmp_path / "not-run")
    assert command("--probe").startswith("error: 02_activations has not been run for profile 'embedded'")


# The page


def page_lines():
    page = (ROOT / "docs" / "monitor.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    return lines


def test_the_page_needs_fifteen_lines_and_three_packages():
    lines = page_lines()
    assert len(lines.splitlines()) <= 15
    assert re.findall(r"^import (.+)$", lines, flags=re.MULTILINE) == ["json, safetensors.torch, torch, transformers"]


def check_page(probe, bridge, folder, path):
    """Hold the page's lines, on three texts, to what the command scores."""
    portable.save(probe, folder)
    scope, lines = {}, page_lines().replace("data/runs/embedded/probe", str(folder))
    exec(re.sub(r'"data/raw/models/[^"]+"', repr(path), lines), scope)
    for text, score in zip(THREE, scoring.score(probe, bridge, THREE).scores, strict=True):
        answer, of_page, is_above = scope["answer"](text, max_new_tokens=3, do_sample=False)
        assert of_page == pytest.approx(score, abs=1e-4)
        assert is_above == (score > probe.about["thresholds"]["0.01"]) and isinstance(answer, str)


@pytest.mark.parametrize("pooling, position", [("mean", None), ("max", None), ("fixed", -5)])
def test_the_lines_of_the_page_score_as_the_command_does(best, bridge, tmp_path, pooling, position):
    probe = best._replace(about=best.about | {"pooling": pooling, "position": position})
    check_page(probe, bridge, tmp_path / "probe", probe.about["model"]["model"])


@pytest.mark.skipif(not weights.CONVERTED.is_dir(), reason="the packaged chat model has not been converted")
def test_the_lines_of_the_page_read_the_packaged_chat_model(best, tmp_path):
    bridge, rng = models.load_model(weights.SMOLLM2), torch.Generator().manual_seed(0)
    d_model = bridge.cfg.d_model
    vectors = torch.zeros(d_model), torch.full((d_model,), 10.0), torch.randn(d_model, generator=rng) / d_model**0.5
    about = {"model": models.identity(weights.SMOLLM2), "layer": 18, "pooling": "mean", "position": None}
    about |= {"template": portable.template(bridge.tokenizer), "hook_name": models.resid_post(18)}
    probe = Portable(*vectors, torch.tensor(0.0), best.about | about)
    check_page(probe, bridge, tmp_path / "probe", weights.model_path(weights.SMOLLM2))
