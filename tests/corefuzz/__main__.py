# SPDX-License-Identifier: MIT
"""Fuzz one target with coverage feedback: see ``scripts/fuzz-core --help``."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped]

from tests.corefuzz import corpus

TARGETS = {
    "control": "tests.corefuzz.control",
    "incoming": "tests.corefuzz.rings",
    "outgoing": "tests.corefuzz.rings",
    "packet": "tests.corefuzz.rings",
    "bus_state": "tests.corefuzz.states",
    "host_state": "tests.corefuzz.states",
    "whole": "tests.corefuzz.whole",
}
_LONGEST = 1024
"""Bytes of an input."""
_TIMEOUT = 20
"""Seconds after which an input counts as one that hangs."""
_MEMORY_MIB = 1024


def main() -> None:
    """Run until the time is over or something is found; the status is then not 0."""
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz-core",
        description="Fuzz the core of the VMBus host, led by the code that inputs reach.",
    )
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("inputs", nargs="*", type=Path, help="run these once, and end")
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="0 (the default): a random one")
    parser.add_argument("--folder", type=Path, help="where new inputs and findings go")
    parser.add_argument(
        "--keep", action="store_true", help="add what an earlier run left in --folder to the corpus"
    )
    options = parser.parse_args()
    if options.keep and not options.folder:
        parser.error("--keep needs --folder")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="fuzz-core-"))
    found = folder / "found"
    found.mkdir(parents=True, exist_ok=True)
    new = folder / "new"
    new.mkdir(exist_ok=True)
    if options.keep:
        print(f"{corpus.keep(options.target, new)} inputs are new in the corpus")
        return
    with atheris.instrument_imports(include=["emulator"]):
        target = getattr(importlib.import_module(TARGETS[options.target]), options.target)
    args = [sys.argv[0], f"-artifact_prefix={found}/", f"-timeout={_TIMEOUT}"]
    if options.inputs:
        args += map(str, options.inputs)
    else:
        kept = folder / "kept"
        kept.mkdir(exist_ok=True)
        corpus.unpack(options.target, kept)
        print(f"new inputs are in {new}, what was found in {found}", flush=True)
        args += [f"-max_total_time={options.seconds}", f"-seed={options.seed}"]
        args += [f"-max_len={_LONGEST}", "-len_control=10", f"-rss_limit_mb={_MEMORY_MIB}"]
        args += ["-print_final_stats=1", str(new), str(kept)]
    atheris.Setup(args, target)
    # Ends the process.
    atheris.Fuzz()


if __name__ == "__main__":
    main()
