# SPDX-License-Identifier: MIT
"""What can be said about QEMU's patches from their text alone; each complaint is one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from email.header import decode_header, make_header
from email.policy import compat32
from pathlib import Path

from .patches import BRANCHES, DEFAULT, PATCHES, Patch, read_list, read_series

# QEMU asks for less; more does not fit a terminal.
SUBJECT_LENGTH = 80
BODY_WIDTH = 80

SUBJECT = re.compile(r"\[PATCH\] [^\s:]+(?:[ ,/][^\s:]+)*: \S.*[^.\s]")
SIGNED_OFF = re.compile(r"^Signed-off-by: \S.* <[^<>\s]+@[^<>\s]+>$", re.MULTILINE)
# Kinds of files that carry a licence line; QEMU's documents and trace-events have none.
LICENSED = re.compile(r"\.(c|h|inc|S|py|sh|rs)$")
SPDX = re.compile(r"SPDX-License-Identifier: GPL-2\.0-or-later\b")
# Paths of the machine that a patch was written on do not mean anything to its reader.
PRIVATE = re.compile(r"(?<![\w./-])/(?:home|root|work|mnt)/\S*|file://\S+")
NUMBERED = re.compile(r"(\d{4})-[A-Za-z0-9.+_-]+\.patch")


@dataclass(frozen=True, slots=True)
class Change:
    """What a patch does to one file."""

    path: str
    is_new: bool
    # Without the leading plus.
    added: tuple[str, ...]


def message(patch: Patch) -> tuple[str, str]:
    """Return a patch's subject, with its prefix, and its body as far as the three dashes."""
    mail = message_from_bytes(patch.content, policy=compat32)
    subject = str(make_header(decode_header(mail.get("Subject", ""))))
    payload = mail.get_payload(decode=True)
    text = payload.decode(errors="replace") if isinstance(payload, bytes) else ""
    body = re.split(r"^---$", text, maxsplit=1, flags=re.MULTILINE)[0]
    return re.sub(r"\s*\n\s*", " ", subject), body.strip()


def changes(patch: Patch) -> Iterator[Change]:
    """Yield what a patch in Git's format does, file by file."""
    text = patch.content.decode(errors="replace")
    for part in re.split(r"^diff --git ", text, flags=re.MULTILINE)[1:]:
        header, _, hunks = part.partition("\n@@ ")
        new = re.search(r"^\+\+\+ b/(.+)$", header, re.MULTILINE)
        if new:
            added = tuple(line[1:] for line in hunks.splitlines() if line.startswith("+"))
            yield Change(new[1], "\nnew file mode" in header, added)


def lint_patch(patch: Patch) -> Iterator[str]:
    """Yield what is wrong with one patch."""
    subject, body = message(patch)
    if not SUBJECT.fullmatch(subject):
        yield f"subject is not of the form 'area: what it does': {subject!r}"
    elif len(subject) - len("[PATCH] ") > SUBJECT_LENGTH:
        yield f"subject is longer than {SUBJECT_LENGTH} characters: {subject!r}"
    trailers = [line for line in body.splitlines() if re.match(r"[A-Z][\w-]+(-by|-to)?: .*<", line)]
    prose = [line for line in body.splitlines() if line not in trailers]
    if not SIGNED_OFF.search(body):
        yield "no Signed-off-by"
    if not "".join(prose).strip():
        yield "no message body that gives the reason"
    # Quoted output and tables are indented, and may be as long as they are.
    for line in prose:
        if len(line) > BODY_WIDTH and not line.startswith(" "):
            yield f"message line is longer than {BODY_WIDTH} characters: {line!r}"
    for match in PRIVATE.finditer(body):
        yield f"message names a path of one machine: {match[0]}"

    touched = list(changes(patch))
    if not touched:
        yield "changes no file"
    for change in touched:
        licensed = any(SPDX.search(line) for line in change.added[:12])
        if change.is_new and LICENSED.search(change.path) and not licensed:
            yield f"{change.path}: new, and without SPDX-License-Identifier: GPL-2.0-or-later"
        for line in change.added:
            for match in PRIVATE.finditer(line):
                yield f"{change.path} names a path of one machine: {match[0]}"


def lint_folder(folder: Path = PATCHES) -> Iterator[str]:
    """Yield what is wrong with the lists: files that are missing, superfluous or out of order."""
    series = read_list(folder / "series")
    numbers = []
    for name in series:
        match = NUMBERED.fullmatch(name)
        if match:
            numbers.append(int(match[1]))
        else:
            yield f"series: {name} is not of the form NNNN-subject.patch"
        if not (folder / name).is_file():
            yield f"series: {name} does not exist"
    if numbers != list(range(1, len(series) + 1)):
        yield "series: the patches are not numbered 1, 2, 3 and so on"
    subjects: dict[str, str] = {}
    for file in sorted(folder.glob("*.patch")):
        subject = message(Patch(file.name, file.read_bytes()))[0]
        if subjects.setdefault(subject, file.name) != file.name:
            # Tools and people tell patches by it.
            yield f"{file.name} has the same subject as {subjects[subject]}"
        if file.name not in series:
            yield f"{file.name} is not in series"

    known = {branch.name for branch in BRANCHES if branch != DEFAULT}
    for own in sorted(path for path in folder.iterdir() if path.is_dir()):
        if own.name not in known:
            yield f"{own.name}/ is not one of the versions that scripts/build-qemu knows"
            continue
        absent = read_list(own / "absent") if (own / "absent").exists() else []
        for name in absent:
            if name not in series:
                yield f"{own.name}/absent: {name} is not in series"
            if (own / name).exists():
                yield f"{own.name}/{name} is there, and listed as absent"
        for file in sorted(own.iterdir()):
            if file.name == "absent":
                continue
            original = folder / file.name
            if file.name not in series or not original.is_file():
                yield f"{own.name}/{file.name} replaces no patch in series"
                continue
            theirs, ours = (Patch(file.name, path.read_bytes()) for path in (original, file))
            if essence(theirs) == essence(ours):
                yield f"{own.name}/{file.name} is the same as the one it replaces"
            if message(theirs) != message(ours):
                yield f"{own.name}/{file.name} has another message than the one it replaces"


def essence(patch: Patch) -> list[bytes]:
    """Return what of a patch matters to patch(1): not line numbers, hashes, dates or statistics."""
    begin = patch.content.find(b"\ndiff --git ")
    return [
        re.sub(rb"^@@ .*? @@.*", b"@@", line)
        for line in patch.content[begin:].splitlines()
        if not line.startswith(b"index ")
    ]


def lint(folder: Path = PATCHES) -> Iterator[str]:
    """Yield all that is wrong with the patches of all versions."""
    complaints = list(lint_folder(folder))
    yield from complaints
    if any("does not exist" in complaint for complaint in complaints):
        return
    seen = set()
    for branch in BRANCHES:
        for patch in read_series(branch, folder):
            if patch not in seen:
                seen.add(patch)
                for complaint in lint_patch(patch):
                    yield f"{patch.name}: {complaint}"
