"""Google Drive and the hub: gdown itself against a server that imitates Drive's pages; the hub imitated.

The pages are written after Drive's, as far as gdown reads them.
"""

import errno
import sys
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import gdown
import huggingface_hub
import pytest
import requests
from requests.adapters import HTTPAdapter

from tests.server import Site, serve
from wsss import hosts
from wsss.errors import UserError
from wsss.hosts import download_drive, download_hub

ID = "1ONY86MyHSjjoKGdPI_0wmxQ_Go-39W2C"
CHUNK = 512 * 1024  # gdown writes whole ones
CONTENT = bytes(range(256)) * 5000  # 1.3 MB: more than two chunks
REMEDY = "bash scripts/download_checkpoints.sh NAME --from FILE"
QUOTA = (
    "<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>"
    '<p class="uc-error-caption">Sorry, you can&#39;t view or download this file at this time.</p>'
    '<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Please try '
    "accessing the file again later. If the file you are trying to access is particularly large or is shared "
    "with many people, it may take up to 24 hours to be able to view or download the file.</p></body></html>"
)
LOG_IN = "<!doctype html><html><head><title>Sign in - Google Accounts</title></head><body>...</body></html>"
DENIED = (
    '<html><body><p class="uc-error-subcaption">You need permission to access this file.</p></body></html>'
)
CONFIRM = (
    "<html><body><p>Google Drive can't scan this file for viruses.</p>"
    '<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    '<input type="hidden" name="id" value="{id}"><input type="hidden" name="confirm" value="t"></form>'
)


class Drive(Site):
    page: str | None = None  # in place of the file
    page_after: str | None = None  # once it was confirmed


def handler(site: Drive) -> type:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            query = parse_qs(urlsplit(self.path).query)
            site.asked.append(self.headers.get("Range"))
            confirmed = "confirm" in query
            page = site.page_after if confirmed else site.page or CONFIRM.format(id=query["id"][0])
            if site.statuses:
                self._answer(site.statuses.pop(0), b"<html></html>", "text/html")
            elif page is not None:
                self._answer(200, page.encode(), "text/html; charset=utf-8")
            else:
                self._file()

        def _file(self):
            wanted = self.headers.get("Range")
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and site.ranges else 0
            self._answer(206 if start else 200, site.content[start:], "application/octet-stream", start)

        def _answer(self, status, body, kind, start=0):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if kind.startswith("application"):
                self.send_header("Content-Disposition", 'attachment; filename="best.pth"')
                total = len(site.content)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                if site.cuts:
                    body = body[: site.cuts.pop(0)]
                    self.close_connection = True
            self.end_headers()
            self.wfile.write(body)
            site.sent.append(len(body))

    return Handler


class ToSite(HTTPAdapter):
    """Sends what is meant for Google to the server of the test."""

    def __init__(self, site):
        super().__init__()
        self.site = site

    def send(self, request, **options):
        parts = urlsplit(request.url)
        request.url = self.site.url.rsplit("/", 1)[0] + parts.path + "?" + parts.query
        return super().send(request, **options | {"proxies": {}})


@pytest.fixture
def drive(tmp_path, monkeypatch):
    module = sys.modules["gdown.download"]
    site = Drive(CONTENT)
    new_session = requests.Session

    def session():
        made = new_session()
        made.mount("https://", ToSite(site))
        return made

    monkeypatch.setattr(module.requests, "session", session)
    monkeypatch.setattr(module, "DEFAULT_COOKIES_FILE", str(tmp_path / "cookies.txt"))
    monkeypatch.setattr(module, "_wait_or_cancel", lambda **options: None)
    with serve(site, handler(site)):
        yield site


def refused(*words):
    return pytest.raises(UserError, match="(?s)^(?!.*\n)" + "".join(f"(?=.*{w})" for w in words))


def left(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_a_large_file_is_confirmed_and_fetched(drive, tmp_path):
    path = tmp_path / "checkpoints" / "a.pth"
    assert download_drive(ID, path) == path
    assert path.read_bytes() == CONTENT and left(path.parent) == ["a.pth"]
    assert len(drive.asked) == 2


def test_a_broken_connection_is_continued(drive, tmp_path):
    path = tmp_path / "checkpoints" / "a.pth"
    drive.cuts = [600_000]
    download_drive(ID, path)
    assert path.read_bytes() == CONTENT and drive.asked[-1] == f"bytes={CHUNK}-"


def test_a_later_call_continues(drive, tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "a.pth"
    monkeypatch.setattr(hosts, "RETRIES", 0)
    drive.cuts = [600_000]
    with refused("a.pth: Google Drive broke off", "it continues", ID):
        download_drive(ID, path)
    assert [name.endswith(".part") for name in left(path.parent)] == [True]
    drive.asked.clear()
    download_drive(ID, path)
    assert path.read_bytes() == CONTENT and left(path.parent) == ["a.pth"]
    assert drive.asked[-1] == f"bytes={CHUNK}-" and drive.sent[-1] == len(CONTENT) - CHUNK


def test_parts_of_no_use_are_fetched_anew(drive, tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "a.pth"
    monkeypatch.setattr(hosts, "RETRIES", 0)
    drive.cuts = [600_000]
    with refused("broke off"):
        download_drive(ID, path)
    drive.ranges = False
    download_drive(ID, path)
    assert path.read_bytes() == CONTENT and left(path.parent) == ["a.pth"]


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (QUOTA, ["too many people have fetched it", "quota", "24 hours", "later"]),
        (LOG_IN, ["access denied, file removed, or too many downloads"]),
        (DENIED, ["denies access", "You need permission"]),
    ],
)
@pytest.mark.parametrize("when", ["page", "page_after"])
def test_pages_in_place_of_the_file(drive, tmp_path, page, words, when):
    path = tmp_path / "checkpoints" / "a.pth"
    setattr(drive, when, page)
    with refused("a.pth", *words, f"https://drive.google.com/file/d/{ID}/view", REMEDY):
        download_drive(ID, path, remedy=REMEDY)
    assert left(path.parent) == []


def test_a_page_sent_as_a_file_is_not_kept(drive, tmp_path):
    path = tmp_path / "checkpoints" / "a.pth"
    drive.content = QUOTA.encode()
    with refused("web page in place of the file", ID):
        download_drive(ID, path)
    assert left(path.parent) == []


def test_a_status_of_failure_is_no_file(drive, tmp_path):
    drive.statuses = [404]
    with refused("a page in place of the file", ID):
        download_drive(ID, tmp_path / "checkpoints" / "a.pth")
    assert left(tmp_path / "checkpoints") == []


@pytest.mark.parametrize(
    "error",
    [
        requests.exceptions.ConnectionError("x"),
        requests.exceptions.ReadTimeout("x"),
        KeyError("Content-Type"),
    ],
)
def test_no_network_is_one_line(tmp_path, monkeypatch, error):
    def fail(**options):
        raise error

    monkeypatch.setattr(gdown, "download", fail)
    with refused(
        "Google Drive cannot be reached", type(error).__name__, "run the same command again", REMEDY
    ):
        download_drive(ID, tmp_path / "a.pth", remedy=REMEDY)


def test_a_full_disk_stays_what_it_is(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gdown, "download", fail)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(OSError, match="No space left"):
        download_drive(ID, tmp_path / "a.pth")
    with pytest.raises(OSError, match="No space left"):
        download_hub("timm/x", "model.safetensors", tmp_path / "a.safetensors")


def test_hub(tmp_path, monkeypatch):
    asked = []

    def fetch(repo, filename, *, local_dir, token):
        asked.append((repo, filename, token))
        local_dir.mkdir(parents=True)
        (local_dir / filename).write_bytes(CONTENT)
        return str(local_dir / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    path = tmp_path / "imagenet" / "vit.safetensors"
    assert download_hub("timm/vit", "model.safetensors", path) == path
    assert path.read_bytes() == CONTENT and left(path.parent) == ["vit.safetensors"]
    assert asked == [("timm/vit", "model.safetensors", False)]


def test_the_hub_itself_without_network(tmp_path):
    """The tests' environment is offline (tests/conftest.py)."""
    address = "https://huggingface.co/timm/vit/resolve/main/model.safetensors"
    with refused("vit.safetensors: the hub did not deliver timm/vit", address, REMEDY):
        download_hub("timm/vit", "model.safetensors", tmp_path / "vit.safetensors", remedy=REMEDY)
    assert not (tmp_path / "vit.safetensors").exists()
