"""What README and the pages of docs say: links, paths, commands, names and numbers, held to the project itself."""

import json
import re

import pytest
import yaml

from lib.base import build_graph
from lib.base.files import DATA, ROOT
from lib.results import architecture, claims, scorecard, scorecard_pages
from lib.runs import sweep_cells
from lib.sae import pretrained

CARDS = [DATA / folder / "README.md" for folder in ("prompts", "rollouts", "pretrained")]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *CARDS]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXTS["README.md"]
MADE_BY_RUNS = ("data/runs/", "data/raw/", "report/")  # not in the repository
PAPER_CLAIMS = 13  # the first 40 lines have room for these


def slug(heading):
    """The anchor that a heading has on the repository's page."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def blocks(text, language):
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def opening():
    """README up to the end of the scorecard."""
    return README.partition(scorecard_pages.MARKERS[1])[0]


def metric(profile, **filters):
    """A value of the profile's records, in whichever notebook it stands."""
    records = scorecard.committed()[profile].values()
    rows = [row for record in records for row in record["metrics"]]
    matches = [row for row in rows if all(row.get(name) == value for name, value in filters.items())]
    assert matches and len({row["value"] for row in matches}) == 1, f"{len(matches)} rows of {profile} match {filters}"
    return matches[0]


# Links, paths and names


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(slug, headings), f"{page}: {target}"


@pytest.mark.parametrize("page", TEXTS)
def test_every_path_that_is_named_exists(page):
    folders = "bench|data|docs|figures|lib|notebooks|report|tests"
    for path in re.findall(rf"(?<![\w/.])(?:{folders})/[\w<>./*-]*[\w>*]", TEXTS[page]):
        path = path.replace("<profile>", "embedded")
        assert path.startswith(MADE_BY_RUNS) or list(ROOT.glob(path)), f"{page}: {path}"


@pytest.mark.parametrize("page", TEXTS)
def test_every_command_and_variable_is_makes_own(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) \?=", makefile, flags=re.MULTILINE))
    in_code = "\n".join(re.findall(r"`(make [^`]+)`", TEXTS[page]) + blocks(TEXTS[page], "sh"))
    for command in re.findall(r"\bmake [^\n#]+", in_code):
        _, target, *words = command.split()
        assert target in targets, f"{page}: {command}"
        assert {word.partition("=")[0] for word in words if "=" in word} <= variables, f"{page}: {command}"
    for assignment in re.findall(r"`([A-Z]+)=[^`]*`", TEXTS[page]):
        assert assignment in variables, f"{page}: {assignment}"


@pytest.mark.parametrize("page", TEXTS)
def test_every_profile_sweep_and_notebook_exists(page):
    notebooks = {path.stem for path in build_graph.notebooks()}
    assert set(re.findall(r"\b(\d\d_[a-z_]+)\b(?!\.png)", TEXTS[page])) <= notebooks
    for folder, variable in (("profiles", "PROFILE"), ("sweeps", "SWEEP")):
        names = {path.stem for path in (ROOT / "notebooks" / folder).glob("*.yaml")}
        for name in re.findall(rf"{variable}=([\w.-]+)", TEXTS[page]):
            assert name in names or name == "name" or name.endswith(".yaml"), f"{page}: {variable}={name}"


def test_every_notebook_profile_and_sweep_is_on_its_page():
    for name in (path.stem for path in build_graph.notebooks()):
        assert f"| `{name}` |" in README
    for page, folder in (("docs/profiles.md", "profiles"), ("docs/sweeps.md", "sweeps")):
        for path in (ROOT / "notebooks" / folder).glob("*.yaml"):
            assert f"`{path.stem}`" in TEXTS[page]


def test_every_parameter_that_is_named_is_one():
    parameters = {name for path in build_graph.notebooks() for name in build_graph.parameters(path)}
    of_release = {".ci/run": (ROOT / ".ci" / "run").read_text(encoding="utf-8")}
    for page, text in (TEXTS | of_release).items():
        written_out = [yaml.safe_load(body) for body in re.findall(r"<<EOF\n(.*?)\nEOF", text, flags=re.DOTALL)]
        sweeps = [yaml.safe_load(body) for body in blocks(text, "yaml")]
        grids = [sweep.get(part, {}) for sweep in sweeps for part in ("fixed", "grid", "zip")]
        for values in written_out + grids:
            assert set(values) <= parameters, page
    others = {"hf", "own", "release", "shipped"} | sweep_cells.KEYS
    for page, text in TEXTS.items():
        assert set(re.findall(r"`([a-z_]+): ?[^`]*`", text)) - others <= parameters, page


def test_every_page_is_reached_from_readme():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in README


def test_every_test_that_the_page_of_inputs_names_exists():
    named = set(re.findall(r"`(test_\w+)`", TEXTS["docs/inputs.md"]))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert named and named <= set(re.findall(r"^def (test_\w+)\(", sources, flags=re.MULTILINE))
    rows = [line for line in TEXTS["docs/inputs.md"].splitlines() if line.startswith("| ")]
    assert all("`test_" in row or row.startswith(("| input |", "| --- |")) for row in rows)


# What stands where in README


def test_readme_is_short():
    assert README.count("\n") <= 130


def test_the_first_forty_lines_hold_what_a_reader_needs():
    lines = opening().splitlines()
    rows = [line for line in lines if re.match(r"\| \[C\d+\]\(docs/scorecard.md#c\d+\) \|", line)]
    assert len(lines) + 1 - max(0, len(rows) - PAPER_CLAIMS) <= 40  # a new claim has a line of its own
    commands = re.findall(r"^make (\w+)", "".join(blocks(opening(), "sh")), flags=re.MULTILINE)
    assert commands == ["test", "reproduce"]
    assert len(re.findall(r"!\[[^]]+\]\(figures/embedded/\w+\.png\)", opening())) == 1
    doors = [line for line in lines if line.startswith("- **")]
    names = [re.search(r"\*\*(.+?)\*\*", line)[1] for line in doors]
    assert names == ["Read", "Change", "Your data", "Another model", "A GPU"]
    assert all("(docs/" in line for line in doors)
    columns = 2 + len(scorecard.committed())
    assert len(rows) == len(claims.load().claims) and all(line.count("|") == columns + 1 for line in rows)


def answer():
    """The paragraph below README's title."""
    return README.split("\n\n")[1]


def test_the_answer_has_three_sentences():
    assert len(re.findall(r"[.](?=\s+[A-Z]|\s*$)", answer())) == 3


# Numbers


ROTATED = {"metric": "auroc_within_wrapper", "split": "rotation"}
OTHER_SOURCE = {"metric": "auroc", "split": "rotated source"}
MANY = {"probe": "k-sparse", "k": 16, "variant": "pretraining SAE"}
EXPOSING = "SAE latents", "TF-IDF terms", "residual coordinates"
TRAINED = {"probe": "k-sparse", "k": 20, "variant": "pretraining SAE"}


def dense_at_the_saes(profile, **filters):
    """The dense probe at the SAEs' layer, of the pooling that validation chose."""
    records = scorecard.committed()[profile]
    filters |= {"probe": f"dense, layer {records['04_chat_finetune']['parameters']['layer']}"}
    rows = [row for row in records["05_probing"]["metrics"] if filters.items() <= row.items()]
    return rows[0]  # before that of the pooling under which a reconstruction is exact, if this is another one


def numbers_of_the_answer():
    """The rows whose values the answer states, in its order."""
    rows = []
    for source in ("harmful", "ood_harmful"):
        of_source = OTHER_SOURCE | {"held_out": source}
        rows += [metric("embedded", **of_source, **TRAINED), dense_at_the_saes("embedded", **of_source)]
    for profile in ("minilm", "public", "embedded"):
        rows += [metric(profile, **ROTATED, **TRAINED), dense_at_the_saes(profile, **ROTATED)]
    for setting in ("normal", "scarcity", "label noise"):
        rows.append(metric("embedded", metric="auroc_behind_dense", source="here", setting=setting, **MANY))
    for share in (0.5, 0.25):
        exposed = {"metric": "recall_net", "share": share}
        rows += [metric("embedded", **exposed, method=method) for method in EXPOSING]
    return rows


def test_the_numbers_of_the_answer_are_those_of_the_records():
    assert re.findall(r"\d\.\d+", answer()) == [f"{abs(row['value']):.2f}" for row in numbers_of_the_answer()]


# Words of the answer, and the verdicts of the scorecard, by profile, with which they are true.
OPEN, SHOWN, NOT_SHOWN = {"inconclusive"}, {"reproduced"}, {"inconclusive", "no difference", "opposite"}
CHAT = ("embedded", "public")  # profiles with the chat model
TRUE_WITH = {
    "less well than a plain linear probe": ("C3f", {"embedded": SHOWN}),
    "on public data sets it is open whether they do": ("C3f", {"public": OPEN}),
    "they are behind on an encoder (mean 0.76 against 0.94) and on public data": (
        "C3e",
        dict.fromkeys(("minilm", "public"), SHOWN),
    ),
    "on this project's own prompts it may be chance that they are": ("C3e", {"embedded": OPEN}),
    "finetuning the SAE on chat is not shown to help": ("C4d", dict.fromkeys(CHAT, NOT_SHOWN)),
    "nor are 20 latents shown to be ahead of 20 principal components": (
        "C3g",
        dict.fromkeys(("embedded", "minilm", "public"), NOT_SHOWN),
    ),
    "On 113 other tasks, of 300 texts at most, probes on 16 latents make no difference": (
        "C16d",
        {"embedded": {"no difference"}},
    ),
    "are ahead with few rows (0.02) and wrong labels (0.02)": ("C16e", {"embedded": {"opposite"}}),
    "it is open whether they are ahead of either": ("C13b", dict.fromkeys(("embedded", "minilm", "public"), OPEN)),
    "open whether they are ahead of either": ("C13c", dict.fromkeys(("embedded", "minilm", "public"), OPEN)),
    "latents do show what a probe would cheat on": ("C13a", dict.fromkeys(("embedded", "minilm", "public"), SHOWN)),
}


@pytest.mark.parametrize("words", TRUE_WITH)
def test_the_verdicts_bear_the_words_of_the_answer(words):
    assert words in " ".join(answer().split())
    part, allowed = TRUE_WITH[words]
    of_profiles = {profile: scorecard.committed()[profile] for profile in allowed}
    verdict_of = {row.profile: row.verdict for row in scorecard.every(claims.load(), of_profiles) if row.id == part}
    assert all(verdict_of[profile] in of_profile for profile, of_profile in allowed.items())


def test_times_and_memory_cover_the_records():
    """The minutes and gigabytes of README are those of whole runs: what the records hold fits into them."""
    records = {
        profile: {name: record for name, record in of_profile.items() if record["profile"] == profile}
        for profile, of_profile in scorecard.committed().items()
    }  # A run over many tasks is another one.
    minutes = int(re.search(r"about (\d+) minutes on 2 cores", README)[1])
    assert f"| {minutes} minutes |" in TEXTS["docs/profiles.md"]
    measured = sum(record["wall_time_s"] for record in records["embedded"].values()) / 60
    assert 0.6 * minutes <= measured <= minutes
    limits = dict(re.findall(r"^\| `(\w+)`.* \| (\d+) minutes \|$", TEXTS["docs/profiles.md"], flags=re.MULTILINE))
    for profile in set(limits) & set(records):
        assert sum(record["wall_time_s"] for record in records[profile].values()) <= 60 * int(limits[profile])
    limit = int(re.search(r"takes (\d+) GB of memory at most", README)[1])
    assert max(record["peak_memory_gib"] for record in records["embedded"].values()) <= limit


def test_the_budget_of_the_language_model_holds_the_saes_of_notebook_06():
    shown = (ROOT / "notebooks" / "06_autointerp.ipynb").read_text(encoding="utf-8")
    [(budget, n_saes, needed)] = re.findall(
        r"llm_max_requests: (\d+) .*: (\d+) SAEs with 100 latents each need ([\d,]+)", TEXTS["docs/usage.md"]
    )
    assert f'"{n_saes} SAEs at layer' in shown
    assert int(needed.replace(",", "")) == 3 * 100 * int(n_saes) <= int(budget)


def test_how_much_faster_tasks_are_is_as_measured():
    value = {row["name"]: row["value"] for row in json.loads((DATA / "bench" / "tasks.json").read_text())}
    says = " ".join(TEXTS["docs/usage.md"].split())
    assert f"takes {1 / value['vs_sae_probes']:.2f} of the time that `sae-probes`" in says
    assert f"the probes alone {1 / value['vs_sae_probes_probes']:.2f} (" in says


def test_what_a_gpu_did_is_as_measured():
    rows = {row["name"]: row for row in json.loads((DATA / "bench" / "gemma.json").read_text())}
    value = {name: row["value"] for name, row in rows.items()}
    says = " ".join(TEXTS["docs/profiles.md"].split())
    for words in (
        f"{round(value['harvest_tokens_per_s'], -2):,.0f} tokens/s, {value['harvest_vs_hf_cut']:.2f} times",
        f"{round(value['sae_training_tokens_per_s'], -2):,.0f} tokens/s",
        f"{value['sae_training_vs_saelens']:.1f} times as many as SAELens",
        f"{value['sae_training_share_of_peak']:.2f} of the card's matrix peak",
        f"{value['peak_memory_gib']:.0f} GiB of its memory",
    ):
        assert words in says, words
    assert {row["hardware"]["device"] for row in rows.values()} == {"NVIDIA H200"}
    assert not any(row["commit"].endswith("+") for row in rows.values())


def test_the_card_of_the_shipped_saes_is_that_of_their_records():
    assert pretrained.card() == (pretrained.FOLDER / "README.md").read_text(encoding="utf-8"), "make pretrained"


# Ids and the architecture


def test_a_range_over_all_claims_is_typed_nowhere():
    last = list(claims.load().claims)[-1]
    sources = [*build_graph.notebooks(), *build_graph.LIB.rglob("*.py"), DATA / "claims.yaml", *PAGES]
    for path in sources:
        assert not re.search(rf"C1 (to|–|-) {last}\b|C1–{last}\b", path.read_text(encoding="utf-8")), path.name


def test_the_architecture_is_that_of_the_docstrings_and_imports():
    assert architecture.page() == architecture.PAGE.read_text(encoding="utf-8"), "make docs"


def test_the_picture_of_the_data_flow_names_every_package_and_only_modules():
    (picture,) = blocks(TEXTS["docs/architecture.md"], "")
    rooms = architecture.packages()
    modules = {module.name for room in rooms for module in room.modules}
    assert all(re.search(rf"\b{room.name}\b", picture) for room in rooms)
    boxes = re.findall(r"│([^│─]+)│", picture)
    assert boxes and set(re.findall(r"[a-z_]+", " ".join(boxes))) <= modules


def test_floors_are_those_of_the_imports():
    rooms = {room.name: room for room in architecture.packages()}
    assert set(rooms) == {path.parent.name for path in build_graph.LIB.glob("*/__init__.py")}
    for room in rooms.values():
        assert room.floor == 1 + max((rooms[other].floor for other in room.imports), default=-1)


def test_notebooks_stand_beside_the_modules_that_they_reach():
    modules = {f"{room.name}/{module.name}": module for room in architecture.packages() for module in room.modules}
    notebook = build_graph.notebooks()[-1]
    number, direct, reached = notebook.stem[:2], build_graph.imported(notebook), build_graph.modules(notebook)
    for name, module in modules.items():
        assert (number in module.notebooks) == (name in direct)
        assert (number in module.through_others) == (name in reached and name not in direct)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ('"""One sentence."""', "One sentence"),
        ('"""Over two\nlines, e.g. so. And another."""', "Over two lines, e.g. so"),
        ('"""``Code`` first | bars."""', "`Code` first \\| bars"),
        ('"""No dot\n\nBody."""', "No dot"),
    ],
)
def test_the_first_sentence_of_a_docstring(tmp_path, docstring, expected):
    path = tmp_path / "module.py"
    path.write_text(docstring + "\n")
    assert architecture.first_sentence(path) == expected


def test_a_module_without_a_docstring_is_refused(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="module.py has no docstring"):
        architecture.first_sentence(path)
