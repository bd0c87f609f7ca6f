"""What detectors are called: plain data, so that the command line lists it without importing a library that builds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Model:
    """What a short name builds: a model of the family `model_type` on a backbone, by default this one, that differs from the
    family's own defaults by `changes`. `module` of `families/` is where the family is; one that `register` brought has none.
    `built_here`: transformers does not have it."""

    model_type: str
    backbone: str
    description: str
    module: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    built_here: bool = False


REFINE = {"with_box_refine": True}

MODELS: dict[str, Model] = {
    "detr": Model("detr", "resnet50", "DETR (Carion et al., ECCV 2020)", "detr"),
    "conditional_detr": Model("conditional_detr", "resnet50", "Conditional DETR (Meng et al., ICCV 2021)", "detr"),
    "deformable_detr": Model("deformable_detr", "resnet50", "Deformable DETR (Zhu et al., ICLR 2021)", "deformable_detr"),
    "deformable_detr_refine": Model(
        "deformable_detr", "resnet50", "Deformable DETR with iterative box refinement", "deformable_detr", REFINE
    ),
    "deformable_detr_two_stage": Model(
        "deformable_detr",
        "resnet50",
        "Deformable DETR with box refinement, its queries proposed by the encoder",
        "deformable_detr",
        REFINE | {"two_stage": True},
    ),
    "dab_detr": Model("dab-detr", "resnet50", "DAB-DETR (Liu et al., ICLR 2022)", "dab_detr"),
    "smca_detr": Model(
        "smca_detr", "resnet50", "SMCA-DETR, single scale (Gao et al., ICCV 2021)", "smca_detr", built_here=True
    ),
    "adamixer": Model("adamixer", "resnet50", "AdaMixer (Gao et al., CVPR 2022)", "adamixer", built_here=True),
    "swin_detr": Model(
        "swin_detr", "swin_tiny", "SwinDETR: DETR on the stages of a Swin (Lee et al.)", "swin_detr", built_here=True
    ),
    "rt_detr": Model("rt_detr", "rt_detr_resnet", "RT-DETR (Zhao et al., CVPR 2024)", "rt_detr"),
    "rt_detr_v2": Model("rt_detr_v2", "rt_detr_resnet", "RT-DETRv2 (Lv et al., 2024)", "rt_detr"),
    "d_fine": Model("d_fine", "hgnet_v2", "D-FINE (Peng et al., ICLR 2025)", "d_fine"),
    "deimv2": Model("deimv2", "hgnet_v2", "DEIMv2 (Huang et al., 2025)", "d_fine"),
    "lw_detr": Model("lw_detr", "lw_detr_vit", "LW-DETR (Chen et al., 2024)", "lw_detr", {"projector_scale_factors": (1.0,)}),
    "rf_detr": Model("rf_detr", "rf_detr_dinov2", "RF-DETR (Robinson et al., 2025)", "lw_detr"),
}

#: torchvision's detectors that can teach, as torchvision names them
TORCHVISION = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
)


def missing(name: str) -> bool:
    """Whether the installed transformers lacks the family of one of `MODELS`: it has no folder for it. Asking transformers
    itself would import torch."""
    if MODELS[name].built_here:
        return False
    spec, folder = find_spec("transformers"), MODELS[name].model_type.replace("-", "_")
    installed = (spec.submodule_search_locations if spec else None) or ()
    return not any(Path(place, "models", folder).is_dir() for place in installed)
