# SPDX-License-Identifier: MIT
"""A child process whose end is noticed, whose words are kept, and which dies with its parent."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path


class ProcessDied(Exception):
    """A child ended although it was needed; the text has its last words."""


class Child:
    """One child process. Its standard error and output go to a log file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        """Use :meth:`start`."""
        self.name = name
        self.log = log
        self._process = process
        self.ended: asyncio.Task[int] = asyncio.create_task(process.wait())

    @classmethod
    async def start(
        cls, name: str, args: list[str], log: Path, pass_fds: tuple[int, ...] = ()
    ) -> Child:
        """Start ``args``; raises OSError if it cannot be executed.

        The kernel kills the child when this process ends in whatever way (prctl(2),
        PR_SET_PDEATHSIG).
        """
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                "setpriv",
                "--pdeathsig",
                "KILL",
                "--",
                *args,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=pass_fds,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def last_words(self, count: int = 5) -> str:
        """Return the last lines of the log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-count:])
        return ""

    def obituary(self) -> ProcessDied:
        """Return the error that tells how the child ended."""
        code = self.ended.result()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        words = self.last_words()
        return ProcessDied(f"{self.name} {how}" + (f":\n{words}" if words else ""))

    async def kill(self) -> None:
        """Send SIGKILL and reap; does nothing if it has ended."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self.ended

    async def terminate(self, grace: float = 5) -> None:
        """Send SIGTERM, after ``grace`` seconds SIGKILL, and reap."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            await asyncio.wait({self.ended}, timeout=grace)
        await self.kill()
