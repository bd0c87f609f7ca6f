"""A folder is one command's, from the moment it begins to the moment it ends, however it does."""

import os
import signal
import time

import pytest

from leandetr.errors import UserError
from leandetr.files import claiming
from leandetr.locks import alone_in


@pytest.fixture
def other(tmp_path):
    """Another process that works in `tmp_path` with a loader's worker of its own, until it is killed."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        with alone_in(tmp_path):
            worker = os.fork()
            if worker:
                os.write(writing, worker.to_bytes(4, "big"))
            time.sleep(60)
        os._exit(0)
    worker = int.from_bytes(os.read(reading, 4), "big")
    yield process
    os.kill(worker, signal.SIGKILL)
    os.close(reading)
    os.close(writing)


def test_a_second_command_is_refused_until_the_first_is_gone_though_its_worker_is_not(tmp_path, other):
    with pytest.raises(UserError, match="another command"), claiming(tmp_path, "work"):
        pass
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    with claiming(tmp_path, "work"):
        pass


def test_a_folder_inside_is_another_one(tmp_path):
    (tmp_path / "student").mkdir()
    with alone_in(tmp_path), alone_in(tmp_path / "student"):
        pass
    with alone_in(tmp_path):
        pass
