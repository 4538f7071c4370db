"""Files that are written as a whole or not at all: a reader never sees half of one."""

import contextlib
import os
from pathlib import Path


def write(path, text, mode=0o666):
    """Replaces the file, if there is one. OSError when it cannot be written."""
    new = Path(f"{path}.new.{os.getpid()}")
    new.unlink(missing_ok=True)  # of a process before us that was killed
    try:
        with open(new, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, mode)) as out:
            out.write(text)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise
