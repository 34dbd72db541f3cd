# SPDX-License-Identifier: MIT
"""Which ``hv-*`` flags TCG refuses, and that docs/qemu.md names tests that are there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

REFUSED = [
    ("hv-passthrough", "hv-passthrough"),
    ("hv-relaxed,hv-no-nonarch-coresharing=auto", "hv-no-nonarch-coresharing"),
    ("hv-vpindex,hv-vapic,hv-evmcs", "hv-evmcs"),
    ("hv-emsr-bitmap", "hv-emsr-bitmap"),
    ("hv-vapic,hv-tlbflush-direct", "hv-tlbflush-direct"),
    ("hv-reenlightenment", "hv-reenlightenment"),
    ("hv-relaxed,hv-vpindex,hv-synic,hv-syndbg", "hv-syndbg"),
]

INCOMPLETE = [
    ("hv-synic", "hv-vpindex"),
    ("hv-vpindex,hv-synic,hv-stimer", "hv-time"),
    ("hv-time,hv-stimer", "hv-synic"),
    ("hv-vpindex,hv-synic,hv-time,hv-stimer-direct", "hv-stimer"),
    ("hv-tlbflush", "hv-vpindex"),
    ("hv-ipi", "hv-vpindex"),
    ("hv-vpindex,hv-tlbflush-ext", "hv-tlbflush"),
]


def _refusal(qemu: Path, flags: str) -> str:
    args = ["-machine", "q35", "-accel", "tcg", "-display", "none", "-nodefaults", "-S"]
    args += ["-L", "/usr/share/seabios", "-L", "/usr/share/qemu", "-cpu", f"max,{flags}"]
    done = subprocess.run([qemu, *args], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    return done.stderr


@pytest.mark.e2e
@pytest.mark.parametrize(("flags", "named"), REFUSED)
def test_what_tcg_does_not_have_is_refused_by_name(qemu: Path, flags: str, named: str) -> None:
    assert f"{named}" in _refusal(qemu, flags)


@pytest.mark.e2e
@pytest.mark.parametrize(("flags", "missing"), INCOMPLETE)
def test_a_flag_without_another_that_it_needs_is_refused(
    qemu: Path, flags: str, missing: str
) -> None:
    assert re.search(rf"requires Hyper-V .*\({missing}\)", _refusal(qemu, flags))


def test_what_the_document_says_is_tested_has_a_test() -> None:
    text = (ROOT / "docs" / "qemu.md").read_text()
    section = text[text.index("## The interface, register by register") : text.index("## KVM")]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("|")]
    sources = "".join(path.read_text() for path in (ROOT / "tests" / "guest").glob("*.c"))
    suites = set(re.findall(r"^SUITE\((\w+)\)", sources, re.MULTILINE))
    said = [name for row in rows for name in re.findall(r"`([\w.]+)`", row[-2])]
    assert len(said) > 30
    for name in said:
        if name.endswith(".py"):
            assert (ROOT / "tests" / "e2e" / name).exists(), name
        else:
            assert name in suites, name
