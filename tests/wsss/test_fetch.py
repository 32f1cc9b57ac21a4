"""Downloads: continued, retried, checked; nothing that is not the whole right file takes its place."""

import errno
import hashlib
import json
import os
import socket
import threading
from collections import namedtuple

import pytest

from tests.server import Site, serve
from wsss import fetch
from wsss.errors import UserError
from wsss.fetch import download, is_web_page, verify

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def local(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "WAIT", 0.0)
    monkeypatch.setattr(fetch, "TIMEOUT", 5.0)
    monkeypatch.setattr(fetch, "CHUNK", 1000)


@pytest.fixture
def site():
    with serve(Site(CONTENT)) as site:
        yield site


def refused(*words):
    return pytest.raises(UserError, match="(?s)^(?!.*\n)" + "".join(f"(?=.*{w})" for w in words))


def left(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_arrives_whole_and_is_not_fetched_again(site, tmp_path):
    path = tmp_path / "deep" / "file.bin"
    assert download(site.url, path, size=len(CONTENT), sha256=SHA256[:8], md5=MD5.upper()) == path
    assert path.read_bytes() == CONTENT and left(path.parent) == ["file.bin"]
    download(site.url, path, sha256=SHA256)
    assert site.asked == [None]


def test_file_addresses(tmp_path):
    (tmp_path / "source").write_bytes(CONTENT)
    download((tmp_path / "source").as_uri(), tmp_path / "copy", sha256=SHA256)
    assert (tmp_path / "copy").read_bytes() == CONTENT
    with refused("nothing", "No such file"):
        download((tmp_path / "nothing").as_uri(), tmp_path / "other")


def test_a_broken_connection_is_continued_with_the_rest_alone(site, tmp_path):
    site.cuts = [3000, 4000]
    download(site.url, tmp_path / "file.bin", sha256=SHA256)
    assert site.asked == [None, "bytes=3000-", "bytes=7000-"]
    assert site.sent == [3000, 4000, len(CONTENT) - 7000]


def test_a_later_call_continues_an_interrupted_one(site, tmp_path, monkeypatch):
    site.cuts = [3000]
    monkeypatch.setattr(fetch, "RETRIES", 0)
    with refused(site.url, "closed after 3000 of 10240 bytes", "continues"):
        download(site.url, tmp_path / "file.bin")
    assert left(tmp_path) == [".file.bin.part", ".file.bin.part.json"]
    assert (tmp_path / ".file.bin.part").read_bytes() == CONTENT[:3000]
    download(site.url, tmp_path / "file.bin", sha256=SHA256)
    assert site.asked[1:] == ["bytes=3000-"] and site.sent[1:] == [len(CONTENT) - 3000]
    assert left(tmp_path) == ["file.bin"]


def test_a_whole_part_is_only_checked(site, tmp_path):
    (tmp_path / ".file.bin.part").write_bytes(CONTENT)
    note = {"url": site.url, "etag": site.etag, "size": len(CONTENT)}
    (tmp_path / ".file.bin.part.json").write_text(json.dumps(note))
    download(site.url, tmp_path / "file.bin", sha256=SHA256)
    assert site.asked == [] and left(tmp_path) == ["file.bin"]


def test_a_server_without_ranges_begins_anew(site, tmp_path):
    site.ranges, site.cuts = False, [3000]
    download(site.url, tmp_path / "file.bin", sha256=SHA256)
    assert site.asked == [None, "bytes=3000-"] and site.sent == [3000, len(CONTENT)]


def test_a_server_without_ranges_that_always_breaks_off_ends_the_download(site, tmp_path):
    site.ranges, site.cuts = False, [3000] * 50
    with refused("closed after 3000 of 10240 bytes"):
        download(site.url, tmp_path / "file.bin")
    assert len(site.asked) == fetch.RETRIES + 1


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changed_on_the_server_is_fetched_anew(site, tmp_path, monkeypatch, if_range):
    """Also by servers that send parts whatever is asked."""
    site.cuts, site.if_range = [3000], if_range
    monkeypatch.setattr(fetch, "RETRIES", 0)
    with refused("closed after"):
        download(site.url, tmp_path / "file.bin")
    monkeypatch.setattr(fetch, "RETRIES", 1)
    site.content, site.etag = CONTENT[::-1], '"second"'
    download(site.url, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT[::-1]


def test_a_shorter_file_on_the_server_is_fetched_anew(site, tmp_path, monkeypatch):
    site.cuts, site.etag = [9000], None
    monkeypatch.setattr(fetch, "RETRIES", 0)
    with refused("closed after"):
        download(site.url, tmp_path / "file.bin")
    monkeypatch.setattr(fetch, "RETRIES", 1)
    site.content = CONTENT[:5000]
    download(site.url, tmp_path / "file.bin")  # 416
    assert (tmp_path / "file.bin").read_bytes() == CONTENT[:5000]


def test_another_address_goes_on_only_where_a_hash_decides(site, tmp_path, monkeypatch):
    other = Site(CONTENT, etag='"of another server"')
    monkeypatch.setattr(fetch, "RETRIES", 0)
    with serve(other):
        for number, known in ((1, {"sha256": SHA256}), (2, {})):
            site.cuts, path = [3000], tmp_path / str(number)
            with refused("closed after"):
                download(site.url, path)
            download(other.url, path, **known)
            assert path.read_bytes() == CONTENT
    assert other.asked == ["bytes=3000-", None]


def test_no_length_and_no_validator(site, tmp_path):
    site.length, site.etag = False, None
    download(site.url, tmp_path / "file.bin", size=len(CONTENT))
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_passing_troubles_are_retried_and_others_are_not(site, tmp_path):
    site.statuses = [503, 429, 500]
    download(site.url, tmp_path / "file.bin", sha256=SHA256)
    assert len(site.asked) == 4
    for status, words in ((404, "no such file there"), (403, "access refused"), (401, "log-in")):
        site.asked, site.statuses = [], [status]
        with refused(site.url, words, f"HTTP status {status}", "run the same command again"):
            download(site.url, tmp_path / "other.bin")
        assert len(site.asked) == 1 and left(tmp_path) == ["file.bin"]
    site.asked, site.statuses = [], [503] * 20
    with refused("HTTP status 503"):
        download(site.url, tmp_path / "other.bin")
    assert len(site.asked) == fetch.RETRIES + 1


def test_what_is_not_the_expected_file_is_removed(site, tmp_path):
    wrong = "0" * 64
    with refused(site.url, SHA256, wrong, "removed", "elsewhere"):
        download(site.url, tmp_path / "file.bin", sha256=wrong)
    with refused("md5", MD5):
        download(site.url, tmp_path / "file.bin", md5="0" * 32)
    with refused("offers 10240 bytes, expected 99"):
        download(site.url, tmp_path / "file.bin", size=99)
    site.length = False
    with refused("10240 bytes, expected 99"):
        download(site.url, tmp_path / "file.bin", size=99)
    assert left(tmp_path) == []


def test_a_file_that_is_there_and_wrong_is_kept_and_named(site, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"something")
    with refused(str(path), SHA256, "delete it"):
        download(site.url, path, sha256=SHA256)
    assert path.read_bytes() == b"something" and site.asked == []


def test_a_web_page_is_no_file(site, tmp_path):
    site.content, site.content_type = b"<html>please log in</html>", "text/html; charset=utf-8"
    with refused(site.url, "web page", "browser"):
        download(site.url, tmp_path / "file.bin")
    assert left(tmp_path) == []


def test_no_network_is_one_line(tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with refused(f"127.0.0.1:{port}", "no connection"):
        download(f"http://127.0.0.1:{port}/x", tmp_path / "x")

    def fail(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with refused("nowhere.invalid", "cannot be resolved"):
        download("http://nowhere.invalid/x", tmp_path / "x")
    with refused("nonsense"):
        download("nonsense", tmp_path / "x")
    assert left(tmp_path) == []


def test_a_silent_server_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", 0.1)
    monkeypatch.setattr(fetch, "RETRIES", 0)
    with socket.create_server(("127.0.0.1", 0)) as silent, refused("no answer|timed out"):
        download(f"http://127.0.0.1:{silent.getsockname()[1]}/x", tmp_path / "x")


def test_a_disk_that_cannot_hold_it(site, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage(1, 1, 100))
    with refused(str(tmp_path), "still to come", "free space"):
        download(site.url, tmp_path / "file.bin")
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    monkeypatch.setattr(fetch, "_chunks", full)
    with refused("file.bin", "disk full", "free space"):
        download(site.url, tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()


def test_two_downloads_of_one_file_at_a_time(site, tmp_path):
    with fetch.only_download(tmp_path / "file.bin"), refused("file.bin", "another process"):
        download(site.url, tmp_path / "file.bin")
    download(site.url, tmp_path / "file.bin", sha256=SHA256)


def test_threads_of_different_files(site, tmp_path):
    threads = [threading.Thread(target=download, args=(site.url, tmp_path / str(i))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert left(tmp_path) == ["0", "1", "2", "3"]


def test_verify(tmp_path):
    path = tmp_path / "file.bin"
    with refused("file.bin", "no such file"):
        verify(path, size=1)
    path.write_bytes(CONTENT)
    verify(path)
    verify(path, size=10240, sha256=SHA256.upper(), md5=MD5)
    verify(path, sha256=SHA256[:8])
    for wrong in ({"size": 10241}, {"sha256": SHA256[1:9]}, {"md5": SHA256[:32]}):
        with refused(str(path), "expected", "delete it and fetch it again"):
            verify(path, **wrong)


@pytest.mark.parametrize(
    ("text", "page"),
    [(b"<!DOCTYPE html><html>", True), (b"\n  <html>", True), (b"\xef\xbb\xbf<!doctype HTML>", True),
     (b"PK\x03\x04", False), (b"", False), (b"<xml", False)],
)  # fmt: skip
def test_web_pages_are_told_by_their_beginning(tmp_path, text, page):
    (tmp_path / "f").write_bytes(text)
    assert is_web_page(tmp_path / "f") is page


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_no_network_trouble(site, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        download(site.url, tmp_path / "file.bin")
