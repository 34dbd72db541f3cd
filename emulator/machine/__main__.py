# SPDX-License-Identifier: MIT
"""Start the backend process: ``python -m emulator.machine``, without what only the CLI needs."""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from pathlib import Path

import msgspec

from emulator.machine.backend import serve
from emulator.machine.config import HostConfig
from emulator.machine.doorbells import DoorbellLoop
from emulator.machine.sockets import listen


def main(argv: list[str] | None = None) -> int:
    """Run the backend until SIGTERM; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="vmbus backend", description="The VMBus host of one VM (docs/vmbus-user.md)."
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket-path", type=Path, help="listen for QEMU at this UNIX socket")
    where.add_argument("--fd", type=int, help="a listening UNIX socket")
    control = parser.add_mutually_exclusive_group(required=True)
    control.add_argument("--control-path", type=Path, help="listen for commands at this socket")
    control.add_argument("--control-fd", type=int, help="a listening UNIX socket for commands")
    parser.add_argument("--config", type=Path, required=True, help="JSON: vm and devices")
    args = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        config = msgspec.json.decode(args.config.read_bytes(), type=HostConfig)
        vmbus = socket.socket(fileno=args.fd) if args.fd is not None else listen(args.socket_path)
        commands = (
            socket.socket(fileno=args.control_fd)
            if args.control_fd is not None
            else listen(args.control_path)
        )
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with asyncio.Runner(loop_factory=DoorbellLoop) as runner:
        runner.run(serve(config, vmbus, commands))
    return 0


if __name__ == "__main__":
    sys.exit(main())
