"""The Stable-Baselines3 plug-in."""

from agents.sb3.policies import UPGDCnnPolicy, UPGDMultiInputPolicy, UPGDPolicy, register_aliases

__all__ = ["UPGDCnnPolicy", "UPGDMultiInputPolicy", "UPGDPolicy"]

register_aliases()
