"""What is made from packages once and kept outside the tree: images and programs, each under a name that changes with its
recipe."""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

UNUSED_DAYS = 14


def directory():
    chosen = os.environ.get("WANDER_CACHE")
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "wander"


def key(recipe):
    """Changes with every one of these files."""
    digest = hashlib.sha256()
    for file in recipe:
        digest.update(Path(file).read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def take_lock(lock, say):
    """One for all: they share downloaded packages."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for somebody else who fetches or builds")
        fcntl.flock(lock, fcntl.LOCK_EX)


def remove_old(cache, kind):
    """Removes what interrupted builds left, and what nobody has used for long."""
    for path in cache.glob(f".{kind}-building-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in cache.glob(f"{kind}-*"):
        if path.is_dir() and path.stat().st_mtime < time.time() - UNUSED_DAYS * 86400:
            shutil.rmtree(path, ignore_errors=True)


def get(kind, recipe, make, say):
    """The directory of `kind` by this recipe. If it is not there, make(place, archives, say) has to make it, as "result"
    in the directory `place`; packages are kept in `archives`. `say` shows progress."""
    cache = directory()
    cache.mkdir(parents=True, exist_ok=True)
    found = cache / f"{kind}-{key(recipe)}"
    with open(cache / "hosts.lock", "w") as lock:
        take_lock(lock, say)
        if not found.is_dir():
            remove_old(cache, kind)
            began = time.monotonic()
            place = Path(tempfile.mkdtemp(prefix=f".{kind}-building-", dir=cache))
            try:
                make(place, cache / "archives", say)
                os.rename(place / "result", found)
            finally:
                shutil.rmtree(place, ignore_errors=True)
            say(f"made in {time.monotonic() - began:.0f} s: {found}")
        os.utime(found)
    return found
