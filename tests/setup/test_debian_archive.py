# SPDX-License-Identifier: MIT
"""Debian's archive is found in whatever way a machine's apt is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from debian_archive import Archive, find_archives, parse_list, parse_stanzas


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the sources of an apt that has no others."""
    folder = tmp_path / "parts"
    folder.mkdir()
    config = tmp_path / "apt.conf"
    config.write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/none.list";\nDir::Etc::sourceparts "{folder}/";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(config))
    return folder


def test_one_line_entries_are_read_with_their_options() -> None:
    text = (
        "# deb http://no/ x main\n"
        "deb [signed-by=/k.gpg arch=amd64] http://m/d bookworm main x # y\n"
    )
    assert list(parse_list(text)) == [
        ({"signed-by": "/k.gpg", "arch": "amd64"}, ["http://m/d"], ["bookworm"], ["main", "x"])
    ]


def test_stanzas_are_read_unless_disabled() -> None:
    text = "Types: deb\nURIs: http://m/d\n# comment\nSuites: a b\nComponents: main\n\nEnabled: no\n"
    ((fields, uris, suites, components),) = parse_stanzas(text)
    assert fields["types"] == "deb"
    assert (uris, suites, components) == (["http://m/d"], ["a", "b"], ["main"])


def test_only_a_main_archive_counts_and_debians_keys_come_first(parts: Path) -> None:
    (parts / "a.list").write_text(
        "deb [signed-by=/other.gpg] http://other/d stable main\n"
        "deb http://m/debian-security bookworm-security main\n"
        "deb http://tools/ nodistro main\n"
    )
    (parts / "b.sources").write_text(
        "Types: deb\nURIs: http://m/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )
    first, second = find_archives()
    assert (first.uri, second.uri) == ("http://m/debian", "http://other/d")


def test_a_stanza_for_other_suites_keeps_what_is_trusted() -> None:
    archive = Archive("http://m/debian", "/k.gpg", "")
    assert archive.stanza(["trixie", "sid"]).splitlines() == [
        "Types: deb",
        "URIs: http://m/debian",
        "Suites: trixie sid",
        "Components: main",
        "Signed-By: /k.gpg",
    ]
    assert archive.stanza(["sid"], "deb-src").startswith("Types: deb-src\n")
