"""The XML of `disk attach --as libvirt`, held against the schema of Debian 12's libvirt (9.0)."""

import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.guest.disks import command
from tests.guest.machine import ARTIFACTS


def _validate(folder: Path, disk: ET.Element) -> subprocess.CompletedProcess[str]:
    domain = ET.Element("domain", type="qemu")
    ET.SubElement(domain, "name").text = "guest"
    ET.SubElement(domain, "memory", unit="MiB").text = "256"
    ET.SubElement(ET.SubElement(domain, "os"), "type", arch="x86_64").text = "hvm"
    ET.SubElement(domain, "devices").append(disk)
    path = folder / "domain.xml"
    path.write_text(ET.tostring(domain, encoding="unicode"))
    schema = ARTIFACTS / "libvirt-schemas" / "domain.rng"
    return subprocess.run(
        ["xmllint", "--noout", "--relaxng", str(schema), str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_disk_is_valid_without_the_line_that_needs_a_newer_libvirt(folder: Path) -> None:
    pool = folder / "pool"
    command(pool, "disk", "create", "vm1", "1M")
    disk = ET.fromstring(command(pool, "disk", "attach", "vm1", "--as", "libvirt"))
    assert _validate(folder, disk).returncode != 0  # as the note of the command says
    source = disk.find("source")
    reconnect = disk.find("source/reconnect")
    assert source is not None
    assert reconnect is not None
    source.remove(reconnect)
    done = _validate(folder, disk)
    assert done.returncode == 0, done.stderr
