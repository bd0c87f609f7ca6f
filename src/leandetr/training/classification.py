"""Pre-training of a backbone as a classifier, so that a detector need not start from random features.

The backbone's last map is averaged over its cells, and one linear layer says which class the image is of. Only the backbone is
kept: `backbone.safetensors`, which a new detector takes as its `weights`. It can be trained while its layers round to few bits,
for a detector that will be quantized: the first step of Q-DETR.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset
from transformers import AutoBackbone, TrainerCallback

from leandetr.data.batches import Loader
from leandetr.data.classification import ClassificationDataset
from leandetr.detectors.backbones import Backbone, describe_backbone
from leandetr.detectors.families.registry import FAMILIES
from leandetr.detectors.spec import NewBackbone
from leandetr.errors import UserError
from leandetr.files import write_json, writing_files
from leandetr.processes import gathered, share
from leandetr.training.config import Training
from leandetr.training.fit import forget_checkpoints, run
from leandetr.training.trainer import AveragingTrainer

STAGES = 4  # of strides 4 to 32: those that detectors take their maps from
SMOOTHING = 0.1  # of the labels (Szegedy et al., CVPR 2016)
WEIGHTS, RESULT = "backbone.safetensors", "pretraining.json"


@dataclass
class ClassifierOutput:
    """logits (B, K), and the loss where labels were given."""

    logits: Tensor
    loss: Tensor | None = None


class Classifier(nn.Module):
    """A backbone with a linear layer on the mean of its last map.

    Args:
        described: the backbone.
        names: the K classes.
    """

    def __init__(self, described: Backbone, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.backbone = AutoBackbone.from_config(config=described.config)
        self.head = nn.Linear(described.channels[-1], len(names))
        self.float_names = list(self.backbone.state_dict())  # without the grids that low-bit training adds

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ClassifierOutput:
        """pixel_values (B, 3, H, W), labels (B,) int64."""
        logits = self.head(self.backbone(pixel_values).feature_maps[-1].mean((2, 3))).float()
        return ClassifierOutput(logits, None if labels is None else F.cross_entropy(logits, labels, label_smoothing=SMOOTHING))

    def save(self, folder: Path) -> None:
        """Write the backbone's float weights."""
        state = self.backbone.state_dict()
        state = {name: state[name].detach().contiguous() for name in self.float_names}
        with writing_files(Path(folder), last=WEIGHTS) as temporary:
            save_file(state, temporary / WEIGHTS)


class ClassificationTrainer(AveragingTrainer):
    """Trains a `Classifier`; the best backbone by top-1 on the validation images is in `best` under the output folder."""

    metric = "top1"
    kept: Classifier

    def __init__(
        self,
        classifier: Classifier,
        train: ClassificationDataset,
        val: ClassificationDataset,
        config: Training,
        output: Path,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        super().__init__(classifier, classifier, train, val, config, output, callbacks)
        self.args.dataloader_drop_last = len(train) > config.batch_size  # a batch of one image has no statistics

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The share of the validation images whose likeliest class is theirs."""
        training, device, correct = self.kept.training, self.args.device, 0
        self.kept.eval()
        workers, own = self.config.loader_workers(), share(range(len(self.eval_dataset)))
        for batch in Loader(Subset(self.eval_dataset, own), self.config.batch_size, workers, device):
            logits = self.kept(batch["pixel_values"]).logits
            correct += int((logits.argmax(-1).cpu() == batch["labels"]).sum())
        self.kept.train(training)
        return {"top1": sum(gathered(correct)) / len(self.eval_dataset)}


def describe(backbone: NewBackbone) -> Backbone:
    """Any backbone whose weights `create` takes: of timm or transformers, or a family's own.

    Raises UserError for an unknown name or key, with the nearest one, and for a backbone that has no weights of its own.
    """
    name = backbone.name
    for model_type, family in FAMILIES.items():
        if name in family.own_backbones:
            if family.one_backbone:
                raise UserError(f"backbone {name}: that of {model_type} cannot be pretrained here; name another backbone")
            stages = {"out_features": [f"stage{number}" for number in range(1, STAGES + 1)]}
            return family.describe_backbone(name, backbone.image_size, False, stages | backbone.set)
    return describe_backbone(name, STAGES, frozen_norm=False, overrides=backbone.set)


def pretrain(
    classifier: Classifier,
    train: ClassificationDataset,
    val: ClassificationDataset,
    config: Training,
    output: Path,
    title: str,
) -> float:
    """Train a classifier, go on where an earlier call was killed, and return its best top-1 in [0, 1].

    Args:
        classifier: with random weights, pre-trained ones, or layers that round to few bits.
        train, val: the images.
        output: gets `backbone.safetensors`, written last, and `pretraining.json`.
        title: said beside the progress bar.
    """
    folder = output / "training"
    trainer = run(
        lambda callbacks: ClassificationTrainer(classifier, train, val, config, folder, callbacks), train, config, folder, title
    )
    top1 = float(cast(float, trainer.state.best_metric))  # the end is evaluated
    if trainer.args.should_save:
        with writing_files(output, last=WEIGHTS) as temporary:
            shutil.copy(folder / "best" / WEIGHTS, temporary)
            config_of = classifier.backbone.config.to_diff_dict()
            write_json(temporary / RESULT, {"top1": top1, "classes": len(train.names), "backbone_config": config_of})
        forget_checkpoints(folder)
    trainer.accelerator.wait_for_everyone()
    return top1
