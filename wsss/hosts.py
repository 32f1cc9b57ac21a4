"""Files from Google Drive (gdown) and from timm's hub (huggingface_hub), with their refusals explained."""

import contextlib
import shutil
from pathlib import Path

from tqdm import tqdm

from wsss.errors import UserError
from wsss.fetch import DISK_FULL, is_web_page, only_download, settle

RETRIES = 4
TIMEOUT = (30, 60)  # seconds: to connect, without a byte


def drive_address(drive_id: str) -> str:
    """The page of a Drive file for a browser."""
    return f"https://drive.google.com/file/d/{drive_id}/view"


def download_drive(drive_id: str, path: Path, *, remedy: str = "put it there yourself") -> Path:
    """Fetch a file of Google Drive into ``path``, continuing what an earlier call left.

    Args:
        drive_id: As in its address.
        path: The file; its folder is created. Nothing stands there until the file is whole.
        remedy: What to do with the file when a browser has fetched it; ends the message.

    Returns:
        ``path``.

    Raises:
        UserError: No network, or Drive's refusal: too many downloads, no access, no such file.
    """
    path = Path(path)
    with only_download(path):
        arrived = path.with_name(f".{path.name}.drive")
        for last in (False, True):
            try:
                _run_gdown(drive_id, arrived)
                break
            except _PartsError:  # begin anew, once
                for partial in arrived.parent.glob(f"{arrived.name}????????.part"):
                    partial.unlink()
                if last:
                    raise UserError(
                        _refusal(path, drive_id, "sends other parts than asked for", remedy)
                    ) from None
            except _RefusedError as error:
                raise UserError(_refusal(path, drive_id, str(error), remedy)) from None
        if is_web_page(arrived):
            arrived.unlink()
            raise UserError(_refusal(path, drive_id, "sends a web page in place of the file", remedy))
        settle(arrived, path)
    return path


class _RefusedError(Exception):
    """Why there is no file, to follow "Google Drive"."""


class _PartsError(Exception):
    """The parts that are here are of no use."""


def _refusal(path: Path, drive_id: str, reason: str, remedy: str) -> str:
    return (
        f"{path.name}: Google Drive {reason}; to fetch it by hand, open {drive_address(drive_id)} "
        f"in a browser, save the file, then {remedy}"
    )


def _run_gdown(drive_id: str, arrived: Path) -> None:
    import gdown
    import requests

    arrived.unlink(missing_ok=True)  # gdown would take it for finished
    progress = tqdm(desc=arrived.name.removeprefix(".").removesuffix(".drive"), unit="B", unit_scale=True)

    def show(received: int, total: int | None) -> None:
        progress.total = total
        progress.update(received - progress.n)

    try:
        with progress:
            gdown.download(
                id=drive_id, output=str(arrived), quiet=True, resume=True, retries=RETRIES, timeout=TIMEOUT,
                progress=show,
            )  # fmt: skip
    except gdown.exceptions.FileURLRetrievalError as error:
        raise _RefusedError(_meaning(str(error))) from None
    except gdown.exceptions.DownloadError as error:
        text = " ".join(str(error).split())
        if "byte range" in text or "multiple temporary files" in text:
            raise _PartsError from None
        if "incomplete" in text:
            raise _RefusedError(
                "broke off before the end, so run the same command again: it continues"
            ) from None
        if isinstance(error.__cause__, requests.exceptions.RequestException):
            raise _RefusedError(_unreachable(error.__cause__)) from None
        raise _RefusedError(f"did not deliver the file ({text[:160]})") from None
    except (requests.exceptions.RequestException, KeyError) as error:  # KeyError: a header is missing
        raise _RefusedError(_unreachable(error)) from None


def _unreachable(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = f"HTTP status {status}" if status else type(error).__name__
    return f"cannot be reached ({reason}), so check the network and run the same command again"


def _meaning(text: str) -> str:
    """gdown's report of Drive's page. It quotes the page's own message where it finds one."""
    text = " ".join(text.split())
    quoted = text.removeprefix("Failed to retrieve file url: ").split(" You may still be able to access")[0]
    if "Cannot retrieve the public link" in text:  # gdown's guess at a page it does not know
        return "answers with a page in place of the file: access denied, file removed, or too many downloads"
    if "Too many users" in quoted or "quota" in quoted.lower():
        return (
            "refuses the file for now, because too many people have fetched it (its quota, which may last "
            "24 hours), so try again later"
        )
    if "permission" in quoted.lower() or "access" in quoted.lower():
        return f"denies access ({quoted[:160]})"
    return f"refuses the file ({quoted[:160]})"


def download_hub(repo: str, filename: str, path: Path, *, remedy: str = "put it there yourself") -> Path:
    """Fetch a file of a public repository of the Hugging Face hub into ``path``; continues like ``download``.

    Args:
        repo: Such as ``timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k``.
        filename: In the repository.
        path: The file; its folder is created. Nothing stands there until the file is whole.
        remedy: What to do with the file when a browser has fetched it; ends the message.

    Returns:
        ``path``.

    Raises:
        UserError: No network, or the hub's refusal.
    """
    import huggingface_hub

    huggingface_hub.utils.logging.set_verbosity_error()  # its retries; what fails in the end is told below
    path = Path(path)
    staging = path.with_name(f".{path.name}.hub")
    with only_download(path):
        try:
            # no token: the files are public, and an outdated one would be refused
            found = huggingface_hub.hf_hub_download(repo, filename, local_dir=staging, token=False)
        except Exception as error:  # the hub's, its HTTP library's and the system's: many types
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            cause = error.__cause__ or error
            reason = f"{type(cause).__name__}: {' '.join(str(cause).split())[:160]}"
            address = f"https://huggingface.co/{repo}/resolve/main/{filename}"
            raise UserError(
                f"{path.name}: the hub did not deliver {repo} ({reason}); check the network and run the same "
                f"command again; by hand, open {address} in a browser, save the file, then {remedy}"
            ) from None
        settle(Path(found), path)
        with contextlib.suppress(OSError):
            shutil.rmtree(staging)
    return path
