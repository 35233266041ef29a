"""Files are written whole or not at all."""

import os

import pytest

from trpo_jax.errors import FileError
from trpo_jax.files import write_whole


def test_a_write_that_fails_leaves_the_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    write_whole(path, "first")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "second")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("plan.json", "first")]
    monkeypatch.undo()
    write_whole(path, "third")
    assert path.read_text() == "third"


def test_what_stands_in_the_way_is_said_in_the_systems_words_or_else_the_librarys():
    assert (
        str(FileError.unwritable("a.png", OSError(28, "No space left on device")))
        == "a.png cannot be written: No space left on device"
    )
    full, other = OSError(28, "No space left on device"), OSError("encoder error")
    assert str(FileError.unwritable("a.png", full)) == "a.png cannot be written: No space left on device"
    assert str(FileError.unwritable("a.png", other)) == "a.png cannot be written: encoder error"
