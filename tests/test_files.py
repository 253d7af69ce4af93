"""A file is whole or isn't there: what a failure leaves behind."""

import os

import pytest

from cyclr.files import write_atomically


def fail(path):
    path.write_text("half of")
    raise RuntimeError("power cut")


def test_content_lands_whole_with_nothing_beside_it(tmp_path):
    write_atomically(tmp_path / "new" / "bytes", b"one")
    write_atomically(tmp_path / "new" / "called", lambda part: part.write_text("two"))
    assert {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()} == {
        "bytes": b"one",
        "called": b"two",
    }


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize(("content", "error"), [(fail, RuntimeError), (lambda part: part.unlink(), OSError)])
def test_failure_leaves_what_was_there_and_no_part(tmp_path, old, content, error):
    target = tmp_path / "record.json"
    if old is not None:
        target.write_bytes(old)
    with pytest.raises(error):
        write_atomically(target, content)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [old] * (old is not None)


def test_the_old_file_stays_whole_until_the_new_one_is(tmp_path):
    target = tmp_path / "record.json"
    target.write_bytes(b"old")

    def look(part):
        part.write_bytes(b"new")
        assert target.read_bytes() == b"old"
        assert part.parent == target.parent  # a rename across file systems would not be atomic

    write_atomically(target, look)
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("below", ["report.json", "deeper/report.json"])
def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path, below):
    (tmp_path / "file").write_bytes(b"not a folder")
    with pytest.raises(OSError, match="file"):
        write_atomically(tmp_path / "file" / below, b"new")
    assert (tmp_path / "file").read_bytes() == b"not a folder"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_os_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "report.json", b"new")


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_file_gets_the_permissions_of_any_new_file_and_the_mask_is_not_touched(tmp_path, monkeypatch):
    old = os.umask(0o027)
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("other threads would write with this mask"))
    try:
        write_atomically(tmp_path / "written", b"")
        (tmp_path / "ordinary").write_bytes(b"")
    finally:
        monkeypatch.undo()
        os.umask(old)
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
