"""A tiny detector behind the application, in this process."""

import pytest
import torch

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -e '.[serve]'")

from starlette.testclient import TestClient

from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.serving.app import application
from leandetr.serving.limits import ServerLimits


@pytest.fixture
def detector(tiny_detector):
    """Which finds twelve objects on every photograph."""
    detector = tiny_detector("detr", backbone="test_resnet")
    with torch.no_grad():  # as they start, all queries look alike
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return detector


@pytest.fixture
def runtime(detector):
    return PyTorchRuntime(detector, "tiny")


@pytest.fixture
def serve(runtime):
    """serve(batch=2) -> a client of the application with those limits; threads may share it."""
    clients = []

    def start(threshold=0.0, runtime=runtime, **limits):
        clients.append(TestClient(application(runtime, threshold, ServerLimits(**limits))).__enter__())
        return clients[-1]

    yield start
    for client in clients:
        client.__exit__(None, None, None)
