"""What detectors are called: plain data, so that the command line lists it without importing a library that builds them."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How a short name becomes a configuration: the family, its default backbone, how many of its last stages are used, and
    what differs from the family's own defaults."""

    model_type: str
    backbone: str
    stages: int
    description: str
    changes: tuple[tuple[str, Any], ...] = ()


MODELS: dict[str, Recipe] = {
    "detr": Recipe("detr", "resnet50", 1, "DETR (Carion et al., ECCV 2020)"),
    "conditional_detr": Recipe("conditional_detr", "resnet50", 1, "Conditional DETR (Meng et al., ICCV 2021)"),
    "deformable_detr": Recipe("deformable_detr", "resnet50", 3, "Deformable DETR (Zhu et al., ICLR 2021)"),
    "deformable_detr_refine": Recipe(
        "deformable_detr", "resnet50", 3, "Deformable DETR with iterative box refinement", (("with_box_refine", True),)
    ),
    "deformable_detr_two_stage": Recipe(
        "deformable_detr",
        "resnet50",
        3,
        "Deformable DETR with box refinement, its queries proposed by the encoder",
        (("with_box_refine", True), ("two_stage", True)),
    ),
    "dab_detr": Recipe("dab-detr", "resnet50", 1, "DAB-DETR (Liu et al., ICLR 2022)"),
    "smca_detr": Recipe("smca_detr", "resnet50", 1, "SMCA-DETR, single scale (Gao et al., ICCV 2021)"),
    "adamixer": Recipe("adamixer", "resnet50", 4, "AdaMixer (Gao et al., CVPR 2022)"),
    "swin_detr": Recipe("swin_detr", "swin_tiny", 3, "SwinDETR: DETR on the stages of a Swin (Lee et al.)"),
    "rt_detr": Recipe("rt_detr", "rt_detr_resnet", 3, "RT-DETR (Zhao et al., CVPR 2024)"),
    "rt_detr_v2": Recipe("rt_detr_v2", "rt_detr_resnet", 3, "RT-DETRv2 (Lv et al., 2024)"),
    "d_fine": Recipe("d_fine", "hgnet_v2", 3, "D-FINE (Peng et al., ICLR 2025)"),
    "deimv2": Recipe("deimv2", "hgnet_v2", 3, "DEIMv2 (Huang et al., 2025)"),
    "lw_detr": Recipe("lw_detr", "lw_detr_vit", 1, "LW-DETR (Chen et al., 2024)", (("projector_scale_factors", (1.0,)),)),
    "rf_detr": Recipe("rf_detr", "rf_detr_dinov2", 1, "RF-DETR (Robinson et al., 2025)"),
}

BUILT_HERE = ("smca_detr", "adamixer", "swin_detr")  # families that transformers does not have

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
    model_type = MODELS[name].model_type
    if model_type in BUILT_HERE:
        return False
    (installed,) = find_spec("transformers").submodule_search_locations
    return not Path(installed, "models", model_type.replace("-", "_")).is_dir()
