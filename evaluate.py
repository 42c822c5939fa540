"""Look at what `train.py` left: score policies, film them, compare arms.

python evaluate.py RUN… [--video out.mp4] [--image out.png]
python evaluate.py compare ARM… --out report/
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

# Before NumPy is imported: products this small are never worth a second thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

if not __package__:  # run as a script: the package is this checkout
    import checkout  # noqa: F401

import tyro

from upgd_ppo.agents.command_line.shell import typed
from upgd_ppo.agents.settings.flags import Count, Keywords, explain, parse_command

if TYPE_CHECKING:
    from upgd_ppo.agents.playing import Episodes, Policies
    from upgd_ppo.analysis.scores import Score

DESCRIPTION = """Play every member of trained runs and say what each and the population is worth.

Commands:
  evaluate.py RUN…           plays and scores trained runs: the flags below
  evaluate.py compare ARM…   compares arms by their records: evaluate.py compare --help

Examples:
  python evaluate.py runs/Ant-v4-upgd
  python evaluate.py runs/Ant-v4-adam runs/Ant-v4-upgd --episodes 50 --out scores
  python evaluate.py runs/Hopper-v4-upgd --checkpoint 900000 --env Hopper-v5
  python evaluate.py runs/Hopper-v4-upgd --video hopper.mp4 --image hopper.png
  python evaluate.py ppo_hopper.zip --env Hopper-v4"""


EXTRAS = {
    "imageio_ffmpeg": "video",
    "PIL": "video",
    "stable_baselines3": "sb3",
    "sb3_contrib": "sb3",
}
"""Package → the extra that installs it; "analysis" for the others."""
PROGRESS_SECONDS = 10.0
"""Between two lines of progress where the output is no terminal."""


@dataclass(frozen=True)
class Scoring:
    """What is played, and where its scores go."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories of train.py, or models that Stable-Baselines3 saved (.zip)."""
    episodes: Count = 20
    """Episodes of each member."""
    stochastic: bool = False
    """Sample actions from the policy, as in training, instead of playing their mean."""
    seed: Count = 0
    """Chooses the episodes' initial states; they are never those of training."""
    checkpoint: str | None = None
    """A run's checkpoint: a file, or the step at which it was written; by default the newest."""
    env: str | None = None
    """Play another variant of the task, of the same observations and actions. Also needed, as
    module:Id, where a run's own environment is of a module: what a run names is not imported."""
    env_kwargs: Keywords = field(default_factory=dict)
    """Keyword arguments of the environment's constructor, besides those of training."""
    max_episode_steps: Count | None = None
    """Time limit of an episode; by default the environment's own."""
    threads: Count = 0
    """Threads for the physics; 0 means the cores this process may use."""
    out: Path | None = None
    """Folder for scores.json, members.csv and episodes.csv of all runs together; by default one
    for each run, in its evaluation/."""
    video: Path | None = None
    """Film the best, the median and the worst member (.mp4)."""
    image: Path | None = None
    """A film strip of the same (.png)."""


@dataclass(frozen=True)
class Compare:
    """Compare arms: collapse, returns and layers, with intervals and a verdict.

    An arm is a run directory of train.py, or a folder with the TensorBoard logs (Stable-Baselines3,
    CleanRL) or the monitor.csv files (Stable-Baselines3) of several seeds. NAME=FOLDER names it. A
    folder of runs of train.py, such as runs, stands for all of them.
    """

    arms: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders to compare; arms of several environments are grouped by environment."""
    out: Path = Path("report")
    """Folder for the report: report.html, figures/ and data/."""
    aggregate: Literal["mean", "iqm"] = "mean"
    """What the learning curves show over seeds: the mean, or the interquartile mean (which leaves
    out the worst quarter, and with it a quarter of the collapses)."""
    steps: Count = 0
    """Measure the first so many steps, e.g. 20e6; 0 means as many as all seeds reached, those left
    aside that were cut off before 90 % of what the median seed of their arm reached."""
    primary: Literal["retained", "final", "time_below", "first_fall"] = "retained"
    """The measure that the study was made for, named before it was run; the report labels the
    others exploratory."""
    env: str | None = None
    """Environment of the logs that do not name theirs."""
    overwrite: bool = False
    """Replace the report that is in the folder."""


def compare(arguments: Compare) -> None:
    """Write the report and print its verdicts."""
    from upgd_ppo.analysis.readers import read_arms

    arms = read_arms(list(arguments.arms), arguments.env)
    for arm in arms:
        seeds = "1 seed" if len(arm.members) == 1 else f"{len(arm.members)} seeds"
        print(f"{arm.name} on {arm.environment}: {seeds} in {arm.path}")
    print()

    # Plotting takes seconds to import: not before the arms are known to be readable.
    from upgd_ppo.analysis.report import PAGE, write_report
    from upgd_ppo.analysis.verdict import suite_verdict, verdict

    study = write_report(
        arms,
        arguments.out,
        arguments.steps or None,
        arguments.aggregate,
        arguments.overwrite,
        f"evaluate.py compare {' '.join(arguments.arms)}",
        arguments.primary,
    )
    for result in study.environments:
        _print_verdict(f"{result.environment}, first {result.horizon:,} steps", verdict(result))
    if study.suite_pairs:
        _print_verdict("All environments", suite_verdict(study))
    print(f"Report: {arguments.out / PAGE}")


def _print_verdict(title: str, verdict: dict[str, list[str]]) -> None:
    print(title)
    for about, sentences in verdict.items():
        print(f"  {about}")
        for sentence in sentences:
            print(f"  - {sentence}")
    print()


def score(arguments: Scoring) -> None:
    """Play, print the tables, write the files, film."""
    # MuJoCo cannot be imported where the renderer that this names is not installed, and scoring
    # needs none.
    wanted_renderer = os.environ.pop("MUJOCO_GL", None)
    from rich.console import Console

    from upgd_ppo.agents.command_line.imports import import_environment
    from upgd_ppo.agents.machine.cores import available_cores
    from upgd_ppo.agents.playing import evaluation_seeds, load_policies, make_env, play
    from upgd_ppo.agents.playing.renderer import select_renderer
    from upgd_ppo.analysis.folders import check_writable
    from upgd_ppo.analysis.scores import check_destination, table, write_scores

    _check_scoring(arguments)
    if arguments.env is not None:
        import_environment(arguments.env)
    console = Console()
    policies = [load_policies(run, arguments.checkpoint) for run in arguments.runs]
    folders = [arguments.out or _own_folder(arguments, one) for one in policies]
    for folder in folders:
        check_destination(folder)
    for path in (arguments.video, arguments.image):
        if path is not None:
            check_writable(path)
    films = arguments.video is not None or arguments.image is not None
    if films:
        select_renderer(wanted_renderer)
    threads = arguments.threads or available_cores()
    environments = [
        make_env(
            one,
            arguments.episodes,
            threads,
            arguments.env,
            arguments.env_kwargs,
            arguments.max_episode_steps,
        )
        for one in policies
    ]
    scores = []
    for one, env, folder in zip(policies, environments, folders, strict=True):
        seeds = evaluation_seeds(arguments.seed, len(one.seeds), arguments.episodes)
        *_, episodes = _shown(f"Playing {one.path}", play(one, env, seeds, arguments.stochastic))
        env.close()
        scores.append(_score(arguments, one, episodes))
        console.print(table(scores[-1]))
        for note in scores[-1].notes:
            console.print(note, soft_wrap=True, markup=False)
        if arguments.out is None:
            write_scores(scores[-1:], folder)
            console.print(f"Scores: {folder}", soft_wrap=True)
    if arguments.out is not None:
        write_scores(scores, arguments.out)
        console.print(f"Scores: {arguments.out}", soft_wrap=True)
    if films:
        _film(arguments, policies[0], scores[0])


def _check_scoring(arguments: Scoring) -> None:
    """Refuse what would fail only after everything was played."""
    from upgd_ppo.envs.gymnasium_task import RENDERING

    for name in ("episodes", "max_episode_steps"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
    if arguments.seed < 0:
        raise ValueError(f"--seed is {arguments.seed}; it must be at least 0.")
    if not arguments.runs:
        raise ValueError("Name at least one run directory, such as runs/Ant-v4-upgd.")
    films = {"--video": (arguments.video, ".mp4"), "--image": (arguments.image, ".png")}
    for flag, (path, suffix) in films.items():
        if path is not None and path.suffix.lower() != suffix:
            raise ValueError(f"{flag} {path} must end in {suffix}.")
        if path is not None and path.is_dir():
            raise ValueError(f"{flag} {path} cannot be written: it is a folder.")
        if path is not None and len(arguments.runs) > 1:
            raise ValueError(f"{flag} films one run at a time; {len(arguments.runs)} are named.")
    seen = arguments.video is not None or arguments.image is not None
    for name in {"render_mode", *(() if seen else RENDERING)} & arguments.env_kwargs.keys():
        raise ValueError(
            f"--env-kwargs {name}={arguments.env_kwargs[name]} does nothing here; to see a policy,"
            " film it with --video film.mp4."
        )
    if arguments.checkpoint is not None and len(arguments.runs) > 1:
        raise ValueError(
            f"--checkpoint picks one of one run; {len(arguments.runs)} runs are named."
        )
    if arguments.video is not None:
        import imageio_ffmpeg  # noqa: F401
    if arguments.image is not None or arguments.video is not None:
        import PIL  # noqa: F401


def _shown(title: str, playing: Iterator[Episodes]) -> Iterator[Episodes]:
    """The episodes as they are played, with a progress bar, or now and then a line of progress
    where the output is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    screen = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} episodes · step {task.fields[step]:,}"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=screen, transient=True, disable=not screen.is_terminal
    ) as progress:
        task = progress.add_task(title, total=None, step=0)
        told = monotonic()
        for step, episodes in enumerate(playing):
            total, playing_on = episodes.playing.size, int(episodes.playing.sum())
            progress.update(task, total=total, completed=total - playing_on, step=step)
            if not screen.is_terminal and monotonic() - told > PROGRESS_SECONDS:
                told = monotonic()
                line = f"{title}: step {step:,}, {total - playing_on}/{total} episodes ended"
                print(line, file=sys.stderr, flush=True)
            yield episodes


def _score(arguments: Scoring, policies: Policies, episodes: Episodes) -> Score:
    from upgd_ppo.agents.playing.episodes import constructor_arguments
    from upgd_ppo.analysis.scores import Score

    env_id = arguments.env or policies.env_id
    kind = "sampled" if arguments.stochastic else "mean"
    step = "" if policies.step is None else f"step {policies.step:,} · "
    return Score(
        title=f"{policies.path} on {env_id}\n"
        f"{step}{arguments.episodes} episodes each · {kind} action",
        settings={
            "run": str(policies.path),
            "environment": env_id,
            "env_kwargs": constructor_arguments(policies, arguments.env, arguments.env_kwargs),
            "max_episode_steps": arguments.max_episode_steps,
            "checkpoint": policies.checkpoint,
            "step": policies.step,
            "action": kind,
            "episodes": arguments.episodes,
            "seed": arguments.seed,
        },
        members=[policies.path.stem if seed is None else f"seed {seed}" for seed in policies.seeds],
        seeds=episodes.seeds,
        returns=episodes.returns,
        lengths=episodes.lengths,
        terminated=episodes.terminated,
        halted=policies.halted,
    )


def _own_folder(arguments: Scoring, policies: Policies) -> Path:
    """Where a run's scores go if nothing else is said: a folder for each thing that is played."""
    model = policies.path.is_file()
    base = policies.path.with_suffix("") if model else policies.path
    name = str(arguments.env or policies.env_id).replace("/", "_").replace(":", "_")
    step = "" if policies.step is None else f"-step-{policies.step:012d}"
    kind = "-stochastic" if arguments.stochastic else ""
    folder = base.with_name(f"{base.name}_evaluation") if model else base / "evaluation"
    return folder / f"{name}{step}{kind}"


def _film(arguments: Scoring, policies: Policies, score: Score) -> None:
    """Film a typical episode of the best, the median and the worst member."""
    from upgd_ppo.agents.playing import make_env
    from upgd_ppo.agents.playing.film import Shot, film

    shots = []
    for title, member in score.ranking():
        episode = score.typical_episode(member)
        seed, length = score.seeds[member, episode], score.lengths[member, episode]
        shots.append(Shot(f"{title}: {score.members[member]}", member, int(seed), int(length)))
    if not shots:
        raise ValueError(f"There is nothing to film: every episode of {policies.path} failed.")
    filmed = policies.select([shot.member for shot in shots])
    env = make_env(
        filmed,
        episodes=1,
        env_id=arguments.env,
        env_kwargs={
            **_camera(arguments, policies),
            **arguments.env_kwargs,
            "render_mode": "rgb_array",
        },
        max_episode_steps=arguments.max_episode_steps,
    )
    try:
        watch = partial(_shown, f"Filming {policies.path}")
        film(filmed, env, shots, arguments.video, arguments.image, arguments.stochastic, watch)
    finally:
        env.close()
    for path in (arguments.video, arguments.image):
        if path is not None:
            print(f"Film: {path}")


def _camera(arguments: Scoring, policies: Policies) -> dict[str, Any]:
    """The camera that follows the robot, unless another one is asked for."""
    from upgd_ppo.envs.tasks import TASKS

    asked_for = {"camera_id", "camera_name"} & arguments.env_kwargs.keys()
    native = (arguments.env or policies.env_id) in TASKS
    return {"camera_name": "track"} if native and not asked_for else {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for anything a person can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["compare"]:
            compare(parse_command(Compare, argv[1:], "evaluate.py compare"))
        else:
            _check_command(argv)
            score(parse_command(Scoring, argv, "evaluate.py", DESCRIPTION))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0], "analysis")
        print(
            f"This needs {error.name}. In the checkout of upgd-ppo, run:\n"
            f"  {typed('python')} -m pip install '.[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"evaluate.py: error: {explain(error)}", file=sys.stderr)
        return 2
    return 0


def _check_command(argv: Sequence[str]) -> None:
    """Refuse `compare` misspelt, which would be taken for a run."""
    first = argv[0] if argv else ""
    if difflib.get_close_matches(first, ["compare"], cutoff=0.75) and not Path(first).exists():
        raise ValueError(f"There is no run {first}. Did you mean evaluate.py compare?")


if __name__ == "__main__":
    sys.exit(main())
