# SPDX-License-Identifier: MIT
"""QEMU's patches as a reviewer would look at them; the tool that does, with a small tree.

The last test needs the real sources and takes them from where scripts/build-qemu keeps them.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from qemubuild.command import default_cache
from qemubuild.lint import essence, lint, lint_patch, message
from qemubuild.patches import BRANCHES, Branch, Patch, hash_file, read_source
from qemubuild.review import uncovered, warnings

from tests.setup.qemu_folder import OTHER, Checkout, Commit, make_checkout, sources

GOOD = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: A Developer <dev@example.org>
Date: Mon, 1 Jan 2024 00:00:00 +0000
Subject: [PATCH] hw/hyperv: add a file and a line of some length to a table of
 that kind

The reason for it, with what QEMU prints without it:

  qemu-system-x86_64: a line that was quoted, and is longer than others are allowed to be

Signed-off-by: A Developer <dev@example.org>
---
 hw/hyperv/new.c | 3 +++
 1 file changed, 3 insertions(+)
 create mode 100644 hw/hyperv/new.c

diff --git a/hw/hyperv/new.c b/hw/hyperv/new.c
new file mode 100644
index 00000000..11111111
--- /dev/null
+++ b/hw/hyperv/new.c
@@ -0,0 +1,3 @@
+/* SPDX-License-Identifier: GPL-2.0-or-later */
+
+int one = 1; /* socket,path=/tmp/hv.sock */
"""
LINE = "The reason for it, with what QEMU prints without it:"


def test_the_patches_of_all_versions_are_in_order() -> None:
    assert list(lint()) == []


def test_a_good_patch_is_good() -> None:
    assert list(lint_patch(Patch("0001-a.patch", GOOD.encode()))) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (r"(?m)^Signed-off-by:.*\n", "", "no Signed-off-by"),
        (r"Signed-off-by: A", "Signed-of-by: A", "no Signed-off-by"),
        (r"(?s)The reason.*to be\n\n", "", "no message body that gives the reason"),
        (r"\[PATCH\] hw/hyperv: add", "[PATCH] Add", "subject is not of the form"),
        (r"of\n that kind", "of\n that kind.", "subject is not of the form"),
        (r"of\n that kind", "of\n that kind, or another one", "subject is longer than 80"),
        (LINE, LINE + " and so on, and so on, and so on", "message line is longer than 80"),
        (LINE, "See /home/dev/qemu for the reason.", "message names a path of one machine"),
        (r"one = 1;", "one = 1; /* file:///data/x */", "new.c names a path of one machine"),
        (r"GPL-2.0-or-later", "MIT", "new.c: new, and without SPDX"),
        (r"(?m)^\+/\* SPDX.*\n", "", "new.c: new, and without SPDX"),
        (r"(?s)diff --git.*", "", "changes no file"),
    ],
)
def test_each_fault_of_a_patch_is_named(old: str, new: str, complaint: str) -> None:
    changed = re.sub(old, new, GOOD, count=1)
    assert changed != GOOD
    complaints = list(lint_patch(Patch("0001-a.patch", changed.encode())))
    assert len(complaints) == 1, complaints
    assert complaint in complaints[0]


def test_a_subject_is_read_as_mail_has_it() -> None:
    folded = Patch("0001-a.patch", GOOD.encode())
    assert message(folded)[0].endswith("some length to a table of that kind")
    encoded = re.sub(
        r"(?s)Subject: .*?kind\n", "Subject: [PATCH] =?UTF-8?q?hw/a:=20na=C3=AFve?=\n", GOOD
    )
    assert message(Patch("0001-a.patch", encoded.encode()))[0] == "[PATCH] hw/a: naïve"


def test_line_numbers_and_hashes_are_no_difference() -> None:
    other = GOOD.replace("11111111", "22222222").replace("+1,3 @@", "+5,3 @@ function(")
    assert essence(Patch("a", GOOD.encode())) == essence(Patch("a", other.encode()))
    other = GOOD.replace("one = 1", "one = 2")
    assert essence(Patch("a", GOOD.encode())) != essence(Patch("a", other.encode()))


def test_maintainers_has_files_folders_and_stars() -> None:
    text = "F: hw/hyperv/\nF: docs/interop/vmbus-user.rst\nF: include/*/hyperv*.h\nF: *\nF: */\n"
    covered = [
        "hw/hyperv/a.c",
        "hw/hyperv/b/c.c",
        "docs/interop/vmbus-user.rst",
        "include/hw/hyperv-x.h",
    ]
    bare = ["hw/hyper.c", "docs/interop/other.rst", "include/hw/a/hyperv.h", "README"]
    assert uncovered(covered + bare, text) == bare


def test_only_warnings_about_our_files_and_of_this_step_count(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("../qemu/hw/ours.c:1:2: warning: before\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write(
            "../qemu/hw/theirs.c:7:2: warning: not ours\n"
            "../qemu/hw/ours.c:3:4: warning: unused variable\n"
            "../qemu/hw/ours.c:3:4: note: declared here\n"
        )
    assert warnings(log, start, {"hw/ours.c"}) == ["hw/ours.c:3: unused variable"]


# --- with a small tree ------------------------------------------------------------------------

BASE = sources(BRANCHES[0].name)["hw/file.c"]
SECOND = Commit("hw: two is 2", {"hw/file.c": BASE.replace("old_name()", "old_name() + 2")})
NEW_FILE = Commit(
    "hw: add a file",
    {"hw/covered/new.c": "/* SPDX-License-Identifier: GPL-2.0-or-later */\nint four = 4;\n"},
)


@pytest.fixture
def small(checkout: Path, tmp_path: Path) -> Checkout:
    """Return a checkout with two patches, the first of which the other version replaces."""
    made = make_checkout(checkout, tmp_path / "checkout")
    names = made.write_series([SECOND, NEW_FILE])
    theirs = sources(OTHER.name)["hw/file.c"].replace("new_name()", "new_name() + 2")
    made.write_own([Commit(SECOND.subject, {"hw/file.c": theirs}), NEW_FILE], only=names[:1])
    return made


def complaints(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the complaints; there must be some, and else only what a command has printed."""
    assert result.returncode == 1, result.stdout
    lines = [line for line in result.stderr.splitlines() if not line.startswith("  | ")]
    assert lines
    assert all(line.startswith("error: ") for line in lines), result.stderr
    return [line.removeprefix("error: ") for line in lines]


def test_a_good_series_passes_for_both_versions(small: Checkout) -> None:
    result = small.run("check-qemu-patches")
    assert result.returncode == 0, result.stderr
    for branch in BRANCHES:
        assert f"QEMU {branch.version}: 2 patches checked" in result.stdout
    assert not list(small.cache.glob("checking-*"))


def test_a_patch_that_needs_fuzz_does_not_apply(small: Checkout) -> None:
    patch = next((small.patches / OTHER.name).glob("0001-*.patch"))
    patch.unlink()
    (line,) = complaints(small.run("check-qemu-patches"))
    assert line == f"{patch.name} does not apply to QEMU {OTHER.version}"
    assert small.run("check-qemu-patches", "--version", BRANCHES[0].name).returncode == 0


def test_what_checkpatch_says_is_told(small: Checkout) -> None:
    patch = next(small.patches.glob("0002-*.patch"))
    patch.write_text(patch.read_text().replace("+int four", "+\tint four"))
    number = next(n for n, line in enumerate(patch.read_text().splitlines(), 1) if "\t" in line)
    assert complaints(small.run("check-qemu-patches")) == [
        f"QEMU {branch.version}: {patch.name}: checkpatch.pl: {number}: ERROR: tab"
        for branch in BRANCHES
    ]


def test_a_new_file_without_a_maintainer_is_named(small: Checkout) -> None:
    patch = next(small.patches.glob("0002-*.patch"))
    patch.write_text(patch.read_text().replace("hw/covered/", "hw/bare/"))
    found = complaints(small.run("check-qemu-patches", "--version", OTHER.version))
    assert found == [f"QEMU {OTHER.version}: MAINTAINERS does not cover hw/bare/new.c"]


def test_a_replacement_that_is_not_needed_is_named(small: Checkout) -> None:
    own = small.patches / OTHER.name
    (second,) = (path.name for path in small.patches.glob("0002-*.patch"))
    text = (small.patches / second).read_text()
    (own / second).write_text(text.replace("@@ -0,0 +1,2 @@", "@@ -0,0 +1,2 @@ context"))
    found = complaints(small.run("check-qemu-patches", "--text"))
    assert found == [f"{OTHER.name}/{second} is the same as the one it replaces"]

    # Another text with the same effect.
    (own / second).write_text(text.replace("new file mode 100644\n", ""))
    found = complaints(small.run("check-qemu-patches", "--version", OTHER.name))
    assert found == [
        f"QEMU {OTHER.version}: {OTHER.name}/{second}: the one that it replaces would do"
    ]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        ("echo 0009-x.patch >>series", "series: 0009-x.patch does not exist"),
        ("touch 0009-x.patch", "0009-x.patch is not in series"),
        ("sed -i 1d series", "series: the patches are not numbered 1, 2, 3 and so on"),
        ("mv 10.2/0001-* 10.2/0001-x.patch", "10.2/0001-x.patch replaces no patch in series"),
        ("cp series 10.2/absent", "is there, and listed as absent"),
        ("echo 0003-x.patch >10.2/absent", "10.2/absent: 0003-x.patch is not in series"),
        ("sed -i 's/The reason/A reason/' 10.2/0001-*", "has another message"),
        ("cp 0001-* 0002-y.patch", "0002-y.patch has the same subject as 0001-"),
        ("mkdir 10.1", "10.1/ is not one of the versions that scripts/build-qemu knows"),
    ],
)
def test_each_fault_of_the_lists_is_named(small: Checkout, spoil: str, complaint: str) -> None:
    subprocess.run(["sh", "-c", spoil], cwd=small.patches, check=True)
    found = complaints(small.run("check-qemu-patches", "--text"))
    assert any(complaint in line for line in found), found


def test_a_source_needs_its_version(small: Checkout) -> None:
    result = small.run("check-qemu-patches", "--source", "x")
    assert result.returncode == 2
    assert "--source needs one --version" in result.stderr


# --- with the real ones -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("branch", BRANCHES, ids=lambda branch: str(branch.name))
def test_the_patches_apply_and_checkpatch_is_silent(checkout: Path, branch: Branch) -> None:
    tarball = default_cache() / branch.tarball
    if not tarball.exists() or hash_file(tarball) != read_source(branch).sha256:
        pytest.skip(f"scripts/build-qemu has not left {branch.tarball} in the cache")
    result = subprocess.run(
        [checkout / "scripts/check-qemu-patches", "--version", branch.name, "--source", tarball],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
