"""Arrays as .npy files: opened as memory maps, so that a header can ask for no more than the file holds."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def new_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> "np.memmap[Any, Any]":
    """A memory map to write into, of a new .npy file, all of whose bytes are on the disk's account.

    A file that only gets its length has none of them: a page that finds the disk full while it is written to would
    kill the process (SIGBUS).

    Raises:
        OSError: there is no room for it; the file it names is `path`.
    """
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as stream:
            try:
                os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot do it
                    raise OSError(error.errno, error.strerror, str(path)) from None
    return array


def open_array(path: Path) -> NDArray[Any]:
    """The array in a .npy file, read-only and memory-mapped.

    Never unpickles. Only plain numbers in C order are taken, which is all that gkd writes.

    Raises:
        ValueError: the file is missing, cannot be read, or holds something else; the message says why.
    """
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
        if array.dtype.kind not in "biuf" or not array.flags.c_contiguous:
            order = "" if array.flags.c_contiguous else " in Fortran order"
            raise ValueError(f"it holds {array.dtype}{order}, not plain numbers in C order")
        return array
    except Exception as error:  # numpy's header parser raises what Python's own parser does, and more
        reason = error.strerror if isinstance(error, OSError) else None
        lines = str(reason or error).strip().splitlines()
        raise ValueError(lines[0][:200] if lines else type(error).__name__) from None
