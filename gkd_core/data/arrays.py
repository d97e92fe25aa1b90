"""Arrays as .npy files: opened as memory maps, so that a header can ask for no more than the file holds."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def open_array(path: Path) -> NDArray[Any]:
    """The array in a .npy file, read-only and memory-mapped; an empty one is in memory.

    Never unpickles. Only plain numbers in C order are taken, which is all that gkd writes.

    Raises:
        ValueError: the file is missing, cannot be read, or holds something else; the message says why.
    """
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            start = stream.tell()
        if fortran or dtype.kind not in "biuf":
            raise ValueError(f"it holds {dtype}{' in Fortran order' if fortran else ''}, not plain numbers in C order")
        count = 1
        for side in shape:
            count *= side
        if path.stat().st_size != start + count * dtype.itemsize:
            raise ValueError(f"its size does not fit {dtype} {list(shape)}")
        if count == 0:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape)
    except Exception as error:  # numpy's header parser raises what Python's own parser does, and more
        reason = error.strerror if isinstance(error, OSError) else None
        lines = str(reason or error).strip().splitlines()
        raise ValueError(lines[0][:200] if lines else type(error).__name__) from None
