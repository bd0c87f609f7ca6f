"""A student that is pruned gradually: a training with several prunings becomes several trainings, each after a pruning."""

from __future__ import annotations

from leandetr.recipe import Model
from leandetr.runs.ledger import Made


def rounds_of(student: Model) -> list[Model]:
    """The student of each round, in order; it alone where it is pruned once or not at all.

    After round k of N the detector has 1 - ratio * k / N of the multiply-adds of the whole one. Every round has its share of
    the epochs (or steps), and the last one what is over, so that all take as long as one training; each has a schedule of its
    own.
    """
    pruning, training = student.prune, student.training
    if pruning is None or pruning.ratio is None or pruning.rounds == 1:
        return [student]
    rounds, ratio = pruning.rounds, pruning.ratio
    length = "epochs" if training.max_steps is None else "max_steps"
    whole = getattr(training, length)
    share, found = whole // rounds, []
    for number in range(rounds):
        before, after = (1 - ratio * done / rounds for done in (number, number + 1))
        last = number == rounds - 1
        part = training.model_copy(update={length: whole - share * (rounds - 1) if last else share})
        once = pruning.model_copy(update={"ratio": 1 - after / before, "rounds": 1})
        found.append(student.model_copy(update={"prune": once, "training": part}))
    return found


def going_on(made: Made | None, student: Model) -> Model:
    """A round's student, from what the round before it made."""
    return student if made is None else student.model_copy(update={"checkpoint": made.path, "set": {}, "queries": None})
