"""Labelled files as people have them, for property-based tests: kinds, dialects, encodings, columns and labels."""

import csv as csv_module
import io
import json

from hypothesis import strategies as st

from lib.texts.labelled import Columns


def as_csv(rows, header=("text", "label"), **dialect):
    out = io.StringIO(newline="")
    csv_module.writer(out, **dialect).writerows([header, *rows] if header else rows)
    return out.getvalue()


NAMED = st.sampled_from([("text", "label"), (" Prompt", "target "), ("TWEET", "is_bad"), ("v2", "v1"), ("review", "Y")])
LABELS = {  # kind -> positive, the labels of 0 and of 1
    "0/1": ((), ["0", "0.0"], ["1", "1.0 "]),
    "True/False": ((), ["False"], ["True", "true"]),
    "ham/spam": ((), ["ham", " Ham"], ["spam"]),
    "not": ((), ["not toxic"], ["toxic"]),
    "classes": (("two", "three"), ["one"], ["Two", "three "]),
    "scores": ((">=0.5",), ["0.25", "1e-3"], ["0.5", "0.75", "1"]),
}
ENCODINGS = [("utf-8", ""), ("utf-8-sig", ""), ("utf-16", ""), ("cp1252", ""), ("cp1252", "CP1252"), ("cp850", "cp850")]
WORDS = st.sampled_from(["café", "Straße", "señor", "£5", "NA", "x", " ", "\n", ",", ";", "|", "\t", '"', "'", "&amp;"])
ANY = st.text(st.characters(codec="latin-1", exclude_categories=["Cc", "Cs"]), max_size=9)  # is not told from others


@st.composite
def files(draw):
    """Rows with their labels as 0 and 1, what to ask for, and the bytes of a file that holds them."""
    (text_name, label_name), kind = draw(NAMED), draw(st.sampled_from(sorted(LABELS)))
    positive, zeros, ones = LABELS[kind]
    of_rows = [0, 1, *draw(st.lists(st.integers(0, 1), max_size=6))]
    suffix, (encoding, asked) = draw(st.sampled_from([".csv", ".tsv", ".jsonl"])), draw(st.sampled_from(ENCODINGS))
    words = st.lists(WORDS | ANY if asked or encoding != "cp1252" else WORDS, max_size=6).map(" ".join)
    texts = [f"Le café {i} {draw(words)}, où est-il" for i in range(len(of_rows))]
    texts += [f"{texts[0]} ", "", " "] if draw(st.booleans()) else []
    of_rows += [of_rows[0], 0, 1][: len(texts) - len(of_rows)]
    cells = [draw(st.sampled_from(ones if label else zeros)) for label in of_rows]
    names = ("v2", "v1") if text_name == "v2" else ("", "")
    if suffix == ".jsonl":
        rows = [{label_name: label, text_name: text} for text, label in zip(texts, cells)]
        content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    else:
        dialect = {
            "delimiter": draw(st.sampled_from(",;\t|")),
            "lineterminator": draw(st.sampled_from(["\n", "\r\n"])),
            "quoting": draw(st.sampled_from([csv_module.QUOTE_MINIMAL, csv_module.QUOTE_ALL])),
        }
        content = as_csv(list(zip(cells, texts)), (label_name, text_name), **dialect)
    return texts, of_rows, Columns(*names, "", positive, asked), suffix, content.encode(encoding)
