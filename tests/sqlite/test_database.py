# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What a bus cannot be kept in, said in one sentence."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from tavrida import exceptions
from tavrida.plugins.transports.sqlite import database
from tavrida.plugins.transports.sqlite.place import Place
from tests.transports.bench import Bench, Connection


def refusal(connection: Connection) -> exceptions.ConnectionFailed:
    """Return why a connection cannot be opened, however often it is tried."""
    with pytest.raises(exceptions.ConnectionFailed) as caught:
        connection.open(attempts=-1)
    assert caught.value.is_final
    return caught.value


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, bench: Bench) -> None:
    """Whatever it is, it is not ours to write into."""
    path.write_text("These are the notes of somebody.\n" * 50)
    assert f"{path} is no SQLite database" in str(refusal(bench.connection()))
    assert path.read_text().startswith("These are the notes")


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path, bench: Bench) -> None:
    """Its journal mode too."""
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE songs (title)")
    other.close()
    before = path.read_bytes()
    assert "is a database of another program" in str(refusal(bench.connection()))
    assert before == path.read_bytes()


def test_tables_of_another_version_are_refused(path: Path, bench: Bench) -> None:
    """With both versions."""
    bench.connect().close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    text = str(refusal(bench.connection()))
    assert "has tables of version 99, and this tavrida works with version 1" in text


def test_a_file_with_a_second_path_is_refused(path: Path, bench: Bench) -> None:
    """Who came by the other one would have another log, and lose messages."""
    bench.connect().close()
    path.with_name("other.db").hardlink_to(path)
    assert "has a second path" in str(refusal(bench.connection()))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder, a device."""
    for url in (f"sqlite://{tmp_path}", "sqlite:///dev/null"):
        with Bench(url) as bench:
            assert "is no file: change the url" in str(refusal(bench.connection()))


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    """It is not made: a slip in the url would hide in it."""
    with Bench(f"sqlite://{tmp_path}/no/bus.db") as bench:
        text = str(refusal(bench.connection()))
    assert f"there is no folder {tmp_path}/no for the database: make it" in text


def test_a_place_where_nothing_can_be_written_is_refused() -> None:
    """Also for root, whom permissions do not stop."""
    with Bench("sqlite:///proc/bus.db") as bench:
        text = str(refusal(bench.connection()))
    assert "/proc/bus.db cannot be opened or made" in text
    assert "this user has to be allowed to read and write it, and to write to its folder" in text


def test_a_folder_for_bells_that_cannot_be_made_is_refused(path: Path, bench: Bench) -> None:
    """Something else has its name."""
    path.with_name("bus.db-wake").touch()
    with pytest.raises(exceptions.ConnectionFailed) as caught:
        bench.connection().open(attempts=1)
    assert f"{path} cannot be used: [Errno 17] File exists" in str(caught.value)
    assert "bus.db-wake" in str(caught.value)


def test_a_read_only_database_is_refused_when_it_is_written_to(path: Path, bench: Bench) -> None:
    """SQLite opens it all the same, and says so with the first statement that writes."""
    bench.connect().close()
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with pytest.raises(sqlite3.OperationalError) as caught:
        reader.execute("DELETE FROM entries")
    reader.close()
    text = str(database.explain(caught.value, Place(str(path))))
    assert f"{path} is read-only for this user or on this disk: change its permissions" in text


def test_a_damaged_database_says_what_may_help(path: Path, bench: Bench) -> None:
    """The first page is right, the rest is not."""
    bench.connect().close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * (size - 100))
    text = str(refusal(bench.connection()))
    assert f"{path} is damaged" in text
    assert "move it away" in text


MOUNTS = """21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 21 0:25 / /home rw,relatime shared:1 - nfs4 server:/home rw,vers=4.2
31 30 254:1 / /home/local rw - ext4 /dev/vdb rw
35 21 0:29 / /mnt/größe rw - nfs server:/ rw
32 21 0:26 / /mnt/with\\040blank rw - cifs //server/share rw
33 21 0:27 / /mnt/two rw - ext4 /dev/vdc rw
34 33 0:28 / /mnt/two rw - fuse.sshfs me@server: rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/home/me", "nfs4"),
        ("/home", "nfs4"),
        ("/homely", "ext4"),
        ("/home/local/me", "ext4"),
        ("/mnt/with blank", "cifs"),
        ("/mnt/größe", "nfs"),
        ("/mnt/two/x", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_folder_is_that_of_the_innermost_mount(folder: str, kind: str) -> None:
    """The later one, where one covers another."""
    assert kind == database.file_system_of(Path(folder), MOUNTS)


def test_a_network_file_system_is_refused(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is none here; so this machine is told that its disk were one."""
    kind = database.file_system_of(tmp_path, Path("/proc/self/mountinfo").read_text())
    monkeypatch.setattr(database, "NETWORK_FILE_SYSTEMS", {kind})
    text = str(refusal(bench.connection()))
    assert f"is on a network file system ({kind})" in text
    assert "RabbitMQ" in text


def test_the_files_of_a_bus_have_the_rights_of_the_umask(path: Path, bench: Bench) -> None:
    """Whoever may write into the folder may use the bus; an operator limits it there."""
    before = os.umask(0o027)
    try:
        bench.connect()
        modes = {
            stat.S_IMODE(each.stat().st_mode) & 0o007
            for each in (path, path.with_name("bus.db-wal"), path.with_name("bus.db-wake"))
        }
    finally:
        os.umask(before)
    assert {0} == modes
