"""Films of policies: a video with one panel each, side by side, and a strip of stills."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from upgd_ppo.agents.playing.episodes import Episodes, play
from upgd_ppo.agents.playing.trained_policies import Policies

STILLS = 8
"""Stills of a strip's row, evenly spaced over the episode."""
STILL_WIDTH = 240
FRAMES_PER_SECOND = 30
HOLD_SECONDS = 1.0
"""How long the last picture of a video stays."""
BAR, MARGIN = (24, 26, 31), 8
TEXT, FAINT_TEXT = (240, 240, 240), (165, 170, 180)


@dataclass(frozen=True)
class Shot:
    """One episode to film.

    Attributes:
        title: what is written above it.
        member: which of the policies plays.
        seed: of its environment.
        length: steps that it took when it was scored, from which the stills are chosen.
    """

    title: str
    member: int
    seed: int
    length: int


def film(
    policies: Policies,
    env: VectorEnv,
    shots: list[Shot],
    video: Path | None,
    image: Path | None,
    stochastic: bool = False,
    watch: Callable[[Iterator[Episodes]], Iterator[Episodes]] = iter,
) -> Episodes:
    """Play the shots' episodes again, all at once, and film them.

    Args:
        policies: those of the shots, in their order.
        env: one sub-environment for each, which renders RGB arrays.
        shots: what to film.
        video: MP4 to write, in which all run side by side at real speed; None for none.
        image: PNG to write, a row of stills each; None for none.
        stochastic: sample actions.
        watch: passes the episodes through while they are played.

    Returns:
        The episodes as they went, one for each shot.

    Raises:
        OSError: if a file cannot be written; then it is not there.
    """
    fps = float(env.metadata.get("render_fps") or FRAMES_PER_SECOND)
    stride = max(1, round(fps / FRAMES_PER_SECOND))
    stills = [set(_spread(shot.length)) for shot in shots]
    rows: list[list[Image.Image]] = [[] for _ in shots]
    seeds = np.array([[shot.seed] for shot in shots], np.int64)
    pictures = [Image.new("RGB", (1, 1))] * len(shots)
    step = 0
    with ExitStack() as stack:
        record = stack.enter_context(_video(video, fps / stride)) if video is not None else None
        for episodes in watch(play(policies, env, seeds, stochastic)):
            playing = episodes.playing[:, 0]
            in_video = record is not None and step % stride == 0
            wanted = playing & [in_video or step in chosen for chosen in stills]
            if wanted.any():
                frames = env.render()
                assert isinstance(frames, tuple)
                for i in np.flatnonzero(wanted):
                    pictures[i] = Image.fromarray(np.asarray(frames[i]))
                    if step in stills[i]:
                        rows[i].append(_still(pictures[i], episodes, int(i)))
            if record is not None and (in_video or not playing.any()):
                panels = [
                    _captioned(picture, shot.title, _standing(episodes, i))
                    for i, (picture, shot) in enumerate(zip(pictures, shots, strict=True))
                ]
                held = 1 if playing.any() else max(1, round(HOLD_SECONDS * fps / stride))
                frame = _even(_beside(panels))
                for _ in range(held):
                    record(frame)
            step += 1
    if image is not None:
        strip = _strip(shots, rows, episodes)
        with _appearing_whole(image) as partial:
            strip.save(partial, format="PNG")
    return episodes


def _spread(length: int) -> list[int]:
    return [int(step) for step in np.linspace(0, max(0, length - 1), STILLS).round()]


def _standing(episodes: Episodes, i: int) -> str:
    ending = ""
    if not episodes.playing[i, 0]:
        ending = "  ended" if episodes.terminated[i, 0] else "  time limit"
        ending = "  failed" if (i, 0) in episodes.errors else ending
    return f"step {episodes.lengths[i, 0]:,}  return {episodes.returns[i, 0]:,.1f}{ending}"


# ── Pictures ────────────────────────────────────────────────────────────────────────────────────


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _captioned(picture: Image.Image, title: str, standing: str) -> Image.Image:
    """The picture under a bar of two lines."""
    size = max(12, picture.width // 24)
    bar = 3 * size + MARGIN
    canvas = Image.new("RGB", (picture.width, picture.height + bar), BAR)
    canvas.paste(picture, (0, bar))
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN // 2), title, TEXT, _font(size))
    draw.text((MARGIN, MARGIN // 2 + 3 * size // 2), standing, FAINT_TEXT, _font(size))
    return canvas


def _still(picture: Image.Image, episodes: Episodes, i: int) -> Image.Image:
    height = round(STILL_WIDTH * picture.height / picture.width)
    size = 14
    canvas = Image.new("RGB", (STILL_WIDTH, height + 2 * size), BAR)
    canvas.paste(picture.resize((STILL_WIDTH, height), Image.Resampling.LANCZOS), (0, 2 * size))
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, size // 3), _standing(episodes, i), FAINT_TEXT, _font(size))
    return canvas


def _beside(panels: list[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (sum(p.width for p in panels), max(p.height for p in panels)), BAR)
    left = 0
    for panel in panels:
        canvas.paste(panel, (left, 0))
        left += panel.width
    return canvas


def _strip(shots: list[Shot], rows: list[list[Image.Image]], episodes: Episodes) -> Image.Image:
    """A titled row of stills for each shot."""
    title, gap = 20, 2
    height = rows[0][0].height
    row_height = height + title + 2 * MARGIN
    width = max(len(row) for row in rows) * (STILL_WIDTH + gap) - gap
    canvas = Image.new("RGB", (width, row_height * len(rows)), BAR)
    draw = ImageDraw.Draw(canvas)
    for i, (shot, row) in enumerate(zip(shots, rows, strict=True)):
        top = i * row_height
        words = f"{shot.title}   ·   {_standing(episodes, i)}"
        draw.text((MARGIN, top + MARGIN), words, TEXT, _font(title))
        for column, still in enumerate(row):
            canvas.paste(still, (column * (STILL_WIDTH + gap), top + title + 2 * MARGIN))
    return canvas


# ── Files ───────────────────────────────────────────────────────────────────────────────────────


def _even(picture: Image.Image) -> NDArray[np.uint8]:
    """The picture cut to even sides, which the video's colour format needs."""
    pixels = np.asarray(picture)
    return np.ascontiguousarray(pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2])


@contextmanager
def _video(path: Path, fps: float) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Something to call with frames [height, width, 3] of one size."""
    import imageio_ffmpeg

    encoder: Generator[None, object, None] | None = None
    with _appearing_whole(path) as partial:

        def record(frame: NDArray[np.uint8]) -> None:
            nonlocal encoder
            if encoder is None:
                size = (frame.shape[1], frame.shape[0])
                encoder = imageio_ffmpeg.write_frames(
                    str(partial), size, fps=fps, macro_block_size=2, quality=7
                )
                encoder.send(None)
            encoder.send(frame)

        try:
            yield record
        finally:
            if encoder is not None:
                encoder.close()


@contextmanager
def _appearing_whole(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when all went well and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
