import pytest
import torch

from agents import compiled


@pytest.fixture(autouse=True)
def _one_thread():
    """As in training: tensors this small gain nothing from more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, params=["kernels", "operations"])
def _computed_by(request, monkeypatch):
    """Everything holds with the compiled kernels and without them."""
    if request.param == "operations":
        monkeypatch.setattr(compiled, "kernels", lambda: None)
    else:
        assert compiled.kernels()
