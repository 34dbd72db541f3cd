# SPDX-License-Identifier: MIT
"""Run a command that takes a while: show that it is alive, and say in one line why it failed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn


class BuildError(Exception):
    """Why it cannot be done, in one line that says what to do."""


def default_cache() -> Path:
    """Return the folder that QEMU is built in unless another one is asked for."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vmbus" / "qemu"


def interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """End by a signal, but not before what was begun has been cleaned up."""
    raise BuildError(f"interrupted by {signal.Signals(number).name}")


def clean_up_when_interrupted() -> None:
    """Make a signal to end a BuildError, even where the shell has made SIGINT be ignored."""
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGINT, interrupted)


def say(text: str) -> None:
    """Print a line of progress at once."""
    print(text, flush=True)


def explain(output: str, folder: Path) -> str | None:
    """Say why a command failed, if that is one of the usual reasons."""
    for place in (folder, Path(tempfile.gettempdir())):
        if shutil.disk_usage(place).free < 8 << 20:
            return f"no room left in {place}; make room and run this again"
    for pattern, reason in (
        (
            r"no space left on device|disk quota exceeded",
            f"no room left in {folder}; make room and run this again",
        ),
        (
            r"certificate.?verif(y|ication) failed",
            "the registry's certificate is not trusted here; install its CA certificate "
            "(for pip also: set PIP_CERT)",
        ),
        (
            r"temporary failure (in name resolution|resolving)|name or service not known|"
            r"network is unreachable|could not (resolve|connect)|"
            r"connection (refused|timed out|reset)|"
            r"cannot connect to proxy|failed to fetch|failed to establish a new connection|"
            r"no matching distribution found",
            "the network or the package registry cannot be reached; "
            "check the connection and the settings of apt and pip",
        ),
        (r"permission denied|operation not permitted", "permission denied; choose another --cache"),
        (
            r"killed signal terminated program|internal compiler error: killed",
            "the compiler was killed; is there enough memory? try --jobs 1",
        ),
    ):
        if re.search(pattern, output, re.IGNORECASE):
            return reason
    return None


def run(
    what: str,
    command: Sequence[str | Path],
    folder: Path,
    *,
    environment: dict[str, str] | None = None,
    show: bool = True,
    log: Path,
) -> None:
    """Run a command, showing that it is alive; its output goes to the end of ``log``.

    Raises BuildError if it fails, with the reason if that is a usual one.
    """
    began = time.monotonic()
    shown = began
    terminal = sys.stdout.isatty()
    if show:
        say(f"{what} ...")
    with log.open("ab+") as output:
        start = output.tell()
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that all of it can be ended at once
        )
        try:
            while True:
                try:
                    process.wait(0.5 if terminal else 5)
                    break
                except subprocess.TimeoutExpired:
                    now = time.monotonic()
                    if not show or (not terminal and now - shown < 15):
                        continue
                    shown = now
                    last = last_line(log, start)
                    text = f"  {now - began:4.0f} s  {last[:60]}"
                    print(f"\r\033[K{text}" if terminal else text, end="" if terminal else "\n")
                    sys.stdout.flush()
        finally:
            if terminal and show:
                print("\r\033[K", end="", flush=True)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        if process.returncode != 0:
            output.seek(start)
            text = output.read().decode(errors="replace")
            if reason := explain(text, folder):
                raise BuildError(f"{what}: {reason}")
            for line in text.splitlines()[-20:]:
                print(f"  | {line}", file=sys.stderr)
            raise BuildError(f"{what} failed; the last lines of its output are above")
    if show and time.monotonic() - began >= 1:
        say(f"{what}: done in {time.monotonic() - began:.0f} s")


def last_line(log: Path, start: int) -> str:
    """Return the last complete line of what a command has written so far."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - 2000))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return re.sub(r"[^ -~]", "", lines[-1]) if lines else ""
