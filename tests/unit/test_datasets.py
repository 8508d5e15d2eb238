import numpy as np
import pandas as pd
import pytest

from lib.texts import datasets, sources


@pytest.mark.parametrize(
    "raw, clean",
    [
        ("  what is  this?! ", "What is this"),
        ("Write a poem (keep it short)", "Write a poem"),
        ("Sort these [4, 1, 9]", "Sort these"),
        ("say “hi” – now.", 'Say "hi" - now'),
        ("Nested (a) (b).", "Nested"),
        ("Keep (this) word", "Keep (this) word"),
        ("?!", "?!"),
    ],
)
def test_normalise(raw, clean):
    assert datasets.normalise(raw) == clean
    assert datasets.normalise(clean) == clean


def base_table(n=50):
    rng = np.random.default_rng(1)
    texts = [f"{'what is' if rng.random() < 0.3 else 'write'} {i}" for i in range(3 * n)]
    return pd.DataFrame({
        "base_id": [f"b{i}" for i in range(3 * n)], "text": texts,
        "label": [1] * n + [0] * n + [i % 2 for i in range(n)],
        "pool": ["id"] * 2 * n + ["ood"] * n, "source": ["bad"] * n + ["good"] * n + ["far"] * n,
    })  # fmt: skip


def test_draw_matches_the_share_of_questions_and_the_limits():
    base = base_table(200)
    base.loc[base["source"] == "good", "text"] = [f"how {i}" if i % 4 else f"list {i}" for i in range(200)]
    drawn = datasets.draw(base, {"good": 60, "bad": 100}, True, np.random.default_rng(0))
    asks = drawn["text"].map(datasets.is_question).groupby(drawn["source"]).mean()
    target = base.loc[base["source"] == "bad", "text"].map(datasets.is_question).mean()
    assert drawn["source"].value_counts()[["good", "bad"]].tolist() == [60, 100]
    assert abs(asks["good"] - target) < 1 / 60


def test_a_matched_draw_follows_the_harmful_lengths_and_leaves_out_what_is_longer():
    """Harmful prompts have 5 or 8 words in the ratio 1 : 3; there are plenty of harmless ones of 5, 8 and 40 words."""
    words = [5] * 10 + [8] * 30 + [5] * 100 + [8] * 100 + [40] * 100
    base = pd.DataFrame({
        "base_id": [f"b{i}" for i in range(340)], "text": [f"x{i}" + " y" * (n - 1) for i, n in enumerate(words)],
        "label": [1] * 40 + [0] * 300, "pool": "id", "source": ["bad"] * 40 + ["good"] * 300,
    })  # fmt: skip

    def lengths(limit):
        drawn = datasets.draw(base, {"good": limit}, True, np.random.default_rng(0), length_matched=True)
        return drawn.loc[drawn["label"] == 0, "text"].str.split().str.len().value_counts().to_dict()

    assert lengths(80) == {5: 20, 8: 60}
    assert lengths(200) == {5: 50, 8: 100}, "a cell that is short of prompts gives what it has"


def test_lengths_and_question_form_are_matched_together():
    rng = np.random.default_rng(0)
    texts = [f"{'how' if i % 3 else 'list'} {i}" + " y" * int(rng.integers(1 + i % 3, 9)) for i in range(2000)]
    base = pd.DataFrame({
        "base_id": [f"b{i}" for i in range(2000)], "text": texts, "label": [1] * 100 + [0] * 1900, "pool": "id",
        "source": ["bad"] * 100 + ["good"] * 1900,
    })  # fmt: skip
    drawn = datasets.draw(base, {"good": 300}, True, np.random.default_rng(0), length_matched=True)
    cells = [drawn["text"].map(datasets.is_question), drawn["text"].str.split().str.len() > 5, drawn["label"]]
    shares = drawn.groupby(cells).size() / drawn.groupby("label").size()
    assert abs(shares.xs(1, level="label") - shares.xs(0, level="label")).max() < 0.02


@pytest.mark.parametrize(
    "text, speaks",
    [
        ("How do I bake", True), ("im lost", True), ("what's our plan", True), ("tell Me a joke", True),
        ("US law, i.e. the code", False), ("mystery of the industry", False), ("Explain meters", False),
    ],
)  # fmt: skip
def test_first_person(text, speaks):
    assert datasets.first_person(text) is speaks


def test_register_is_not_the_label_of_the_shipped_prompts():
    table = datasets.register(sources.base_prompts("embedded"), 10, 0).set_index("source")
    share, ood = table["value"], table[table["pool"] == "ood"]
    assert table["n"]["harmful"] == 455 and len(table) == 5
    assert ood["value"].max() - ood["value"].min() < 0.1, "classes out of distribution"
    assert abs(share["harmful"] - share["harmless"]) < 0.1, "classes in distribution"
    assert abs(share["harmful"] - share["ood_harmful"]) < 0.15, "harmful requests, in and out of distribution"


def test_variants_of_a_base_prompt_never_cross_splits():
    rng = np.random.default_rng(0)
    split = datasets.split_base(base_table(), 0.2, rng)
    prompts = datasets.check(datasets.augment(split, datasets.load_templates("embedded"), 1.0, rng))
    assert (prompts.groupby("base_id")["split"].nunique() == 1).all()
    sizes = split["split"].value_counts()
    assert sizes["val"] == 20 and sizes["ood"] == 50


def test_base_prompts_with_variants_of_both_labels():
    """A user's own groups: the share is of base prompts, and all their variants keep apart when they are wrapped."""
    pairs = pd.DataFrame({
        "base_id": [f"g{i // 2}" for i in range(20)], "text": [f"text {i}" for i in range(20)],
        "label": [0, 1] * 10, "pool": "id", "source": "csv",
    })  # fmt: skip
    split = datasets.split_base(pairs, 0.2, np.random.default_rng(0))
    assert split["split"].value_counts().to_dict() == {"train": 16, "val": 4}
    templates = datasets.load_templates("embedded")
    prompts = datasets.check(datasets.augment(split, templates, 1.0, np.random.default_rng(0)))
    assert {"g0:plain", "g0:plain1"} <= set(prompts["prompt_id"])


def test_augmentation_by_hand():
    split = datasets.split_base(base_table(), 0.2, np.random.default_rng(0))
    prompts = datasets.augment(split, datasets.load_templates("embedded"), 1.0, np.random.default_rng(0))
    of = {base_id: rows for base_id, rows in prompts.groupby("base_id")}
    harmful = of["b0"].set_index("transform")["label"].to_dict()
    jailbreaks, innocuous = ("aim", "role_play", "gcg_suffix", "cocky_genius"), ("count_words", "ignore_one")
    assert harmful == {"plain": 1} | dict.fromkeys(jailbreaks, 1) | dict.fromkeys(innocuous, 0)
    assert len(of["b60"]) == 2 and (of["b60"]["label"] == 0).all()
    assert set(of["b101"]["transform"]) == {"plain", "evil_confidant", "pliny_google", "all_caps", "find_synonyms"}
    text = split.set_index("base_id")["text"]
    assert all(text[row.base_id] in row.text for row in prompts.itertuples()), "every variant holds its base prompt"
    numbered = of["b0"].set_index("transform").loc["ignore_one", "text"]
    number = int(numbered.split("Ignore number ")[1].split(" ")[0])
    assert f"{number}. {text['b0']}" in numbered and "5. " in numbered


def test_benign_share_is_a_fraction_and_a_parameter():
    split = datasets.split_base(base_table(400), 0.2, np.random.default_rng(0))
    wrapped = {}
    for share in (0.0, 0.5):
        prompts = datasets.augment(split, datasets.load_templates("embedded"), share, np.random.default_rng(0))
        wrapped[share] = (prompts.loc[(prompts["source"] == "good"), "transform"] != "plain").sum() / 400
    assert wrapped[0.0] == 0 and abs(wrapped[0.5] - 0.5) < 0.1
    with pytest.raises(ValueError, match="benign_jailbreak_share 1.5"):
        datasets.augment(split, datasets.load_templates("embedded"), 1.5, np.random.default_rng(0))


def test_harmless_prompts_stand_in_innocuous_wrappers_of_their_split_with_label_0():
    split = datasets.split_base(base_table(400), 0.2, np.random.default_rng(0))
    templates = datasets.load_templates("embedded")
    before = datasets.augment(split, templates, 1.0, np.random.default_rng(0))
    prompts = datasets.augment(split, templates, 1.0, np.random.default_rng(0), innocuous_share=0.5)
    kinds, harmful = datasets.kind(prompts), datasets.content(prompts)
    added = prompts[(kinds == "innocuous") & (harmful == 0)]
    assert (added["label"] == 0).all() and added["base_id"].is_unique
    assert abs(len(added) / (harmful[kinds == "plain"] == 0).sum() - 0.5) < 0.05
    pools = {wrapper.name: wrapper.pool for wrapper in datasets.wrappers()}
    assert ((added["transform"].map(pools) == "ood") == (added["split"] == "ood")).all()
    assert len(prompts) == len(before) + len(added), "nothing else is there more or less often"
    with pytest.raises(ValueError, match="innocuous_share -1.0"):
        datasets.augment(split, templates, 1.0, np.random.default_rng(0), innocuous_share=-1.0)


def test_what_the_wrapper_alone_says_by_hand():
    """A wrapper's score is its share in training, that of its kind where training does not have it."""
    rows = [("b0", "plain", "train", 1), ("b1", "plain", "train", 0), ("b0", "aim", "train", 1),
            ("b1", "aim", "train", 0), ("b2", "role_play", "train", 1), ("b0", "count_words", "train", 0),
            ("b3", "plain", "ood", 1), ("b3", "evil_confidant", "ood", 1), ("b3", "all_caps", "ood", 0),
            ("b2", "plain", "train", 1)]  # fmt: skip
    prompts = pd.DataFrame(rows, columns=["base_id", "transform", "split", "label"])
    assert datasets.content(prompts).tolist() == [1, 0, 1, 0, 1, 1, 1, 1, 1, 1]
    plain, jailbreaks = 2 / 3, 2 / 3
    scores = datasets.wrapper_scores(prompts, prompts["label"])
    np.testing.assert_allclose(scores, [plain, plain, 0.5, 0.5, 1, 0, plain, jailbreaks, 0, plain])
    of_content = datasets.wrapper_scores(prompts, datasets.content(prompts))
    assert of_content[5] == of_content[8] == 1.0, "an innocuous wrapper that holds harmful text only gives it away"


def test_the_ten_wrappers():
    wrappers = datasets.wrappers()
    assert len({wrapper.name for wrapper in wrappers}) == len(wrappers) == 10
    counts = pd.Series([(wrapper.kind, wrapper.pool) for wrapper in wrappers]).value_counts().to_dict()
    four, two = ("jailbreak", "train"), [("jailbreak", "ood"), ("innocuous", "train"), ("innocuous", "ood")]
    assert counts == {four: 4} | dict.fromkeys(two, 2)


def test_a_prompt_with_braces_is_not_expanded():
    templates = datasets.load_templates("embedded")
    text = datasets.apply_template("say: {prompt}", "print {items} {prompt}", templates, np.random.default_rng(0))
    assert text == "say: print {items} {prompt}"


def test_check_names_what_is_wrong():
    prompts = datasets.plain(datasets.split_base(base_table(), 0.2, np.random.default_rng(0)))
    assert datasets.check(prompts) is prompts
    same_text = np.where(prompts["base_id"].isin(["b0", "b110"]), "same", prompts["text"])
    wrong = {
        "no column": prompts.drop(columns="label"),
        "unknown split": prompts.assign(split="test"),
        "labels": prompts.assign(label=3),
        "empty text": prompts.assign(text=" "),
        "train split has fewer": prompts.assign(label=np.where(prompts["split"] == "train", 0, prompts["label"])),
        "stands twice": prompts.assign(prompt_id="x"),
        "text '.*' is in more than one split": prompts.assign(text=same_text),
    }
    for message, table in wrong.items():
        with pytest.raises(ValueError, match=message):
            datasets.check(table)


def test_no_near_duplicates_across_splits_of_the_embedded_set():
    base = sources.base_prompts("embedded")
    split = datasets.split_base(base.assign(text=base["text"].map(datasets.normalise)), 0.2, np.random.default_rng(0))
    cosine = datasets.cross_split_cosine(split)
    worst = int(cosine.argmax())
    assert cosine[worst] <= 0.9, f"{split['text'].iloc[worst]!r} is nearly the same as a prompt of an earlier split"


def test_cross_split_cosine_finds_a_planted_copy():
    texts = ["Bake a cake.", "Fix my bike.", "Bake a cake!", "Name a star."]
    table = pd.DataFrame({"text": texts, "split": ["train", "train", "val", "ood"]})
    cosine = datasets.cross_split_cosine(table)
    assert cosine[:2].tolist() == [0, 0] and cosine[2] > 0.9 > cosine[3]


def test_save_keeps_an_equal_file_and_load_says_who_writes_it(tmp_path):
    prompts = datasets.plain(datasets.split_base(base_table(), 0.2, np.random.default_rng(0)))
    path = tmp_path / "prompts.parquet"
    datasets.save(prompts, path)
    before = path.stat().st_mtime_ns
    datasets.save(prompts, path)
    assert path.stat().st_mtime_ns == before and datasets.load(path).equals(prompts)
    with pytest.raises(ValueError, match="01_datasets writes it"):
        datasets.load(tmp_path / "none.parquet")
