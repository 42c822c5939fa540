"""What a reader must know before trusting a comparison: nothing is dropped silently."""

from collections.abc import Iterator

from upgd_ppo.analysis.arm import Arm
from upgd_ppo.analysis.collapse import BINS, NEVER_LEARNED, STANDARD_ERRORS, TOO_FEW
from upgd_ppo.analysis.comparison import ArmResult, EnvironmentResult
from upgd_ppo.analysis.setting_differences import setting_differences, version_differences


def notices(result: EnvironmentResult) -> Iterator[str]:
    """One sentence per thing: lengths, settings, unfinished or changed runs, seeds halted or not
    measured. Early warnings are many, and have a table of their own."""
    yield from _lengths(result)
    if len(result.arms) == 1:
        yield f"{result.arms[0].name} is alone on {result.environment}: shown, not compared."
    for position, first in enumerate(result.arms):
        for second in result.arms[position + 1 :]:
            yield from _settings(first.arm, second.arm)
    for arm in result.arms:
        yield from _arm(arm, result.horizon)


def _lengths(result: EnvironmentResult) -> Iterator[str]:
    furthest = [max(member.reached for member in arm.arm.members) for arm in result.arms]
    if max(furthest) > 1.01 * result.horizon:
        lengths = ", ".join(f"{arm.name} {_reached(arm.arm)}" for arm in result.arms)
        yield (
            f"Different lengths on {result.environment} ({lengths} steps): everything is measured "
            f"on the first {result.horizon:,} steps; a collapse after that is not seen here."
        )


def _reached(arm: Arm) -> str:
    running = [member.reached for member in arm.members if member.halted is None]
    lengths = running or [member.reached for member in arm.members]
    shortest, longest = min(lengths), max(lengths)
    return f"{longest:,}" if shortest > 0.99 * longest else f"{shortest:,} to {longest:,}"


def _settings(first: Arm, second: Arm) -> Iterator[str]:
    differences = setting_differences(first, second)
    if differences:
        yield (
            f"{first.name} and {second.name} differ in more than the optimizer: "
            f"{', '.join(differences)}."
        )
    for arm in (first, second):
        if arm.settings is None:
            yield (
                f"The settings of {arm.name} are not in its logs: whether it differs in more than "
                "the optimizer is not known."
            )
    libraries = list(version_differences(first, second))
    if libraries:
        yield f"{first.name} and {second.name} ran on different versions: {', '.join(libraries)}."


def _arm(result: ArmResult, horizon: int) -> Iterator[str]:
    arm, collapse = result.arm, result.collapse
    if arm.finished is False:
        of = f" of {arm.planned:,}" if arm.planned else ""
        yield f"{arm.name} is unfinished: it has reached {_reached(arm)}{of} steps."
    for position, member in enumerate(arm.members):
        who = f"{arm.name}, seed {member.seed}:"
        if position not in result.rows:
            yield (
                f"{who} left out, it reached only {member.reached:,} of {horizon:,} steps. If it "
                "crashed rather than still runs, that may have been a collapse, which is not "
                "counted here."
            )
        elif member.halted is not None:
            cause = f" ({member.cause})" if member.cause else ""
            consequence = (
                "it counts as collapsed and ranks below every seed that lived"
                if member.halted <= horizon
                else "that is later than what is measured here, so it is not counted"
            )
            yield f"{who} halted at step {member.halted:,}{cause}; {consequence}."
    for position, seed in enumerate(result.seeds):
        if collapse.outcome[position] == TOO_FEW:
            yield (
                f"{arm.name}, seed {seed}: too few episodes (episodes ended in "
                f"{collapse.filled[position]} of {BINS} bins), so nothing is measured of it."
            )
        elif collapse.outcome[position] == NEVER_LEARNED:
            yield (
                f"{arm.name}, seed {seed}: never learned, for its peak, "
                f"{collapse.peak[position]:,.0f}, is no more than {STANDARD_ERRORS} standard "
                f"errors ({collapse.standard_error[position]:,.0f} each) above its start, "
                f"{collapse.start[position]:,.0f}; it neither kept nor collapsed."
            )
    for event in arm.events:
        if event.kind == "changed":
            yield (
                f"{arm.name} was changed during training: at step {event.step:,} it was continued "
                f"with {event.message}, so its records are not of one setting."
            )
    yield from (f"{arm.name}: {note}" for note in arm.notes)
