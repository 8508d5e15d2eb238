import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from lib.runs import storage


@pytest.fixture(params=["memory://bucket", "my $HOME it's \"50%\" für #1 {a} * "])
def place(request, tmp_path, monkeypatch):
    """A storage, with an empty folder as the project."""
    monkeypatch.setattr(storage, "ROOT", tmp_path / "project")
    (tmp_path / "project").mkdir()
    new = storage.Storage(request.param if ":" in request.param else str(tmp_path / request.param))
    yield new
    if new.system.exists(new.root):
        new.system.rm(new.root, recursive=True)


def test_files_and_folders_go_there_and_come_back(place):
    root = storage.ROOT
    for name in ("runs/a.json", "saes/one/cfg.json", "saes/one/deep/w.bin", "saes/one/.lock"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    assert not place.has(root / "runs/a.json")
    place.put([root / "saes/one", root / "runs/a.json"])
    assert place.has(root / "runs/a.json")
    (root / "runs").rename(root / "gone")
    (root / "saes").rename(root / "gone-too")
    place.get([root / "runs/a.json", root / "saes/one"])
    files = [path for path in (root / "saes").rglob("[!.]*") if path.is_file()]
    assert {str(path.relative_to(root / "saes")) for path in files} == {"one/cfg.json", "one/deep/w.bin"}
    assert (root / "runs/a.json").read_text() == "runs/a.json"
    assert not [path for path in root.rglob(".*") if not path.name.endswith(".lock")], "nothing temporary stays"


def test_an_incomplete_folder_is_completed(place):
    folder = storage.ROOT / "store"
    for name, text in (("manifest.json", "finished"), ("shard-0", "a"), ("shard-1", "b")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    place.put([folder])
    (folder / "shard-1").unlink()
    (folder / "manifest.json").write_text("begun")
    place.get([folder])
    texts = {path.name: path.read_text() for path in folder.glob("[!.]*")}
    assert texts == {"manifest.json": "finished", "shard-0": "a", "shard-1": "b"}


def test_workers_that_fetch_one_folder_at_once_agree(place):
    folder = storage.ROOT / "store"
    for i in range(20):
        (folder / str(i)).parent.mkdir(exist_ok=True)
        (folder / str(i)).write_text(str(i))
    place.put([folder])
    folder.rename(folder.with_name("gone"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: place.get([folder]), range(8)))
    assert {path.name for path in folder.glob("[!.]*")} == {str(i) for i in range(20)}


def test_a_place_that_fails_is_one_sentence_without_its_password(place, monkeypatch):
    place.url = "sftp://me:hidden@host/x"

    def denied(_):
        raise PermissionError("no access to sftp://me:hidden@host/x")

    sentence = r"STORE='sftp://host/x' cannot be used \(PermissionError: no access to sftp://host/x\)"
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=sentence):
        patch.setattr(place.system, "exists", denied)
        place.has(storage.ROOT / "x")


def test_what_is_here_is_not_fetched(place):
    path = storage.ROOT / "x.txt"
    path.write_text("old")
    place.put([path])
    path.write_text("new")
    place.get([path])
    assert path.read_text() == "new"


def test_products_are_outputs_and_the_saes_they_list(tmp_path):
    record = tmp_path / "r.json"
    record.write_text(json.dumps({"outputs": {"saes": {"path": "a.parquet", "sha256": ""}}, "folders": ["saes/one"]}))
    assert [path.relative_to(storage.ROOT).as_posix() for path in storage.products(record)] == ["a.parquet", "saes/one"]


@pytest.mark.parametrize("name", ["../out.json", "runs/../../out.json", "{outside}/out.json"])
def test_a_record_cannot_name_a_file_outside_of_the_project(place, name, tmp_path):
    outputs, record = {"x": {"path": name.format(outside=tmp_path)}}, storage.ROOT / "r.json"
    record.write_text(json.dumps({"outputs": outputs, "folders": []}))
    with pytest.raises(ValueError, match="out.json' leads out of '.*project'; STORE keeps what lies in it only"):
        place.get(storage.products(record))
    assert list(tmp_path.iterdir()) == [storage.ROOT]


def test_a_folder_cannot_list_a_file_outside_of_itself(place, monkeypatch):
    folder = storage.ROOT / "store"
    folder.mkdir()
    (folder / "shard-0").write_text("a")
    place.put([folder])
    folder.rename(folder.with_name("gone"))
    listed = {f"{place._place(folder)}/../../out": {"size": 1}}
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="leads out of '.*store'"):
        patch.setattr(place.system, "find", lambda *_, **__: listed)
        place.get([folder])


def test_an_unknown_url_is_one_sentence():
    with pytest.raises(ValueError, match="STORE='nope://x' cannot be used"):
        storage.Storage("nope://x")
