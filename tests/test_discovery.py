# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Where services are: the base, the convention, the ini's register and the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tavrida.discovery import Discovery, LocalDiscovery
from tavrida.exceptions import ConfigError, ServiceUnknown
from tavrida.plugins.discovery.convention import ConventionDiscovery
from tavrida.plugins.discovery.file import FileDiscovery
from tavrida.plugins.discovery.local import LocalBackend

REGISTERS = pytest.mark.parametrize(
    ("register", "getter"),
    [
        ("register_remote_service", "get_remote"),
        ("register_remote_publisher", "get_remote_publisher"),
        ("register_local_publisher", "get_local_publisher"),
    ],
)


@REGISTERS
@pytest.mark.parametrize("cls", [Discovery, LocalDiscovery, ConventionDiscovery])
def test_what_is_registered_is_found(cls: type[Discovery], register: str, getter: str) -> None:
    """The last registration wins."""
    discovery = cls()
    getattr(discovery, register)("test_hello", "old")
    getattr(discovery, register)("test_hello", "test_exchange")
    assert "test_exchange" == getattr(discovery, getter)("test_hello")


@REGISTERS
def test_unknown_service_is_told_with_nearest_name_and_remedy(register: str, getter: str) -> None:
    """The sentence names the service, what is near, what to call, and what is known."""
    discovery = LocalDiscovery()
    getattr(discovery, register)("test_hello", "x")
    getattr(discovery, register)("accounts", "y")
    with pytest.raises(ServiceUnknown) as caught:
        getattr(discovery, getter)("test_helo")
    text = str(caught.value)
    assert "does not know service 'test_helo' (did you mean 'test_hello'?)" in text
    assert f"{register}('test_helo', EXCHANGE)" in text
    assert "Known here: accounts, test_hello." in text


def test_empty_register_knows_none() -> None:
    """There is no name to list."""
    with pytest.raises(ServiceUnknown, match=r"Known here: none\.$"):
        LocalDiscovery().get_remote("test_hello")


def test_registers_of_two_objects_are_apart() -> None:
    """No state is shared by the class."""
    LocalDiscovery().register_remote_service("a", "b")
    assert not LocalDiscovery().is_registered("a")


def test_the_three_registers_are_apart() -> None:
    """Taking requests says nothing about notifications."""
    discovery = LocalDiscovery()
    discovery.register_local_publisher("a", "x")
    discovery.register_remote_publisher("a", "y")
    assert not discovery.is_registered("a")
    with pytest.raises(ServiceUnknown):
        discovery.get_remote("a")
    assert ("x", "y") == (discovery.get_local_publisher("a"), discovery.get_remote_publisher("a"))


def test_convention_knows_every_service_but_counts_none_as_registered() -> None:
    """Exchanges have the name of the service; a reply_to is no service by mere convention."""
    discovery = ConventionDiscovery()
    assert "anything" == discovery.get_remote("anything")
    assert "anything.notifications" == discovery.get_local_publisher("anything")
    assert "anything.notifications" == discovery.get_remote_publisher("anything")
    assert not discovery.is_registered("anything")
    discovery.register_remote_service("anything", "x")
    assert discovery.is_registered("anything")


def test_backend_without_options_is_made_of_none() -> None:
    """A backend of somebody's own need not override these."""
    assert [] == ConventionDiscovery.list_opts()
    assert isinstance(ConventionDiscovery.from_options({}), ConventionDiscovery)


def test_local_backend_registers_what_its_options_say() -> None:
    """One publisher line serves those who publish and those who listen."""
    discovery = LocalBackend.from_options(
        {"exchanges": {"test_hello": "e"}, "publishers": {"test_hello": "n"}}
    )
    assert "e" == discovery.get_remote("test_hello")
    assert "n" == discovery.get_remote_publisher("test_hello")
    assert "n" == discovery.get_local_publisher("test_hello")
    assert ["exchanges", "publishers"] == [option.name for option in LocalBackend.list_opts()]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "services.ds"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_file_gives_exchanges_and_publishers(tmp_path: Path) -> None:
    """As its documentation shows it; names of keys in any case, comments on their own lines."""
    discovery = FileDiscovery(
        write(
            tmp_path,
            "# the services of this installation\n"
            "[test_hello]\n"
            "exchange = test_exchange\n"
            "; who publishes\n"
            "Notifications: test_notification_exchange\n"
            "\n"
            "[Test-World]\r\n"
            "exchange=50%\r\n",
        )
    )
    assert "test_exchange" == discovery.get_remote("test_hello")
    assert "test_notification_exchange" == discovery.get_local_publisher("test_hello")
    assert "test_notification_exchange" == discovery.get_remote_publisher("test_hello")
    assert "50%" == discovery.get_remote("Test-World")
    assert not discovery.is_registered("test-world")


def test_file_backend_reads_the_file_that_its_option_names(tmp_path: Path) -> None:
    """The ini says where it is."""
    path = write(tmp_path, "[a]\nexchange = x\n")
    assert "x" == FileDiscovery.from_options({"file": str(path)}).get_remote("a")
    assert ["file"] == [option.name for option in FileDiscovery.list_opts()]


@pytest.mark.parametrize("value", [None, ""])
def test_file_backend_without_a_file_says_so(value: str | None) -> None:
    """The one option that it cannot do without."""
    with pytest.raises(ConfigError, match=r"^file is missing: name the \.ds file to read$"):
        FileDiscovery.from_options({"file": value})


def test_empty_file_knows_nobody(tmp_path: Path) -> None:
    """It is no fault to have no services yet."""
    with pytest.raises(ServiceUnknown, match="Known here: none"):
        FileDiscovery(write(tmp_path, "")).get_remote("a")


def test_file_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    """Its first character, the byte order mark, cannot be seen."""
    assert "x" == FileDiscovery(write(tmp_path, "\ufeff[a]\nexchange = x\n")).get_remote("a")


def test_section_named_default_is_a_service_like_any_other(tmp_path: Path) -> None:
    """Its keys do not spread into the other sections."""
    with pytest.raises(ConfigError, match=r"services\.ds:3: \[b\] has no exchange"):
        FileDiscovery(write(tmp_path, "[DEFAULT]\nexchange = x\n[b]\n"))


def test_every_fault_of_the_file_is_told_with_its_line(tmp_path: Path) -> None:
    """All at once, each with file, line, section and remedy."""
    path = write(
        tmp_path,
        "[test_hello]\n"
        "exchagne = a\n"
        "notifications =\n"
        "[a.b]\n"
        "exchange =\n"
        "[größe]\n"
        "\n"
        "exchange = c\n"
        "colour = red\n",
    )
    with pytest.raises(ConfigError) as caught:
        FileDiscovery(path)
    faults = caught.value.faults
    assert (
        f"{path}:1: [test_hello] has no exchange: add 'exchange = NAME' to it",
        f"{path}:2: [test_hello] exchagne is no key of a .ds file (did you mean 'exchange'?)",
        f"{path}:3: [test_hello] notifications is empty: name an exchange",
    ) == faults[:3]
    assert faults[3].startswith(f"{path}:4: 'a.b' is no name of a service")
    assert f"{path}:4: [a.b] has no exchange: add 'exchange = NAME' to it" == faults[4]
    assert faults[5].startswith(f"{path}:6: 'größe' is no name of a service")
    assert f"{path}:9: [größe] colour is no key of a .ds file" == faults[6]
    assert 7 == len(faults)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("exchange = x\n", 1),
        ("[a]\nexchange = x\n[a]\nexchange = y\n", 3),
        ("[a]\nexchange = x\nexchange = y\n", 3),
        ("[a]\nexchange\n", 2),
        ("[a]\nexchange = x\n[]\n", 3),
    ],
)
def test_file_that_is_no_ini_is_told_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    """In one line of text, whatever the parser says."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        FileDiscovery(path)
    assert str(path) in str(caught.value)
    assert str(line) in str(caught.value).replace(str(path), "")
    assert "\n" not in str(caught.value)


def test_comment_behind_a_value_is_no_part_of_the_exchange(tmp_path: Path) -> None:
    """No exchange is named like that."""
    path = write(tmp_path, "[a]\nexchange = x  # takes the requests\nnotifications = y ; events\n")
    discovery = FileDiscovery(path)
    assert ("x", "y") == (discovery.get_remote("a"), discovery.get_local_publisher("a"))


def test_indented_section_is_not_swallowed_by_the_value_before(tmp_path: Path) -> None:
    """Indented lines are more of the value for configparser: an exchange of several lines."""
    path = write(tmp_path, "[a]\nexchange = x\n  [b]\n  exchange = y\n")
    with pytest.raises(ConfigError, match=r"services\.ds:[23]"):
        FileDiscovery(path)


def test_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    """Missing, a folder, or not UTF-8."""
    for path, reason in [
        (tmp_path / "nope.ds", "No such file"),
        (tmp_path, "Is a directory"),
        (write(tmp_path, b"[a]\nexchange = \xe9\n"), "can't decode byte 0xe9"),
    ]:
        with pytest.raises(ConfigError, match=reason) as caught:
            FileDiscovery(path)
        assert f"cannot read the discovery file {path}: " in str(caught.value)
