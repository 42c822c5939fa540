import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """As in training: tensors this small gain nothing from more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _computed_by(computed_by):
    """Every test of these holds both ways."""
