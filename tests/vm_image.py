"""The disk of a virtual machine: a Debian made a minute ago, with a kernel, in which ./dev install has been run."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import fresh
import vm_inside
from booted import BOOT, CHECKOUT, NSPAWN, Machine, nspawn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUITE = "trixie"
# Beyond what every server has: a kernel for virtual machines, and what finds its disk.
INCLUDE = f"{fresh.INCLUDE},udev,initramfs-tools,linux-image-cloud-amd64"
# Sparse: it takes what is written to it.
SIZE = "3G"
INSIDE = "/usr/local/lib/forge-vm-inside.py"
JOURNAL_PORT = "forge.journal"

COMMANDS_UNIT = f"""
[Unit]
Description=Runs the tests' commands
[Service]
ExecStart=/usr/bin/python3 {INSIDE}
OOMScoreAdjust=-1000
[Install]
WantedBy=multi-user.target
"""
# The empty line ends what a boot that was cut off may have left of one.
JOURNAL_UNIT = f"""
[Unit]
Description=Shows the tests the journal
[Service]
ExecStart=/bin/sh -c '{{ echo; exec journalctl --boot --follow --no-tail --all --output=json; }} \
    >/dev/virtio-ports/{JOURNAL_PORT}'
OOMScoreAdjust=-1000
[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Image:
    disk: Path
    kernel: Path
    initrd: Path


@contextmanager
def installing(directory: Path) -> Iterator[Machine]:
    """Make the root directory and boot it as a container, with ./dev install done; what is changed in it stays."""
    root = directory / "root"
    sources = fresh.sources(SUITE)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={INCLUDE}", SUITE, str(root)]
    subprocess.run([*command, "-"] if sources else command, input=sources, text=True, check=True)
    fresh.carry(root)
    options = (f"--bind-ro={CHECKOUT}:/root/forge-supervisor", "--resolv-conf=replace-host")
    with nspawn(root, BOOT + NSPAWN, options, files=directory) as machine:
        subprocess.run(fresh.typed(machine, "./dev install"), check=True, stdin=subprocess.DEVNULL)
        add_hands(machine)
        yield machine


def add_hands(machine: Machine) -> None:
    """Give the tests what they have inside, and a journal that outlives a boot."""
    machine.write(INSIDE, (CHECKOUT / "tests" / f"{vm_inside.__name__}.py").read_text())
    machine.write("/etc/systemd/system/forge-vm-commands.service", COMMANDS_UNIT)
    machine.write("/etc/systemd/system/forge-vm-journal.service", JOURNAL_UNIT)
    machine.run("systemctl", "enable", "forge-vm-commands", "forge-vm-journal")
    machine.run("mkdir", "-p", "/var/log/journal")


def image(directory: Path) -> Image:
    """Make the disk of what was installed."""
    disk, boot = directory / "disk", directory / "root/boot"
    subprocess.run(["truncate", f"--size={SIZE}", disk], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-d", boot.parent, disk], check=True)
    (kernel,) = boot.glob("vmlinuz-*")
    (initrd,) = boot.glob("initrd.img-*")
    return Image(disk, kernel, initrd)
