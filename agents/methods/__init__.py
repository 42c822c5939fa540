"""Methods: what acts on the networks after an optimizer's step, by name."""

from upgd_ppo.agents.methods.acting import Methods, make_methods
from upgd_ppo.agents.methods.method import Method, Networks, State
from upgd_ppo.agents.methods.registry import get, make, names

__all__ = ["Method", "Methods", "Networks", "State", "get", "make", "make_methods", "names"]
