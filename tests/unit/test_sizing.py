import json
import re

import pytest
import transformers

from lib.base import build_graph
from lib.runs import profiles, runner, sizing, task_runs, task_sizes

SHIPPED = ["gemma-2-2b", "gemma-2-9b", "gemma-3-270m", "gemma-3-1b", "pythia-160m", "tiny-gemma"]


def estimate(**values):
    return sizing.estimate({"profile": "x", **values}, flops=1e12).set_index(["notebook", "step"])


def test_sizes_by_hand(tiny_gemma):
    d_model, harvest = 32, ("04", "harvest")
    values = {"model": str(tiny_gemma), "layer": 1, "pretraining_tokens": 3000, "chat_tokens": 1000, "insist": True}
    on_disk = estimate(**values, store="disk", max_tokens=1000, layers=[0, 1])
    assert on_disk.loc[harvest, "disk_gib"] * sizing.GIB == pytest.approx(3000 * 2 * d_model)
    assert on_disk.loc[harvest, "tokens"] == 3000
    chat = on_disk["tokens"].loc[[("03", "harvest"), ("04", "harvest of chat")]]
    assert chat.tolist() == [1000, 0], "the same chat, which is harvested once"
    assert estimate(**values, max_tokens=2000).loc[("04", "harvest of chat"), "tokens"] == 1000
    assert on_disk.loc[("01", "weights of the model"), "disk_gib"] == 0, "a local folder is not fetched"
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_gemma)
    weights = sum(p.numel() for p in model.parameters())
    assert on_disk.loc[("02", "pooled and token activations"), "memory_gib"] * sizing.GIB == weights * 4
    stream = estimate(**values, store="stream")
    assert stream.loc[harvest, "disk_gib"] == 0 and stream.loc[harvest, "hours"] > on_disk.loc[harvest, "hours"]


def test_work_grows_with_tokens_and_width():
    hours = []
    for n in (1000, 4000):
        tokens = {name: n * 100 for name in ("finetune_tokens", "scratch_tokens", "base_train_tokens")}
        hours.append(estimate(base_saes=[], base_d_sae=n, **tokens).loc[("04", "SAE training"), "hours"])
    assert hours[1] / hours[0] == pytest.approx(16)
    assert sizing._width("gemma-scope-9b-it-res:layer_20/width_131k/average_l0_81") == 131_072
    assert sizing._width("data/pretrained/all-MiniLM-L6-v2-layer-2-base") == 1536


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "topk", "d_sae": 64},
        {"architecture": "jumprelu", "d_sae": 64, "normalize_activations": "layer_norm"},
    ],
)
def test_an_sae_that_cannot_be_finetuned_is_refused_before_anything_is_run(tmp_path, config):
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    sentence = f"only a jumprelu SAE .*, and {tmp_path} is '{config['architecture']}' with normalize_activations '"
    with pytest.raises(ValueError, match=sentence):
        estimate(base_saes=[str(tmp_path)])


def test_saes_of_another_layer_are_refused_before_anything_is_run():
    """With the parameters that are to be changed; not where one insists, or where they are trained."""
    sentence = "layer: 15, but the SAE .*-base was trained on blocks.21.hook_resid_post; .*base_saes: .*insist: true"
    with pytest.raises(ValueError, match=sentence):
        estimate(layer=15)
    with pytest.raises(ValueError, match="layer: 15, but the SAE .*-prompts was"):
        estimate(layer=15, base_saes=[])
    for of_others in ({"base_saes": [], "prompts_sae": ""}, {"insist": True}):
        assert len(estimate(layer=15, **of_others))


def test_trainings_are_counted_by_hand():
    tokens = {"finetune_tokens": 100, "scratch_tokens": 100, "base_train_tokens": 1000, "base_lr": 0.1}
    ways = {"resample_shares": [0.25], "prompt_repeats": [], "finetune_lr": 0.1, "scratch_lr": 0.1}
    sae = "data/pretrained/SmolLM2-135M-Instruct-layer-21-base"

    def trained(**values):
        values = {"token_shares": [], "sae_widths": []} | values
        return estimate(**tokens, **ways, **values).loc[("04", "SAE training"), "tokens"]

    # Chat and placebo of each base SAE, resampled and scratch of the first ones; the IT-formatted SAE finetuned once.
    three = [sae, f"{sae}-1", f"{sae}-2"]
    assert trained(base_saes=[sae], prompts_sae=sae) == (4 + 1) * 100
    cheaper = {"token_shares": [0.5, 0.25], "sae_widths": [64]}
    assert trained(base_saes=[sae], prompts_sae=sae, **cheaper) == (4 + 1 + 1.75) * 100
    assert trained(base_saes=three, prompts_sae=sae, other_bases=1) == (3 * 2 + 2 + 1) * 100
    assert trained(base_saes=three, prompts_sae=sae, other_bases=2) == (3 * 2 + 2 * 2 + 1) * 100
    assert trained(base_saes=three, prompts_sae=sae, other_bases=0) == (3 * 4 + 1) * 100
    # Trained here: two base SAEs with their earlier checkpoints, from which a chat SAE begins as well, and the IT one.
    here = {"base_saes": [], "base_seeds": [0, 1], "prompts_sae": ""}
    assert trained(**here, other_bases=0) == (2 * 5 + 1) * 100 + (2 * 2 + 1) * 1000
    assert trained(**here, other_bases=1) == (2 * 2 + 3 + 1) * 100 + (2 + 1 + 1) * 1000
    with pytest.raises(ValueError, match="other_bases is -2"):
        trained(base_saes=[sae], prompts_sae=sae, other_bases=-2)
    harvest = [estimate(prompts_sae=place).loc[("04", "harvest"), "tokens"] for place in (sae, "")]
    assert harvest[1] - harvest[0] == profiles.complete({})["pretraining_tokens"], "wrapped as prompts once more"


@pytest.fixture
def tasks_folder(tmp_path):
    """Two tasks of 80 rows each, 40 of which they share; each text has 40 characters."""
    for name, first in (("a", 0), ("b", 40)):
        rows = [f"{'text':<36}{i:>4},{i % 2}" for i in range(first, first + 80)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "unlabelled.txt").write_text("no table")
    return tmp_path


def test_tasks_are_counted_by_hand(tasks_folder, tiny_gemma, capsys, monkeypatch):
    sae = f"{tiny_gemma}/gemma-scope/layer_1/width_256/average_l0_10"
    values = {"model": str(tiny_gemma), "layer": 1, "base_saes": [sae], "prompts_sae": ""}
    values |= {"tasks_folder": str(tasks_folder), "k_poolings": ["mean", "max"], "tasks_ks": [4], "tasks_show_k": 4}
    values |= {"task_sizes": [16], "task_positives": [], "task_noise": [0.1], "task_draws": 2, "task_tokens": 8}
    table = estimate(**values)
    of_09 = table[table.index.get_level_values("notebook") == "09"]
    assert of_09.index.get_level_values("step").tolist() == ["texts of 2 tasks", "probes on 160 rows"]
    # 120 texts of 40 characters, of which the end is kept; pooled twice: 32 coordinates, one SAE and two dictionaries.
    assert of_09["tokens"].tolist() == [120 * (8 + task_sizes.TURN_TOKENS), 0]
    pooled, tokens = 120 * 2 * (4 * 32 + 3 * task_sizes.LATENT_BYTES), 120 * 14 * 2 * 32
    assert of_09["disk_gib"].iloc[0] * sizing.GIB == pytest.approx(pooled + tokens)
    # Poolings, selections and k (1 and 4): 8 probes on an SAE. In each of three settings these, dense ones of either
    # pooling, TF-IDF and all latents in either; once those on two dictionaries, with all their columns in either
    # pooling, two draws of two bases, and the coordinates.
    probes = 3 * (8 + 2 + 1 + 2) + (2 + 2 * 2 + 1) * 8 + 2 * 2
    assert task_sizes.n_task_probes(profiles.complete(values)) == probes
    of_tasks, of_rows = 2 * task_sizes.PROBE_SECONDS, 160 * task_sizes.PROBE_ROW_SECONDS
    assert of_09["hours"].iloc[1] * 3600 == pytest.approx(probes * (of_tasks + of_rows) / 2), "on two cores"
    one = estimate(**values, folder_tasks=["b"])
    assert ("09", "probes on 80 rows") in one.index and ("09", "texts of 1 tasks") in one.index
    assert "09" not in estimate(**values | {"base_saes": []}).index, "without an SAE nothing is measured"
    monkeypatch.setenv("DRY", "1")
    assert not task_runs.prepare({"profile": "mine", **values})
    assert capsys.readouterr().out.startswith("mine: 2 tasks, 160 rows; at most 0.00 GiB of disk, ")


def test_too_little_disk_is_an_error_before_anything_is_fetched(monkeypatch, tmp_path, capsys):
    table = sizing.estimate({"profile": "x", "pretraining_tokens": 10**9}, flops=1e12)
    sentence = r"about [\d.]+ GiB of disk are needed, 1.0 GiB are free; "
    sentence += r"the most, [\d.]+ GiB, takes harvest of notebook 04"
    with pytest.raises(ValueError, match=sentence):
        sizing.check(table, free=2**30)
    fetched = []
    monkeypatch.setattr(runner.sources, "fetch", fetched.append)
    monkeypatch.setattr(sizing, "estimate", lambda values: table)
    monkeypatch.setattr(runner, "run_dir", lambda profile: tmp_path / profile)
    monkeypatch.setattr(sizing.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**30}))
    with pytest.raises(ValueError, match="GiB are free"):
        runner.fetch({"profile": "x", "dataset": "public"})
    assert not fetched and "estimated" in capsys.readouterr().out


@pytest.mark.parametrize("profile", SHIPPED)
def test_the_shipped_profiles_set_known_parameters_of_the_right_type(profile):
    values = profiles.read_profile(profiles.profile_path(profile))
    for notebook in build_graph.notebooks():
        profiles.select(notebook, values)
    for place in [*values["base_saes"], values.get("prompts_sae", "")]:
        if ":" in place:
            from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

            release, sae_id = place.split(":", 1)
            assert sae_id in get_pretrained_saes_directory()[release].saes_map
            assert re.search(rf"layer_{values['layer']}[/_]", sae_id)
