"""Sources found, placed without touching them, fetched from one address after the other, and removed."""

import errno
import hashlib
import os
from collections import namedtuple

import pytest

from wsss.errors import UserError
from wsss.prepare import files
from wsss.prepare.files import (
    Archive,
    Record,
    check_room,
    discard,
    fetch_archive,
    local_archive,
    place,
    search,
)


def _touch(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_search_finds_archives_and_folders_but_not_what_is_made_or_hidden(tmp_path):
    deep = tmp_path / "in" / "train_val" / "VOCdevkit" / "VOC2012"
    _touch(deep / "JPEGImages" / "a.jpg")
    for name in ("in/b/x.tar", "in/a.zip", "in/z/x.tar", "in/.hidden/x.tar", "in/out/x.tar", "in/n.txt"):
        _touch(tmp_path / name)
    (tmp_path / "in" / "b" / "loop").symlink_to(tmp_path / "in")
    found = search([tmp_path / "in"], leave_out=[tmp_path / "in" / "out"])
    assert [str(p.relative_to(tmp_path)) for p in found.files] == ["in/a.zip", "in/b/x.tar", "in/z/x.tar"]
    assert found.file("x.tar") == tmp_path / "in" / "b" / "x.tar" and found.file("y.tar") is None
    assert deep in found.folders and tmp_path / "in" / "out" not in found.folders
    assert search([tmp_path / "in" / "a.zip"], leave_out=[]).files == (tmp_path / "in" / "a.zip",)
    assert search(None, leave_out=[]) == files.Found((), ())
    with pytest.raises(UserError, match="nothing: no such file or folder; give --from"):
        search([tmp_path / "nothing"], leave_out=[])


def test_placing_links_and_leaves_equal_sizes(tmp_path):
    source, there = _touch(tmp_path / "in" / "a", b"12"), _touch(tmp_path / "out" / "b", b"old")
    wrong = _touch(tmp_path / "out" / "c", b"short")
    pairs = [(source, tmp_path / "out" / "a"), (_touch(tmp_path / "in" / "b", b"new"), there)]
    pairs.append((_touch(tmp_path / "in" / "c", b"the whole"), wrong))
    assert place(pairs, desc="x") == 2
    assert (tmp_path / "out" / "a").samefile(source) and there.read_bytes() == b"old"
    assert wrong.read_bytes() == b"the whole"
    assert place(pairs, desc="x") == 0


def test_placing_links_the_file_behind_a_symbolic_link(tmp_path):
    real = _touch(tmp_path / "disk" / "a", b"12")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").symlink_to(real)
    place([(tmp_path / "in" / "a", tmp_path / "out" / "a")], desc="x")
    assert not (tmp_path / "out" / "a").is_symlink() and (tmp_path / "out" / "a").samefile(real)


def test_placing_copies_where_links_are_not_possible(tmp_path, monkeypatch):
    def no_link(*paths):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    source = _touch(tmp_path / "in" / "a", b"12")
    assert place([(source, tmp_path / "out" / "a")], desc="x") == 1
    assert (tmp_path / "out" / "a").read_bytes() == b"12"
    assert not (tmp_path / "out" / "a").samefile(source) and source.stat().st_nlink == 1
    monkeypatch.setattr(files, "check_room", lambda *words: (_ for _ in ()).throw(UserError(f"{words[1]} B")))
    with pytest.raises(UserError, match="4 B"):
        place([(_touch(tmp_path / "in" / "b", b"1234"), tmp_path / "out" / "b")], desc="x")


def test_room_is_that_of_the_disk_the_folder_will_be_on(tmp_path, monkeypatch):
    asked = []
    usage = namedtuple("usage", "total used free")

    def disk_usage(path):
        asked.append(path)
        return usage(10, 5, 3_000_000_000)

    monkeypatch.setattr(files.shutil, "disk_usage", disk_usage)
    check_room(tmp_path / "a" / "b", 3_000_000_000, "x")
    with pytest.raises(UserError, match=r"b: unpacking x needs 3\.6 GB, 3\.0 GB are free; free space or"):
        check_room(tmp_path / "a" / "b", 3_600_000_000, "unpacking x")
    assert asked == [tmp_path, tmp_path]


def _archive(name, data, *urls):
    sha256, md5 = hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest()
    return Archive(name, urls, size=len(data), sha256=sha256, md5=md5)


def test_second_address_is_tried_and_only_own_downloads_are_removed(tmp_path):
    good = _touch(tmp_path / "server" / "x.tar", b"archive")
    archive = _archive("x.tar", b"archive", (tmp_path / "gone").as_uri(), good.as_uri())
    out = tmp_path / "out"
    record = Record(out)
    path = fetch_archive(archive, out, record)
    assert path == out / "downloads" / "x.tar" and path.read_bytes() == b"archive"
    discard(path, out, record, keep=True)
    assert path.exists()
    discard(path, out, Record(out), keep=False)  # a later run knows it
    assert not (out / "downloads").exists() and good.exists()

    fetch_archive(archive, out, record)
    discard(good, out, record, keep=False)  # of the same name, but the user's
    assert good.exists()
    discard(path, out, record, keep=False)

    mine = _touch(out / "downloads" / "x.tar", b"archive")
    record = Record(out)
    assert fetch_archive(archive, out, record) == mine
    discard(mine, out, record, keep=False)
    assert mine.exists()


def test_no_address_and_wrong_hashes_are_said(tmp_path):
    bad = _touch(tmp_path / "server" / "x.tar", b"ARCHIVE")
    archive = _archive("x.tar", b"archive", (tmp_path / "gone").as_uri(), bad.as_uri())
    with pytest.raises(UserError, match=r"x\.tar: could not be downloaded \(.*gone.*; .*sha256.*--from"):
        fetch_archive(archive, tmp_path / "out", Record(tmp_path / "out"))
    found = search([tmp_path / "server"], leave_out=[])
    with pytest.raises(UserError, match=r"server.x\.tar: has the sha256 .*, expected"):
        local_archive(archive, found, partial=False)
    assert local_archive(archive, found, partial=True) == bad
    _touch(tmp_path / "out" / "downloads" / "x.tar", b"short")
    with pytest.raises(UserError, match=r"downloads.x\.tar: has 5 bytes, expected 7"):
        fetch_archive(archive, tmp_path / "out", Record(tmp_path / "out"))


def test_too_little_space_stops_before_the_download(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(files, "check_room", lambda folder, needed, what: asked.append((needed, what)))
    good = _touch(tmp_path / "server" / "x.tar", b"archive")
    archive = Archive("x.tar", (good.as_uri(),), about=100, unpacked=900)
    _touch(tmp_path / "out" / "downloads" / ".x.tar.part", b"arc")
    fetch_archive(archive, tmp_path / "out", Record(tmp_path / "out"))
    assert asked == [(997, "downloading and unpacking x.tar")]
