"""One training per folder: RUN/.lock, which the kernel releases when its process ends."""

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerated import processes
from accelerated.data.text_files import make_folder

# File systems without locks answer so.
UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
# Open in this process; a forked one, such as a loader's worker, would keep the lock beyond its end.
_open: set[int] = set()
_of_thread = threading.local()


def _close():
    for handle in _open:
        os.close(handle)
    _open.clear()


os.register_at_fork(after_in_child=_close)


@contextmanager
def held(folder: str | Path) -> Iterator[list[str]]:
    """Hold the lock of a folder, which is created, and yield what is worth saying about it.

    Of several processes the first holds it, and a thread that holds it already goes on. A new
    folder that stays empty is removed.
    Raises ValueError if another training holds it, or if nothing can be written there.
    """
    folder, known = Path(folder), vars(_of_thread).setdefault("folders", set())
    key = folder.resolve()
    if key in known or processes.rank() > 0:
        yield []
        return
    existed = folder.exists()
    try:
        make_folder(folder)
        handle, notes = _acquire(folder / ".lock")
    except (NotADirectoryError, FileExistsError):
        raise ValueError(f"{folder} is a file, or below one: choose another folder") from None
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to: {error.strerror}") from None
    known.add(key)
    try:
        yield notes
    finally:
        known.remove(key)
        # What cannot be removed any more, as on a disk that is gone, hides no other error.
        with suppress(OSError):
            # While it is held: nobody else removes it.
            (folder / ".lock").unlink()
        _open.discard(handle)
        os.close(handle)
        if not existed:
            with suppress(OSError):
                folder.rmdir()


def _acquire(path):
    """Return the open, locked file and what is worth saying."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            notes = _lock(handle, path)
        except BaseException:
            os.close(handle)
            raise
        # Its holder may have removed the file in between.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                break
        os.close(handle)
    _open.add(handle)
    os.ftruncate(handle, 0)
    with suppress(OSError):
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return handle, notes


def _lock(handle, path):
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 1000).decode(errors="replace") or "another process"
        raise ValueError(
            f"{path.parent} is being trained in by {holder}: wait for it, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
        return [
            f"warning: the file system of {path.parent} has no locks ({error.strerror}): nothing"
            " keeps a second training out of this folder"
        ]
    return []
