"""PPO on populations of seeds, with pluggable optimizers."""

import os

# Have MKL give the same bits wherever a matrix lies in memory: without this a member's numbers
# depend on its place in the population when its sizes are no multiples of 16. It costs nothing
# measurable, and must be set before the first product.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
