# SPDX-License-Identifier: MIT
"""The shell of the test guest at the serial line (``vmbus.init=shell``).

Boot it with ``quiet``: messages of the kernel would get into the output.
"""

from __future__ import annotations

from emulator.machine.vm import VirtualMachine


async def shell(vm: VirtualMachine) -> None:
    """Wait until the shell reads the serial line."""
    await vm.watch(vm.console.wait_for("vmbus-guest: init"))
    await run(vm, "true")


async def run(vm: VirtualMachine, command: str) -> list[str]:
    """Run a command; returns what it printed. Fails if its status is not 0."""
    start = len(vm.console.lines)
    # The shell echoes what is typed: the marks are not in it as they are printed.
    await vm.console.send_line(f"echo be''gin; {command}; echo en''d $?")
    end = await vm.watch(vm.console.wait_for(r"^end \d+$", start))
    lines = vm.console.lines[start:]
    assert end[0] == "end 0", lines
    return lines[lines.index("begin") + 1 : lines.index(end[0])]
