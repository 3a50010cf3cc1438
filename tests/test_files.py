"""Files that appear whole or not at all."""

import os
import stat

import pytest

from autocompress.files import write_bytes


def test_a_file_is_replaced_and_its_folder_made(tmp_path):
    path = tmp_path / "new" / "kept.json"
    for content in (b"old", b"new"):
        write_bytes(path, content)
        assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["kept.json"]


def test_it_has_the_mode_that_was_asked_for(tmp_path):
    mask = os.umask(0o077)
    try:
        write_bytes(tmp_path / "open", b"", 0o644)
    finally:
        os.umask(mask)
    write_bytes(tmp_path / "own", b"", 0o600)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("open", "own")] == [0o644, 0o600]


def test_a_failed_write_leaves_the_old_file_and_no_neighbour(tmp_path):
    path = tmp_path / "kept.json"
    write_bytes(path, b"old")
    with pytest.raises(TypeError):
        write_bytes(path, "text is not bytes")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.json"]


def test_a_folder_in_the_way_is_named_and_left(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_bytes(tmp_path / "folder", b"")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
