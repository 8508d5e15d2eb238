"""Tasks of a package and of a folder: which rows are kept, where they go, and what is said of the others."""

import pandas as pd
import pytest

from lib.texts import table_files, task_files
from lib.texts.labelled import Columns
from lib.texts.task_files import LeftOut


def rows(n, pool="", start=0, verb="buy"):
    texts = [f"{verb} thing {i}" for i in range(start, start + n)]
    table = pd.DataFrame({"text": texts, "label": [i % 2 for i in range(n)], "pool": pool})
    return table.assign(group=table["text"])


def test_every_row_is_kept_once_or_dropped_with_a_reason():
    texts = ["", "buy thing 1", "twice", "twice "]
    bad = pd.DataFrame({"text": texts, "label": [0, 1, 0, 1], "pool": "", "group": "g"})
    task = task_files.of_rows("t", "k", pd.concat([rows(100), bad], ignore_index=True), most=60)
    assert task.dropped == {"empty text": 1, "repeated text": 1, "text with both labels": 2, "not drawn": 40}
    assert task.n_read == 104 == len(task.rows) + sum(task.dropped.values())
    assert task.rows["text"].is_unique and task.rows["label"].value_counts().to_dict() == {0: 30, 1: 30}


def test_splits_hold_their_shares_of_each_class_and_no_group_crosses_them():
    table = rows(400).assign(group=[f"g{i // 4}" for i in range(400)], label=[i // 4 % 2 for i in range(400)])
    task = task_files.of_rows("t", "k", table, most=1000)
    assert task.rows.groupby("group")["split"].nunique().max() == 1
    shares = task.rows.groupby("label")["split"].value_counts(normalize=True)
    for label in (0, 1):
        assert [round(shares[label][split], 2) for split in ("train", "val", "test")] == [0.6, 0.15, 0.25] or (
            abs(shares[label]["test"] - 0.25) < 0.03
        )


def test_the_draw_follows_from_the_texts_alone_so_that_tasks_share_it():
    """Two tasks on the same texts, in another order and with other labels, keep the same ones."""
    table = rows(200)
    other = table.assign(label=1 - table["label"]).sample(frac=1, random_state=3)
    kept = [set(task_files.of_rows("t", "k", each, most=80).rows["text"]) for each in (table, other)]
    assert kept[0] == kept[1] and len(kept[0]) == 80


def test_classes_keep_their_shares_in_a_draw():
    table = rows(300).assign(label=[int(i % 4 == 0) for i in range(300)])
    task = task_files.of_rows("t", "k", table, most=200)
    assert task.rows["label"].mean() == pytest.approx(0.25, abs=0.005)


def test_texts_out_of_distribution_are_a_split_of_their_own_and_lose_what_training_has():
    task = task_files.of_rows("t", "k", pd.concat([rows(100), rows(40, "ood", start=90)], ignore_index=True), 1000)
    ood = task.rows[task.rows["split"] == "ood"]
    assert len(ood) == 30 and task.dropped == {"repeated text": 10}


def test_rows_in_distribution_come_first_whatever_the_order_of_the_files():
    parts = rows(100), rows(40, "ood", start=90)
    for table in (parts, parts[::-1]):
        task = task_files.of_rows("t", "k", pd.concat(table, ignore_index=True), 1000)
        assert task.rows["split"].value_counts()["ood"] == 30 and task.dropped == {"repeated text": 10}


def test_of_a_group_in_both_pools_the_rows_in_distribution_stay_and_are_divided_as_ever():
    inside, ood = rows(400), rows(60, "ood", start=400)
    inside, ood = (table.assign(group=[f"g{i // 2}" for i in range(len(table))]) for table in (inside, ood))
    alone = task_files.of_rows("t", "k", inside, 1000)
    ood.loc[ood.index >= 40, "group"] += " of its own"
    task = task_files.of_rows("t", "k", pd.concat([ood, inside], ignore_index=True), 1000)
    assert task.dropped == {"group in distribution": 40} and task.rows["split"].value_counts()["ood"] == 20
    both = task.rows[task.rows["split"] != "ood"].set_index("text")["split"]
    assert both.to_dict() == alone.rows.set_index("text")["split"].to_dict()


def test_a_task_with_one_class_or_too_few_rows_is_left_out_and_says_where():
    few = task_files.of_rows("t", "k", rows(20), 100)
    assert isinstance(few, LeftOut) and "too few rows: of 20 read there are" in few.why and "val" in few.why
    one = task_files.of_rows("t", "k", rows(100).assign(label=0), 100)
    assert isinstance(one, LeftOut) and "0 rows of class 1" in one.why


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my tasks é"
    folder.mkdir()
    table = rows(120, verb="I would like to buy this very good")
    table.assign(v1=["spam" if y else "ham" for y in table["label"]], v2=table["text"])[["v1", "v2"]].to_csv(
        folder / "spam.csv", index=False, sep=";", encoding="cp1252"
    )
    table[["text", "label"]].to_json(folder / "fruit.jsonl", orient="records", lines=True)
    rows(40, start=200)[["text", "label"]].to_csv(folder / "fruit.ood.csv", index=False)
    table.rename(columns={"text": "Statement", "label": " Label"})[["Statement", " Label"]].to_parquet(
        folder / "said.parquet"
    )
    return folder


def test_a_folder_of_files_of_other_kinds_and_columns_is_a_task_each(folder):
    tasks = task_files.of_folder(folder, Columns(), 1000)
    assert [task.name for task in tasks] == ["fruit", "said", "spam"]
    assert all(len(task.rows) == task.n_read - sum(task.dropped.values()) for task in tasks)
    fruit, said, spam = tasks
    assert fruit.rows["split"].value_counts()["ood"] == 40 and fruit.n_read == 160
    assert set(spam.rows["text"]) == set(said.rows["text"]) and len(spam.rows) == 120
    assert spam.rows.set_index("text")["label"]["I would like to buy this very good thing 1"] == 1
    assert any("semicolon" in sentence for sentence in spam.said)


def test_the_file_in_distribution_wins_whatever_its_suffix(folder):
    table = rows(120)[["text", "label"]]
    for name in ("mail.tsv", "mail.ood.csv"):
        table.to_csv(folder / name, index=False, sep="\t" if name.endswith("tsv") else ",")
    with (folder / "mail.ood.csv").open("a") as file:
        file.writelines(f"sell thing {i},{i % 2}\n" for i in range(20))
    (task,) = task_files.of_folder(folder, Columns(), 1000, ["mail"])
    assert task.rows["split"].value_counts()["ood"] == 20 and task.dropped == {"repeated text": 120}


def test_what_cannot_be_read_is_left_out_by_name_and_the_others_go_on(folder):
    (folder / "book.xlsx").write_bytes(b"PK\x03\x04")
    (folder / "notes.md").write_text("x")
    (folder / "lonely.ood.csv").write_text("text,label\na,0\nb,1\n")
    (folder / "one.csv").write_text("text,label\na,0\nb,0\n")
    (folder / ".hidden").write_text("x")
    left = {task.name: task.why for task in task_files.of_folder(folder, Columns(), 100) if isinstance(task, LeftOut)}
    assert set(left) == {"book", "lonely", "notes.md", "one"}
    assert "Excel" in left["book"] and "without the lonely file" in left["lonely"] and "allowed are" in left["notes.md"]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["a.csv", "a.jsonl"], "two files of .* are the task 'a': a.csv and a.jsonl; rename one"),
        (["notes.md"], "holds no labelled file; allowed are"),
    ],
)
def test_folders_that_are_refused(tmp_path, names, sentence):
    for name in names:
        (tmp_path / name).write_text("text,label\na,0\n")
    with pytest.raises(ValueError, match=sentence):
        task_files.of_folder(tmp_path, Columns(), 100)
    with pytest.raises(ValueError, match="there is no folder"):
        task_files.of_folder(tmp_path / "none", Columns(), 100)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.b.csv", "a.b"), ("x.CSV.gz", "x"), ("y.jsonl.zst", "y"), ("z.xlsx", "z"), ("README.md", None), ("c", None)],
)
def test_the_stem_of_a_file(tmp_path, name, stem):
    assert table_files.stem(tmp_path / name) == stem


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package of the same layout."""
    pytest.importorskip("zstandard")
    data = tmp_path / "data"
    for name in ("cleaned_data", "OOD data"):
        (data / name).mkdir(parents=True)
    columns = {"Data type": ["Binary Classification", "Continuous Data"]}
    names = {"Dataset save name": ["cleaned_data/96_spam_is.csv", "cleaned_data/2_year.csv"]}
    pd.DataFrame(columns | names).to_csv(data / task_files.LIST, index=False)
    table = rows(80).rename(columns={"text": "prompt", "label": "target"})
    table["target"] = table["target"].map({0: "ham", 1: "spam"})
    table[["prompt", "target"]].to_csv(data / "cleaned_data" / "96_spam_is.csv.zst", index=False)
    table[["prompt", "target"]].assign(prompt="other " + table["prompt"]).to_csv(
        data / "OOD data" / "96_spam_is_OOD.csv.zst", index=False
    )
    monkeypatch.setattr(task_files, "package", lambda: data)
    return data


def test_a_task_of_the_package_is_read_with_its_texts_out_of_distribution(package):
    assert task_files.names() == ["96_spam_is"]
    task = task_files.packaged("96_spam_is", 1000)
    assert task.kind == "unwanted or made up" and task.n_read == 160
    assert task.rows.groupby("split").size()["ood"] == 80
    assert task.rows.set_index("text")["label"]["buy thing 1"] == 1  # the second target in sorted order


def test_classes_of_other_names_out_of_distribution_are_told(package):
    assert task_files.packaged("96_spam_is", 1000).said == []
    path = package / "OOD data" / "96_spam_is_OOD.csv.zst"
    table = pd.read_csv(path)
    table.assign(target=table["target"].map({"ham": "1", "spam": "not_ham"})).to_csv(path, index=False)
    [sentence] = task_files.packaged("96_spam_is", 1000).said
    assert sentence.startswith("classes out of distribution are ['1', 'not_ham'], in distribution ['ham', 'spam']")


def test_a_file_named_as_a_task_of_the_package_is_refused(package, tmp_path):
    (tmp_path / "own").mkdir()
    rows(80).to_csv(tmp_path / "own" / "96_spam_is.csv", index=False)
    own = str(tmp_path / "own")
    assert [task.name for task in task_files.read([], own, Columns(), 100)] == ["96_spam_is"]
    with pytest.raises(ValueError, match="'96_spam_is' is a file of .*/own and a task of sae-probes; rename the file"):
        task_files.read(["all"], own, Columns(), 100)


@pytest.mark.parametrize(
    ("name", "source"),
    [("5_hist_fig_ismale", "hist_fig"), ("66_living-room", "living-room"), ("87_glue_cola", "glue_cola"),
     ("88_glue_mnli_entailment", "glue_mnli"), ("96_spam_is", "spam"), ("my_own", "my")],  # fmt: skip
)
def test_the_source_of_a_task(name, source):
    assert task_files.source_of(name) == source


def test_names_of_tasks_are_found_with_and_without_number_and_unknown_ones_refused(monkeypatch):
    monkeypatch.setattr(task_files, "names", lambda: ["96_spam_is", "87_glue_cola"])
    monkeypatch.setattr(task_files, "CORE", ("87_glue_cola",))
    assert task_files.chosen(["spam_is", "core", "96_spam_is"]) == ["96_spam_is", "87_glue_cola"]
    assert task_files.chosen(["all"]) == ["96_spam_is", "87_glue_cola"]
    with pytest.raises(ValueError, match=r"unknown task 'spam'; allowed are core, all, and 2 of sae-probes, near it"):
        task_files.chosen(["spam"])


def test_without_the_package_one_sentence_says_what_installs_it(monkeypatch):
    monkeypatch.setattr(task_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="sae-probes, which holds the tasks, is not installed; make tasks installs it"):
        task_files.package()


def test_every_core_task_has_a_kind_of_the_list():
    assert all(task_files.kind_of(name) in task_files.KINDS for name in task_files.CORE)
    assert task_files.kind_of("999_something") == task_files.OTHER
