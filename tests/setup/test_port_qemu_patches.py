# SPDX-License-Identifier: MIT
"""scripts/port-qemu-patches: a change of the series, carried over to the other version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from qemubuild.patches import DEFAULT

from tests.setup.qemu_folder import OTHER, Checkout, Commit, git, make_checkout, sources

ORIGINAL = sources(DEFAULT.name)["hw/file.c"]
OTHERS = sources(OTHER.name)["hw/file.c"]
FIRST = ("hw: one is 10", {"return 1;": "return 10;"})
SECOND = ("hw: two adds 2", {"_name();": "_name() + 2;"})
DRIVER = "/* SPDX-License-Identifier: GPL-2.0-or-later */\n#include <first.h>\n\nint a(int);\n\n"
DRIVER += "int driver(void)\n{\n    return 1;\n}\n"


def edit(text: str, changes: Mapping[str, str]) -> str:
    """Return a text after changes, each of which must have an effect."""
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def series(base: str, driver: str, *steps: tuple[str, Mapping[str, str]]) -> list[Commit]:
    """Return commits that add a driver and then edit hw/file.c step by step."""
    commits = [Commit("hw: add a driver", {"hw/covered/driver.c": driver})]
    for subject, changes in steps:
        base = edit(base, changes)
        commits.append(Commit(subject, {"hw/file.c": base}))
    return commits


@pytest.fixture
def ported(checkout: Path, tmp_path: Path) -> Checkout:
    """Return a checkout whose last commit has three patches, two of them different there.

    The other version has another name for a header of the driver, and in the line of the third.
    """
    made = make_checkout(checkout, tmp_path / "checkout")
    names = made.write_series(series(ORIGINAL, DRIVER, FIRST, SECOND))
    theirs = DRIVER.replace("<first.h>", "<second.h>")
    made.write_own(series(OTHERS, theirs, FIRST, SECOND), only=[names[0], names[2]])
    made.commit()
    return made


def own(checkout: Checkout) -> dict[str, str]:
    """Return what the other version has of its own."""
    folder = checkout.patches / OTHER.name
    return {path.name: path.read_text() for path in folder.iterdir()}


def result(checkout: Checkout) -> dict[str, str]:
    """Return the files of the other version with all its patches, as patch(1) makes them."""
    passed = checkout.run("check-qemu-patches", "--version", OTHER.name)
    assert passed.returncode == 0, passed.stderr
    tree = checkout.root.parent / "port"
    return {
        path: (tree / path).read_text()
        for path in ("hw/file.c", "hw/covered/driver.c", "hw/covered/more.c")
        if (tree / path).exists()
    }


def port(checkout: Checkout, *arguments: str) -> str:
    """Run the tool to its end; return what it says."""
    tree = checkout.root.parent / "port"
    done = checkout.run("port-qemu-patches", "--tree", tree, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stopped(checkout: Checkout, *arguments: str) -> str:
    """Run the tool, which must end with one line on standard error; return that."""
    tree = checkout.root.parent / "port"
    done = checkout.run("port-qemu-patches", "--tree", tree, *arguments)
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_without_a_change_nothing_changes(ported: Checkout) -> None:
    before = own(ported)
    assert len(before) == 2
    assert "2 patches differ, 0 are absent" in port(ported)
    assert own(ported) == before
    assert git(ported.root, "status", "--porcelain", "qemu-patches") == ""


def test_a_changed_patch_keeps_what_it_has_of_its_own(ported: Checkout) -> None:
    changed = edit(DRIVER, {"return 1;": "return a(2);"})
    ported.write_series(series(ORIGINAL, changed, FIRST, SECOND))
    port(ported)
    driver = result(ported)["hw/covered/driver.c"]
    assert driver == edit(changed, {"<first.h>": "<second.h>"})
    assert len(own(ported)) == 2


def test_new_dropped_and_renumbered_patches(ported: Checkout) -> None:
    steps = (("hw: three is 30", {"return 3;": "return 30;"}), SECOND)
    commits = series(ORIGINAL, DRIVER, *steps)
    more = "/* SPDX-License-Identifier: GPL-2.0-or-later */\n"
    ported.write_series([Commit("hw: more", {"hw/covered/more.c": more}), *commits])
    port(ported)
    files = result(ported)
    assert files["hw/covered/more.c"] == more
    assert files["hw/file.c"] == edit(
        OTHERS, dict(item for step in steps for item in step[1].items())
    )
    assert "<second.h>" in files["hw/covered/driver.c"]
    assert sorted(own(ported)) == ["0002-hw-add-a-driver.patch", "0004-hw-two-adds-2.patch"]


def test_patches_whose_names_are_cut_at_the_same_place(ported: Checkout) -> None:
    long = "hw: a subject that is so long that the name of the file ends"
    more = (
        (f"{long} before it", {"return 1;": "return 11;"}),
        (
            f"{long} before that",
            {"return 3;": "return 33;"},
        ),
    )
    names = ported.write_series(series(ORIGINAL, DRIVER, *more, SECOND))
    assert names[1][5:] == names[2][5:]
    port(ported)
    files = result(ported)
    assert files["hw/file.c"] == edit(
        OTHERS, {"return 1;": "return 11;", "return 3;": "return 33;"} | SECOND[1]
    )
    tree = ported.root.parent / "port"
    assert git(tree, "ls-files", "ignored", "VERSION").split() == ["VERSION", "ignored/file"]


def test_a_patch_that_fits_both_versions_is_not_kept_twice(ported: Checkout) -> None:
    both = edit(DRIVER, {"#include <first.h>\n": ""})
    ported.write_series(series(ORIGINAL, both, FIRST, SECOND))
    message = stopped(ported)
    assert "0001-hw-add-a-driver.patch has conflicts" in message
    tree = ported.root.parent / "port"
    assert "<<<<<<<" in (tree / "hw/covered/driver.c").read_text()
    assert "conflicts left" in stopped(ported, "--continue")
    (tree / "hw/covered/driver.c").write_text(both)
    git(tree, "add", "-A")
    assert "1 patches differ, 0 are absent" in port(ported, "--continue")
    assert result(ported)["hw/covered/driver.c"] == both
    assert list(own(ported)) == ["0003-hw-two-adds-2.patch"]


def test_what_is_there_already_is_absent_and_keeps_its_reason(ported: Checkout) -> None:
    there = ("hw: include second.h first", {'#include "first.h"\n': ""})
    ported.write_series(series(ORIGINAL, DRIVER, FIRST, SECOND, there))
    port(ported)
    tree = ported.root.parent / "port"
    git(tree, "reset", "-q", "--hard", "HEAD^")
    assert "2 patches differ, 1 are absent" in port(ported, "--write")
    absent = ported.patches / OTHER.name / "absent"
    name = "0004-hw-include-second.h-first.patch"
    assert absent.read_text().splitlines()[1:] == [name]
    absent.write_text(f"{name}  # not needed\n")
    port(ported, "--write")
    assert absent.read_text().splitlines()[1:] == [f"{name}  # not needed"]
    assert "second.h" in result(ported)["hw/file.c"]

    # And the next run leaves it out without being told.
    ported.commit()
    tree.rename(tree.with_name("old"))
    assert "2 patches differ, 1 are absent" in port(ported)
    assert absent.read_text().splitlines()[1:] == [f"{name}  # not needed"]


def test_what_is_changed_in_the_tree_afterwards_is_written(ported: Checkout) -> None:
    port(ported)
    tree = ported.root.parent / "port"
    git(tree, "config", "user.name", "A Developer")
    driver = edit((tree / "hw/covered/driver.c").read_text(), {"return 1;": "return 7;"})
    (tree / "hw/covered/driver.c").write_text(driver)
    git(tree, "commit", "-q", "-a", "--fixup", "HEAD~2")
    git(tree, "-c", "sequence.editor=true", "rebase", "-q", "-i", "--autosquash", "HEAD~4")
    port(ported, "--write")
    assert "+    return 7;" in own(ported)["0001-hw-add-a-driver.patch"]
    assert result(ported)["hw/covered/driver.c"] == driver


def test_the_first_port_to_a_version(checkout: Path, tmp_path: Path) -> None:
    made = make_checkout(checkout, tmp_path / "checkout")
    names = made.write_series(series(ORIGINAL, DRIVER, FIRST))
    made.commit()
    assert "0 patches differ, 0 are absent" in port(made)
    made.write_series(series(ORIGINAL, DRIVER, FIRST, SECOND))
    (tmp_path / "port").rename(tmp_path / "old")
    assert "0003-hw-two-adds-2.patch has conflicts" in stopped(made)
    tree = tmp_path / "port"
    (tree / "hw/file.c").write_text(edit(edit(OTHERS, FIRST[1]), SECOND[1]))
    git(tree, "add", "-A")
    port(made, "--continue")
    assert result(made)["hw/file.c"] == edit(edit(OTHERS, FIRST[1]), SECOND[1])
    assert list(own(made)) == ["0003-hw-two-adds-2.patch"]
    assert names[0] not in own(made)


def test_mistakes_are_one_line(ported: Checkout) -> None:
    assert "no run to continue" in stopped(ported, "--continue")
    assert "no commit of this checkout" in stopped(ported, "--since", "nothing")
    (ported.root.parent / "port2").mkdir()
    taken = ported.run("port-qemu-patches", "--tree", ported.root.parent / "port2")
    assert "exists; name another" in taken.stderr
    default = ported.run("port-qemu-patches", "--tree", "x", "--version", DEFAULT.name)
    assert default.stderr == "error: the series is made for 10.0; there is nothing to port\n"
