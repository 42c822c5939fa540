"""Every variant of the family, for the tests that hold for all of them."""

from upgd_ppo.agents.optimizers import PGD, UPGD, AdaptiveUPGD, FeatureUPGD, ShrinkAndPerturb

VARIANTS = {
    "pgd": (PGD, {}),
    "shrink_and_perturb": (ShrinkAndPerturb, {}),
    "published_snippet": (UPGD, {"step_scale": 2.0}),
    "corrected_denominator": (AdaptiveUPGD, {"corrected_denominator": True}),
    "cauchy": (UPGD, {"noise": "cauchy", "noise_clip": 5.0}),
    "maximize": (AdaptiveUPGD, {"maximize": True}),
}
for cls in (UPGD, AdaptiveUPGD, FeatureUPGD):
    for order in ("first", "second"):
        for scope in ("global", "local"):
            for protecting in (True, False):
                name = f"{cls.__name__}_{order}_{scope}_{protecting}"
                VARIANTS[name] = (
                    cls,
                    {"order": order, "scope": scope, "protecting": protecting},
                )
