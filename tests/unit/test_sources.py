import hashlib

import pandas as pd
import pytest
import yaml

from lib.texts import sources


def test_embedded_sets_are_large_enough_and_have_both_forms():
    from lib.texts.datasets import is_question

    base = sources.base_prompts("embedded")
    assert list(base.columns) == sources.BASE_COLUMNS
    sizes = base["source"].value_counts()
    least = {"harmful": 400, "harmless": 1000, "ood_harmful": 300, "ood_toxic_looking": 300, "ood_chat": 300}
    for source in least:
        assert sizes[source] >= least[source]
        share = base.loc[base["source"] == source, "text"].map(is_question).mean()
        assert 0.2 < share < 0.8, f"{source} has {share:.0%} questions"
    topics = pd.read_csv(sources.DATA / "prompts" / "harmless.csv")["category"].nunique()
    assert topics >= 12 and base["text"].is_unique and base["base_id"].is_unique


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match="unknown dataset 'nope'; allowed are embedded, public"):
        sources.base_prompts("nope")
    with pytest.raises(ValueError, match="unknown toxic_looking 'x'; allowed are xstest, or_bench"):
        sources.base_prompts("public", toxic_looking="x")
    with pytest.raises(ValueError, match="unknown public file 'x'"):
        sources.fetch("x")


def test_limits_of_the_parts_hold_for_the_sources_of_every_data_set():
    limits = sources.limits(harmful=1, harmless=2, ood_harmful=3, ood_toxic_looking=4)
    assert limits == {
        "harmful": 1, "harmless": 2, "ood_harmful": 3, "ood_toxic_looking": 4,
        "harmbench": 1, "alpaca": 2, "advbench": 3, "xstest": 4, "or_bench": 4,
    }  # fmt: skip
    with pytest.raises(ValueError, match="unknown part of a data set 'chat'; allowed are harmful, harmless"):
        sources.limits(chat=1)


@pytest.fixture
def one_source(tmp_path, monkeypatch):
    """A registry of one file, whose downloads go to a folder of the test."""
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(sources, "DATA", tmp_path / "data")

    def register(sha256: str, url="https://example.invalid/some/folder/file.csv"):
        entry = {"toy": {"url": url, "sha256": sha256, "bytes": 1, "licence": "-", "content": "-"}}
        (tmp_path / "data" / "sources.yaml").write_text(yaml.safe_dump(entry))

    mirror = tmp_path / "mirror"
    (mirror / "some" / "folder").mkdir(parents=True)
    (mirror / "some" / "folder" / "file.csv").write_bytes(b"text\nhi\n")
    return register, mirror


def test_mirror_is_read_and_the_checksum_is_checked(one_source):
    register, mirror = one_source
    register(hashlib.sha256(b"text\nhi\n").hexdigest())
    assert sources.fetch("toy", str(mirror)).read_bytes() == b"text\nhi\n"
    assert sources.fetch("toy", "").read_bytes() == b"text\nhi\n", "the second time nothing is fetched"


def test_the_mirror_may_lie_in_the_home_folder(one_source, monkeypatch):
    register, mirror = one_source
    register(hashlib.sha256(b"text\nhi\n").hexdigest())
    monkeypatch.setenv("HOME", str(mirror.parent))
    monkeypatch.setenv("MIRROR", "~/mirror")
    assert sources.fetch("toy").read_bytes() == b"text\nhi\n"


def test_a_wrong_checksum_leaves_nothing(one_source):
    register, mirror = one_source
    register("0" * 64)
    with pytest.raises(ValueError, match="toy: .* does not have the expected SHA-256 0000"):
        sources.fetch("toy", str(mirror))
    assert not list((sources.DATA / "raw").glob("toy*"))


def test_no_network_and_no_mirror_says_how_to_get_one(one_source):
    register, mirror = one_source
    register("0" * 64)
    with pytest.raises(ValueError, match="cannot be fetched .*MIRROR=/path/to/folder .*some/folder/file.csv"):
        sources.fetch("toy", "")
    with pytest.raises(ValueError, match="cannot be fetched"):
        sources.fetch("toy", str(mirror / "empty"))


def test_or_bench_comes_from_the_hub(monkeypatch, tmp_path):
    table = tmp_path / "or-bench-hard-1k.csv"
    table.write_text("prompt,category\nhow do I kill a daemon?,x\n")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: str(table))
    assert sources._or_bench() == ["how do I kill a daemon?"]

    def offline(*a, **k):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(ValueError, match="without network use toxic_looking: xstest"):
        sources._or_bench()
