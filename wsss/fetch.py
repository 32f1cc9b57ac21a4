"""Files from the network: resumed, retried, checked, and renamed to their place only when they are whole.

What has arrived waits in ``.NAME.part`` beside its place, with what the server says of the file in
``.NAME.part.json``, and is continued by the next call. Whatever goes wrong becomes a ``UserError``.
"""

import contextlib
import errno
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from wsss.errors import UserError
from wsss.io import write_text

try:
    import fcntl
except ImportError:  # not a Unix: nothing stops two downloads of one file there
    fcntl = None

log = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes
TIMEOUT = 60.0  # seconds without a byte
RETRIES = 4  # in a row without a new byte
WAIT = 1.0  # seconds before the first retry, twice as long before each further one
AGENT = {"User-Agent": "weaktr"}  # some servers refuse urllib's own
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _LostError(Exception):
    """What the network did; ``again``: another try may help."""

    def __init__(self, reason: str, *, again: bool = True):
        super().__init__(reason)
        self.again = again


# ------------------------------------------------------------------------------------------- checking


def verify(path: Path, *, size: int | None = None, sha256: str | None = None, md5: str | None = None) -> None:
    """Check a file's size (bytes) and hashes (hex; of SHA-256 the first digits suffice).

    Raises:
        UserError: No such file, or it is another one: names what was expected and found.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; fetch it or correct the path")
    if difference := _difference(path, size, sha256, md5):
        raise UserError(f"{path}: {difference}; delete it and fetch it again")


def _difference(path: Path, size: int | None, sha256: str | None, md5: str | None) -> str | None:
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found} bytes, expected {size}"
    hashes = {name: wanted.lower() for name, wanted in (("sha256", sha256), ("md5", md5)) if wanted}
    for name, digest in _digests(path, hashes).items():
        if not digest.startswith(hashes[name]):
            return f"has the {name} {digest}, expected {hashes[name]}"
    return None


def _digests(path: Path, names) -> dict[str, str]:
    """Hashes of a file, read once."""
    hashers = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    if not hashers:
        return {}
    progress = tqdm(
        total=path.stat().st_size, desc=f"checking {path.name}", unit="B", unit_scale=True, delay=5
    )
    with path.open("rb") as file, progress:
        while chunk := file.read(CHUNK):
            for hasher in hashers.values():
                hasher.update(chunk)
            progress.update(len(chunk))
    return {name: hasher.hexdigest() for name, hasher in hashers.items()}


def is_web_page(path: Path) -> bool:
    """Whether a file begins as HTML does: what servers send in place of a file they refuse."""
    with Path(path).open("rb") as file:
        return file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))


# ---------------------------------------------------------------------------------------------- HTTP


def download(
    url: str, path: Path, *, size: int | None = None, sha256: str | None = None, md5: str | None = None
) -> Path:
    """Fetch ``url`` into ``path``, continuing what an earlier call left; a file that is there is checked.

    Args:
        url: http, https or file address.
        path: The file; its folder is created. Until it is whole and checked, nothing stands there.
        size: Expected bytes.
        sha256, md5: Expected hashes, hex; of SHA-256 the first digits suffice.

    Returns:
        ``path``.

    Raises:
        UserError: No network, the address refuses, a full disk, or the file is another one than expected
            (what was fetched is then removed; a file that was there before is kept).
    """
    path = Path(path)
    if path.is_file():
        verify(path, size=size, sha256=sha256, md5=md5)
        return path
    part, note = _partial(path)
    with only_download(path):
        _fetch(url, part, note, size=size, hashed=bool(sha256 or md5))
        if difference := _difference(part, size, sha256, md5):
            _discard(part, note)
            raise UserError(
                f"{url}: what was fetched {difference}, and was removed; run the same command again, and if "
                "that does not help, get the file elsewhere: this address has another one"
            )
        settle(part, path)
        note.unlink(missing_ok=True)
    return path


def settle(temporary: Path, path: Path) -> None:
    """Flush a complete file to the disk and rename it to its place."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def only_download(path: Path) -> Iterator[None]:
    """Refuse a second download of the same file at the same time; creates the folder."""
    lock = path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another process is fetching it; wait until it has ended") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _partial(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.part.json")


def _discard(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _fetch(url: str, part: Path, note: Path, *, size: int | None, hashed: bool) -> None:
    """All of ``url`` in ``part``, in as many connections as it takes."""
    failures, longest = 0, _length(part)
    while True:
        try:
            _transfer(url, part, note, size=size, hashed=hashed)
            return
        except _LostError as lost:
            # a server that cannot resume begins anew each time: only more bytes than ever are a progress
            failures = 1 if _length(part) > longest else failures + 1
            longest = max(longest, _length(part))
            if not lost.again or failures > RETRIES:
                raise UserError(
                    f"{url}: {lost}; check the address and the network, and run the same command again: "
                    "it continues where it stopped"
                ) from None
            wait = WAIT * 2 ** (failures - 1)
            log.info("%s: %s; trying again in %.0f s", url, lost, wait)
            time.sleep(wait)


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _transfer(url: str, part: Path, note: Path, *, size: int | None, hashed: bool) -> None:
    """One connection: append to ``part`` what is missing, or write it anew where that cannot be had."""
    have, known = _length(part), _read_note(note)
    headers = dict(AGENT)
    if known.get("url") != url and not (known and hashed):
        have = 0  # of another file, perhaps; with a hash to check, another address may go on
    if have and have == known.get("size"):
        return  # stopped between the last byte and the renaming
    if have:
        headers["Range"] = f"bytes={have}-"
        validator = known.get("etag") or known.get("last_modified")
        if validator and known.get("url") == url and not validator.startswith("W/"):
            headers["If-Range"] = validator
    with _open(url, headers, part, note) as response:
        if response.headers.get_content_type() == "text/html":
            raise UserError(
                f"{url}: answered with a web page in place of a file (a log-in, a proxy, or an address that "
                "has moved); open it in a browser to see which"
            )
        length = response.headers.get("Content-Length")
        found = {
            "url": url,
            "etag": response.headers.get("ETag"),
            "last_modified": response.headers.get("Last-Modified"),
            "size": int(length) if length and length.isdigit() else None,
        }
        if response.status == 206:
            found["size"] = _resumed_size(response, have, found, known, part, note)
        elif have:  # all of it comes
            log.info("%s: cannot be continued (no Range, or the file has changed); beginning anew", url)
            have = 0
        total = found["size"]
        _check_room(url, part, have, total, size)
        write_text(note, json.dumps(found))
        _write(response, part, have, total)
    if total is not None and _length(part) != total:
        raise _LostError(f"connection closed after {_length(part)} of {total} bytes")


def _read_note(note: Path) -> dict:
    try:
        found = json.loads(note.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _resumed_size(response, have: int, found: dict, known: dict, part: Path, note: Path) -> int | None:
    """Bytes of the whole file that a partial answer is of; ``_LostError`` where it does not continue ours."""
    answer = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    total = int(answer[2]) if answer and answer[2] != "*" else None
    names = ("etag", "last_modified") if known.get("url") == found["url"] else ()
    changed = any(known.get(name) != found[name] for name in names)
    if answer is None or int(answer[1]) != have or changed or known.get("size") not in (None, total):
        _discard(part, note)
        raise _LostError("the file has changed on the server since the download began; beginning anew")
    return total


def _check_room(url: str, part: Path, have: int, total: int | None, size: int | None) -> None:
    """Before the first byte: is it the expected file, and does it fit on the disk?"""
    if None not in (total, size) and total != size:
        raise UserError(f"{url}: offers {total} bytes, expected {size}; get the file elsewhere")
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - have > free:
        raise UserError(
            f"{part.parent}: {(total - have) / 1e9:.2f} GB are still to come, {free / 1e9:.2f} GB are free; "
            "free space and run the same command again"
        )


def _write(response, part: Path, have: int, total: int | None) -> None:
    name = part.name.removeprefix(".").removesuffix(".part")
    progress = tqdm(total=total, initial=have, desc=name, unit="B", unit_scale=True)
    try:
        with part.open("ab" if have else "wb") as file, progress:
            for chunk in _chunks(response):
                file.write(chunk)
                progress.update(len(chunk))
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(f"{part}: disk full; free space and run the same command again") from None
        raise


def _chunks(response) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except TimeoutError:
        raise _LostError(f"no byte for {TIMEOUT:.0f} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise _LostError(f"connection broken ({_words(error)})") from None


def _open(url: str, headers: dict[str, str], part: Path, note: Path):
    """The answer to a request; ``_LostError`` with the reason where there is none."""
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what is here is longer than the file there
            _discard(part, note)
            raise _LostError(
                "the file has changed on the server since the download began; beginning anew"
            ) from None
        meaning = {401: "wants a log-in", 403: "access refused", 404: "no such file there", 410: "removed"}
        again = error.code in (408, 425, 429) or error.code >= 500
        reason = meaning.get(error.code, error.reason)
        raise _LostError(f"{reason} (HTTP status {error.code})", again=again) from None
    except urllib.error.URLError as error:
        cause = error.reason
        if isinstance(cause, socket.gaierror):
            raise _LostError(
                "the server's name cannot be resolved: no network, or a wrong address", again=False
            ) from None
        again = not isinstance(cause, (ssl.SSLCertVerificationError, FileNotFoundError, str))
        raise _LostError(f"no connection ({_words(cause)})", again=again) from None
    except TimeoutError:
        raise _LostError(f"no answer for {TIMEOUT:.0f} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise _LostError(f"no connection ({_words(error)})") from None
    except ValueError as error:
        raise _LostError(_words(error), again=False) from None


def _words(error) -> str:
    """What an exception says, short and in one line."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text[:160] or type(error).__name__
