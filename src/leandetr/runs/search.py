"""A run of a recipe with a goal: from the teacher to the file that the goal asks for.

What is cheap comes first, and what is dear only where something is left to gain:

1. the teacher as it is, on the engine; then in integers, which takes no training;
2. fewer decoder layers, queries and pixels as far as they cost nothing (`trimming/`), in integers;
3. smaller structures. What one takes is known before it is trained: it is cut, quantized, measured, and cut again where it
   takes too long. Two are made for every target, one by trimming alone, one by trimming half of the way (of the logarithms) and
   pruning the rest. The one that is more accurate before any training is trained first, from the teacher;
4. integers layer by layer, where all in integers lose what the goal keeps and the float detector does not.

Targets: where a latency is the goal, that one. Where a loss alone is, half the time of the fastest that keeps to it, and after
a structure that does not, the geometric mean of the two, until they are within `NEAR` of each other.

All is judged on one half of the validation photographs. Photographs of `train` would not do: the teacher was trained on them,
and knows them better than a detector that was cut and trained for a few epochs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leandetr.deployment.budget import Budget
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.trim import check_float
from leandetr.distillation.spec import Distillation
from leandetr.errors import UserError
from leandetr.files import read_json
from leandetr.pruning import Pruning
from leandetr.recipe import GoalRecipe, Model, Quantization
from leandetr.recipe.recipe import TEACHER
from leandetr.recipe.rows import from_outside
from leandetr.report.rows import surely_slower
from leandetr.runs.candidates import Candidate, asked
from leandetr.runs.checks import check_fit, check_names
from leandetr.runs.ledger import Made
from leandetr.runs.steps import millions
from leandetr.runs.structures import SearchSteps
from leandetr.training.callbacks import ap_by_epoch
from leandetr.training.trainer import Diverged
from leandetr.trimming.goal import TrimGoal

INTEGERS = Quantization(scheme="static")
NEAR = 1.2  # two latencies whose ratio is below are not worth a training between them
CLOSER = 0.98  # of what would just be in time: a measurement is a little off
SPENT = "the trainings of the recipe are spent"
SMALLEST = 0.001  # AP that a mixture is allowed at least


class Search:
    """The candidates of a goal, one after the other.

    Attributes:
        tried: so far, in order.
        left_out: sentences about what could not be tried.
        ended: why nothing more is tried; "" while it goes on.
    """

    def __init__(self, recipe: GoalRecipe, out: Path) -> None:
        if recipe.teacher.checkpoint is not None and from_outside(recipe.teacher):
            raise UserError(f"teacher: {recipe.teacher.checkpoint} is no detector that can be made smaller; give a checkpoint")
        self.recipe, self.goal, self.out = recipe, recipe.goal, out
        self.steps = SearchSteps(recipe, out)
        self.tried: list[Candidate] = []
        self.left_out: list[str] = []
        self.ended = ""
        check_names([recipe.teacher, self._student()], [], None)
        self.training = recipe.training.model_copy(update={"seed": recipe.seed})

    def go(self) -> Iterator[Candidate]:
        """Every candidate as soon as it is known. Raises OutOfTime in place of the first step that there is no time for."""
        self.steps.prepare()
        self.steps.rehearsed(self._rehearsal)
        made = self.steps.teacher(TEACHER, self.recipe.teacher, self.recipe.seed)
        yield from self._tried(TEACHER, made, "What everything is held against.")
        if self._over():
            return
        quick = self._quantized(made)
        yield from self._tried(quick.path.name, quick, "Integers take no training.")
        yield from self._mixed(made, self.tried[-1])
        if self._over():
            return
        yield from self._trimmed(made)
        if self._over():
            return
        yield from self._in_time() if self.goal.latency_ms is not None else self._ever_faster()

    @property
    def teacher(self) -> Candidate:
        return self.tried[0]

    @property
    def integers(self) -> bool:
        """Whether integers are of use on this engine: the teacher is not surely slower with them."""
        return not surely_slower(self.tried[1].measurement)

    @property
    def gain(self) -> float:
        """How much faster they make the teacher."""
        return self.tried[1].measurement["speedup"] if self.integers else 1.0

    # ------------------------------------------------------------------ stages

    def _trimmed(self, made: Made) -> Iterator[Candidate]:
        """What costs nothing."""
        goal = TrimGoal(max_ap_drop=self.goal.drop, engine=self.goal.engine)
        self.trimming = self.steps.trimmed("trimmed", made, goal)
        self.points = read_json(self.trimming.path / "frontier.json")
        chosen, full = self.points["chosen"], self.points["full"]
        if chosen == full:
            self.left_out.append("trimmed: no layer, query or pixel can leave without a loss")
            return
        why = f"Fewer layers, queries and pixels that cost at most {self.goal.drop:g} AP in float; no training."
        yield from self._settled(self.trimming, why)

    def _in_time(self) -> Iterator[Candidate]:
        """Structures that are as fast as the goal, trained in turn."""
        structures: list[tuple[Made, Candidate]] = []
        assert self.goal.latency_ms is not None
        yield from self._structures(self.goal.latency_ms, structures)
        for count, (made, _) in enumerate(structures):
            if self._over():
                return
            if count == self.goal.trainings:
                break
            yield from self._recovered(made)
        if not self._over():
            if not structures:
                self.ended = f"nothing was found that takes {self.goal.latency_ms:g} ms"
            elif len(structures) > self.goal.trainings:
                self.ended = SPENT
            else:
                self.ended = "every structure that is as fast has been trained"

    def _ever_faster(self) -> Iterator[Candidate]:
        """Structures of half the time, and between, trained until the next is not worth it."""
        failed, trainings = 0.0, 0
        while trainings < self.goal.trainings:
            fast = self.goal.choose(self.tried, self.teacher)[0].latency_ms
            if failed and fast < NEAR * failed:
                self.ended = f"{fast:.2f} ms keeps the accuracy and {failed:.2f} ms does not, which is near enough"
                return
            target = math.sqrt(fast * failed) if failed else fast / 2
            structures: list[tuple[Made, Candidate]] = []
            yield from self._structures(target, structures)
            if not structures:
                failed = target
            elif not any(self.goal.keeps(one, self.teacher) for _, one in structures):
                trainings += 1
                before = len(self.tried)
                yield from self._recovered(structures[0][0])
                new = self.tried[before:]
                if not any(self.goal.keeps(one, self.teacher) and one.latency_ms < fast for one in new):
                    failed = max(failed, structures[0][1].latency_ms)
        self.ended = SPENT

    def _structures(self, target: float, found: list[tuple[Made, Candidate]]) -> Iterator[Candidate]:
        """Untrained ones that take no more than the target, into `found`, the most accurate first."""
        for make in (self._cut_to, self._pruned_to):
            milliseconds = target * self.gain * self.points["full"]["latency_ms"] / self.teacher.latency_ms  # in float, then
            for _ in range(2):
                made = make(milliseconds)
                if made is None:
                    break
                why = f"Made for {target:.2f} ms: {self.steps.ledger.steps[made.path.name].summary}. Not trained yet."
                yield from self._tried(*self._final(made), why)
                one = self._called(self._final(made)[0])
                if one.latency_ms <= target:
                    found += [] if any(one is other for _, other in found) else [(made, one)]
                    break
                milliseconds *= CLOSER * target / one.latency_ms
        found.sort(key=lambda pair: -pair[1].ap)

    def _recovered(self, cut: Made) -> Iterator[Candidate]:
        """A structure after its training."""
        name = f"{cut.path.name}-trained"
        teacher, distillation = self.teacher.detector, self._teaching()
        try:
            made = self.steps.recovered(name, cut, teacher, distillation, self.training)
        except Diverged as error:
            self.left_out.append(f"{name}: {error}")
            return
        method = distillation.method
        yield from self._settled(made, f"{cut.path.name} was the most accurate left to train; {method} from the teacher.")

    def _settled(self, made: Made, why: str) -> Iterator[Candidate]:
        """In integers; where these lose more than is allowed the float detector, and where that does not, a mixture."""
        yield from self._tried(*self._final(made), why)
        quick = self._called(self._final(made)[0])
        if self.integers and not self.goal.keeps(quick, self.teacher):
            yield from self._tried(made.path.name, made, "In integers it loses more than is allowed; what it loses by itself.")
            yield from self._mixed(made, quick)

    def _mixed(self, made: Made, quick: Candidate) -> Iterator[Candidate]:
        """Integers layer by layer, where that may help: the float detector keeps what all in integers do not."""
        whole = self._called(made.path.name)
        if not self.integers or self.goal.keeps(quick, self.teacher) or not self.goal.keeps(whole, self.teacher):
            return
        if not self.goal.in_time(quick):
            return
        left = max(SMALLEST, self.goal.drop - (self.teacher.ap - whole.ap))
        name = f"{made.path.name}-mixed"
        mixed = self.steps.mixed(name, made, Budget(max_ap_drop=round(left, 5), engine=self.goal.engine))
        yield from self._tried(
            name, mixed, "In float it loses no more than is allowed: as many layers in integers as that leaves."
        )

    # ------------------------------------------------------------------ pieces

    def _cut_to(self, milliseconds: float) -> Made | None:
        """The most accurate that trimming alone makes of a float latency."""
        point = self._point(0.0, milliseconds)
        if point is None:
            self.left_out.append(f"trimming alone: nothing takes {milliseconds:.2f} ms in float")
        return None if point is None else self._cut(point)

    def _pruned_to(self, milliseconds: float) -> Made | None:
        """Trimmed half of the way, and pruned for the rest."""
        start = self.points["chosen"]["latency_ms"]
        if start <= milliseconds:
            return None
        point = self._point(milliseconds, math.sqrt(start * milliseconds)) or self.points["chosen"]
        pruning = Pruning(target_latency_ms=round(milliseconds, 4), engine=self.goal.engine)
        name = f"{self._name(point)}-pruned-{milliseconds:.3g}ms"
        made = self.steps.pruned_to(name, self._cut(point), pruning)
        if isinstance(made, str):
            self.left_out.append(f"{name}: {made}")
            return None
        return made

    def _point(self, above: float, most: float) -> dict[str, Any] | None:
        """The most accurate point of the trimming that takes more than one latency and no more than another; the full one is
        none."""
        points = [point for point in self.points["points"] if above < point["latency_ms"] <= most]
        points = [point for point in points if self._name(point) != self._name(self.points["full"])]
        return max(points, key=lambda point: (point["ap"], -point["latency_ms"]), default=None)

    def _cut(self, point: dict[str, Any]) -> Made:
        if self._name(point) == self._name(self.points["chosen"]):
            return self.trimming
        return self.steps.cut(self._name(point), self.teacher.detector, self.trimming, point)

    def _name(self, point: dict[str, Any]) -> str:
        size = point["size"]
        pixels = str(size) if isinstance(size, int) else "x".join(map(str, size))
        return f"{point['layers']}-layers-{point['queries']}-queries-{pixels}"

    def _final(self, made: Made) -> tuple[str, Made]:
        """A detector as it would be deployed, and its name."""
        if not self.integers:
            return made.path.name, made
        quick = self._quantized(made)
        return quick.path.name, quick

    def _quantized(self, made: Made) -> Made:
        return self.steps.quantized(f"{made.path.name}-int8", made, INTEGERS, self.recipe.seed)

    def _tried(self, name: str, made: Made, why: str) -> Iterator[Candidate]:
        """A detector exported, evaluated and measured, once."""
        if any(one.name == name for one in self.tried):
            return
        engine, exported = self.goal.engine, self.steps.exported(made)
        opened = functools.partial(open_runtime, exported.path, engine=engine)
        metrics = self.steps.evaluated(made, engine, opened)
        reference = self.tried[0] if self.tried else None
        found = self.steps.timed(name, exported, reference.exported if reference else exported, engine)["measurement"]
        if reference is not None:
            took = reference.latency_ms / found["speedup"]  # whatever state the machine was in when the two were measured
            tail = found["latency_p90_ms"] * took / found["latency_ms"]
            found = found | {"latency_ms": took, "latency_p90_ms": tail}
        assert metrics is not None  # nothing is rehearsed
        metrics = metrics | {"curve": ap_by_epoch(made.path / "training")}
        self.tried.append(Candidate(name, made, exported, why, metrics, found))
        yield self.tried[-1]

    def _called(self, name: str) -> Candidate:
        return next(one for one in self.tried if one.name == name)

    def _over(self) -> bool:
        """Whether nothing more need be tried: something is in time and, where no loss was named, as good as the teacher."""
        goal = self.goal
        good = [one for one in self.tried if goal.in_time(one) and goal.keeps(one, self.teacher)]
        if goal.latency_ms is not None and good and not self.ended:
            self.ended = f"{good[0].name} meets the goal, {asked(goal)}"
            if goal.max_ap_drop is None:
                self.ended += f", and is within {goal.drop:g} AP of the teacher"
        return bool(self.ended)

    def _teaching(self) -> Distillation:
        if self.recipe.distillation is not None:
            return self.recipe.distillation
        family = self.steps.untrained(self.recipe.teacher).family
        return Distillation(method="fitnet" if family.queries_from_encoder else "detrdistill")

    def _student(self) -> Model:
        """What stands for all that is trained, before it is known."""
        return self.recipe.teacher.model_copy(update={"training": self.recipe.training})

    def _rehearsal(self) -> str:
        detector = self.steps.untrained(self.recipe.teacher)
        check_float(detector, str(self.recipe.teacher.checkpoint or self.recipe.teacher.model), "compress")
        check_fit(self.steps.untrained(self.recipe.teacher), detector, self._teaching(), [INTEGERS])
        return f"the recipe fits: a teacher with {millions(detector)}, {self._teaching().method} from it"
