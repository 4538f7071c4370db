"""Debian packages, fetched through the machine's own apt configuration (its mirror, its proxy, its keys) with package
lists of our own: nothing is installed, and the machine's lists stay as they are."""

import re
import shlex
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

SUITE, BACKPORTS = "bookworm", "bookworm-backports"


class Trouble(Exception):
    """What was tried, what happened and what to do."""


def run(argv, **more):
    """The output of a program, or Trouble with what it said."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", **more)
    if done.returncode:
        raise Trouble(f"'{shlex.join(map(str, argv))}' exited with {done.returncode} and said:\n"
                      f"{(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout


def apt_directory(key):
    """A directory or file of the machine's apt configuration."""
    return Path(re.search(r"='(.*)'", run(["apt-config", "shell", "VALUE", key])).group(1))


def one_line_sources(text):
    """(options, uri, suite, components) of every `deb` line."""
    for line in text.splitlines():
        found = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if found:
            options, uri, suite, components = found.groups()
            key = re.search(r"signed-by=(\S+)", options or "")
            yield key and key.group(1), uri, suite, components.split()


def deb822_sources(text):
    """The same of every stanza of a .sources file."""
    for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        found = re.findall(r"(?m)^([\w-]+):(.*(?:\n[ \t].*)*)", stanza)
        fields = {name.lower(): value.split() for name, value in found}
        if "deb" in fields.get("types", []) and fields.get("enabled") != ["no"]:
            key = fields.get("signed-by", [""])[0]
            for uri in fields.get("uris", []):
                for suite in fields.get("suites", []):
                    yield key if key.startswith("/") else None, uri, suite, fields.get("components", [])


def machine_sources():
    parts = apt_directory("Dir::Etc::sourceparts/d")
    files = [apt_directory("Dir::Etc::sourcelist/f"), *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))]
    for file in files:
        if file.is_file():
            read = deb822_sources if file.suffix == ".sources" else one_line_sources
            yield from read(file.read_text(errors="replace"))


def debian_source(suite):
    """(key, uri) of a suite of Debian in the machine's apt configuration, or None."""
    found = [(key, uri) for key, uri, name, components in machine_sources() if name == suite and "main" in components]
    # Others publish suites of the same names; a mirror of Debian has it as the last part of its path.
    found.sort(key=lambda source: not urlsplit(source[1]).path.rstrip("/").endswith(("/debian", "/debian-security")))
    return found[0] if found else None


class Apt:
    """apt with directories of its own below `place`; packages come to and stay in `archives`."""

    def __init__(self, place, archives):
        self.place, self.archives, self.backports = place, archives, True
        for folder in (place / "lists" / "partial", place / "state", place / "none", archives / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        (place / "status").touch()
        settings = {"Dir::Etc::sourcelist": place / "sources.list", "Dir::Etc::sourceparts": place / "none",
                    "Dir::Etc::preferences": place / "preferences", "Dir::Etc::preferencesparts": place / "none",
                    "Dir::State": place / "state", "Dir::State::lists": place / "lists",
                    "Dir::State::status": place / "status", "Dir::Cache": place, "Dir::Cache::archives": archives,
                    "Dir::Log": place, "APT::Sandbox::User": "", "APT::Architecture": "amd64",
                    "APT::Architectures": "amd64", "APT::Install-Recommends": "0", "APT::Keep-Downloaded-Packages": "1",
                    "Debug::NoLocking": "1", "Acquire::Retries": "3", "Acquire::Languages": "none"}
        # By a file and not by -o: a path may have a space in it.
        lines = ['#clear APT::Architectures;\n'] + [f'{name} "{value}";\n' for name, value in settings.items()]
        (place / "apt.conf").write_text("".join(lines))

    def run(self, tool, *arguments, **more):
        return run([tool, "-q", "-c", str(self.place / "apt.conf"), *arguments], **more)

    def update(self):
        """Fetches the package lists; without backports when those cannot be had."""
        base = debian_source(SUITE)
        if not base:
            raise Trouble(f"the packages for the virtual hosts are Debian's {SUITE}, and no source of apt on this "
                          f"machine has that suite: add one (deb MIRROR {SUITE} main)")
        sources = [(SUITE, base), (f"{SUITE}-updates", debian_source(f"{SUITE}-updates")),
                   (f"{SUITE}-security", debian_source(f"{SUITE}-security"))]
        for backports in (debian_source(BACKPORTS) or base, None):
            lines = [f"deb {f'[signed-by={source[0]}] ' if source[0] else ''}{source[1]} {suite} main\n"
                     for suite, source in [*sources, (BACKPORTS, backports)] if source]
            (self.place / "sources.list").write_text("".join(lines))
            try:
                self.run("apt-get", "update", "--error-on=any")
                self.backports = bool(backports)
                return
            except Trouble:
                if not backports:
                    raise

    def fetch(self, names):
        """The .deb files of these packages and of all they depend on."""
        # With no archives at hand, or those that are there already would not be listed.
        listed = self.run("apt-get", "install", "-y", "--print-uris", "-o", "Dir::Cache::archives=none", *names)
        files = [self.archives / name for name in re.findall(r"(?m)^'\S+' (\S+\.deb) ", listed)]
        self.run("apt-get", "install", "-y", "--download-only", *names)
        return files

    def fetch_one(self, name):
        """The .deb file of one package, without what it depends on."""
        line = re.search(r"(?m)^'\S+' (\S+\.deb) ", self.run("apt-get", "download", "--print-uris", name))
        self.run("apt-get", "download", name, cwd=self.archives)
        return self.archives / line.group(1)

    def kernel(self):
        """(.deb file of the newest stock kernel, whether it is the one of backports)."""
        if self.backports:
            shown = self.run("apt-cache", "policy", "linux-image-amd64")
            versions = re.findall(r"(?m)^ \*?\*?\*?\s+(\S*~bpo\S*) \d+$", shown)
            if versions:
                return self.kernel_of(f"linux-image-amd64={versions[0]}", f"/{BACKPORTS}"), True
        return self.kernel_of("linux-image-amd64", ""), False

    def kernel_of(self, meta, release):
        shown = self.run("apt-cache", "show", "--no-all-versions", meta)
        return self.fetch_one(re.search(r"Depends:.*?(linux-image-[0-9][^ ,]*)", shown).group(1) + release)
