"""What cannot be done is refused in the rehearsal, before anything is trained."""

import pytest

from leandetr.distillation.spec import Distillation
from leandetr.errors import UserError
from leandetr.runs.checks import check_fit


def test_a_cache_that_cannot_hold_what_a_method_asks_is_refused(tiny_detector):
    student, teacher = tiny_detector("detr"), tiny_detector("detr")
    check_fit(student, teacher, Distillation(method="fitnet", cache="answers"), [])
    with pytest.raises(UserError, match=r"the kd-detr term asks the teacher's memory in every step, .* leave out the cache"):
        check_fit(student, teacher, Distillation(method="kd-detr", cache="answers"), [])
