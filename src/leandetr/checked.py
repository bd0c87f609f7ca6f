"""Checked, frozen settings, whose faults are one sentence: what a recipe, the command line and Python build alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from leandetr.errors import UserError, unknown


class Checked(BaseModel):
    """Raises UserError for an unknown key, with the nearest known one, and for a value that is not understood."""

    #: keys that came later: they are not written down where they are None, so that notes of before still agree
    later: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key not in self.later or value is not None}

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise sentence(error, type(self).__name__, type(self)) from error

    # pydantic's mark: what is inside another object is checked together with it, so that the fault has its whole path
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # a function's own


def sentence(error: ValidationError, source: str, kind: type[BaseModel]) -> UserError:
    """The first fault of a validation of `kind`, an unknown key before any other, with the nearest known one."""
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields(kind, first["loc"][:-1])
        return UserError(f"{source}: {unknown('key', place, known)}")
    message = first["msg"].removeprefix("Value error, ")
    where = f"{source}: {place}" if place else source
    return UserError(f"{where}: {message[0].lower() + message[1:]}; mend that key")


def _fields(kind: type[BaseModel], path: tuple) -> list[str]:
    """Dotted names of the keys beside the unknown one."""
    prefix = ""
    for part in path:
        if isinstance(part, int):
            continue
        kind = next(_models_in(kind.model_fields[part].annotation))
        prefix += f"{part}."
    return [prefix + name for name in kind.model_fields]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """`Model` of `Model`, `list[Model]`, `list[Model] | None`."""
    if hasattr(annotation, "model_fields"):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models_in(part)
