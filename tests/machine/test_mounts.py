"""The mount that holds a folder, from mountinfo as the kernel writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.machine.mounts import mount_of, unescape
from tests.machine.fakes import fabricate

MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /mnt rw - autofs systemd-1 rw
31 22 0:41 / /mnt/data rw,noatime shared:5 master:2 - nfs4 server:/export\040one rw,vers=4.2
32 22 8:17 / /mnt/data/local rw - xfs /dev/sdb1 rw
33 22 0:50 / /my\040disk\134x rw - fuse.sshfs me@host: rw
34 22 0:51 / /over rw - tmpfs tmpfs rw
35 22 0:52 / /over rw - overlay overlay rw
36 22 253:0 / /lvm rw - btrfs /dev/mapper/vg-lv rw
37 22 0:60 / /rootless rw - fuse.fuse-overlayfs fuse-overlayfs rw
38 22 0:61 / /shared rw - 9p host rw
39 22 0:62 / /s3 rw - fuse.s3fs s3fs rw
40 22 0:63 / /win rw - cifs //server/share rw
broken line
"""


@pytest.mark.parametrize(
    ("folder", "point", "kind", "network"),
    [
        ("/home/x", "/", "ext4", False),
        ("/mnt/data/set", "/mnt/data", "nfs4", True),
        ("/mnt/database", "/mnt", "autofs", False),
        ("/mnt/data/local", "/mnt/data/local", "xfs", False),
        ("/my disk\\x/a", "/my disk\\x", "fuse.sshfs", True),
        ("/over/a", "/over", "overlay", False),
        ("/lvm", "/lvm", "btrfs", False),
        ("/rootless", "/rootless", "fuse.fuse-overlayfs", False),
        ("/shared", "/shared", "9p", True),
        ("/s3/bucket", "/s3", "fuse.s3fs", True),
        ("/win", "/win", "cifs", True),
    ],
)
def test_longest_prefix_and_kind(tmp_path: Path, folder: str, point: str, kind: str, network: bool) -> None:
    host = fabricate(tmp_path, {"proc/self/mountinfo": MOUNTS})
    mount = mount_of(host, folder)
    assert mount is not None
    assert (mount.path, mount.point, mount.kind, mount.network) == (folder, point, kind, network)


def test_sources_are_unescaped(tmp_path: Path) -> None:
    host = fabricate(tmp_path, {"proc/self/mountinfo": MOUNTS})
    assert getattr(mount_of(host, "/mnt/data"), "source", None) == "server:/export one"
    assert unescape(r"a\040b\011c\134d") == "a b\tc\\d"


def test_a_link_is_followed(tmp_path: Path) -> None:
    host = fabricate(tmp_path, {"proc/self/mountinfo": MOUNTS, "mnt/data/set/.keep": ""})
    (tmp_path / "home").mkdir()
    (tmp_path / "home/set").symlink_to("../mnt/data/set")
    assert getattr(mount_of(host, "/home/set"), "kind", None) == "nfs4"


def test_a_partition_has_its_queue_one_folder_up(tmp_path: Path) -> None:
    host = fabricate(tmp_path, {"proc/self/mountinfo": MOUNTS, "sys/dev/block/8:1/": None})
    disk = tmp_path / "sys/devices/ata1/block/sda"
    (disk / "sda1").mkdir(parents=True)
    (disk / "queue").mkdir()
    (disk / "queue/rotational").write_text("1\n")
    (tmp_path / "sys/dev/block").mkdir(parents=True, exist_ok=True)
    (tmp_path / "sys/dev/block/8:1").symlink_to("../../devices/ata1/block/sda/sda1")
    assert getattr(mount_of(host, "/home"), "rotational", None) is True
    (disk / "queue/rotational").write_text("0\n")
    assert getattr(mount_of(host, "/home"), "rotational", None) is False


@pytest.mark.parametrize(
    ("files", "rotational"),
    [
        ({"sys/dev/block/8:1/queue/rotational": "1"}, True),
        ({"sys/dev/block/8:1/queue/rotational": "1", "proc/cpuinfo": "flags : fpu hypervisor"}, None),
        ({"sys/dev/block/8:1/queue/rotational": "0", "proc/cpuinfo": "flags : fpu hypervisor"}, False),
        (
            {
                "proc/self/mountinfo": "22 1 254:0 / / rw - ext4 /dev/vda rw",
                "sys/dev/block/254:0/queue/rotational": "1",
            },
            None,
        ),
        ({"sys/dev/block/8:1/": None}, None),
    ],
)
def test_a_virtual_disk_says_that_it_turns(
    tmp_path: Path, files: dict[str, str | None], rotational: bool | None
) -> None:
    mount = mount_of(fabricate(tmp_path, files), "/data")
    assert mount is not None
    assert mount.rotational is rotational


def test_without_mountinfo(tmp_path: Path) -> None:
    assert mount_of(fabricate(tmp_path, {"proc/self/mountinfo": None}), "/data") is None
