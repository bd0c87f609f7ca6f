"""The steps of a search besides a recipe's: what a teacher is cut to, and what that takes and finds on other photographs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leandetr import verbs
from leandetr.data.halves import halves
from leandetr.deployment.benchmark import environment, measure
from leandetr.deployment.budget import Budget
from leandetr.deployment.latency import REPEATS
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.trim import in_order, trim
from leandetr.distillation.spec import Distillation, Teaching
from leandetr.errors import OutOfReach
from leandetr.files import claim_folder, read_json, write_json, writing
from leandetr.pruning import Pruning
from leandetr.quantization.config import Static
from leandetr.runs.ledger import TRAINING, Made, inherited
from leandetr.runs.steps import Steps, millions
from leandetr.training.config import Training

REPORTING = "reporting"  # the half of the validation photographs that chooses nothing


class SearchSteps(Steps):
    """Steps over data whose `val` is one half of the validation photographs, on which detectors are chosen; the other half,
    `reporting`, is for the chosen one."""

    def prepare(self) -> None:
        super().prepare()
        choosing, reporting = halves(self.split("val"))
        self.data = {"train": self.split("train"), "val": choosing, REPORTING: reporting}
        self.data_key, self.data_state = f"{self.data_key} in halves", verbs.state_of(self.data)

    def timed(self, name: str, artefact: Made, reference: Made, engine: str) -> dict[str, Any]:
        """The `Measurement` of an exported file, in turn with the reference, which its speed-up is over."""
        file = self.out / "latency" / f"{name}.json"

        def work() -> str:
            runtimes = [open_runtime(path, engine=engine) for path in dict.fromkeys((reference.path, artefact.path))]
            found = measure(runtimes, self.split("val"), REPEATS)[-1]
            write_json(file, {"environment": environment(), "measurement": found})
            return f"{found['latency_ms']:.2f} ms, {found['speedup']:.2f} times as fast"

        made_from, state = [artefact.key, reference.key, engine], inherited(artefact=artefact, reference=reference)
        self.ledger.step(f"time-{name}", made_from, state, file, work, "measurement")
        return read_json(file)

    def cut(self, name: str, whole: Made, trimming: Made, point: Mapping[str, Any]) -> Made:
        """The detector of one point of a trimming's frontier."""
        folder = self.out / name

        def work() -> str:
            detector, order = load(whole.path), read_json(trimming.path / "frontier.json")["order"]
            size = point["size"] if isinstance(point["size"], int) else tuple(point["size"])
            claim_folder(folder, ["cut", whole.path, dict(point)])
            if order is not None:
                detector = in_order(detector, order)
            detector = trim(detector, point["layers"], point["queries"], size)
            detector.save(folder)
            return f"{point['layers']} layers and {point['queries']} queries, {millions(detector)}"

        shape = [point[part] for part in ("layers", "queries", "size")]
        return self._detector(name, [trimming.key, shape], inherited(whole=whole, trimming=trimming), work, "copy")

    def pruned_to(self, name: str, whole: Made, pruning: Pruning) -> Made | str:
        """A pruned detector, or in a sentence why there is none."""
        folder, said = self.out / name, self.out / name / "pruning.json"

        def work() -> str:
            try:
                _, found = verbs.prune(whole.path, self.data, folder, pruning)
            except OutOfReach as refused:
                claim_folder(folder, ["prune", whole.path, str(refused)])
                write_json(said, {"refused": str(refused)})
                return str(refused)
            gone = 1 - found["multiply_adds"]["after"] / found["multiply_adds"]["before"]
            return f"{gone:.1%} of multiply-adds left out"

        state = self.data_state | inherited(whole=whole)
        made = self.ledger.step(name, [whole.key, pruning.model_dump()], state, said, work, "pruning")
        return read_json(said).get("refused") or made._replace(path=folder)

    def recovered(self, name: str, cut: Made, teacher: Made, distillation: Distillation, training: Training) -> Made:
        """A cut detector trained further, from the teacher."""
        folder = self.out / name

        def work() -> str:
            teaching = Teaching(teacher=teacher.path, **dict(distillation))
            verbs.distill(self.data, teaching, cut.path, folder, training, self.ledger.until)
            return f"{training.epochs} epochs with {distillation.method}"

        made_from = [self.data_key, cut.key, teacher.key, distillation.model_dump(), training.model_dump()]
        state = self.data_state | inherited(cut=cut, teacher=teacher)
        return self._detector(name, made_from, state, work, TRAINING)

    def mixed(self, name: str, detector: Made, budget: Budget) -> Made:
        """A detector with as many layers in integers as a budget of AP allows."""
        folder = self.out / name

        def work() -> str:
            _, found = verbs.quantize_within(detector.path, self.data, Static(), folder, budget, self._calibration())
            integers = sum(layer["choice"] == "static" for layer in found["layers"])
            return f"{integers} of {len(found['layers'])} layers in integers"

        made_from = [detector.key, asdict(budget), self.recipe.calibration]
        return self._detector(name, made_from, self.data_state | inherited(detector=detector), work, "mixture")

    def chosen(self, name: str, exported: Made) -> Path:
        """A copy of the chosen file under a name that does not tell what it is."""
        file = self.out / "chosen.onnx"

        def work() -> str:
            with writing(file) as temporary:
                temporary.write_bytes(exported.path.read_bytes())
            return name

        self.ledger.step("chosen", [name, exported.key], inherited(exported=exported), file, work, "copy")
        return file
