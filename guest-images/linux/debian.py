# SPDX-License-Identifier: MIT
"""Which Debian packages the test guest is made of, and fetching them; ``build`` is the user.

The default kernel is that of the machine's own apt. Others come from other suites of the same
archive (``KERNELS``), with sources and lists of their own. Standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from debian_archive import find_archives, is_debian, private_options

META_PACKAGE = "linux-image-cloud-amd64"
# What the kernel's build tools are linked with, beside libelf.
LIBRARIES = ["libc6", "libzstd1", "zlib1g"]


class BuildError(Exception):
    """The image cannot be built; the text says why and what to do."""


class Unavailable(BuildError):
    """The archive that this machine uses does not have the kernel that was asked for."""


@dataclass(frozen=True)
class Package:
    """A Debian package as apt describes it; ``sha256`` is that of the .deb."""

    name: str
    version: str
    architecture: str
    sha256: str


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be asked for.

    ``series`` is what its version starts with. ``groups`` are sets of suites, the first that has
    such a kernel is taken; the newest version in it counts. A group has what the kernel's build
    tools need too. No groups: the machine's own apt.
    """

    name: str
    series: str
    groups: tuple[tuple[str, ...], ...] = ()


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("6.1", "6.1."),
        # The backport is built by the compiler that Debian 12 has.
        Kernel("6.12", "6.12.", (("bookworm-backports", "bookworm"), ("trixie",))),
        # experimental is left out: it has release candidates.
        Kernel("newest", "", (("trixie-backports", "sid"),)),
    )
}


def say(text: str) -> None:
    """Show progress on stderr; stdout is for --print-path."""
    print(f"guest-linux: {text}", file=sys.stderr, flush=True)


def run(
    command: Sequence[str | Path],
    what: str,
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> str:
    """Run a command and return its stdout. Raises BuildError with its most telling line."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise BuildError(f"{what}: {error.filename} is missing") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        telling = [line for line in lines if re.match(r"E:|.*\berror\b", line)] or lines[-1:]
        raise BuildError(f"{what}: {telling[0] if telling else f'exit {done.returncode}'}")
    return done.stdout


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Apt:
    """apt with package lists of our own, when the machine's will not do.

    The machine's lists are used first. If they are empty (a fresh container) or name a version
    that has left the archive, lists are fetched into the cache: from the same sources, checked
    against the same keys, without privilege.
    """

    where = " (is this Debian 12?)"

    def __init__(self, state: Path) -> None:
        self.state = state
        self.private = False
        self.failure = ""

    def options(self) -> list[str]:
        """Return the options that select the lists in use."""
        options = ["-q", "-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else ["-q"]
        if self.private:
            for name, folder in (("Dir::State::lists", "lists"), ("Dir::Cache", "cache")):
                path = self.state / folder
                (path / "partial").mkdir(parents=True, exist_ok=True)
                options += ["-o", f"{name}={path}"]
            (self.state / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
        return options

    def update(self) -> None:
        """Fetch package lists into the cache and use them from now on."""
        self.private = True
        say("fetching package lists")
        output = run(
            ["apt-get", *self.options(), "update"],
            "cannot fetch package lists (is there a network?)",
        )
        # Sources that could not be reached leave the exit status 0.
        if failed := re.search(r"^Err:.*\n *(.*)$", output, re.MULTILINE):
            self.failure = f"; fetching package lists: {failed.group(1)}"

    def describe(self, name: str, version: str | None = None) -> tuple[Package, str]:
        """Return the candidate of a package, or one version, and its dependencies as text.

        Raises BuildError if apt knows no such package.
        """
        target = f"{name}={version}" if version else name
        try:
            text = run(
                ["apt-cache", *self.options(), "--no-all-versions", "show", target], "apt-cache"
            )
        except BuildError:
            text = ""
        field = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", text, re.MULTILINE))
        if "SHA256" not in field:
            raise BuildError(f"apt knows no package {target}{self.where}{self.failure}")
        package = Package(name, field["Version"], field["Architecture"], field["SHA256"])
        return package, field.get("Depends", "")

    def versions(self, name: str) -> list[str]:
        """Return all versions of a package, newest first."""
        text = run(["apt-cache", *self.options(), "madison", name], "apt-cache")
        found = set(re.findall(rf"^ *{re.escape(name)} \| (\S+) \|", text, re.MULTILINE))
        return sorted(found, key=functools.cmp_to_key(compare_versions), reverse=True)

    def download(self, package: Package, folder: Path) -> None:
        """Download a package into a folder. Raises BuildError if it does not arrive whole."""
        run(
            ["apt-get", *self.options(), "download", f"{package.name}={package.version}"],
            f"cannot download {package.name} {package.version} (is there a network?)",
            cwd=folder,
        )


class SuiteApt(Apt):
    """apt for other suites of the archive than the machine's."""

    where = " in these suites"

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self.private = True
        self._options: list[str] = []

    def options(self) -> list[str]:
        """Return the options that select the suites found last, in this run or an earlier one."""
        if not self._options:
            file = self.state / "debian.sources"
            sources = file.read_text() if file.exists() else ""
            self._options = ["-q", *private_options(self.state, sources)]
        return self._options

    def use(self, suites: Sequence[str]) -> list[str]:
        """Fetch the lists of those suites that the archive has, and return their names."""
        found: list[str] = []
        for archive in find_archives():
            for suite in suites:
                options = ["-q", *private_options(self.state, archive.stanza([suite]))]
                say(f"fetching the package list of Debian {suite}")
                try:
                    run(["apt-get", *options, "update"], f"Debian {suite}")
                except BuildError as error:
                    say(f"left out: {error}")
                    self.failure = f" ({error})"
                    continue
                if is_debian(options):
                    found.append(suite)
            if found:
                sources = archive.stanza(found)
                self._options = ["-q", *private_options(self.state, sources)]
                break
        return found


def compare_versions(one: str, other: str) -> int:
    """Compare two versions as dpkg does: negative, 0 or positive (deb-version(7))."""
    if one == other:
        return 0
    command = ["dpkg", "--compare-versions", one, "lt", other]
    return -1 if subprocess.run(command, check=False).returncode == 0 else 1


def resolve(apt: Apt, kernel: Kernel, version: str | None = None) -> list[Package]:
    """Decide which packages the image is made of: by default, the newest kernel that apt knows."""
    meta, depends = apt.describe(META_PACKAGE, version)
    match = re.search(r"linux-image-(\S+-cloud-amd64) \(= (\S+)\)", depends)
    if not match:
        raise BuildError(f"{META_PACKAGE} names no kernel image but {depends!r}")
    if not meta.version.startswith(kernel.series):
        raise BuildError(f"apt's {META_PACKAGE} is {meta.version}, not {kernel.series}x")
    release, version = match.groups()
    image, depends = apt.describe(f"linux-image-{release}", version)
    # From 7.3 on, linux-image has the kernel and its modules by dependency.
    parts = re.findall(rf"linux-(?:base|binary|modules)-{re.escape(release)}", depends)
    headers, depends = apt.describe(f"linux-headers-{release}", version)
    common = re.findall(r"linux-headers-[^\s,]+-common", depends)
    kbuild = re.findall(r"linux-kbuild-[^\s,]+", depends)
    if not (common and kbuild):
        raise BuildError(f"{headers.name} does not name what belongs to it but {depends!r}")
    packages = [image, headers]
    packages += [apt.describe(name, version)[0] for name in dict.fromkeys([*parts, *common])]
    tools, depends = apt.describe(kbuild[0], version)
    # objtool, in linux-kbuild, needs it, and it may not be installed.
    elf = "libelf1t64" if "libelf1t64" in depends else "libelf1"
    others = [elf, "busybox-static"]
    if kernel.groups:
        # The machine's C library may be older than the one these tools are made for.
        others += LIBRARIES
    return [*packages, tools, *(apt.describe(name)[0] for name in others)]


def choose(apt: Apt, kernel: Kernel) -> list[Package]:
    """Decide which packages the image is made of, looking into other suites if need be.

    Raises Unavailable if the archive has no such kernel.
    """
    if not isinstance(apt, SuiteApt):
        return resolve(apt, kernel)
    for group in kernel.groups:
        found = apt.use(group)
        fitting = [v for v in apt.versions(META_PACKAGE) if v.startswith(kernel.series)]
        if found and fitting:
            return resolve(apt, kernel, fitting[0])
    suites = ", ".join(suite for group in kernel.groups for suite in group)
    raise Unavailable(
        f"the archive that this machine uses has no kernel {kernel.name} in {suites}{apt.failure}"
    )


def recorded(path: Path) -> list[Package] | None:
    """Return the packages decided on earlier; None if there are none or the record is spoilt."""
    try:
        return [Package(**entry) for entry in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return None


def fetch(apt: Apt, packages: Sequence[Package], store: Path) -> dict[str, Path]:
    """Return the .deb of each package, by name, downloading those that are not in the store."""
    store.mkdir(parents=True, exist_ok=True)
    paths = {}
    for number, package in enumerate(packages, 1):
        path = store / f"{package.sha256}.deb"
        paths[package.name] = path
        if path.exists() and sha256_file(path) == package.sha256:
            continue
        say(f"[{number}/{len(packages)}] downloading {package.name} {package.version}")
        with tempfile.TemporaryDirectory(dir=store) as folder:
            apt.download(package, Path(folder))
            files = list(Path(folder).glob("*.deb"))
            if len(files) != 1 or sha256_file(files[0]) != package.sha256:
                raise BuildError(
                    f"{package.name} {package.version} is not what apt's lists promise"
                )
            files[0].replace(path)
    return paths


@contextmanager
def package_files(deb: Path) -> Iterator[tarfile.TarFile]:
    """Open the files of a package as a stream."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                yield archive
        except tarfile.TarError as error:
            raise BuildError(f"cannot unpack {deb}: {error}; remove it and run again") from error
        # Read to the end, or dpkg-deb would die of a closed pipe.
        while process.stdout.read(1 << 16):
            pass
    if process.returncode:
        raise BuildError(f"cannot unpack {deb}; remove it and run again")


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the contents of a regular file in an archive."""
    file = archive.extractfile(member)
    assert file is not None
    return file.read()
