# SPDX-License-Identifier: MIT
"""Where this machine's apt gets Debian from, and apt for another release of the same archive.

A build that needs a package of another Debian release than the machine's asks the machine's own
mirror for it, trusting the same keys: the entries for Debian's main archive with the suite
replaced, in a sources file and package lists of its own (sources.list(5), apt.conf(5)). No
privilege is needed, and the machine's configuration and lists stay as they are.

Standard library only, and no output: the scripts that import it run on a fresh Debian 12.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Releases by their own names and by their roles; not "-security", which is another archive.
RELEASES = frozenset(
    (
        *("bookworm", "trixie", "forky", "sid"),
        *("oldoldstable", "oldstable", "stable", "testing", "unstable"),
    )
)

Entry = tuple[dict[str, str], list[str], list[str], list[str]]
"""Options, URIs, suites and components of one entry of apt's sources."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A mirror of Debian's archive, as this machine's apt is told to use it."""

    uri: str
    # Options of a one-line entry or fields of a stanza: they say, for one, which keys to trust.
    signed_by: str
    trusted: str

    def stanza(self, suites: Sequence[str], kind: str = "deb") -> str:
        """Return what apt needs to get packages (``deb``) or sources (``deb-src``) from here."""
        fields = [
            f"Types: {kind}",
            f"URIs: {self.uri}",
            f"Suites: {' '.join(suites)}",
            "Components: main",
        ]
        if self.signed_by:
            fields.append(f"Signed-By: {self.signed_by}")
        if self.trusted:
            fields.append(f"Trusted: {self.trusted}")
        return "\n".join(fields) + "\n"


def parse_list(text: str) -> Iterator[Entry]:
    """Yield each entry of a one-line style file."""
    for line in text.splitlines():
        match = re.match(r"\s*deb(?:-src)?\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)([^#]*)", line)
        if match:
            options: dict[str, str] = {}
            for word in (match[1] or "").split():
                name, _, value = word.partition("=")
                options[name.lower()] = value
            yield options, [match[2]], [match[3]], match[4].split()


def parse_stanzas(text: str) -> Iterator[Entry]:
    """Yield each entry of a deb822 style file that is not disabled."""
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t"):
                if name:
                    fields[name] += "\n" + line
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        yield (
            fields,
            fields.get("uris", "").split(),
            fields.get("suites", "").split(),
            fields.get("components", "").split(),
        )


def find_archives() -> list[Archive]:
    """Return what may be Debian's archive in this machine's apt configuration, likeliest first.

    The list is empty if there is none, or no apt.
    """
    try:
        shell = subprocess.run(
            ["apt-config", "shell", "L", "Dir::Etc::sourcelist/f", "D", "Dir::Etc::sourceparts/d"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    except FileNotFoundError:
        return []
    places = dict(re.findall(r"^([LD])='(.*)'$", shell, re.MULTILINE))
    files = [Path(places.get("L", "/etc/apt/sources.list"))]
    with contextlib.suppress(OSError):
        files += sorted(Path(places.get("D", "/etc/apt/sources.list.d")).iterdir())
    archives: dict[Archive, bool] = {}
    for file in files:
        if file.suffix not in (".list", ".sources"):
            continue
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError):
            continue
        parse = parse_stanzas if file.suffix == ".sources" else parse_list
        for options, uris, suites, components in parse(text):
            if "main" not in components or RELEASES.isdisjoint(suites):
                continue
            for uri in uris:
                archive = Archive(uri, options.get("signed-by", ""), options.get("trusted", ""))
                archives[archive] = "debian-archive" in archive.signed_by or not archive.signed_by
    return sorted(archives, key=lambda archive: not archives[archive])


def private_options(folder: Path, sources: str) -> list[str]:
    """Return options that make apt use these sources only, with lists and cache in ``folder``."""
    (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    file = folder / "debian.sources"
    file.write_text(sources)
    settings = {
        "Dir::Etc::sourcelist": str(file),
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": str(folder / "lists"),
        "Dir::Cache": str(folder / "cache"),
        "APT::Get::List-Cleanup": "false",
        "APT::Update::Error-Mode": "any",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "true",
    }
    if os.geteuid() == 0:
        # The folder may be in root's home, where apt's own user cannot go.
        settings["APT::Sandbox::User"] = "root"
    return [word for item in settings.items() for word in ("-o", f"{item[0]}={item[1]}")]


def is_debian(options: Sequence[str]) -> bool:
    """Whether what apt has fetched with these options is Debian's and not somebody else's."""
    origins = subprocess.run(
        ["apt-get", *options, "indextargets", "--format", "$(ORIGIN)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    return bool(origins) and set(origins) <= {"Debian", "Debian Backports"}
