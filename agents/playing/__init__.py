"""Playing trained policies: episodes to score them by, and films of them."""

from upgd_ppo.agents.playing.episodes import Episodes, evaluation_seeds, make_env, play
from upgd_ppo.agents.playing.trained_policies import Policies, load_policies

__all__ = ["Episodes", "Policies", "evaluation_seeds", "load_policies", "make_env", "play"]
