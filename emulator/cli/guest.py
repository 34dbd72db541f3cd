# SPDX-License-Identifier: MIT
"""``vmbus guest``: what the integration services of a running machine's guest are asked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Ask a guest's integration services.", no_args_is_help=True)
kvp = typer.Typer(help="Read and write the guest's key-value pairs.", no_args_is_help=True)
time = typer.Typer(help="The guest's clock.", no_args_is_help=True)
app.add_typer(kvp, name="kvp")
app.add_typer(time, name="time")

Vm = Annotated[
    str,
    typer.Option("--vm", help="name, or process id, as `vmbus ps` shows it; not needed for one VM"),
]
Key = Annotated[str, typer.Argument(help="the pair's key")]
PoolOption = Annotated[
    str, typer.Option(help="external: written by the host; guest: by the guest; auto: its system's")
]


def _ask(vm: str, *commands: tuple[str, dict[str, Any]]) -> Any:
    """Give commands in turn; returns the result of the last. Ends the process with their error."""
    from emulator.cli.asking import fail
    from emulator.machine.control import ControlClient, ControlError
    from emulator.machine.registry import RegistryError, entries, find

    async def run(control: str) -> Any:
        client = await ControlClient.connect(Path(control))
        try:
            result: Any = None
            for name, arguments in commands:
                result = await client.call(name, **arguments)
            return result
        finally:
            await client.close()

    try:
        known = [find(vm)] if vm else entries()
    except RegistryError as error:
        fail(str(error))
    if len(known) != 1:
        names = ", ".join(each.name for each in known)
        fail(f"say which with --vm: {names}" if known else "no VM is running")
    (entry,) = known
    try:
        return asyncio.run(run(entry.control))
    except OSError as error:
        fail(f"{entry.name} (pid {entry.pid}): {error.strerror}")
    except ControlError as error:
        text = str(error)
        if text.startswith("there is no command"):
            service = commands[0][0].partition(".")[0]
            text = f"{entry.name} has no device {service!r}; its configuration needs one of that "
            text += f"kind and name (kind = {service!r})"
        fail(text)


@app.command()
def shutdown(
    vm: Vm = "",
    reboot: Annotated[bool, typer.Option("--reboot", help="start again")] = False,
    hibernate: Annotated[bool, typer.Option("--hibernate", help="save to disk first")] = False,
    force: Annotated[bool, typer.Option("--force", help="whatever its programs say")] = False,
) -> None:
    """Ask the guest to power off, to reboot, or to hibernate."""
    from emulator.cli.asking import fail

    if reboot and hibernate:
        fail("--reboot and --hibernate: choose one")
    action = "reboot" if reboot else "hibernate" if hibernate else "off"
    _ask(vm, ("shutdown.shutdown", {"action": action, "force": force}))


@app.command()
def heartbeat(vm: Vm = "") -> None:
    """Tell how the guest is; the status is 0 only if it answers."""
    status = _ask(vm, ("heartbeat.status", {}))
    print(status["health"])
    if status["health"] != "ok":
        raise typer.Exit(1)


@app.command()
def ip(
    vm: Vm = "",
    mac: Annotated[str, typer.Option(help="one adapter, with all its settings")] = "",
) -> None:
    """Print the guest's addresses."""
    found: dict[str, Any] = _ask(vm, ("kvp.ip", {"mac": mac} if mac else {}))
    if mac:
        print(json.dumps(found, indent=1))
        return
    for address in (*found["ipv4"], *found["ipv6"]):
        print(address)


@app.command()
def cp(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="a file of this machine's")],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="full path of the file in the guest")],
    vm: Vm = "",
    force: Annotated[bool, typer.Option("--force", help="overwrite a file")] = False,
    parents: Annotated[bool, typer.Option("--parents", help="make folders as needed")] = False,
) -> None:
    """Copy a file into the guest."""
    start = {
        "source": str(source.absolute()),
        "dest": dest,
        "overwrite": force,
        "create_path": parents,
    }
    _ask(vm, ("fcopy.copy", start), ("fcopy.wait", {}))


@app.command()
def freeze(
    vm: Vm = "",
    lease: Annotated[float, typer.Option(help="seconds until the guest is thawed anyway")] = 60,
) -> None:
    """Freeze the guest's file systems, so that its disks are consistent."""
    _ask(vm, ("vss.freeze", {"lease": lease}))


@app.command()
def thaw(vm: Vm = "") -> None:
    """Thaw the guest's file systems."""
    from emulator.cli.asking import fail

    if not _ask(vm, ("vss.thaw", {}))["was_frozen"]:
        fail("the guest was not frozen any more")


@time.command()
def sync(vm: Vm = "") -> None:
    """Set the guest's clock by this machine's."""
    _ask(vm, ("timesync.sync", {}))


@kvp.command("get")
def kvp_get(key: Key, vm: Vm = "", pool: PoolOption = "guest") -> None:
    """Print the value of a key."""
    print(_ask(vm, ("kvp.get", {"key": key, "pool": pool})))


@kvp.command("set")
def kvp_set(
    key: Key,
    value: Annotated[str, typer.Argument(help="its value")],
    vm: Vm = "",
    pool: PoolOption = "external",
) -> None:
    """Set a key's value."""
    _ask(vm, ("kvp.set", {"key": key, "value": value, "pool": pool}))


@kvp.command("delete")
def kvp_delete(key: Key, vm: Vm = "", pool: PoolOption = "external") -> None:
    """Remove a key."""
    _ask(vm, ("kvp.delete", {"key": key, "pool": pool}))


@kvp.command("list")
def kvp_list(
    vm: Vm = "",
    pool: PoolOption = "guest",
    as_json: Annotated[bool, typer.Option("--json", help="for a program to read")] = False,
) -> None:
    """Print all pairs of a pool."""
    pairs: dict[str, Any] = _ask(vm, ("kvp.list", {"pool": pool}))
    if as_json:
        print(json.dumps(pairs, indent=1))
        return
    for key, value in pairs.items():
        print(f"{key}={value}")
