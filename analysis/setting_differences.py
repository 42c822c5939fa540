"""Do two arms differ in the optimizer alone?"""

from collections.abc import Iterator

from upgd_ppo.analysis.arm import Arm

IGNORED_PREFIXES = ("opt", "optimizer", "methods", "warn")
"""`opt`, `opt_kwargs`, `optimizer_…`, `methods`: what arms are meant to differ in; `warn_…`: when
to warn."""
BOOKKEEPING = frozenset(
    [
        *("seed", "seeds", "out", "device", "threads", "log_every", "print_every"),
        *("checkpoint_every", "keep_checkpoints"),
        *("statistics_every", "histograms_every", "probe_every", "tensorboard"),
    ]
)
"""Settings of train.py that do not change what a seed learns."""
CLEANRL_BOOKKEEPING = frozenset(
    [
        *("exp_name", "torch_deterministic", "cuda", "track", "wandb_project_name"),
        *("wandb_entity", "capture_video", "save_model", "upload_model", "hf_entity"),
    ]
)
"""The same of CleanRL's."""


def setting_differences(first: Arm, second: Arm) -> tuple[str, ...]:
    """The settings beyond the optimizer's in which two arms differ, each as a phrase.

    Arms whose logs do not record their settings differ in nothing that is known.
    """
    ours, theirs = first.settings, second.settings
    if ours is None or theirs is None:
        return ()
    annealed = ours.get("anneal") or theirs.get("anneal")
    return tuple(
        f"{name} ({ours.get(name, 'not set')} and {theirs.get(name, 'not set')})"
        for name in sorted(ours.keys() | theirs.keys())
        if _matters(name, bool(annealed)) and ours.get(name) != theirs.get(name)
    )


def _matters(name: str, annealed: bool) -> bool:
    if name == "steps":  # without annealing a longer run begins like a shorter one
        return annealed
    if name in BOOKKEEPING or name in CLEANRL_BOOKKEEPING:
        return False
    return name.split("_")[0] not in IGNORED_PREFIXES


def version_differences(first: Arm, second: Arm) -> Iterator[str]:
    """The libraries whose versions differ between two arms, each as a phrase."""
    for name in sorted(first.versions.keys() & second.versions.keys()):
        ours, theirs = first.versions[name], second.versions[name]
        if ours != theirs and name not in ("command", "platform", "processor"):
            yield f"{name} ({ours} and {theirs})"
