"""What a detector or a backbone is made from: the objects that Python, recipes and the command line hand to the verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveInt, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from leandetr.checked import Checked
from leandetr.detectors.names import MODELS
from leandetr.errors import unknown

NEW_MODEL = ("backbone", "weights", "set", "image_size", "queries")  # what a new model is built from


def _one_sentence(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except ValidationError:
        raise ValueError("give height and width, or the shorter side, in whole pixels") from None


#: (height, width), or the shorter side
ImageSize = Annotated[tuple[int, int] | PositiveInt, WrapValidator(_one_sentence)]


class NewDetector(Checked):
    """A detector to train: a new one of a family, or a finished one further, which gets the classes of the data.

    Attributes:
        model: a short name of `leandetr models`.
        checkpoint: in its place, what `load` takes.
        backbone: of a new model, see `create`.
        weights: of its backbone, see `create`; or a file with a whole detector of its family, in place of `checkpoint`, where
            no `backbone` is named (`build`).
        image_size: (height, width) in pixels, or the shorter side, of a new model or in place of the checkpoint's own; see
            `create`.
        queries: number of object queries, in place of the checkpoint's own.
        set: configuration values by name, `{"decoder_layers": 3}`, of a new model, where dots reach into `backbone_config`, or
            in place of the checkpoint's own, whose weights are then selected (`reconfigure`).
    """

    later: ClassVar[frozenset[str]] = frozenset({"queries"})
    of_a_checkpoint: ClassVar[frozenset[str]] = frozenset({"set", "image_size", "queries"})  # what one takes of `NEW_MODEL`

    model: str | None = None
    checkpoint: str | Path | None = None
    backbone: str | None = None
    weights: str | None = None
    image_size: ImageSize | None = None
    queries: int | None = Field(None, ge=1)
    set: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.checkpoint is None) == (self.model is None):
            raise ValueError("give either checkpoint or model")
        taken = self.of_a_checkpoint if self.is_trained else ()
        given = [key for key in NEW_MODEL if getattr(self, key) and key not in taken]
        if self.checkpoint is not None and given:
            raise ValueError(f"a checkpoint has its own {' and '.join(given)}: leave out those of a new model")
        return self

    @property
    def is_trained(self) -> bool:
        """Whether it is to be trained, and not to be taken as it is."""
        return True

    @classmethod
    def named(cls, name: str | Path, **others: Any) -> NewDetector:
        """The short name of a model, else a checkpoint, as commands name either by one word; `others` as in the constructor.

        Raises UserError for a name that is neither.
        """
        if name in MODELS:
            return NewDetector(model=name, **others)
        if "/" not in str(name) and not Path(name).exists():
            raise unknown("model", name, MODELS)
        return NewDetector(checkpoint=name, **others)


class NewBackbone(Checked):
    """A backbone to train by itself.

    Attributes:
        name: any that `create` takes with weights.
        image_size: (height, width) that images are squeezed to.
        weights: to start from, as those of a new detector; random by default.
        set: values of its configuration by name.
    """

    name: str
    image_size: tuple[int, int] = (224, 224)
    weights: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
