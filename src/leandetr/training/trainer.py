"""`transformers.Trainer` for detectors and backbones: optimiser groups, schedule, averaged weights, evaluation, checkpoints."""

from __future__ import annotations

import math
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from leandetr.data.batches import Packed, Stored, pack, unpack
from leandetr.data.classification import ClassificationDataset
from leandetr.data.coco import CocoDataset
from leandetr.detectors.attention import leave_out_cudnn_attention
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.evaluation.coco import evaluate_results, predict_together
from leandetr.files import errors_of_writing
from leandetr.losses.at_once import matching_at_once
from leandetr.training import layer_decay
from leandetr.training.callbacks import KeepEpochs, UpdateAverage
from leandetr.training.compiler import check_compiler
from leandetr.training.config import Training
from leandetr.training.diverged import Diverged, diverged
from leandetr.training.ema import MovingAverage
from leandetr.training.precision import keep_boxes_precise, products_in_tf32
from leandetr.training.recomputed import recompute_blocks
from leandetr.training.synchronised import synchronise

COMPLETE = "complete"  # written last into a checkpoint, so that a killed save is never resumed from
WATCHED_STEPS = 10  # whose gradients are looked at before they move a weight


class AveragingTrainer(Trainer):
    """Trains a module whose forward takes a batch and returns an object with `loss` (and `logs`, a mapping of detached
    scalars), keeps a moving average of its weights, and can be killed at any time and go on.

    Args:
        module: what is trained.
        kept: the part of it that is averaged, measured and, where it is the best, saved in `best` under the output folder.
        train, val: the images.
        output: folder of checkpoints and of the best.
    """

    #: of what `measure` returns, the number that says what is best
    metric: ClassVar[str]
    model: nn.Module
    kept: Any  # a module with `save(folder)`
    eval_dataset: CocoDataset | ClassificationDataset

    def __init__(
        self,
        module: nn.Module,
        kept: nn.Module,
        train: CocoDataset | ClassificationDataset,
        val: CocoDataset | ClassificationDataset,
        config: Training,
        output: Path,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self.config = config
        self.preprocessing = train.preprocessing
        self.output = output
        self.kept = kept
        if config.sync_batchnorm:
            synchronise(module)
        self.average = MovingAverage(kept, config.ema) if config.ema else None
        self._logged: dict[str, list[Tensor]] = defaultdict(list)
        self._batches: list[dict[str, Any]] = []  # of the step that is being computed
        self._norm: Tensor | None = None  # of the last step's gradient
        self._updates = 0
        leave_out_cudnn_attention()  # a backbone alone has attention too
        if torch.cuda.is_available():
            module.to(memory_format=torch.channels_last)  # cuDNN's fastest layout of convolutions
            os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")  # each of its checks waits for the device
        super().__init__(
            model=module,
            args=_arguments(config, output, len(train)),
            train_dataset=Stored(train),
            eval_dataset=val,
            data_collator=cast(Any, pack),
            callbacks=[*callbacks, *([UpdateAverage(self.average)] if self.average else [])],
        )
        self._watches_on = self.args.device.type == "cpu"
        self.remove_callback(PrinterCallback)

    def measure(self) -> dict[str, float]:
        """Numbers of the kept part on the validation images, shared among the processes."""
        raise NotImplementedError

    def rate_of(self, name: str, parameter: nn.Parameter) -> float:
        """A parameter's learning rate, as a factor on the schedule's."""
        return 1.0

    def get_train_dataloader(self) -> DataLoader:
        """Its workers are begun anew in a training that goes on, and draw a seed that nothing here uses: not from the generator
        that dropout and denoising draw from, whose state a checkpoint holds."""
        loader: Any = super().get_train_dataloader()  # accelerate's
        if loader.num_workers:
            loader.base_dataloader.generator = torch.Generator()
        return loader

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the workers packed, moved to the device and made a batch there."""
        return cast(dict[str, Any], unpack(cast(Packed, super()._prepare_inputs(inputs)), self.preprocessing))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """In single precision on a GPU matrices are multiplied in TF32; what is evaluated is computed in full."""
        single = not (self.args.bf16 or self.args.fp16) and self.args.device.type == "cuda"
        with products_in_tf32() if single else nullcontext():
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self._batches.append(inputs)
        try:
            with matching_at_once():
                output = model(**inputs)
        except ValueError as error:
            if "boxes1 must be in" in str(error) or "invalid numeric entries" in str(error):  # the losses' words for NaN
                raise self._diverged() from error
            raise
        if self._watches and not torch.isfinite(output.loss):
            raise self._diverged()
        for name, value in getattr(output, "logs", {}).items():
            self._logged[name].append(value)
        return (output.loss, output) if return_outputs else output.loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Gradients that are not finite move no weight while steps are watched. In float16 such steps are usual, and the scaler
        leaves them out."""
        self._norm = super()._clip_grad_norm(model)
        if self._watches and not self.args.fp16 and not torch.isfinite(self._norm):
            raise self._diverged("gradient")
        self._updates += 1
        self._batches.clear()
        return self._norm

    @property
    def _watches(self) -> bool:
        """Whether loss and gradient are looked at in this step: in the first ones, where a kernel or a precision that does not
        suit shows itself, and at any time on a CPU. To ask a GPU in every step would keep it waiting; later the loss is looked
        at where it is logged."""
        return self._watches_on or self._updates < WATCHED_STEPS

    def _diverged(self, what: str = "loss") -> Diverged:
        """Of the step that is being computed, or of the last one, where that has left gradients that are not finite or is
        being evaluated."""
        step, half = self.state.global_step + bool(self._batches), self.args.bf16 or self.args.fp16
        if what == "loss" and self._norm is not None and not torch.isfinite(self._norm) and not self.args.fp16:
            what, step = "gradient", self.state.global_step
        return diverged(self.model, self._batches, step, what, again=self.args.world_size == 1, half=half)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise self._diverged()
            logs |= {name: torch.stack(values).mean().item() for name, values in self._logged.items()}
            self._logged.clear()
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with the rates of `rate_of`, no weight decay for norms, biases and grids. A grid's parameters are what modules
        call so: their `parameter_groups()`, where they have it, gives {"grid": parameters}."""
        model = model or self.model
        offered: list[dict[str, Iterable[nn.Parameter]]] = [
            cast(Any, module).parameter_groups() for module in model.modules() if hasattr(module, "parameter_groups")
        ]
        grids = {parameter for found in offered for parameter in found.get("grid", ())}
        groups: dict[tuple[float, float, bool], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                decay = self.config.weight_decay if parameter.ndim > 1 else 0.0
                grid = parameter in grids
                groups[self.config.grid_lr if grid else self.rate_of(name, parameter), decay, grid].append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": parameters, "lr": self.config.lr * rate, "weight_decay": decay, "grid": grid}
                for (rate, decay, grid), parameters in groups.items()
            ],
            fused=self.args.device.type == "cuda",
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        optimizer = optimizer or cast(torch.optim.Optimizer, self.optimizer)  # which comes first
        frozen = self.config.grid_frozen * num_training_steps

        def factor(step: int) -> float:
            return self.config.factor(step, num_training_steps)

        def factor_of_grids(step: int) -> float:
            return 0.0 if step < frozen else factor(step)

        factors: list[Callable[[int], float]] = [
            factor_of_grids if group["grid"] else factor for group in optimizer.param_groups
        ]
        self.lr_scheduler = LambdaLR(optimizer, factors)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measures the averaged weights and keeps the best."""
        state = random.getstate(), torch.get_rng_state()
        with self.average.applied() if self.average else nullcontext():
            found = self.measure()
            random.setstate(state[0])
            torch.set_rng_state(state[1])  # whether and when one evaluates does not change the training
            if self.state.best_metric is None or found[self.metric] > self.state.best_metric:
                self.state.best_metric = found[self.metric]
                if self.args.should_save:
                    self.kept.save(self.output / "best")
        logs = {f"eval_{name}": value for name, value in found.items()}
        self.log(logs)
        return logs

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.output)
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(folder / "training.safetensors"))
        if self.average is not None:
            save_file({k: v.contiguous() for k, v in self.average.state().items()}, folder / "average.safetensors")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The older checkpoint goes when the new one is whole. UserError where the disk is full."""
        folder = self.output / f"checkpoint-{self.state.global_step}"
        with errors_of_writing(folder):
            (folder / COMPLETE).unlink(missing_ok=True)  # by every process before it writes
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


class DetectionTrainer(AveragingTrainer):
    """Trains a `Detector`, or anything with a `student` detector.

    With N processes the gradients are averaged and every family's loss is divided by the processes' mean number of boxes, so
    that they learn what one process learns from the same global batch, but for two things that look at a process's own images
    alone: the class weights of DETR's softmax loss (where the numbers of boxes differ) and the statistics of BatchNorm, in
    RT-DETR, unless `sync_batchnorm` is set.

    The best detector by AP is what `fit` returns; those of `config.keep_epochs` are beside it.
    """

    metric = "ap"
    eval_dataset: CocoDataset

    def __init__(
        self,
        module: nn.Module,
        train: CocoDataset,
        val: CocoDataset,
        config: Training,
        output: Path,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        trained: Any = module
        self.detector: Detector = getattr(trained, "student", trained)
        backbone = dict(self.detector.family.backbone(self.detector.model).named_parameters())
        decays = layer_decay.factors(list(backbone), config.layer_decay or 1.0)
        self._backbone_rates = {parameter: config.backbone_lr * decays[name] for name, parameter in backbone.items()}
        super().__init__(module, self.detector, train, val, config, output, callbacks)
        if (average := self.average) is not None and hasattr(trained, "follow"):
            trained.follow(lambda: average.shadow, lambda: self.state.global_step / max(1, self.state.max_steps))
        if self.args.bf16 or self.args.fp16:
            keep_boxes_precise(self.detector)
        if config.compile:
            check_compiler(self.args.device)
            self.detector.family.backbone(self.detector.model).compile()
        if config.gradient_checkpointing:
            recompute_blocks(self.detector)
        self.add_callback(KeepEpochs(self.detector, self.average, config.keep_epochs, output))

    def rate_of(self, name: str, parameter: nn.Parameter) -> float:
        """Smaller for the backbone, by its layers too, and for sampling points."""
        if parameter in self._backbone_rates:
            return self._backbone_rates[parameter]
        return 0.1 if any(part in name for part in self.detector.family.slow_layers) else 1.0

    def measure(self) -> dict[str, float]:
        """COCO's numbers."""
        truth = self.eval_dataset.ground_truth()
        size, workers, device = self.config.batch_size, self.config.loader_workers(), self.args.device
        results = predict_together(self.detector.predict, self.eval_dataset, size, workers, device=device)
        if not all(math.isfinite(number) for row in results for number in (*row["bbox"], row["score"])):
            raise self._diverged()
        return evaluate_results(truth, results).as_dict()


def last_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint that was written whole; those that a kill left half-written are removed."""
    found = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    whole = [path for path in found if (path / COMPLETE).exists()]
    for path in set(found) - set(whole):
        shutil.rmtree(path, ignore_errors=True)  # the other processes of a distributed training remove them too
    return whole[-1] if whole else None


def _arguments(config: Training, output: Path, images: int) -> TrainingArguments:
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError("FSDP cuts up the weights that the moving average and checkpoints need whole; launch without it")
    cuda = torch.cuda.is_available()
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if precision == "float16" and not cuda:
        raise UserError("training.precision: float16 needs a GPU; set it to auto, which takes what the machine has")
    steps = max(1, images // (config.batch_size * config.accumulate))
    arguments = TrainingArguments(
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
        logging_nan_inf_filter=False,  # such a loss ends the training
        save_strategy="epoch",
        disable_tqdm=True,
        report_to=["tensorboard"] if config.tensorboard else [],
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=config.loader_workers(),
        dataloader_pin_memory=cuda,
        dataloader_persistent_workers=config.loader_workers() > 0,
        accelerator_config={"non_blocking": cuda},
        ddp_find_unused_parameters=True,  # denoising parts have no gradient on a rank whose images hold no objects
        log_level="error",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # with more, Trainer takes nn.DataParallel, which no detector survives
    return arguments
