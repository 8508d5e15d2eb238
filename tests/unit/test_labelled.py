"""A user's labelled texts: each shape that people have is read, or refused in one sentence with the line to type."""

import bz2
import csv as csv_module
import gzip
import io
import json
import lzma
import pickle
import shlex

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from lib.texts import labels, table_files
from lib.texts.labelled import Columns, read, texts
from lib.texts.table_files import Refused
from tests.labelled_files import as_csv, files

GREETINGS = [("Hello there, my friend", "1"), ("So long, and good bye", "0"), ("How do you do today", "1")]
TEXTS = [text for text, _ in GREETINGS]
ROWS = "Hello there my friend,1\nSo long and good bye,0\n"


@pytest.fixture
def put(tmp_path):
    """Write a file of bytes or text and return its path."""

    def write(content, name="mine.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


def balanced(result):
    assert result.n_read == len(result.rows) + sum(result.dropped.values())
    assert list(result.rows.columns) == ["text", "label", "group", "line"]
    return result


def pairs(result):
    return list(zip(balanced(result).rows["text"], result.rows["label"]))


def said(result):
    return "\n".join(result.said)


def refused(path, *arguments, match, **parameters):
    with pytest.raises(ValueError, match=match) as caught:
        read(path, *arguments, **parameters)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 1500
    assert type(caught.value) is ValueError


# Kinds of files.

OBJECTS = [{"prompt": text, "meta": {"id": i}, "target": int(label)} for i, (text, label) in enumerate(GREETINGS)]
COMPRESSIONS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def parquet(rows=OBJECTS):
    out = io.BytesIO()
    pd.DataFrame(rows).to_parquet(out)
    return out.getvalue()


KINDS = {
    "mine.csv": as_csv(GREETINGS).encode(),
    "mine.tsv": as_csv(GREETINGS, delimiter="\t").encode(),
    "mine.txt": as_csv(GREETINGS, delimiter="|").encode(),
    "mine.v2.jsonl": "\n".join(map(json.dumps, OBJECTS)).encode(),
    "mine.ndjson": ("\n\n".join(map(json.dumps, OBJECTS)) + "\n").encode(),
    "lines.json": "\n".join(map(json.dumps, OBJECTS)).encode(),
    "array.json": json.dumps(OBJECTS, indent=1).encode(),
    "mine.parquet": parquet(),
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read_compressed_or_not(put, name, compression):
    result = read(put(COMPRESSIONS[compression](KINDS[name]), name + compression))
    assert pairs(result) == [(text, int(label)) for text, label in GREETINGS]
    assert result.n_read == 3 and not sum(result.dropped.values())


@pytest.mark.parametrize(
    "name, content, match",
    [
        ("mine.xlsx", b"PK\x03\x04", "Excel workbook; save the sheet as CSV"),
        ("mine.csv", b"PK\x03\x04xl/worksheets", "zip archive or an Excel workbook"),
        ("mine.zip", b"PK\x03\x04", "an archive; unpack it"),
        ("mine.tar.gz", b"", "an archive; unpack it"),
        ("mine.pkl", b"", "a pickle, which can run any code"),
        ("mine.csv", pickle.dumps({"text": ["a"]}), "a pickle, which can run any code"),
        ("mine.csv", gzip.compress(b"text,label\n", mtime=0), "compressed by gzip; put .gz behind its name"),
        ("mine.csv", parquet(), "let its name end with .parquet"),
        ("mine.csv", b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS .* run git lfs pull"),
        ("mine.docx", b"", r"suffix '.docx' is unknown; allowed are .csv .tsv .txt .jsonl"),
        ("mine", b"", "suffix '' is unknown"),
        ("mine.parquet", b"text,label\n", r"cannot be read as .parquet \("),
        ("mine.csv.gz", gzip.compress(b"text,label\n" * 99, mtime=0)[:-9], "cannot be read as .csv.gz"),
        ("mine.csv.zst", COMPRESSIONS[".zst"](KINDS["mine.csv"] * 99)[:-9], "cannot be read as .csv.zst"),
        ("mine.jsonl", b'{"text": "a", "label": 1}\n{"text"', "line 2 is not JSON .* an object on each line"),
        ("mine.jsonl", b'{"text": "a", "label": 1}\n["b", 0]', r'line 2 is \["b", 0\]; wanted is an object'),
        ("mine.json", b'{"text": "a"\n}', "line 1 is not JSON"),
        ("mine.jsonl", b'{"text": "a", "label": 1}\n{"text": "\\ud800", "label": 0}', r"line 2 holds '\\ud800'"),
    ],
)
def test_what_cannot_be_read_is_named_for_what_it_is(put, name, content, match):
    refused(put(content, name), match=match)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refused(tmp_path / "none.csv", match="cannot be read as .csv .FileNotFoundError")
    (tmp_path / "folder.csv").mkdir()
    refused(tmp_path / "folder.csv", match="IsADirectoryError")


@pytest.mark.parametrize("name, content", [("a.csv", ""), ("a.csv", "text,label\n"), ("a.json", "[]"), ("a.jsonl", "")])
def test_a_file_without_rows_is_refused(put, name, content):
    refused(put(content, name), match="it holds no rows")


# Dialects.


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_dialects_are_told(put, delimiter, end):
    rows = [("a; b, c | d\te", "1"), ("two\nlines, one\n", "0"), ('say "hi", all', "0")]
    quoting = csv_module.QUOTE_ALL if end == "\r" else csv_module.QUOTE_MINIMAL  # or Python leaves \n without quotes
    result = read(put(as_csv(rows, delimiter=delimiter, lineterminator=end, quoting=quoting)))
    assert pairs(result) == [(text, int(label)) for text, label in rows]
    assert table_files.DELIMITERS[delimiter] in said(result)


def test_lines_are_those_of_an_editor(put):
    result = read(put('text,label\n\n"two\nlines",1\nnext line,0\n'))
    assert result.rows["line"].tolist() == [3, 5]
    result = read(put('sep=;\ntext;label\n"two\nlines, no more";1\nnext line;0\n'))
    assert result.rows["line"].tolist() == [3, 5] and "semicolon, as it says itself" in said(result)


def test_quotation_marks_that_do_not_pair_are_characters(put):
    """As in the SMS Spam Collection, of which pandas silently makes two messages less than it has."""
    content = 'text\tlabel\n"Hi, what is up\t0\nbye\t1\nsay "so" to me"\t0\n'
    result = read(put(content, "mine.tsv"))
    assert result.rows["text"].tolist() == ['"Hi, what is up', "bye", 'say "so" to me"']
    assert "quotation marks do not pair, and are read as characters" in said(result)


def test_other_ways_to_write_quotation_marks(put):
    result = read(put('text,label\n"say \\"hi\\", all",1\nbye,0\n'))
    assert result.rows["text"].tolist() == ['say "hi", all', "bye"] and "a backslash stands before" in said(result)
    assert pairs(read(put('text,label\n"a, b "c" d",1\nbye,0\n'))) == [('a, b c" d"', 1), ("bye", 0)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spaces_before_quotation_marks(put, delimiter):
    lines = ["label, text", '1, "Hello, you; there"', '0,  "So long"', '1,"she said ""hi"" to all"']
    result = read(put("\n".join(line.replace(",", delimiter, 1) for line in lines)))
    assert pairs(result) == [("Hello, you; there", 1), ("So long", 0), ('she said "hi" to all', 1)]
    assert "spaces stand before quotation marks, and those behind a delimiter are left out" in said(result)
    result = read(put('label,text\n1,"she said, ""hi"", to all, "\n0, bye\n'))
    assert pairs(result) == [('she said, "hi", to all, ', 1), (" bye", 0)]
    assert "spaces stand before" not in said(result)


@pytest.mark.parametrize(
    "content, match",
    [
        ('text,label\n"hello, there,1\nbye,0\n', "quotation mark that opens in line 2 is not closed"),
        ("text,label\nhello,1\nhello, you,0\n", "line 3 has 3 columns where the first one has 2; a text that holds"),
        ("hello\nyou\n", "which column is the text and which the label is not clear; its columns are 'hello'"),
    ],
)
def test_broken_tables_are_refused_with_the_line(put, content, match):
    refused(put(content), match=match)


def test_long_texts_are_read(put):
    limit = csv_module.field_size_limit()
    assert read(put(f"text,label\n{'x' * 300_000},1\nbye,0\n")).rows["text"].str.len().max() == 300_000
    assert csv_module.field_size_limit() == limit


# Encodings.

ABROAD = [("Où est le café de la gare ?", "1"), ("Die Straße ist schön – für £5", "0"), ("¿Mañana, señor?", "0")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings_are_told(put, encoding):
    result = read(put(as_csv(ABROAD), encoding=encoding))
    assert pairs(result) == [(text, int(label)) for text, label in ABROAD]
    assert f"encoding {encoding}" in said(result)
    lines = "\n".join(json.dumps({"text": t, "label": y}, ensure_ascii=False) for t, y in ABROAD)
    assert pairs(read(put(lines, "mine.jsonl", encoding))) == pairs(result)


@pytest.mark.parametrize(
    "encoding, text",
    [
        ("cp1251", "Привет, как дела сегодня?"),
        ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy"),
        ("cp1253", "Καλημέρα κόσμε, τι κάνεις σήμερα"),
        ("cp932", "こんにちは世界、お元気ですか"),
        ("gb18030", "你好,世界,今天天气很好,我们去公园吧"),
    ],
)
def test_encodings_of_the_east_are_told(put, encoding, text):
    path = put(as_csv([(text, "1"), (f"{text} {text}", "0")]), encoding=encoding)
    assert read(path).rows["text"][0] == text and f"encoding {encoding}, as line 2" in said(read(path))


def test_a_guessed_encoding_is_said_with_its_line(put):
    result = read(put(as_csv([*GREETINGS, *ABROAD]), encoding="cp1252"))
    assert "encoding cp1252, as line 5 is not UTF-8 (byte 0xf9); ENCODING names another one" in said(result)


def test_the_encoding_that_is_asked_for(put):
    russian = [("Привет, как дела сегодня?", "1"), ("Всё хорошо, спасибо большое", "0")]
    path = put(as_csv(russian), encoding="cp1251")
    assert pairs(read(path, Columns(encoding="CP1251"))) == pairs(read(path)) == [(t, int(y)) for t, y in russian]
    path = put(as_csv(ABROAD), encoding="cp1252")
    refused(path, Columns(encoding="utf8"), match=r"line 2 is not utf-8 \(byte 0xf9\); type ENCODING=cp1252, which")
    refused(path, Columns(encoding="utf-16"), match="line 1 is not utf-16 .*; type ENCODING=cp1252")
    refused(put(as_csv(ABROAD)), Columns(encoding="ascii"), match="type ENCODING=utf-8, which fits")
    assert "encoding cp1252, as asked, though every line is UTF-8 as well" in said(
        read(put(as_csv(ABROAD)), Columns(encoding="cp1252"))
    )
    for unknown in ("klingon", "rot13", "a\0b"):
        refused(path, Columns(encoding=unknown), match="is unknown; allowed are Python's, such as utf-8")


def test_utf_16_without_a_mark(put):
    path = put(as_csv(ABROAD), encoding="utf-16-le")
    refused(path, match="zero bytes, .* type ENCODING=utf-16-le")
    assert len(read(path, Columns(encoding="utf-16-le")).rows) == 3
    marked = put(as_csv(ABROAD), encoding="utf-16")
    assert len(read(marked, Columns(encoding="utf-16-le")).rows) == 3


def test_what_fits_no_encoding(put):
    path = put(b"text,label\nabc,1\nd\x81\x8d\xff\x9d\x90,0\n")
    refused(path, Columns(encoding="cp1252"), match="line 3 is not cp1252")


# Columns.


@pytest.mark.parametrize(
    "header",
    ["prompt,target", "tweet,class", "statement,label", "Text,Label", "text, label", " TEXT ,LABEL", "sms,Is Spam"]
    + ["question,y", "comment_text,toxic", "Review,Sentiment", "headline,category"],
)
def test_usual_names_are_found(put, header):
    assert pairs(read(put(f"{header}\n{ROWS}"))) == [("Hello there my friend", 1), ("So long and good bye", 0)]


def test_columns_that_do_not_matter_are_left_out(put):
    content = ",prompt,prompt_len,target,source\n0,Hello there my friend,21,1,a\n1,So long and good bye,20,0,b\n"
    result = read(put(content))
    assert len(result.rows) == 2 and "text in column 'prompt', label in column 'target'" in said(result)


def test_columns_are_told_by_what_stands_in_them(put):
    rows = "ham,Go until jurong point,,,\nspam,Free entry in a weekly comp,,,\nham,Will you be late, or what\n"
    result = read(put("v1,v2,,,\n" + rows))
    assert result.rows["label"].tolist() == [0, 1, 0]
    assert "the text and the label told by what stands in the columns" in said(result)
    assert "1 rows go on in columns without a name, from line 4 on" in said(result)
    result = read(put("Unnamed: 0,v1,v2,Unnamed: 3\n0,ham,Go until jurong point,\n1,spam,Free entry in a comp,\n"))
    assert result.rows["label"].tolist() == [0, 1]


def test_columns_that_are_asked_for(put):
    content = "id,title,body,rating,user\n7,A title,Hello there,1,u1\n8,B title,Good bye,0,u2\n9,C title,Again,0,u1\n"
    result = read(put(content), Columns(text=" Body", label="RATING", group="user"))
    assert result.rows["text"].tolist() == ["Hello there", "Good bye", "Again"]
    assert result.rows["group"].tolist() == ["u1", "u2", "u1"]
    assert "group in column 'user'" in said(result)
    assert len(read(put(content, "b.csv"), Columns(text="title", label="rating")).rows) == 3
    assert read(put("Text,text,label\na,b,1\nc,d,0\n"), Columns(text="text")).rows["text"].tolist() == ["b", "d"]


def test_base_id_is_a_group_and_other_columns_are_none(put):
    result = read(put("text,label,base_id\na,1,g\nb,0,g\nc,0, \n"))
    assert result.rows["group"].tolist() == ["g", "g", "line 4"] and "1 rows without a group" in said(result)
    assert read(put("text,label,user\na,1,g\nb,0,g\n")).rows["group"].nunique() == 2


@pytest.mark.parametrize(
    "content, columns, match",
    [
        (
            f"title,body,label\n{ROWS.replace(',', ',x,')}",
            Columns(),
            "several columns may be the text: 'title', 'body'; its columns are 'title', 'body', 'label'; name them, "
            "for example TEXT=title LABEL=label$",
        ),
        ("text,class,category\na,1,1\nb,0,0\n", Columns(), "may be the label: 'class', 'category'.* LABEL=class$"),
        ("text,text,label\na,b,1\nb,c,0\n", Columns(text="text"), "has 2 columns TEXT=text"),
        ("text,label\na,1\n", Columns(text="tweet"), "has no column TEXT=tweet; its columns are 'text', 'label'"),
        ("text,label\na,1\n", Columns(group="my id"), "has no column GROUP='my id'"),
        ("text,label\na,1\n", Columns(label="Text"), "|has no column"),
        ("text,label\na,1\n", Columns(text="label", label="label"), "one column is asked for twice"),
        ("text,label\na,1\n", Columns(text="0", label="2"), "has no column LABEL=2"),
        ("text,a b,c\nx,1,1\ny,0,0\n", Columns(), "which column is the label is not clear; .* TEXT=text LABEL='a b'$"),
    ],
)
def test_ambiguous_and_unknown_columns_are_refused_with_the_line_to_type(put, content, columns, match):
    refused(put(content), columns, match=match)


def test_columns_of_lists_are_no_texts(put):
    rows = [{"messages": [{"role": "user"}], "text": f"Hello there {i}", "label": i} for i in (0, 1)]
    for name, content in (("a.json", json.dumps(rows)), ("a.parquet", parquet(rows))):
        assert len(read(put(content, name)).rows) == 2
        refused(put(content, name), Columns(text="messages"), match="'messages' holds lists, objects or bytes")
    lists = parquet([{"messages": [1]}, {"messages": [2]}])
    refused(put(lists, "b.parquet"), match="which column is the text and which the label is not clear")


# Files without a row of names.


@pytest.mark.parametrize("rows", [ROWS, "1,Hello there my friend\n0,So long and good bye\n1,What now, then\n"])
def test_a_file_without_names_is_refused_with_the_numbers_to_type(put, rows):
    text, label = (0, 1) if rows == ROWS else (1, 0)
    more = ROWS.replace("there", "here") if rows == ROWS else "1,How do you do today\n"
    path = put(rows.replace(", then", "") + more)
    refused(path, match=rf"first row \(.*\) looks like data, .* for example TEXT={text} LABEL={label}$")
    result = read(path, Columns(text=str(text), label=str(label)))
    assert result.rows["text"][0] == "Hello there my friend" and result.rows["line"][0] == 1
    assert "no row of names, as the first label is like the others" in said(result)


def test_a_file_of_spam_without_names(put):
    path = put("spam\tFree entry in a comp\nham\tGo until jurong point\nspam\tYou have won a prize\n", "sms.txt")
    refused(path, match="looks like data.* TEXT=1 LABEL=0$")
    assert read(path, Columns(text="1", label="0")).rows["label"].tolist() == [1, 0, 1]


def test_a_column_may_be_named_as_one_of_its_labels(put):
    assert read(put("text,spam\na,ham\nb,spam\n")).rows["label"].tolist() == [0, 1]


def test_numbers_pass_over_a_row_of_names(put):
    result = read(put("v1,v2\nham,Go until jurong point\nspam,Free entry\n"), Columns(text="1", label="0"))
    assert len(result.rows) == 2 and "the first row holds names" in said(result)
    result = read(put(f"0,1\n{ROWS}"), Columns(text="0", label="1"))
    assert len(result.rows) == 2 and "text in column '0'" in said(result)


# Labels.


@pytest.mark.parametrize(
    "ones, zeros",
    [
        (["1", " 1", "1.0", "01"], ["0", "0.0", "-0"]),
        (["1"], ["-1"]),
        (["True", "TRUE"], ["false", "False "]),
        (["yes", "Yes"], ["no"]),
        (["spam", "Spam "], ["ham"]),
        (["Toxic"], ["Not Toxic", "not toxic "]),
        (["toxic"], ["not_toxic"]),
        (["bigram"], ["not_bigram"]),
        (["hate"], ["non-hate"]),
        (["Hate Speech"], ["no hate speech"]),
        (["toxic"], ["nontoxic"]),
        (["harmful"], ["harmless"]),
    ],
)
def test_labels_that_are_clear(ones, zeros):
    for first, second in ((ones, zeros), (zeros, ones)):
        values, sentence = labels.binary(pd.Series([*first, *second]))
        assert values.tolist() == [int(label in ones) for label in [*first, *second]]
        assert sentence.startswith(f"label 1 stands for '{ones[0].strip()}' ({len(ones)}), label 0 for ")


@pytest.mark.parametrize(
    "of_rows, match",
    [
        (["factual", "clickbait", "factual"], r"'factual' \(2\), 'clickbait' \(1\): .* for example POSITIVE=factual$"),
        (["A", "B"], "for example POSITIVE=A$"),
        (["female", "male"], "not clear"),
        (["correct", "incorrect"], "not clear"),
        (["safe", "unsafe"], "not clear"),
        (["1", "2"], "not clear"),
        (["0", "1", "2"], r"'0' \(1\), '1' \(1\), '2' \(1\): .* POSITIVE=0$"),
        (["0.1", "0.9", "1"], "a threshold for scores, for example POSITIVE='>=0.5'$"),
        ([str(i) for i in range(1900, 1951)], "and 39 others: .* POSITIVE='>=1925'$"),
        (["two words", "three"], "POSITIVE='two words'$"),
        (["1", "1.0"], r"its only label is '1' \(2\); two classes are needed"),
    ],
)
def test_labels_that_are_not_clear_are_listed(put, of_rows, match):
    refused(put(as_csv([(f"text {i}", label) for i, label in enumerate(of_rows)])), match=match)


@pytest.mark.parametrize(
    "positive, ones",
    [
        (("2",), ["2"]),
        (("2.0", " 1"), ["1", "2"]),
        ((">=1",), ["1", "2"]),
        ((">1",), ["2"]),
        (("> 0.5",), ["1", "2"]),
    ],
)
def test_the_positive_labels_are_named(positive, ones):
    of_rows = ["0", "1", "2", "1"]
    assert labels.binary(pd.Series(of_rows), positive)[0].tolist() == [int(label in ones) for label in of_rows]


@pytest.mark.parametrize(
    "of_rows, positive, match",
    [
        (["a", "b"], ("c",), r"POSITIVE=c is none of its labels, which are 'a' \(1\), 'b' \(1\)"),
        (["a", "b"], ("a", "B"), "POSITIVE='a,B' stands for all of its labels"),
        (["0.1", "0.2"], (">=0.5",), "POSITIVE='>=0.5' stands for none of its labels"),
        (["0.1", "x"], (">=0.5",), "POSITIVE='>=0.5' needs a number, and numbers as labels"),
        (["0.1", "0.2"], (">=half",), "POSITIVE='>=half' needs a number"),
    ],
)
def test_wrong_positive_labels_are_refused(put, of_rows, positive, match):
    refused(put(as_csv([(f"text {i}", y) for i, y in enumerate(of_rows)])), Columns(positive=positive), match=match)


def test_positive_labels_that_no_row_has_are_said():
    """A second file of the same kind may lack one of several."""
    values, sentence = labels.binary(pd.Series(["a", "b"]), ("b", "c"))
    assert values.tolist() == [0, 1] and sentence.startswith("POSITIVE names 'c', which no row has; label 1")


@pytest.mark.parametrize(
    "of_rows, typed, ones",
    [
        (["yes, clearly", "not at all"], "yes, clearly", [1, 0]),
        (["a, b", "c", "d"], "c, a,b", [1, 1, 0]),
        (["0,1", "0", "1"], "0,1", [1, 0, 0]),
        (["0,85", "0,1", "1"], ">=0,5", [1, 0, 1]),
        (["0,85", "0,1", "1"], ">0.85", [0, 0, 1]),
        (["1,0", "0,0"], "1", [1, 0]),
    ],
)
def test_commas_in_labels_are_told_from_those_between_them(of_rows, typed, ones):
    assert labels.binary(pd.Series(of_rows), tuple(labels.names(typed)))[0].tolist() == ones


@pytest.mark.parametrize("of_rows", [["yes, clearly", "not at all"], ["0,85", "0,1", "1"], ["12,5", "3,25", "99,5"]])
def test_what_is_proposed_to_type_is_taken(of_rows):
    with pytest.raises(Refused, match="for example POSITIVE=") as refusal:
        labels.binary(pd.Series(of_rows))
    (typed,) = shlex.split(str(refusal.value).partition("for example POSITIVE=")[2])
    assert 0 < labels.binary(pd.Series(of_rows), tuple(labels.names(typed)))[0].sum() < len(of_rows)


def test_a_label_that_looks_like_a_threshold():
    assert labels.binary(pd.Series([">=5", "<5"]), (">=5",))[0].tolist() == [1, 0]


def test_labels_of_parquet_and_json_keep_what_they_are(put):
    big = [9007199254740993, 9007199254740992]
    for values, positive, expected in (
        ([True, False, None], (), [1, 0]),
        ([1.0, 0.0, None], (), [1, 0]),
        (big, (str(big[0]),), [1, 0]),
        ([0.25, 0.75], (">=0.5",), [0, 1]),
    ):
        rows = [{"text": f"text {i}", "label": value} for i, value in enumerate(values)]
        for name, content in (("a.json", json.dumps(rows)), ("a.parquet", parquet(rows))):
            result = balanced(read(put(content, name), Columns(positive=positive)))
            assert result.rows["label"].tolist() == expected
            assert result.dropped["no label"] == values.count(None)
    categories = pd.DataFrame({"text": ["a", "b"], "label": pd.Categorical(["spam", "ham"])})
    assert read(put(parquet(categories), "c.parquet")).rows["label"].tolist() == [1, 0]


# What is dropped, and what is only counted.


def test_nothing_is_taken_for_missing_but_what_is_missing(put):
    texts = ["NA", "null", "None", "nan", "N/A", "1e5", "007", "True", "-", "  x "]
    result = read(put(as_csv([(text, i % 2) for i, text in enumerate(texts)])))
    assert result.rows["text"].tolist() == texts
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    assert read(put(json.dumps(rows), "a.json")).rows["text"].tolist() == texts
    assert read(put(parquet(rows), "a.parquet")).rows["text"].tolist() == texts


MESSY = [
    *[("good one", "1"), ("bad one", "0"), ("", "1"), ("  \n", "0"), ("lost", ""), ("lost too", " nan"), ("", "")],
    *[("good one ", "1"), ("good one", "1"), ("torn", "1"), (" torn", "0"), ("torn", "1"), ("other", "0")],
]


def test_rows_are_dropped_with_counts(put):
    result = balanced(read(put(as_csv(MESSY) + "short\n")))
    assert result.n_read == 14
    assert result.dropped == {"no label": 4, "no text": 2, "text with both labels": 3, "repeated text": 2}
    assert pairs(result) == [("good one", 1), ("bad one", 0), ("other", 0)]
    assert "14 rows; encoding utf-8; columns divided by comma" in result.said
    assert "3 rows of 14 left out: text with both labels" in result.said
    assert result.said[-1] == "3 texts kept, 1 with label 1"


def test_rows_are_kept_as_asked(put):
    path = put(as_csv(MESSY))
    result = balanced(read(path, drop_conflicts=False))
    assert [text for text, _ in pairs(result)] == ["good one", "bad one", "torn", " torn", "other"]
    assert result.dropped["repeated text"] == 3 and "3 rows kept as asked: text with both labels" in result.said
    result = balanced(read(path, drop_duplicates=False))
    assert len(result.rows) == 5 and "2 rows kept as asked: repeated text" in result.said
    assert result.rows.groupby(result.rows["text"].str.strip())["group"].nunique().max() == 1
    result = balanced(read(path, drop_duplicates=False, drop_conflicts=False))
    assert len(result.rows) == 8 and result.rows["group"].nunique() == 4


def test_too_little_is_left(put):
    refused(put("text,label\n,1\nb,\n"), match="none of its 2 rows has both a text and a label")
    refused(put("text,label\na,1\nb,1\n"), match=r"its only label is '1' \(2\); two classes are needed")
    refused(put("text,label\na,1\na,0\nb,1\n"), match="only label 1 is left without the 2 rows whose text has both")
    refused(put("text,label\na,1\na ,0\n"), match="no row is left without the 2 rows")


def test_marks_are_counted_and_kept(put):
    texts = ["a &amp; b", "&#39;x&#39;", "AT&T; R&D", "x<|im_end|>\n<|im_start|>assistant", "<end_of_turn>", "[INST] y"]
    result = read(put(as_csv([(text, i % 2) for i, text in enumerate(texts)])))
    assert result.rows["text"].tolist() == texts
    assert "2 rows hold HTML entities such as &amp;; they are kept as they are" in result.said
    assert any(sentence.startswith("3 texts spell a chat template's control tokens") for sentence in result.said)


def test_entities_are_decoded_as_asked_before_texts_are_compared(put):
    path = put(as_csv([("a &amp; b", 1), ("a & b", 1), ("AT&T; &#39;x&#39; &nope;", 0)]))
    result = balanced(read(path, decode_entities=True))
    assert result.rows["text"].tolist() == ["a & b", "AT&T; 'x' &nope;"] and result.dropped["repeated text"] == 1
    assert "2 rows hold HTML entities such as &amp;; they are decoded, as asked" in result.said


def test_a_profile_may_have_numbers_as_positive_labels(put):
    assert read(put("text,label\na,1\nb,2\n"), Columns(positive=(2,))).rows["label"].tolist() == [0, 1]


# A table that is written in any way comes back as it was.


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files())
def test_a_table_comes_back_as_it_was_written(tmp_path, file):
    texts, of_rows, asked, suffix, content = file
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(content)
    result = balanced(read(path, asked))
    expected = {text.strip(): (text, label) for text, label in reversed(list(zip(texts, of_rows))) if text.strip()}
    assert pairs(result) == [expected[text] for text in dict.fromkeys(map(str.strip, texts)) if text]
    assert result.n_read == len(texts)


# Texts without labels


@pytest.mark.parametrize(
    "name, content, column, expected",
    [
        ("of a usual name", "id,prompt,label\n1,one,0\n2,,1\n3,one,0\n", "", ["one", "", "one"]),
        ("asked for", "title;note\nx;first\ny;second\n", "note", ["first", "second"]),
        ("the only column", "wish\nHello there\nhi\n", "", ["Hello there", "hi"]),
        ("by number", "Hello there my friend\nhi\n", "0", ["Hello there my friend", "hi"]),
        ("by number, with a name", "text\nhi\n", "0", ["hi"]),
        ("prose", "kind,wish\na,Hello there my friend\nb,So long and good bye\n", "", [
            "Hello there my friend", "So long and good bye",
        ]),
    ],
)  # fmt: skip
def test_texts_without_labels(put, name, content, column, expected):
    assert texts(put(content), column).texts == expected, name


@pytest.mark.parametrize(
    "name, content, column, expected",
    [
        ("a text a line", 'Hello, you\r\n\nHe said "so, what?" twice\nx\n', "", [
            "Hello, you", 'He said "so, what?" twice', "x",
        ]),
        ("a usual name", 'id,"Text"\n1,"Hello, you"\n', "", ["Hello, you"]),
        ("asked for", "v1|v2\n1|Hello, you\n", "v2", ["Hello, you"]),
        ("by number", "ham\tHello, you\nspam\tbye\n", "1", ["Hello, you", "bye"]),
    ],
)  # fmt: skip
def test_a_txt_is_a_text_a_line_unless_it_has_columns(put, name, content, column, expected):
    for file, compress in (("mine.txt", bytes), ("mine.TXT.gz", gzip.compress)):
        for mark in ("", "\ufeff"):
            result = texts(put(compress((mark + content).encode()), file), column)
            assert result.texts == expected, name
            assert ("a text a line" in said(result)) == (name == "a text a line")


@pytest.mark.parametrize(
    "content, column, match",
    [
        ("a,b\n1,2\n", "", "which column is the text is not clear; its columns are 'a', 'b'; name them, .* TEXT=a$"),
        ("text,prompt\nx,y\n", "", "several columns may be the text: 'text', 'prompt'; .* TEXT=text$"),
        ("text\nx\n", "body", "it has no column TEXT=body; its columns are 'text'"),
        ("Please say what this is.\nAnd this.\n", "", "looks like a text, not like names; .* TEXT=0$"),
        ("text\n", "", "it holds no rows"),
        ('text,label\n" ",1\n,0\n', "", "none of its 2 rows has a text"),
    ],
)
def test_texts_that_cannot_be_told_are_refused_in_one_sentence(put, content, column, match):
    with pytest.raises(ValueError, match=match) as caught:
        texts(put(content), column)
    assert "\n" not in str(caught.value) and "mine.csv: " in str(caught.value)
