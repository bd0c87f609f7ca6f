"""Data sets of the Hugging Face hub, which are fetched because they are named so: `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION`."""

import re
from functools import cache
from pathlib import Path

from leandetr.errors import UserError

FORM = re.compile(r"hf:/{1,2}(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")  # a Path holds one slash of two


def local(place: Path) -> Path:
    """The folder of a data set: a place of the hub is fetched into the hub's own cache, any other stays as it is.

    Raises:
        UserError: a name that cannot be one, or it cannot be fetched.
    """
    if not place.as_posix().startswith("hf:/"):
        return place
    found = FORM.fullmatch(place.as_posix())
    if found is None:
        raise UserError(f"{place} names no data set of the hub; write hf://OWNER/NAME, or hf://OWNER/NAME@REVISION")
    return _fetched(found["name"], found["revision"])


@cache
def _fetched(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision))
    except Exception as error:  # the client raises whatever the network leads it to
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot fetch hf://{name} ({reason:.200}); check the name and the connection, or name a folder"
        ) from error
