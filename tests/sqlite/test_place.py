# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What a url of the embedded transport says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tavrida import exceptions
from tavrida.plugins.transports.sqlite.place import Place


def test_three_slashes_and_a_path_are_a_file() -> None:
    """Synced before it confirms, unless told otherwise."""
    assert Place("/var/lib/bus.db", "", "full", 10.0) == Place.parse("sqlite:///var/lib/bus.db")


def test_four_slashes_are_the_same_file() -> None:
    """Other libraries write an absolute path so."""
    assert Place.parse("sqlite:///var/bus.db") == Place.parse("sqlite:////var/bus.db")


def test_a_link_leads_to_the_same_place_as_the_file(tmp_path: Path) -> None:
    """Processes meet beside the file, by whatever name they know it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Place.parse(f"sqlite://{tmp_path}/link/b.db") == Place.parse(
        f"sqlite://{tmp_path}/real/b.db"
    )


def test_a_path_may_be_quoted() -> None:
    """A blank, and a question mark that does not begin the options."""
    assert "/my bus?.db" == Place.parse("sqlite:///my%20bus%3F.db").path


def test_no_path_is_the_memory_of_the_process() -> None:
    """There may be several, by name."""
    assert Place() == Place.parse("sqlite://")
    assert Place(memory="one") == Place.parse("sqlite://?memory=one")


def test_options_are_read() -> None:
    """Both of a file."""
    place = Place.parse("sqlite:///b.db?synchronous=normal&lock_timeout=0.5")
    assert ("normal", 0.5) == (place.synchronous, place.lock_timeout)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("sqlite://var/lib/bus.db", "'var' stands where the path should begin"),
        ("sqlite:///var/lib/", "it names no file"),
        ("sqlite:///var/a#b.db", "a # begins what is no part of the path: write it %23"),
        ("sqlite:bus.db", "its path is relative"),
        ("sqlite:///b.db?synchronos=full", "did you mean 'synchronous'?"),
        ("sqlite:///b.db?memory=x", "no option 'memory'; there is lock_timeout and synchronous"),
        ("sqlite://?synchronous=full", "no option 'synchronous'"),
        ("sqlite:///b.db?synchronous=extra", "should be one of full, normal, off"),
        ("sqlite:///b.db?lock_timeout=soon", "should be a number of seconds"),
        ("sqlite:///b.db?lock_timeout=-1", "should be a number of seconds"),
        ("sqlite:///b.db?lock_timeout=nan", "should be a number of seconds"),
    ],
)
def test_a_wrong_url_is_one_sentence_with_the_right_form(url: str, why: str) -> None:
    """Before anything is opened."""
    with pytest.raises(exceptions.ConfigError) as caught:
        Place.parse(url)
    assert why in str(caught.value)
    assert "Write sqlite:///PATH/bus.db" in str(caught.value)
