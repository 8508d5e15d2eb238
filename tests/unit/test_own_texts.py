"""A user's own labelled files as notebook 01 reads them: every row is kept, or left out for a reason that is said."""

import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.texts import datasets, own_texts, sources
from lib.texts.labelled import Columns
from lib.texts.own_texts import Cleaning, Count
from tests.labelled_files import as_csv, files


@pytest.fixture
def put(tmp_path):
    """Write training rows, and rows out of distribution, and return what ``read`` takes."""

    def write(rows, ood=None, header=("text", "label")):
        paths = {"id": "", "ood": ""}
        for pool, of_pool in (("id", rows), ("ood", ood)):
            if of_pool is not None:
                path = tmp_path / f"{pool}.csv"
                path.write_text(as_csv(of_pool, header), encoding="utf-8")
                paths[pool] = str(path)
        return paths

    return write


def accounted(own, cleaning=own_texts.CLEANED):
    """The base prompts as notebook 01 keeps them, with the account of all rows."""
    drawn = own.base.assign(text=own.base["text"].map(datasets.normalise))
    kept, left_out = own_texts.distinct(drawn, "once normalised", cleaning)
    rows = own_texts.account([*own.counts, *left_out], kept)
    return kept, {(row.pool, row.what): row.rows for row in rows.itertuples()}


def test_every_row_is_accounted_for(put):
    train = [("a", 1), ("b", 0), ("b ", 0), ("c", 1), ("c", 0), ("", 1), ("d", "")]
    train += [("e.", 0), ("e!", 0), ("f?", 1), ("f", 0)]
    ood = [("a", 1), ("b", 1), ("x", 1), ("y", 0), ("b.", 0)]
    own = own_texts.read(put(train, ood), Columns())
    kept, rows = accounted(own)
    assert rows == {
        ("id", "rows of the file"): 11, ("id", "left out: no label"): 1, ("id", "left out: no text"): 1,
        ("id", "left out: text with both labels"): 2, ("id", "left out: repeated text"): 1,
        ("id", "left out: once normalised, text with both labels"): 2,
        ("id", "left out: once normalised, repeated text"): 1, ("id", "base prompts"): 3,
        ("ood", "rows of the file"): 5, ("ood", "left out: a text of training"): 2,
        ("ood", "left out: once normalised, a text of training"): 1, ("ood", "base prompts"): 2,
    }  # fmt: skip
    assert kept["text"].tolist() == ["A", "B", "E", "X", "Y"]
    assert "ood.csv: 2 rows left out: a text of training" in own.said
    table = own_texts.overview(own_texts.account(own.counts, own.base))
    assert table.columns.tolist() == ["train_csv", "ood_csv"] and table.iloc[0].tolist() == [11, 5]
    with pytest.raises(ValueError, match="rows that nothing accounts for: {'id': 1}"):
        own_texts.account(own.counts, own.base.iloc[1:])


def test_the_line_of_the_file_is_the_base_id_and_groups_are_kept(put):
    own = own_texts.read(put([("a", 1), ("b", 0)], [("c", 1), ("d", 0)]), Columns())
    assert own.base["base_id"].tolist() == ["train_csv-line 2", "train_csv-line 3", "ood_csv-line 2", "ood_csv-line 3"]
    assert list(own.base) == sources.BASE_COLUMNS and own.base["pool"].tolist() == ["id", "id", "ood", "ood"]
    rows = [("a", 1, "g1"), ("b", 0, "g1"), ("a", 1, "g2")]
    own = own_texts.read(put(rows, header=("text", "label", "user")), Columns(group="user"))
    assert own.base["text"].tolist() == ["a", "b"] and set(own.base["base_id"]) == {"train_csv-g1"}


def test_a_group_of_training_is_left_out_of_what_is_out_of_distribution(put):
    train = [("a", 1, "g1"), ("b", 0, "g1"), ("c", 1, "g2"), ("d", 0, "")]
    ood = [("v", 0, "g2"), ("w", 1, "g2"), ("x", 1, "g3"), ("y", 0, ""), ("z", 0, "g4")]
    own = own_texts.read(put(train, ood, ("text", "label", "group")), Columns())
    kept, rows = accounted(own)
    assert kept["text"].tolist() == ["A", "B", "C", "D", "X", "Y", "Z"], "line 5 of one file is none of the other"
    assert rows[("ood", "left out: a group of training")] == 2
    assert "ood.csv: 2 rows left out: a group of training" in own.said


def test_equal_texts_that_are_kept_share_a_split_with_their_groups(put):
    rows = [("a", 1, "g1"), ("b", 0, "g1"), ("a", 1, "g2"), ("c", 0, "g2"), ("c", 1, "g3"), ("d", 0, "g4")]
    keep = Cleaning(drop_duplicates=False, drop_conflicts=False)
    own = own_texts.read(put(rows, header=("text", "label", "group")), Columns(), keep)
    kept, counts = accounted(own, keep)
    assert len(kept) == 6 and counts[("id", "base prompts")] == 6
    assert kept["base_id"].tolist() == ["train_csv-g1"] * 5 + ["train_csv-g4"]


def test_many_rows_are_drawn_by_class_and_long_texts_cut(put):
    rows = [(f"text number {i} " + "tail " * (i % 3), int(i < 40)) for i in range(400)]
    own = own_texts.read(put(rows), Columns(), most=100, shorten=lambda texts: [text[-12:] for text in texts])
    kept, counts = accounted(own)
    assert counts[("id", "left out: not drawn (csv_rows: 100)")] == 300
    assert counts[("id", "rows of the file")] == 400 and own.base["text"].str.len().max() <= 12
    assert any(sentence.endswith("texts are too long and keep their end only (csv_tokens)") for sentence in own.said)
    assert any("once cut, repeated text" in what for _, what in counts)
    labels = own_texts.read(put(rows), Columns(), most=100).base["label"]
    assert labels.sum() == 10 and len(labels) == 100
    with pytest.raises(ValueError, match="csv_rows -1 must be 0"):
        own_texts.read(put(rows), Columns(), most=-1)


TWO = [("a", 1), ("b", 0)]


@pytest.mark.parametrize(
    "train, ood, match",
    [
        (None, TWO, "ood_csv='.*' is given without train_csv"),
        (TWO, TWO, r"ood.csv: fewer than two classes .* that training \(.*id.csv\) lacks"),
        (TWO, [("a", 1), ("c", 0)], "ood.csv: fewer than two classes are left of its texts that"),
        ([("a", 5), ("b", 7)], None, r"'5' \(1\), '7' \(1\): .* POSITIVE=5 \(in a profile: text_column"),
        ([("a", 1), ("b", 1)], None, r"its only label is '1' \(2\); two classes are needed$"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(put, train, ood, match):
    with pytest.raises(ValueError, match=match) as error:
        own_texts.read(put(train, ood), Columns())
    assert "\n" not in str(error.value)


def test_cutting_may_leave_one_class(put):
    with pytest.raises(ValueError, match="id.csv: fewer than two classes are left of its texts$"):
        own_texts.read(put([("a b", 1), ("c b", 0)]), Columns(), shorten=lambda texts: [text[-1] for text in texts])


def test_the_shipped_prompts_stay_as_they_are():
    base = sources.base_prompts("embedded")
    drawn = base.assign(text=base["text"].map(datasets.normalise))
    kept, left_out = own_texts.distinct(drawn, "once normalised")
    assert kept.equals(drawn.drop_duplicates("text"))
    assert sum(count.rows for count in left_out) == len(drawn) - len(kept)
    assert all(isinstance(count, Count) for count in left_out)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files(), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([0, 3]))
def test_any_file_becomes_prompts_that_account_for_every_row(tmp_path, file, duplicates, conflicts, decode, most):
    """Encodings, dialects, kinds of labels and names of columns, through all that notebook 01 does with a file."""
    texts, of_rows, asked, suffix, content = file
    path, cleaning = tmp_path / f"mine{suffix}", Cleaning(duplicates, conflicts, decode)
    path.write_bytes(content)
    shorten = functools.partial(map, lambda text: text[-80:])
    own = own_texts.read({"id": str(path), "ood": ""}, asked, cleaning, most, lambda texts: list(shorten(texts)))
    assert own.counts[0] == Count("id", "rows of the file", len(texts))
    kept, _ = accounted(own, cleaning)
    labels = {datasets.normalise(text[-80:] if not decode else text): label for text, label in zip(texts, of_rows)}
    if not decode:
        assert all(labels[row.text] == row.label for row in kept.itertuples() if conflicts and duplicates)
    assert (kept.groupby(kept["text"])["base_id"].nunique() == 1).all()
    if kept["base_id"].nunique() > 4 and not most:
        split = datasets.split_base(kept, 0.5, np.random.default_rng(0))
        assert not split.groupby("text")["split"].nunique().gt(1).any()
