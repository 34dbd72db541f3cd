# SPDX-License-Identifier: MIT
"""The floors of docs/architecture.md: a package imports only what stands below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "emulator"

BELOW: dict[str, set[str]] = {
    "wire": set(),
    "trace": {"wire"},
    "memory": {"wire"},
    "ring": {"wire", "memory"},
    "bus": {"wire", "memory", "ring"},
    "link": set(),
    "kmcl": {"wire", "memory", "ring", "bus"},
    "devices": {"wire", "memory", "ring", "kmcl"},
    "machine": {"wire", "memory", "ring", "bus", "link", "kmcl", "devices", "trace"},
    "lab": {"wire", "kmcl", "devices", "machine", "conformance"},
    "model": set(),
    "conformance": {"wire", "memory", "ring", "bus", "kmcl", "model"},
    "testing": {"machine", "lab"},
    "cli": {"trace", "machine", "lab", "conformance"},
}
SANS_IO = {"wire", "trace", "memory", "ring", "bus", "kmcl", "model", "conformance"}
IO_MODULES = {"asyncio", "socket", "selectors", "select", "subprocess"}


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("package", sorted(BELOW))
def test_a_floor_imports_only_what_stands_below_it(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for name in imports(path):
            top, _, rest = name.partition(".")
            if top == "emulator":
                other = rest.partition(".")[0]
                assert other == package or other in BELOW[package], f"{path} imports {name}"
            if package in SANS_IO:
                assert top not in IO_MODULES, f"{path} imports {name}"


def test_every_package_has_a_floor() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(BELOW)
