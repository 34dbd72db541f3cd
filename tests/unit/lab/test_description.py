# SPDX-License-Identifier: MIT
"""A machine's TOML file: what it amounts to, and what is wrong with one that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.lab.description import DescriptionError, read_description
from emulator.machine.config import Accel, DeviceConfig, Quotas
from emulator.wire.version import Version


def described(folder: Path, text: str) -> Path:
    (folder / "kernel").write_bytes(b"k")
    path = folder / "my-vm.toml"
    path.write_text(text)
    return path


def test_every_key_arrives(tmp_path: Path) -> None:
    path = described(
        tmp_path,
        """
        kernel = "kernel"
        initramfs = "kernel"
        append = "quiet"
        firmware = "kernel"
        cpus = 2
        memory = "2G"
        accel = "tcg"
        max_version = "4.0"
        qemu_args = ["-nic", "none"]
        [[devices]]
        name = "p"
        kind = "probe"
        [quotas]
        channels = 7
        """,
    )
    config = read_description(path)
    assert config.name == "my-vm"
    assert config.kernel == config.initramfs == config.firmware == tmp_path / "kernel"
    assert config.append == "quiet"
    assert (config.smp, config.memory_mib, config.accel) == (2, 2048, Accel.TCG)
    assert config.devices == (DeviceConfig("p", "probe"),)
    assert config.quotas == Quotas(channels=7)
    assert config.max_version == Version.WIN10
    assert config.qemu_args == ("-nic", "none")


@pytest.mark.parametrize(("memory", "mib"), [("512", 512), ('"512M"', 512), ('"1 GiB"', 1024)])
def test_memory_is_mib_or_has_a_unit(tmp_path: Path, memory: str, mib: int) -> None:
    path = described(tmp_path, f'kernel = "kernel"\nmemory = {memory}')
    assert read_description(path).memory_mib == mib


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing to boot"),
        ("kernel = ", "Invalid"),
        ('kernel = "none"', "there is no file"),
        ('kernal = "kernel"', "kernal"),
        ('kernel = "kernel"\ncpus = 0', "cpus"),
        ('kernel = "kernel"\nmemory = "lots"', "lots"),
        ('kernel = "kernel"\nmemory = "1G1M"', "1G1M"),
        ('kernel = "kernel"\nmemory = 1', "64 MiB"),
        ('kernel = "kernel"\nmax_version = "9.9"', "9.9"),
        ('guest = "linux"\nkernel = "kernel"', "leave out"),
        ('guest = "beos"', "beos"),
        ('firmware = "kernel"\nappend = "quiet"', "kernel"),
        ('kernel = "kernel"\n[[devices]]\nname = "a"', "kind"),
        (
            'kernel = "kernel"\n[[devices]]\nname = "a"\nkind = "b"',
            "unknown kind 'b'; known: .*probe",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_file_and_the_reason(
    tmp_path: Path, text: str, words: str
) -> None:
    path = described(tmp_path, text)
    with pytest.raises(DescriptionError, match=words) as caught:
        read_description(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=r"none\.toml: No such file"):
        read_description(tmp_path / "none.toml")
