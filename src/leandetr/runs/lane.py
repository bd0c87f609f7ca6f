"""One lane of a run: `python -m leandetr.runs.lane OUT VARIANT SEED UNTIL` trains a variant with a seed, and makes all that is
made of it, in the folder of a run whose teachers are done. The last line that it prints is JSON: what diverged, or the error.
"""

import json
import sys
from pathlib import Path
from typing import Any

from leandetr.errors import UserError
from leandetr.recipe import Recipe, read_recipe
from leandetr.runs.run import Run


def main(out: str, variant: str, seed: str, until: str) -> None:
    """Work as the module says; until: of `time.monotonic()`, "inf" for no end."""
    try:
        recipe = read_recipe(Path(out) / "recipe.yaml")
        assert isinstance(recipe, Recipe)  # a search has no lanes
        run = Run(recipe, Path(out))
        found: dict[str, Any] = {"diverged": run.work_on(variant, int(seed), float(until))}
    except UserError as error:
        found = {"error": str(error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
