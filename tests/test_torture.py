"""A little of what `make torture` does at length: hostile inputs of every kind, in this process, and what was at fault once."""

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leandetr.deployment.metadata import Metadata
from leandetr.errors import UserError
from torture import fuzz, mutate, subjects
from torture.kinds import KINDS
from torture.outcomes import Ended, files_in, traces, verdict

#: enough that each kind's ways to be hostile come up now and then; the long runs are those of `make torture`
FEW = settings(
    max_examples=4,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ONNX = ("onnx", "onnx metadata")  # whose file takes as long to make as all else


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return subjects.make(tmp_path_factory.mktemp("torture") / "subjects", exported=False)


@pytest.fixture
def judged(run, monkeypatch, tmp_path):
    """judged(case, arguments): the verdict on `leandetr ...` in a folder of hostile files, and what it told."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(case, arguments):
        monkeypatch.chdir(case)
        before = files_in(case)
        status, _, told = run(*arguments)
        found = verdict(Ended(status, told), arguments)
        return found if found.startswith("fault") else traces(before, case) or found, told

    return call


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ONNX])
@given(random=st.randoms(use_true_random=False))
@FEW
def test_a_hostile_input_is_borne_or_refused_in_a_sentence(name, random, made, judged, tmp_path):
    case = fuzz.copied(made, tmp_path / "cases" / "case")
    found, told = judged(case, KINDS[name](random, case))
    assert not found.startswith("fault"), (found, told)


@pytest.mark.parametrize("entry", list(fuzz.corpus()), ids=lambda entry: entry.name)
def test_what_was_at_fault_once_is_refused(entry, made, judged, tmp_path):
    case = fuzz.copied(made, tmp_path / "cases" / "case")
    found, told = judged(case, fuzz.laid_out(entry, case))
    assert found == "refused", (found, told)


METADATA = {
    "class_map": {"names": ["disc", "ring"], "dataset_ids": [1, 2]},
    "preprocessing": {"size": [96, 96], "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
    "head": "sigmoid",
    "parameters": 10,
    "scheme": None,
    "provenance": {},
}


@given(random=st.randoms(use_true_random=False))
@settings(FEW, max_examples=100)
def test_what_an_export_says_of_itself_is_understood_or_refused(random):
    try:
        found = Metadata.from_json(mutate.document(random, METADATA).decode(errors="replace"))
    except (ValueError, UserError):
        return
    assert all(isinstance(name, str) for name in found.class_map.names)
    assert len(found.preprocessing.mean) == len(found.preprocessing.std) == 3
    assert all(1 <= side <= 8192 for side in found.preprocessing.size or ())


@pytest.mark.parametrize(
    ("ended", "arguments", "expected"),
    [
        (Ended(0, ""), ["predict"], "ended well"),
        (Ended(1, ""), ["data", "check"], "refused"),
        (Ended(1, ""), ["predict"], "fault: status 1"),
        (Ended(2, "error: x.json is not JSON; write it again\n"), ["predict"], "refused"),
        (Ended(2, "error: no\n"), ["predict"], "fault: status 2"),
        (Ended(0, "Traceback (most recent call last):\nKeyError: 'a'\n"), ["predict"], "fault: traceback"),
        (Ended(0, "", seconds=11.0), ["predict"], "fault: hangs"),
        (Ended(0, "", memory=5e9), ["predict"], "fault: 5.0 GB"),
        (Ended(-11, ""), ["predict"], "fault: killed by signal 11"),
    ],
)
def test_a_verdict_sees_every_fault(ended, arguments, expected):
    assert verdict(ended, arguments).startswith(expected)


def test_what_a_command_leaves_is_seen(tmp_path):
    case = tmp_path / "cases" / "case"
    (case / "out").mkdir(parents=True)
    (case / "photo.jpg").write_bytes(b"x")
    before = files_in(case)
    assert traces(before, case) == ""
    (case / "out" / "a.json").write_text("[1,")
    assert "half-written" in traces(before, case)
    (case / "out" / ".a.json.12.tmp").write_text("")
    (case / "out" / "a.json").unlink()
    assert "left" in traces(before, case)
    shutil.rmtree(case / "out")
    (case / "photo.jpg").write_bytes(b"xy")
    assert "touched photo.jpg" in traces(before, case)
