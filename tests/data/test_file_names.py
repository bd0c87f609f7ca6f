"""Names lead to files of the data set and nowhere else, whatever is a link there."""

import pytest

from leandetr.data.file_names import leading_out


@pytest.fixture
def images(tmp_path):
    """A folder of images with a link to a folder elsewhere, which has a file beside it."""
    for folder in ("data/images/own", "elsewhere/more"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("data/images/a.png", "elsewhere/secret.png", "elsewhere/more/b.png"):
        (tmp_path / file).touch()
    (tmp_path / "data/images/link").symlink_to(tmp_path / "elsewhere/more")
    return tmp_path / "data/images"


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("a.png", False),
        ("own/../a.png", False),
        ("link/b.png", False),  # the owner of the folder has put the link there
        ("link/../secret.png", True),  # beside what the link leads to; to the eye it is images/secret.png
        ("link/../../secret.png", True),
        ("../../elsewhere/secret.png", True),
    ],
)
def test_two_dots_do_not_lead_out_behind_a_link(images, name, out):
    assert leading_out([images / name], [images]) == ([images / name] if out else [])
