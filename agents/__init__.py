"""PPO on populations of seeds, with pluggable optimizers."""
