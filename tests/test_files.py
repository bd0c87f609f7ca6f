"""What writing promises: the whole thing under its final name or nothing, and one sentence where it cannot be."""

import errno
import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from leandetr.errors import UserError
from leandetr.files import (
    MARKER,
    claim_folder,
    claiming,
    errors_of_writing,
    read_json,
    write_json,
    writing,
    writing_files,
    writing_folder,
)


@pytest.fixture
def full_disk():
    """No file can grow beyond 10 kB, which is how a full disk looks to whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def broken_off(context, begin):
    """Begin to write, and fail."""
    with context as temporary:
        begin(temporary)
        raise ZeroDivisionError


def meets(context, error):
    with context:
        raise error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_replaces_the_old_one_only_when_whole(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(ZeroDivisionError):
        broken_off(writing(path), lambda temporary: temporary.write_text('{"half'))
    assert read_json(path) == {"old": 1}
    write_json(path, [2])
    assert read_json(path) == [2]
    assert names(path.parent) == ["a.json"]


def test_a_file_never_replaces_a_folder(tmp_path):
    write_json(tmp_path / "kept" / "a.json", 1)
    for folder in (tmp_path / "kept", Path(".")):
        with pytest.raises(UserError, match="is a folder"):
            write_json(folder, 2)
    assert read_json(tmp_path / "kept" / "a.json") == 1
    assert names(tmp_path) == ["kept"]


def test_a_folder_replaces_the_old_one_only_when_whole(tmp_path):
    for number in (1, 2):
        with writing_folder(tmp_path / "made") as temporary:
            temporary.mkdir()
            (temporary / f"{number}.txt").write_text("whole")
    with pytest.raises(ZeroDivisionError):
        broken_off(writing_folder(tmp_path / "made"), lambda temporary: temporary.mkdir())
    assert names(tmp_path / "made") == ["2.txt"]
    assert names(tmp_path) == ["made"]


def test_files_of_a_folder_appear_together_beside_the_others(tmp_path):
    (tmp_path / "kept.txt").write_text("other")
    with pytest.raises(ZeroDivisionError):
        broken_off(writing_files(tmp_path, last="b"), lambda temporary: (temporary / "a").write_text("half"))
    assert names(tmp_path) == ["kept.txt"]
    with writing_files(tmp_path, last="a") as temporary:
        for name in "ab":
            (temporary / name).write_text(name)
    assert names(tmp_path) == ["a", "b", "kept.txt"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("x" * 50_000),
        lambda path: save_file({"x": torch.zeros(50_000)}, path),
        lambda path: torch.save({"x": torch.zeros(50_000)}, path),
    ],
    ids=["text", "safetensors", "torch"],
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, full_disk, write):
    with (
        pytest.raises(UserError, match=r"cannot write .*result: .*; free some space") as caught,
        writing(tmp_path / "result") as t,
    ):
        write(t)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []
    with pytest.raises(UserError, match="cannot write"), writing_files(tmp_path / "folder", last="x") as temporary:
        write(temporary / "x")
    assert names(tmp_path / "folder") == []


def test_a_folder_that_is_gone_is_named(tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot write .*/gone: .* free some space or name another place"),
        errors_of_writing(tmp_path / "gone"),
    ):
        torch.save({}, tmp_path / "gone" / "optimizer.pt")


def test_other_faults_while_writing_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), errors_of_writing(tmp_path):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize("below", ["x.json", "deep/x.json"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, below):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=f"cannot write .*file/{below}: "):
        write_json(tmp_path / "file" / below, 1)


def test_reading_names_the_file(tmp_path):
    (tmp_path / "broken.json").write_text('{"a": ')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot read .*absent.json: No such file"):
        read_json(tmp_path / "absent.json")
    for name in ("broken.json", "binary.json"):
        with pytest.raises(UserError, match=f"{name} is not JSON"):
            read_json(tmp_path / name)


class TestClaim:
    def test_the_same_work_goes_on_and_other_work_is_refused(self, tmp_path):
        claim_folder(tmp_path / "out", ["train", tmp_path, (1, 2)])
        (tmp_path / "out" / "result.txt").write_text("made")
        claim_folder(tmp_path / "out", ["train", tmp_path, (1, 2)])
        with pytest.raises(UserError, match="out holds the result of other settings"):
            claim_folder(tmp_path / "out", ["train", tmp_path, (1, 3)])

    def test_what_is_not_ours_is_refused(self, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "dear.jpg").write_text("")
        with pytest.raises(UserError, match="photos exists and is not an output of leandetr"):
            claim_folder(tmp_path / "photos", "anything")
        with pytest.raises(UserError, match=r"dear.jpg is a file; name a folder"):
            claim_folder(tmp_path / "photos" / "dear.jpg", "anything")
        assert names(tmp_path / "photos") == ["dear.jpg"]

    @pytest.mark.parametrize("there", [False, True])
    def test_a_users_error_gives_the_folder_back(self, tmp_path, there):
        out = tmp_path / "out"
        if there:
            out.mkdir()
        with claiming(tmp_path / "seen", "a"):
            assert json.loads((tmp_path / "seen" / MARKER).read_text())["made_from"] == "a"
        with pytest.raises(UserError, match="no such model"):
            meets(claiming(out, "a"), UserError("no such model"))
        assert out.exists() == there
        claim_folder(out, "b")

    def test_a_folder_that_cannot_be_given_back_hides_no_error(self, tmp_path, monkeypatch):
        def read_only(*_args, **_kwargs):
            raise OSError(errno.EROFS, "Read-only file system")

        def becomes_read_only(_):
            monkeypatch.setattr(Path, "unlink", read_only)
            raise UserError("cannot write out/model.safetensors")

        with pytest.raises(UserError, match="cannot write"):
            broken_off(claiming(tmp_path / "out", "a"), becomes_read_only)

    def test_a_folder_that_is_gone_hides_no_error(self, tmp_path):
        def goes(_):
            shutil.rmtree(tmp_path / "out")
            raise UserError("cannot write out/model.safetensors")

        with pytest.raises(UserError, match="cannot write"):
            broken_off(claiming(tmp_path / "out", "a"), goes)

    def test_what_was_made_before_the_error_is_kept(self, tmp_path):
        with pytest.raises(ZeroDivisionError):
            broken_off(claiming(tmp_path / "out", "a"), lambda _: (tmp_path / "out" / "checkpoint").mkdir())
        with pytest.raises(UserError, match="the disk is full"):
            meets(claiming(tmp_path / "out", "a"), UserError("the disk is full"))
        with pytest.raises(UserError, match="other settings"):
            claim_folder(tmp_path / "out", "b")


def test_a_folder_that_is_replaced_is_never_half_there(tmp_path, monkeypatch):
    def write(*names):
        with writing_folder(tmp_path / "out") as folder:
            folder.mkdir()
            for name in names:
                (folder / name).touch()

    def interrupted(path, **_):
        (path / "marker").unlink()
        raise KeyboardInterrupt

    write("marker", "old")
    monkeypatch.setattr("shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write("marker", "new")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["marker", "new"]
