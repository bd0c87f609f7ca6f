"""Detectors from folders and hub ids: safetensors only, and every fault in one sentence."""

from __future__ import annotations

import functools
import importlib
import logging
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig

from leandetr.detectors.architecture import class_to_load
from leandetr.detectors.checkpoints.claims import check_layers, check_widths
from leandetr.detectors.checkpoints.published import SUFFIXES as PUBLISHED
from leandetr.detectors.checkpoints.published import layout_of, load_published
from leandetr.detectors.checkpoints.state_dict import SUFFIXES, read_checkpoint
from leandetr.detectors.detector import Detector
from leandetr.detectors.families.registry import FAMILIES, family_of
from leandetr.detectors.preprocessing import read_preprocessing
from leandetr.errors import UserError, reason, unknown
from leandetr.files import read_json
from leandetr.structures import ClassMap

logger = logging.getLogger(__name__)

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def load(source: str | Path) -> Detector:
    """A detector that `Detector.save` or transformers' `save_pretrained` wrote, in evaluation mode.

    Args:
        source: a folder with `config.json`, `model.safetensors` and `preprocessor_config.json`, a hub id, or a file that the
            authors of DETR, SMCA-DETR, AdaMixer or RT-DETR published (`.pth`, `.safetensors`, see `load_published`); the file
            of weights in such a folder stands for the folder. `pytorch_model.bin` serves where there are no safetensors:
            nothing but tensors is read of it. Without a preprocessor's file the images are prepared as the family's authors
            do, and that is said.

    Raises:
        UserError: no such folder; a file of another kind; a pickle with code in it; a truncated file; another architecture;
            weights whose names or shapes are not the configuration's (names the first three), or that are not finite.
    """
    path = Path(source)
    if _is_of_folder(path):
        source = path = path.parent
    if path.suffix in PUBLISHED and path.is_file():
        return load_published(path)
    shapes = _checked_source(source)
    config = _config(source)
    preprocessing = read_preprocessing(str(source))
    if preprocessing is None:
        preprocessing = family_of(config).own_preprocessing(config)
        logger.warning("%s has no preprocessor_config.json; images are prepared as its family's are: %s", source, preprocessing)
    importlib.import_module("leandetr.transformers")  # by name: the quantizers lie above the detectors
    model_class = class_to_load(config)
    try:
        if shapes is not None:
            check_widths(path, config, shapes)
        model, report = model_class.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,  # half-precision files are a matter of storage; the CPU computes in single precision
            use_safetensors=None if _is_pickled(path) or not path.is_dir() else True,
            weights_only=True,  # of a pickle: code in it is refused, not run
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except UserError:  # of what the configuration claims
        raise
    except (OSError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(f"{source}: its weights cannot be read ({reason(error)}); save the model again") from error
    except Exception as error:  # the models raise whatever the values lead them to
        raise UserError(
            f"{source}: no model can be built from its config.json and weights ({reason(error)}); save it again"
        ) from error
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} weights do not fit its config.json ({', '.join(sorted(wrong)[:3])}); "
            "the checkpoint is of another architecture"
        )
    class_map = class_map_of_config(config)
    if class_map.names == tuple(f"LABEL_{index}" for index in range(len(class_map))):
        _hint_at_names(str(source))
    detector = Detector(model, preprocessing, class_map).eval()
    if broken := detector.not_finite():
        raise UserError(f"{source}: {broken} holds numbers that are not finite; take an earlier checkpoint, or train it again")
    return detector


@functools.cache  # a command may load a detector many times
def _hint_at_names(source: str) -> None:
    """Of what transformers calls the classes of a model that was saved without their names."""
    logger.warning(
        "%s calls its classes LABEL_0, LABEL_1, ...: write their names under id2label in its config.json, so that they are "
        "shown and matched with those of --data; trained further, it has the data's names",
        source,
    )


def load_whole(file: Path) -> Detector | None:
    """The whole detector whose weights a file holds, as `load` reads it; None for those of a backbone.

    Raises UserError for the faults of `load`, and where the file alone does not say which detector it is.
    """
    if _is_of_folder(file):
        return load(file) if _model_type(file.parent) in FAMILIES else None
    if file.suffix not in SUFFIXES:
        return None
    state = read_checkpoint(file)
    if layout_of(state) is not None:
        return load(file)
    if any(key.startswith("model.decoder.") for key in state):
        raise UserError(
            f"{file} holds a whole detector, and no config.json beside it says which; put that there, or name the --backbone "
            "that alone is to be taken"
        )
    return None


def load_class_map(folder: Path) -> ClassMap:
    """The classes of a saved detector, without its weights."""
    return class_map_of_config(_config(folder))


def _config(source: str | Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: no detector there ({reason(error)}); give a saved folder or a reachable hub id") from error
    except Exception as error:  # the configurations raise whatever the values lead them to
        raise UserError(
            f"{source}/config.json cannot be understood ({reason(error)}); mend it or save the model again"
        ) from error


def class_map_of_config(config: PreTrainedConfig) -> ClassMap:
    """Names from `id2label`; the data set's ids from what `Detector.save` left, or the contiguous ids themselves.

    Raises UserError where they are no names, or no whole numbers, one a class.
    """
    by_index: Any = config.id2label
    names = tuple(by_index[index] for index in sorted(by_index))
    ids = getattr(config, "dataset_category_ids", range(len(names)))
    named = sorted(by_index) == list(range(len(names))) and all(isinstance(name, str) for name in names)
    if not named or not isinstance(ids, list | tuple | range) or len(ids) != len(names) or not all(map(_is_id, ids)):
        raise UserError(
            f"{config.name_or_path}/config.json: id2label and dataset_category_ids must give every class, numbered from 0, a "
            "name and a whole number; mend them or save the model again"
        )
    return ClassMap(names, tuple(ids))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 2**63


def _checked_source(source: str | Path) -> list[list[int]] | None:
    """The shapes of a saved folder's safetensors; None of a pickle or a hub id.

    Raises UserError where it is neither a saved folder nor, by its form, a hub id."""
    path = Path(source)
    if path.suffix in PICKLES:
        raise UserError(
            f"{source} is a pickle, which can run code when it is read; save the model with save_pretrained and name the folder"
        )
    if path.is_file():
        raise UserError(
            f"{source} is a file, not a saved detector; give the folder with config.json and model.safetensors "
            "(exported files are for evaluate, predict and benchmark)"
        )
    if path.is_dir():
        return _checked_folder(path)
    if str(source).startswith((".", "/", "~")) or str(source).count("/") != 1 or path.parent.is_dir():
        raise UserError(f"{source}: no such folder; give a folder with config.json and model.safetensors, or a hub id")
    return None


def _checked_folder(folder: Path) -> list[list[int]] | None:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json; give a folder that save_pretrained or leandetr wrote")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{folder}/config.json has no model_type; give a folder that save_pretrained or leandetr wrote")
    if str(config["model_type"]) not in FAMILIES:
        raise UserError(f"{folder}/config.json: {unknown('detector family', str(config['model_type']), FAMILIES)}")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and not _is_pickled(folder):
        pickled = next((file.name for file in folder.iterdir() if file.suffix in PICKLES), None)
        found = f"only the pickle {pickled}, which can run code when it is read" if pickled else "no model.safetensors"
        raise UserError(f"{folder} has {found}; save the model with save_pretrained, which writes safetensors")
    if not weights:
        return None
    shapes = _shapes(weights)
    check_layers(folder, config, len(shapes))
    return shapes


def _shapes(files: Iterable[Path]) -> list[list[int]]:
    """Of every tensor in safetensors files, by their heads."""
    found = []
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                names = opened.keys()
                found += [opened.get_slice(name).get_shape() for name in names]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is truncated or no safetensors file; save or copy it again") from error
    return found


def _is_of_folder(file: Path) -> bool:
    """Whether it is the weights of a saved folder, those that are read where the folder is named."""
    folder = file.parent
    own = "pytorch_model.bin" if _is_pickled(folder) else "model.safetensors"
    return file.name == own and file.is_file() and (folder / "config.json").is_file()


def _model_type(folder: Path) -> str:
    config = read_json(folder / "config.json")
    return str(config.get("model_type")) if isinstance(config, dict) else ""


def _is_pickled(folder: Path) -> bool:
    """Whether its weights are those that older versions of transformers saved, and no others."""
    names = ("pytorch_model.bin", "pytorch_model.bin.index.json")
    return not any(folder.glob("*.safetensors")) and any((folder / name).is_file() for name in names)
