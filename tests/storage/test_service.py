"""What a pool can be asked to do, in process and through the control socket: one suite for both."""

import pytest

from storage.errors import (
    BadName,
    BadSize,
    DiskInUse,
    DiskNotFound,
    DiskNotReady,
    InvalidRequest,
    NameTaken,
    ShrinkLosesData,
)
from storage.pool import Pool
from storage.service import DiskState, DriveState, PoolService
from storage.units import MIB


def test_a_new_disk_is_listed_and_shown(service: PoolService) -> None:
    made = service.create_disk("vm1", 20 * MIB, "the first")
    assert (made.name, made.size_bytes, made.description) == ("vm1", 20 * MIB, "the first")
    assert made.state is DiskState.READY
    assert service.list_disks() == [made]
    shown = service.show_disk("vm1")
    assert (shown.id, shown.name, shown.mapped_bytes) == (made.id, "vm1", 0)
    assert shown.problem is None


def test_lists_are_in_the_order_of_names(service: PoolService) -> None:
    for name in ("b", "a", "c"):
        service.create_disk(name, MIB)
    assert [disk.name for disk in service.list_disks()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "name", ["", ".a", "-a", "a b", "a/b", "ä", "a\n", "x" * 129, "a;b", "a\0"]
)
def test_bad_names_are_refused(service: PoolService, name: str) -> None:
    with pytest.raises(BadName):
        service.create_disk(name, MIB)
    service.create_disk("good", MIB)
    with pytest.raises(BadName):
        service.rename_disk("good", name)
    assert [disk.name for disk in service.list_disks()] == ["good"]


@pytest.mark.parametrize("size_bytes", [0, -512, 511, 513, (256 << 40) + 512, 1 << 70])
def test_bad_sizes_are_refused(service: PoolService, size_bytes: int) -> None:
    with pytest.raises(BadSize):
        service.create_disk("vm1", size_bytes)
    service.create_disk("vm2", MIB)
    with pytest.raises(BadSize):
        service.resize_disk("vm2", size_bytes, force=True)
    assert [(disk.name, disk.size_bytes) for disk in service.list_disks()] == [("vm2", MIB)]


@pytest.mark.parametrize("description", ["two\nlines", "x" * 1025, "\x1b[31m"])
def test_bad_descriptions_are_refused(service: PoolService, description: str) -> None:
    with pytest.raises(InvalidRequest):
        service.create_disk("vm1", MIB, description)
    assert service.list_disks() == []


def test_a_name_is_given_once(service: PoolService) -> None:
    service.create_disk("vm1", MIB)
    with pytest.raises(NameTaken) as caught:
        service.create_disk("vm1", MIB)
    assert caught.value.name == "vm1"
    service.create_disk("vm2", MIB)
    with pytest.raises(NameTaken):
        service.rename_disk("vm2", "vm1")


def test_a_disk_that_is_not_there(service: PoolService) -> None:
    for action in (service.show_disk, service.delete_disk, service.finish_import):
        with pytest.raises(DiskNotFound) as caught:
            action("ghost")
        assert caught.value.disk == "ghost"
    with pytest.raises(DiskNotFound):
        service.resize_disk("ghost", MIB)
    with pytest.raises(DiskNotFound):
        service.rename_disk("ghost", "spirit")


def test_growing_keeps_the_data(service: PoolService, pool: Pool) -> None:
    service.create_disk("vm1", MIB)
    disk = pool.open_disk("vm1")
    disk.write(0, b"data")
    assert service.resize_disk("vm1", 2 * MIB).size_bytes == 2 * MIB
    assert disk.size_bytes == 2 * MIB
    assert disk.read(0, 6) == b"data\0\0"
    assert disk.read(2 * MIB - 4, 4) == bytes(4)


def test_shrinking_below_the_data_needs_force(service: PoolService, pool: Pool) -> None:
    service.create_disk("vm1", 2 * MIB)
    disk = pool.open_disk("vm1")
    disk.write(MIB + 100, b"x")
    pool.release_disk(disk)
    with pytest.raises(ShrinkLosesData) as caught:
        service.resize_disk("vm1", MIB)
    assert caught.value.end_of_data_bytes == MIB + 4096
    assert service.show_disk("vm1").size_bytes == 2 * MIB
    assert service.resize_disk("vm1", MIB, force=True).size_bytes == MIB
    service.resize_disk("vm1", 2 * MIB)
    assert disk.read(MIB, 4096) == bytes(4096)


def test_shrinking_free_space_needs_no_force(service: PoolService) -> None:
    service.create_disk("vm1", 2 * MIB)
    assert service.resize_disk("vm1", MIB).size_bytes == MIB


def test_a_disk_with_clients_is_not_deleted_or_cut(service: PoolService, pool: Pool) -> None:
    service.create_disk("vm1", 2 * MIB)
    disk = pool.open_disk("vm1")
    assert service.list_disks()[0].clients == 1
    with pytest.raises(DiskInUse) as caught:
        service.delete_disk("vm1")
    assert caught.value.clients == 1
    with pytest.raises(DiskInUse):
        service.resize_disk("vm1", MIB)
    pool.release_disk(disk)
    service.delete_disk("vm1")
    assert service.list_disks() == []


def test_force_deletes_under_clients(service: PoolService, pool: Pool) -> None:
    service.create_disk("vm1", MIB)
    pool.open_disk("vm1")
    service.delete_disk("vm1", force=True)
    made = service.create_disk("vm1", MIB)
    assert made.clients == 0


def test_a_deleted_disk_is_gone_and_its_id_is_not_used_again(service: PoolService) -> None:
    first = service.create_disk("vm1", MIB)
    service.delete_disk("vm1")
    with pytest.raises(DiskNotFound):
        service.show_disk("vm1")
    assert service.create_disk("vm1", MIB).id > first.id


def test_renaming(service: PoolService, pool: Pool) -> None:
    made = service.create_disk("vm1", MIB)
    disk = pool.open_disk("vm1")
    assert service.rename_disk("vm1", "vm2").id == made.id
    assert pool.open_disk("vm2") is disk
    with pytest.raises(DiskNotFound):
        pool.open_disk("vm1")
    assert service.rename_disk("vm2", "vm2").name == "vm2"


def test_an_import_is_provisional_until_it_is_finished(service: PoolService) -> None:
    made = service.create_disk("vm1", MIB, importing=True)
    assert made.state is DiskState.IMPORTING
    with pytest.raises(DiskNotReady):
        service.resize_disk("vm1", 2 * MIB)
    with pytest.raises(DiskNotReady):
        service.rename_disk("vm1", "vm2")
    assert service.finish_import("vm1").state is DiskState.READY


def test_status(service: PoolService, pool: Pool) -> None:
    service.create_disk("vm1", 2 * MIB)
    service.create_disk("vm2", MIB)
    pool.open_disk("vm1").write(0, b"x" * 4096)
    status = service.status()
    assert (status.pool, status.disks, status.provisioned_bytes) == (str(pool.path), 2, 3 * MIB)
    assert status.stored_bytes >= 4096
    assert status.problems == []
    assert [drive.state for drive in status.drives] == [DriveState.PRESENT]
    assert status.drives[0].free_bytes is not None
