"""Published files in a cache folder: downloaded once, resumed, and checked before they get a name.

    ~/.cache/maskrcnn/weights, or $MASKRCNN_CACHE
        maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth            complete and checked
        maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth.partial in the making, or interrupted

$MASKRCNN_WEIGHTS_MIRROR, such as http://127.0.0.1:8000, serves the files by their names instead of
the publishers. Where there is no network, a file that was put into the folder by hand is found.
"""

import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerated.interop import zoo
from accelerated.interop.zoo import Entry

CHUNK = 1 << 20
# Seconds without a byte.
TIMEOUT = 30


def folder() -> Path:
    """Return the folder of downloaded files."""
    chosen = os.environ.get("MASKRCNN_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "maskrcnn" / "weights"


def address(entry: Entry) -> str:
    """Return where a file comes from: its publisher, or the mirror."""
    mirror = os.environ.get("MASKRCNN_WEIGHTS_MIRROR")
    return f"{mirror.rstrip('/')}/{entry.file_name}" if mirror else entry.address


def cached(entry: Entry) -> Path | None:
    """Return the path of a file in the cache; None if it is not there."""
    path = folder() / entry.file_name
    return path if path.is_file() else None


def fetch(entry: Entry) -> Path:
    """Return the path of a published file, after downloading what is missing of it.

    Raises OSError if that fails, naming the address, and the path for a file that is put there by
    hand; ValueError if the digest is not the publisher's.
    """
    path = folder() / entry.file_name
    folder().mkdir(parents=True, exist_ok=True)
    with _alone(folder()):
        # Another process may have finished it in the meantime.
        if path.is_file():
            if not zoo.matches(path, entry):
                raise ValueError(f"{path} is not {_wanted(entry)}: delete or replace it")
            return path
        partial = path.with_name(f"{path.name}.partial")
        try:
            _complete(entry, partial)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise OSError(
                f"cannot download {address(entry)} ({reason}): try again, or put the file at"
                f" {path} by hand"
            ) from error
        if not zoo.matches(partial, entry):
            partial.unlink()
            raise ValueError(f"{address(entry)} is not {_wanted(entry)}; it was deleted")
        partial.replace(path)
    return path


def _wanted(entry):
    algorithm, _, digits = entry.digest.partition(":")
    return f"{entry.file_name} as published, whose {algorithm} starts with {digits}"


def _complete(entry, partial):
    """Download the rest of a file, or all of it from a server that does not serve parts."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(address(entry), headers={"User-Agent": "maskrcnn"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        # Nothing is left to send: the file was complete, or it is longer than the publisher's.
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        if not zoo.matches(partial, entry):
            partial.unlink()
            _complete(entry, partial)
        return
    with response:
        have = have if response.status == http.client.PARTIAL_CONTENT else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with partial.open("ab" if have else "wb") as file, _bar(entry, have, total) as advance:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    size = partial.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(f"the connection broke after {size:,} of {total:,} bytes")


@contextmanager
def _bar(entry, have, total) -> Iterator:
    """Show the progress on a terminal, one line elsewhere; yield what counts bytes."""
    if not sys.stderr.isatty():
        size = "" if total is None else f" ({total / 1e6:,.0f} MB)"
        print(f"maskrcnn: downloading {address(entry)}{size}", file=sys.stderr)
        yield lambda count: None
        return
    # Here, because `interop.use_our_operators` needs only PyTorch and torchvision.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(entry.file_name, total=total, completed=have)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _alone(where: Path) -> Iterator[None]:
    """Let one process at a time work in a folder, where the system has locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(where, os.O_RDONLY)
    try:
        # Some network folders have no locks.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
