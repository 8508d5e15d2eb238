"""A random CSV or profile is taken and sound, or refused in one sentence that names it."""

import csv
import io
import json

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from lib.base import build_graph
from lib.runs import profiles, runner, sweep_cells
from lib.texts import datasets, own_texts, sources
from lib.texts.labelled import Columns
from tests.fuzzing import JSON, Outcomes, fuzz

HUGE = b"x" * 200_000
ODD = {
    "text": [
        *("", " ", "\x00", "nan", "Bake a cake.", "bake a cake", "(x)", "?!", 'say "hi"'),
        *("two\nlines", "\u2028", "\ufeff", "\ud800", HUGE.decode()),
    ],
    "label": ["", " 1", "1.0", "2", "-1", "yes", "True", "nan", "inf", "1e400", "9" * 5000, "\x00", "٠"],
    "base_id": ["", " ", "0", "nan", "train_csv-line 2", ":plain", "\x00"],
    "note": ["", "x" * 5000, "\x00"],
}
KINDS = ["cell", "cell", "cell", "short", "long", "copy", "rename", "column"]
HEADERS = ["text", "label", "base_id", "note", "", "Text", "text.1"]
SUFFIXES = [".csv"] * 30 + [".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zip", ".csv.zst", ".tar", ".tsv", ""]


@st.composite
def tables(draw, word):
    """A sound table of ``text,label`` (and ``base_id``), with up to two cells, rows or column names made odd."""
    header = ["text", "label", *draw(st.sampled_from([[], [], ["base_id"], ["note", "base_id"]]))]
    n, size = draw(st.integers(4, 14)), draw(st.sampled_from([1, 2, 4, 99]))
    rows = [[f"{word} {i}", str(i % 2), f"g{i // size}", f"g{i // size}"][: len(header)] for i in range(n)]
    for kind in draw(st.sampled_from([[], []]) | st.lists(st.sampled_from(KINDS), max_size=2)):
        row = draw(st.integers(0, n - 1))
        column = draw(st.integers(0, min(len(header), len(rows[row])) - 1))
        if kind == "cell":
            rows[row][column] = draw(st.sampled_from(ODD.get(header[column], ODD["note"])) | st.text(max_size=8))
        elif kind == "short":
            rows[row] = rows[row][:1]
        elif kind == "long":
            rows[row] = [*rows[row], draw(st.sampled_from(["", "0", "1"]))]
        elif kind == "copy":
            rows.append(list(rows[row]))
        elif kind == "rename":
            header[column] = draw(st.sampled_from(HEADERS))
        else:
            name = draw(st.sampled_from([[], *([name] for name in HEADERS)]))
            header, rows = header + name, [[*cells, "0"] for cells in rows]
    return [header, *rows]


@st.composite
def csv_bytes(draw, word):
    """A table as CSV, at times in another dialect or encoding or with bytes cut off or put in; or bytes only."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    out = io.StringIO(newline="")
    dialect = {
        "delimiter": draw(st.sampled_from([","] * 20 + [";", "\t", "|"])),
        "lineterminator": draw(st.sampled_from(["\n", "\r\n", "\r"])),
        "quoting": draw(st.sampled_from([0, 1])),
    }
    csv.writer(out, **dialect).writerows(draw(tables(word)))
    encoding = draw(st.sampled_from(["utf-8"] * 20 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"]))
    data = out.getvalue().encode(encoding, "surrogatepass")
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(data)))
        put = draw(st.sampled_from([b"", b'"', b"\0", b"\xff", b"\n", b",", b'"\n']))
        data = data[:at] + put + data[at + draw(st.integers(0, 2)) :]
    return data


def write_prompts(path, train, ood, normalise, wrap):
    """What notebook 01 does with a user's files, without its probe and its model."""
    rng = np.random.default_rng(0)
    own = own_texts.read({"id": str(train), "ood": str(ood or "")}, Columns())
    base = own.base
    assert list(base) == sources.BASE_COLUMNS and base.notna().all().all()
    drawn = datasets.draw(base, {}, False, rng)
    raw = datasets.split_base(drawn, 0.2, rng)
    if normalise:
        drawn = drawn.assign(text=drawn["text"].map(datasets.normalise))
    drawn, left_out = own_texts.distinct(drawn, "once normalised")
    own_texts.account([*own.counts, *left_out], drawn)
    clean = datasets.split_base(drawn, 0.2, rng)
    assert np.isfinite(datasets.surface_form(clean["text"].tolist())).all().all()
    prompts = datasets.plain(clean)
    if wrap:
        prompts = datasets.augment(clean, datasets.load_templates("embedded"), 1.0, rng)
    datasets.save(prompts, path)
    datasets.save(datasets.plain(raw), path.with_stem("raw_prompts"))
    return prompts


def test_csv(tmp_path):
    outcomes, path = Outcomes(), tmp_path / "run" / "prompts.parquet"

    questions = st.none() | csv_bytes("question")

    @example(b"text,label\na," + HUGE, None, ".csv", False, False)
    @example(b"text," + HUGE + b"\na,1\n", None, ".csv", False, False)
    @example(b"text,label\n" + HUGE + b",1\n" + HUGE + b",0\n", None, ".csv", False, False)
    @example(b"text,label\n" + HUGE + b",1\na,0\n", b"text,label\n" + HUGE + b",1\nb,0\n", ".csv", False, False)
    @fuzz(max_examples=400)
    @given(csv_bytes("request"), questions, st.sampled_from(SUFFIXES), st.booleans(), st.booleans())
    def check(train_bytes, ood_bytes, suffix, normalise, wrap):
        for old in path.parent.glob("*"):
            old.unlink()
        train, ood = tmp_path / f"train{suffix}", None if ood_bytes is None else tmp_path / "ood.csv"
        train.write_bytes(train_bytes)
        if ood:
            ood.write_bytes(ood_bytes)
        names = [str(file) for file in (train, ood) if file]
        prompts = outcomes.judge(lambda: write_prompts(path, train, ood, normalise, wrap), *names, "train_csv")
        written = {file.name: datasets.load(file) for file in path.parent.glob("*")}
        assert set(written) <= {"prompts.parquet", "raw_prompts.parquet"}
        assert prompts is None or len(written) == 2 and written["prompts.parquet"].equals(prompts)
        for table in written.values():
            assert list(table) == datasets.COLUMNS and table.notna().all().all()
            assert table["text"].str.strip().ne("").all()
            without_id = table["base_id"].str.fullmatch(r"(train|ood)_csv-\s*")
            assert not without_id.any(), "rows without a base_id are no variants of one prompt"
            assert set(table["label"]) == {0, 1} and (table.groupby("base_id")["split"].nunique() == 1).all()

    check()
    outcomes.check_both()


ODD_VALUES = [
    "!!python/object/apply:os.system ['touch TOUCHED']", "!!python/object/new:pathlib.Path [TOUCHED]",
    "!!python/name:os.system ", "!!bool x", "!!int ''", "!!float ''", "!!timestamp x", "!!binary aGk=", "!!str {a: 1}",
    "!!set {a, b}", "!!omap [a: 1]", "!!nope x",
    "2020-01-01", "2020-13-45", ".nan", ".inf", "[.nan]", "1e400", "9" * 5000, "0x" + "f" * 5000,
    ":".join(["59"] * 200) + ".5",
    "7", "1.5", "true", "~", "", "text", "[]", "[7, 8]", "[a, 1]", "[true]", "[1.5]", "[[1]]", "[" * 3000, "{a: 1}",
    "[a: 1]", "'no end",
    '"\\ud800"', '"\\0"', "&a 1", "*a", "&b [*b]", "|\n  two\n  lines", "a: b: c", "\t", "@", "\x07", "\ufeff",
]  # fmt: skip
ODD_NAMES = [
    *("1", "~", "[a]", "{a: 1}", "<<", "?", "layre", "2020-01-01", "!!int 0x" + "f" * 5000, '"\\ud800"', "profile"),
]
NINE = [", ".join([f"*l{i}"] * 9) for i in range(9)]  # the anchor before, nine times
ALIASES = "seed: &l0 [1]\n" + "".join(f"seed: &l{i} [{anchors}]\n" for i, anchors in enumerate(NINE, 1))
MERGES = "? &l0 {a: 1}\n: 1\n" + "".join(f"? &l{i} {{<<: [{anchors}]}}\n: 1\n" for i, anchors in enumerate(NINE, 1))
DEFAULTS = {path: build_graph.parameters(path) for path in build_graph.notebooks()}
KNOWN = {name: default for defaults in DEFAULTS.values() for name, default in defaults.items() if name != "profile"}
ANOTHER = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: value / 2 + 1,
    str: lambda value: value + "x",
    list: lambda value: value[1:],
}


def sound_line(name):
    """A line that gives a known parameter another value."""
    return f"{name}: {json.dumps(ANOTHER[type(KNOWN[name])](KNOWN[name]))}"


SOUND_LINES = st.sampled_from(sorted(KNOWN)).map(sound_line)
NAMES = st.sampled_from(sorted(KNOWN)) | st.sampled_from(ODD_NAMES)
ODD_LINES = st.tuples(NAMES, st.sampled_from(ODD_VALUES)).map(": ".join)
PROFILES = st.sampled_from([
    *2 * [st.lists(SOUND_LINES, max_size=4).map(lambda lines: "\n".join(lines).encode())],
    *2 * [st.tuples(SOUND_LINES, ODD_LINES).map(lambda lines: "\n".join(lines).encode())],
    JSON.map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
]).flatmap(lambda strategy: strategy)  # fmt: skip


def fits(value, default):
    """Whether a value may stand in a default's place."""
    if isinstance(default, list):
        if not isinstance(value, list):
            return False
        if not default:
            return not any(isinstance(item, list | dict) for item in value)
        return all(fits(item, default[0]) for item in value)
    return type(value) is type(default) or (type(value), type(default)) == (int, float)


def test_profile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The parameters are read for each notebook of each example.
    monkeypatch.setattr(build_graph, "parameters", DEFAULTS.__getitem__)
    outcomes, path = Outcomes(), tmp_path / "mine.yaml"

    def choose():
        values = profiles.read_profile(path)
        return [profiles.select(notebook, values) for notebook in DEFAULTS]

    @fuzz(max_examples=400)
    @given(PROFILES)
    @example(b"1: 7\nlayre: 8")
    @example(b"seed: true")
    @example(b"lr: .nan")
    @example(b"target_l0s: [8, true]")
    @example(b'train_csv: "\\ud800"')
    @example(ALIASES.encode())
    @example(MERGES.encode())
    def check(data):
        path.write_bytes(data)
        chosen = outcomes.judge(choose, str(path), "parameter ")
        assert not (tmp_path / "TOUCHED").exists(), "a tag was carried out"
        for values, defaults in zip(chosen or [], DEFAULTS.values(), strict=False):
            json.dumps(values, ensure_ascii=False, allow_nan=False).encode()  # as in the record
            assert all(fits(value, defaults[name]) for name, value in values.items())

    check()
    outcomes.check_both()


@pytest.mark.parametrize("value", ["[1", "!!bool x", ".nan", "[[1]]", "!!python/name:os.system "])
def test_a_parameter_of_the_command_line(value, monkeypatch):
    monkeypatch.setattr("sys.argv", ["runner", "01_datasets", "-p", "val_share", value])
    with pytest.raises(SystemExit, match=r"error: parameter val_share"):
        runner.main()


SOUND_LISTS = st.lists(st.integers(0, 9).map(str), min_size=1, max_size=3).map(lambda items: f"[{', '.join(items)}]")
ODD_ITEMS = st.lists(st.sampled_from(["1", "x", "[1]", "true", ".nan", "~", "{a: 1}", "*a"]), max_size=3)
ODD_LISTS = ODD_ITEMS.map(lambda items: f"[{', '.join(items)}]") | st.sampled_from(ODD_VALUES)
GROUP = st.sampled_from([
    *5 * [st.tuples(st.sampled_from(["seed", "layer", "show_k"]), SOUND_LISTS)],
    st.tuples(st.sampled_from(["seed", "layre", "1", "profile", "~"]), SOUND_LISTS),
    st.tuples(st.just("seed"), ODD_LISTS),
]).flatmap(lambda strategy: strategy)
GROUPS = st.lists(GROUP, max_size=2).map(
    lambda items: "{" + ", ".join(f"{name}: {value}" for name, value in items) + "}"
)
PARTS = st.tuples(
    st.sampled_from(["[05_probing]"] * 9 + ["05_probing", "[nope]", "~"]),
    GROUPS,
    GROUPS | st.sampled_from(["{}", "[]"]),
    st.sampled_from(["{}"] * 6 + ["{x: k}", "{hue: k}", "{x: k, where: 1}", "[x]"]),
)


def sweep_file(parts):
    """A sweep's YAML of the four parts."""
    return "notebooks: {}\ngrid: {}\nzip: {}\nfigure: {}\n".format(*parts).encode("utf-8", "surrogatepass")


SWEEPS = st.binary(max_size=60) | PARTS.map(sweep_file)


def test_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(build_graph, "parameters", DEFAULTS.__getitem__)
    outcomes, path = Outcomes(), tmp_path / "mine.yaml"

    @fuzz(max_examples=200)
    @given(SWEEPS)
    @example(b"notebooks: [05_probing]\ngrid: {seed: [0, 1], layer: [1, 2]}\nzip: {show_k: [5, 20], ks: [[1], [2]]}")
    @example(b"notebooks: [05_probing]\ngrid: {layer: [1, 2]}\nfigure: {x: k, where: {split: ood}}")
    def check(data):
        path.write_bytes(data)
        sweep = outcomes.judge(lambda: sweep_cells.read(path), str(path), "parameter", "profile")
        if sweep:
            assert len(sweep.points) >= 1 and all(set(point) == set(sweep.points[0]) for point in sweep.points)
            json.dumps(sweep.points, allow_nan=False)

    check()
    outcomes.check_both()
