"""`transformers.Trainer` for detectors: our optimiser groups, schedule, averaged weights, evaluation and checkpoints."""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Subset
from transformers import PrinterCallback, Trainer, TrainingArguments

from leandetr.data.coco import CocoDataset, collate
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.evaluation.coco import evaluate_results, predict_dataset
from leandetr.files import errors_of_writing
from leandetr.training.callbacks import KeepEpochs, UpdateAverage
from leandetr.training.config import Training
from leandetr.training.ema import MovingAverage

COMPLETE = "complete"  # written last into a checkpoint, so that a killed save is never resumed from
SLOW_NAMES = ("reference_points", "sampling_offsets")  # Deformable DETR trains these ten times slower


class DetectionTrainer(Trainer):
    """Trains a `Detector`, or anything with a `student` detector whose forward takes a batch and returns an object with `loss`
    (and `logs`, a mapping of detached scalars).

    With N processes the gradients are averaged and every family's loss is divided by the processes' mean number of boxes, so
    that they learn what one process learns from the same global batch, but for two things that look at a process's own images
    alone: the class weights of DETR's softmax loss (where the numbers of boxes differ) and the statistics of BatchNorm, which
    are not synchronised (RT-DETR).

    The best detector by AP is in `best` under the output folder, and is what `fit` returns; those of `config.keep_epochs` are
    beside it.
    """

    def __init__(
        self, module: nn.Module, train: CocoDataset, val: CocoDataset, config: Training, output: Path, callbacks
    ) -> None:
        self.config = config
        self.detector: Detector = getattr(module, "student", module)
        self.average = MovingAverage(self.detector, config.ema) if config.ema else None
        self._logged: dict[str, list[Tensor]] = defaultdict(list)
        averaging = [UpdateAverage(self.average)] if self.average else []
        keeping = KeepEpochs(self.detector, self.average, config.keep_epochs, output)
        super().__init__(
            model=module,
            args=_arguments(config, output, len(train)),
            train_dataset=train,
            eval_dataset=val,
            data_collator=collate,
            callbacks=[*callbacks, *averaging, keeping],
        )
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None):
        output = model(**inputs)
        for name, value in getattr(output, "logs", {}).items():
            self._logged[name].append(value)
        return (output.loss, output) if return_outputs else output.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {name: torch.stack(values).mean().item() for name, values in self._logged.items()}
            self._logged.clear()
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; a smaller rate for the backbone and for sampling points, no weight decay for norms and biases."""
        backbone = {id(parameter) for parameter in self.detector.family.backbone(self.detector.model).parameters()}
        groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in (model or self.model).named_parameters():
            if parameter.requires_grad:
                slow = any(part in name for part in SLOW_NAMES)
                rate = self.config.backbone_lr if id(parameter) in backbone else 0.1 if slow else 1.0
                groups[rate, self.config.weight_decay if parameter.ndim > 1 else 0.0].append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": p, "lr": self.config.lr * rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: self.config.factor(step, num_training_steps))
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """COCO's numbers of the averaged weights on the validation images, shared among the processes; keeps the best."""
        with self.average.applied() if self.average else nullcontext():
            return self._evaluate_and_keep()

    def _evaluate_and_keep(self) -> dict[str, float]:
        dataset, rank, world = self.eval_dataset, self.args.process_index, self.args.world_size
        shard = Subset(dataset, range(rank, len(dataset), world)) if world > 1 else dataset
        state = random.getstate(), torch.get_rng_state()
        results = predict_dataset(self.detector.predict, shard, dataset.class_map, batch_size=self.config.batch_size)
        random.setstate(state[0])
        torch.set_rng_state(state[1])  # whether and when one evaluates does not change the training
        if world > 1:
            gathered: list[Any] = [None] * world
            torch.distributed.all_gather_object(gathered, results)
            results = [row for part in gathered for row in part]
        metrics = evaluate_results(dataset.ground_truth(), results)
        logs = {f"eval_{name}": value for name, value in metrics.as_dict().items()}
        if self.state.best_metric is None or metrics.ap > self.state.best_metric:
            self.state.best_metric = metrics.ap
            if self.args.should_save:
                self.detector.save(Path(self.args.output_dir) / "best")
        self.log(logs)
        return logs

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(folder / "training.safetensors"))
        if self.average is not None:
            save_file({k: v.contiguous() for k, v in self.average.state().items()}, folder / "average.safetensors")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The older checkpoint goes when the new one is whole. UserError where the disk is full."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with errors_of_writing(folder):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # every process adds the state of its random generators
            if self.args.should_save:
                (folder / COMPLETE).touch()
                for older in set(folder.parent.glob("checkpoint-*")) - {folder}:
                    shutil.rmtree(older)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_model(model or self.model, folder / "training.safetensors")
        if self.average is not None:
            self.average.load(load_file(folder / "average.safetensors"))


def last_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint that was written whole; those that a kill left half-written are removed."""
    found = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    whole = [path for path in found if (path / COMPLETE).exists()]
    for path in set(found) - set(whole):
        shutil.rmtree(path, ignore_errors=True)  # the other processes of a distributed training remove them too
    return whole[-1] if whole else None


def _arguments(config: Training, output: Path, images: int) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if cuda and torch.cuda.is_bf16_supported() else "float32"
    if precision == "float16" and not cuda:
        raise UserError("training.precision: float16 needs a GPU; set it to auto, which takes what the machine has")
    steps = max(1, images // (config.batch_size * config.accumulate))
    return TrainingArguments(
        output_dir=str(output),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        max_grad_norm=config.clip,
        learning_rate=config.lr,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=not cuda,
        seed=config.seed,
        logging_steps=max(1, min(50, steps // 4)),
        save_strategy="epoch",
        disable_tqdm=True,
        report_to=["tensorboard"] if config.tensorboard else [],
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=config.loader_workers(),
        dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=True,  # denoising parts have no gradient on a rank whose images hold no objects
        log_level="error",
    )
