# SPDX-License-Identifier: MIT
"""The fuzz targets over what was kept, over random bytes, and for a while with coverage feedback.

VMBUS_COREFUZZ_SECONDS (10) is how long each target is fuzzed. An input that is found is named by
the failure; ``scripts/fuzz-core TARGET FILE`` runs it again. It goes into the corpus, with a line
that says what it found, in the commit that makes it harmless.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corefuzz import control, corpus, rings, states, whole

ROOT = Path(__file__).resolve().parents[2]
TARGETS: dict[str, Callable[[bytes], None]] = {
    "control": control.control,
    "incoming": rings.incoming,
    "outgoing": rings.outgoing,
    "packet": rings.packet,
    "bus_state": states.bus_state,
    "host_state": states.host_state,
    "whole": whole.whole,
}

each_target = pytest.mark.parametrize("name", TARGETS)


@each_target
def test_what_was_kept(name: str) -> None:
    inputs = corpus.kept(name)
    assert len(inputs) > 10
    for data in inputs:
        try:
            TARGETS[name](data)
        except Exception as error:
            error.add_note(f"the input, in base64: {base64.b64encode(data).decode()}")
            raise


@each_target
@given(data=st.binary(max_size=600))
def test_random_bytes(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.slow
@each_target
def test_a_while_with_coverage(name: str, tmp_path: Path) -> None:
    seconds = os.environ.get("VMBUS_COREFUZZ_SECONDS", "10")
    # A process of its own: the fuzzer ends the one that it is in.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.corefuzz", name),
            *("--seconds", seconds, "--folder", str(tmp_path)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "stat::number_of_executed_units" in done.stdout, done.stdout[-6000:]
