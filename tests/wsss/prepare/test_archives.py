"""Archives: only what is needed, nothing outside, damage named, what is there is left."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from wsss.errors import UserError
from wsss.prepare import archives
from wsss.prepare.archives import unpack

CONTENT = {"a/one.txt": b"1" * 3000, "a/two.txt": b"22", "b/three.txt": b"333", "a/.hidden.txt": b"x"}


def make_tar(path: Path, content=CONTENT, *, mode="w", **kinds) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, (kind, link) in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            archive.addfile(info)
    return path


def make_zip(path: Path, content=CONTENT, compression=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def texts_of_a(folder: Path):
    """Wants a/*.txt, wherever a lies."""

    def target(name: str) -> Path | None:
        parts = name.split("/")
        return folder / parts[-1] if parts[-2:-1] == ["a"] and not parts[-1].startswith(".") else None

    return target


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_only_what_is_needed_is_written(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    make_zip(path) if kind == "zip" else make_tar(path, mode="w" + kind[3:].replace(".", ":"))
    written = unpack(path, texts_of_a(tmp_path / "out"), desc="x")
    assert sorted(p.name for p in written) == ["one.txt", "two.txt"]
    assert content_of(tmp_path / "out") == {"one.txt": b"1" * 3000, "two.txt": b"22"}


def test_files_of_the_right_size_are_left_and_others_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "two.txt").write_bytes(b"xy")  # the size of the archive's
    (out / "one.txt").write_bytes(b"half")
    unpack(make_tar(tmp_path / "x.tar"), texts_of_a(out), desc="x")
    assert content_of(out) == {"one.txt": b"1" * 3000, "two.txt": b"xy"}
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    unpack(tmp_path / "x.tar", texts_of_a(out), desc="x")
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before


@pytest.mark.parametrize("name", ["../a/one.txt", "b/../../a/one.txt", "/a/one.txt", "C:/a/one.txt"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_names_that_lead_outside_are_refused(tmp_path, make, name):
    path = make(tmp_path / "x", {"a/good.txt": b"1", name: b"2"})
    with pytest.raises(UserError, match=r"x: member '.*one\.txt' leads outside its folder; fetch"):
        unpack(path, texts_of_a(tmp_path / "out"), desc="x")
    assert not (tmp_path / "out").exists()  # the names are looked at before anything is written


def test_backslashes_separate_folders_and_cannot_hide_a_way_outside(tmp_path):
    unpack(make_zip(tmp_path / "x", {"a\\one.txt": b"1"}), texts_of_a(tmp_path / "out"), desc="x")
    assert content_of(tmp_path / "out") == {"one.txt": b"1"}
    with pytest.raises(UserError, match="leads outside"):
        unpack(make_zip(tmp_path / "y", {"..\\a\\two.txt": b"1"}), texts_of_a(tmp_path / "out"), desc="x")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_special_files_are_refused_where_needed_and_passed_over_elsewhere(tmp_path, kind):
    link = (kind, "/etc/passwd")
    unpack(make_tar(tmp_path / "x", **{"b/link.txt": link}), texts_of_a(tmp_path / "out"), desc="x")
    assert sorted(content_of(tmp_path / "out")) == ["one.txt", "two.txt"]
    with pytest.raises(UserError, match=r"'a/link\.txt' is a link or special file"):
        unpack(make_tar(tmp_path / "y", **{"a/link.txt": link}), texts_of_a(tmp_path / "out2"), desc="x")


def test_links_in_zip_archives_are_refused(tmp_path):
    info = zipfile.ZipInfo("a/link.txt")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="is a link or special file"):
        unpack(tmp_path / "x.zip", texts_of_a(tmp_path / "out"), desc="x")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_truncated_archives_are_named_and_whole_files_kept(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    content = {f"a/{n}.txt": bytes(range(256)) * 40 for n in range(8)}
    make_zip(path, content) if kind == "zip" else make_tar(
        path, content, mode="w" + kind[3:].replace(".", ":")
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=r"x\.(zip|tar).*; fetch it again"):
        unpack(path, texts_of_a(tmp_path / "out"), desc="x")
    assert all(data == bytes(range(256)) * 40 for data in content_of(tmp_path / "out").values())


def test_changed_bytes_in_a_zip_are_noticed_by_its_checksum(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"a/one.txt": b"Z" * 500}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(b"ZZZZ") + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.zip: damaged or incomplete archive .*CRC"):
        unpack(path, texts_of_a(tmp_path / "out"), desc="x")
    assert content_of(tmp_path / "out") == {}


def test_a_web_page_is_no_archive(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"<html>Sign in</html>" * 100)
    with pytest.raises(UserError, match=r"x\.tar: neither a zip nor a tar archive"):
        unpack(tmp_path / "x.tar", texts_of_a(tmp_path / "out"), desc="x")


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    asked = []

    def no_room(folder, needed, what):
        asked.append((needed, what))
        raise UserError("full")

    monkeypatch.setattr(archives, "check_room", no_room)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "two.txt").write_bytes(b"22")
    with pytest.raises(UserError, match="full"):
        unpack(make_tar(tmp_path / "x.tar"), texts_of_a(tmp_path / "out"), desc="x")
    assert asked == [(3000, "unpacking x.tar")]  # what is there needs no room
    assert sorted(content_of(tmp_path / "out")) == ["two.txt"]
