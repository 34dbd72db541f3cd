# SPDX-License-Identifier: MIT
"""Start the backend process: ``python -m emulator.machine``, without what only the CLI needs.

``vmbus serve`` is the same program for people (docs/serve.md).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from emulator.machine.program import Options, UsageError, capabilities, run


def main(argv: list[str] | None = None) -> int:
    """Run the backend until SIGTERM; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="vmbus backend", description="The VMBus host of one or more VMs (docs/serve.md)."
    )
    parser.add_argument("--socket-path", type=Path, help="listen for QEMU at this UNIX socket")
    parser.add_argument("--fd", type=int, help="a UNIX socket that listens or is connected")
    parser.add_argument("--control-path", type=Path, help="listen for commands at this socket")
    parser.add_argument("--control-fd", type=int, help="a listening UNIX socket for commands")
    parser.add_argument("--config", type=Path, help="JSON or TOML: vm and devices, or several vms")
    parser.add_argument("--state", type=Path, help="file for the state between two runs")
    parser.add_argument("--trace", type=Path, help="write a trace to this file")
    parser.add_argument("--trace-packets", action="store_true", help="trace packets as well")
    parser.add_argument("--print-capabilities", action="store_true", help="print JSON and end")
    args = vars(parser.parse_args(argv))
    if args.pop("print_capabilities"):
        print(capabilities())
        return 0
    try:
        return run(Options(**args))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
