"""Side-by-side videos (real, before, after) with the commanded actions below the frames, and a picture of one prompt.

Evaluations save their clips in the run's folder; this file reads the clips there. Independent of models.
Legend: V clips, C context frames, F generated frames, K action groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces.actions import GROUPS, VPT_CAMERA

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

FOLDER = "videos"
# Name of an evaluation -> title above its clip; clips stand in this order, from left to right.
TITLES = {"real": "real", "base": "before", "supervised": "supervised", "post-trained": "after"}
FRAMES_PER_SECOND = 4
HOLD_FRAMES = 3  # repeats of the last frame before the video starts again
PANEL_WIDTH = 256
HEADER, FOOTER, GAP = 22, 30, 8
# Recovered class if the run has no judge.
UNREAD = -1
INK, PAPER, GREEN, RED = (32, 33, 36), (255, 255, 255), (24, 128, 56), (197, 34, 31)
KEYS = {
    "forward": "W",
    "back": "S",
    "left": "A",
    "right": "D",
    "sneak": "SHIFT",
    "sprint": "CTRL",
    "jump": "JUMP",
    "attack": "FIRE",
    "use": "USE",
    "drop": "DROP",
    "inventory": "E",
}


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Some clips of an evaluation, with the commanded classes and the classes that the judge recovered.

    Args:
        name: name of the evaluation.
        frames: uint8 [V, C + F, H, W, 3].
        commanded, recovered: int64 [V, F, K].
        groups: names of the K action groups.
        prompt_ids: prompts of the V clips.
    """

    name: str
    frames: npt.NDArray[np.uint8]
    commanded: npt.NDArray[np.int64]
    recovered: npt.NDArray[np.int64]
    groups: tuple[str, ...]
    prompt_ids: tuple[str, ...]

    @property
    def num_context(self) -> int:
        return int(self.frames.shape[1] - self.commanded.shape[1])


def save_clips(run_dir: Path, clips: Clips) -> Path:
    """Write videos/NAME.npz below a run's folder."""
    path = Path(run_dir) / FOLDER / f"{clips.name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        arrays: dict[str, Any] = {key: np.asarray(value) for key, value in vars(clips).items() if key != "name"}
        np.savez_compressed(file, **arrays)
    return temporary.replace(path)


def load_clips(run_dir: Path) -> list[Clips]:
    """Read the clips in a run's folder, in the order of `TITLES`."""
    found = []
    for name in TITLES:
        path = Path(run_dir) / FOLDER / f"{name}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                content: dict[str, Any] = {key: file[key] for key in file}
            content |= {key: tuple(content[key].tolist()) for key in ("groups", "prompt_ids")}
            found.append(Clips(name=name, **content))
    return found


def write_videos(run_dir: Path) -> list[Path]:
    """Write videos/NN.mp4 for each prompt: all clips of the prompt in the folder, side by side.

    Returns:
        The files, in the order of the prompts.
    """
    clips = load_clips(run_dir)
    paths = []
    for index in range(min((len(each.frames) for each in clips), default=0)):
        path = Path(run_dir) / FOLDER / f"{index:02d}.mp4"
        pictures = [side_by_side(clips, index, frame) for frame in range(clips[0].frames.shape[1])]
        write_mp4(path, [np.asarray(picture) for picture in pictures + pictures[-1:] * HOLD_FRAMES])
        paths.append(path)
    return paths


def write_mp4(path: Path, pictures: Sequence[npt.NDArray[np.uint8]]) -> None:
    """Write H.264 in yuv420p, which browsers play; pictures are uint8 [H, W, 3] of even height and width."""
    import av

    height, width, _ = pictures[0].shape
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        # crf 20 keeps the pixels of small worlds sharp, at about 40 KB for a clip.
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "20", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def side_by_side(clips: Sequence[Clips], index: int, frame: int) -> Image:
    """Draw one frame of one prompt on white: a panel for each evaluation, from left to right."""
    from PIL import Image

    panels = [_panel(each, index, frame, TITLES.get(each.name, each.name)) for each in clips]
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    picture = Image.new("RGB", (width + width % 2, panels[0].height + panels[0].height % 2), PAPER)
    for column, panel in enumerate(panels):
        picture.paste(panel, (column * (panel.width + GAP), 0))
    return picture


def _panel(clips: Clips, index: int, frame: int, title: str) -> Image:
    """Draw a title, the enlarged frame and the keys of its commanded actions; a context frame has no keys."""
    from PIL import Image, ImageDraw

    shot = _enlarged(clips.frames[index, frame])
    panel = Image.new("RGB", (shot.width, HEADER + shot.height + FOOTER), PAPER)
    panel.paste(shot, (0, HEADER))
    draw = ImageDraw.Draw(panel)
    draw.text((0, HEADER / 2), title, INK, _font(15), anchor="lm")
    generated = frame - clips.num_context
    if generated < 0:
        draw.text((0, HEADER + shot.height + FOOTER / 2), "given", INK, _font(14), anchor="lm")
    else:
        commanded, recovered = clips.commanded[index, generated], clips.recovered[index, generated]
        draw_keys(draw, (0, HEADER + shot.height + 5, shot.width, panel.height - 3), clips.groups, commanded, recovered)
    return panel


def _enlarged(frame: npt.NDArray[np.uint8]) -> Image:
    """Enlarge a frame by a whole factor, up to `PANEL_WIDTH`, without smoothing."""
    from PIL import Image

    factor = max(1, PANEL_WIDTH // frame.shape[1])
    return Image.fromarray(frame.repeat(factor, 0).repeat(factor, 1))


def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont as fonts

    return fonts.load_default(size)


def draw_keys(
    draw: ImageDraw,
    box: tuple[float, float, float, float],
    groups: Sequence[str],
    commanded: npt.NDArray[np.int64],
    recovered: npt.NDArray[np.int64],
) -> None:
    """Draw a key for each action group: filled if an action is commanded, else outlined.

    Green: the judge recovered the action. Red: the judge did not. Black: no judge read the clip.

    Args:
        draw: canvas of the picture.
        box: left, top, right, bottom in pixels.
        groups, commanded, recovered: K names, and their classes [K].
    """
    left, top, right, bottom = box
    width = (right - left) / len(groups)
    for column, name in enumerate(groups):
        color = GREEN if commanded[column] == recovered[column] else INK if recovered[column] == UNREAD else RED
        label, idle = key_label(name, int(commanded[column]))
        key = (left + column * width + 1, top, left + (column + 1) * width - 4, bottom)
        draw.rounded_rectangle(key, 5, fill=PAPER if idle else color, outline=color, width=1 if idle else 0)
        center = ((key[0] + key[2]) / 2, (top + bottom) / 2)
        if GROUPS[name].camera_axis is not None and not idle:
            _draw_arrow(draw, center, name, int(commanded[column]))
        else:
            draw.text(center, label, color if idle else PAPER, _font(13), anchor="mm")


def key_label(group: str, index: int) -> tuple[str, bool]:
    """Return the label of a group's key and whether no action is commanded; an idle group shows all its keys."""
    members = GROUPS[group].members
    if GROUPS[group].camera_axis is not None:
        return ("look" if group == "pitch" else "turn"), index == VPT_CAMERA.null_bin
    if group == "hotbar":
        return (f"{index}" if index else "1-9"), index == 0
    keys = [KEYS[member] for member in members]
    return (keys[index - 1], False) if index else ("/".join(keys), True)


def _draw_arrow(draw: ImageDraw, center: tuple[float, float], group: str, index: int) -> None:
    """Draw an arrow as long as the commanded turn; bins above the null bin point right or down."""
    steps = index - VPT_CAMERA.null_bin
    sign, half = (1 if steps > 0 else -1), 7 + 1.6 * abs(steps)
    neck = half - 7
    points = np.array([[-half, -2], [neck, -2], [neck, -6], [half, 0], [neck, 6], [neck, 2], [-half, 2]]) * [sign, 1]
    if group == "pitch":
        points = points[:, ::-1] * [1, 0.7]
    draw.polygon([(center[0] + x, center[1] + y) for x, y in points], fill=PAPER)


def contact_strip(run_dir: Path, path: Path, index: int = 0, num_columns: int = 4) -> Path:
    """Write a PNG of one prompt: a row for each evaluation, a column for each moment, the keys below each frame.

    Raises:
        ValueError: the run's folder holds no clips.
    """
    from PIL import Image

    clips = load_clips(run_dir)
    if not clips:
        raise ValueError(f"a picture needs an evaluation's clips, got none in {Path(run_dir) / FOLDER}; evaluate first")
    first, last = clips[0].num_context, clips[0].frames.shape[1] - 1
    moments = np.unique(np.linspace(first, last, num_columns).round().astype(int))
    rows = [[_panel(each, index, frame, "") for frame in moments] for each in clips]
    panel = rows[0][0]
    margin = 104
    size = (margin + (panel.width + GAP) * len(moments) - GAP, (panel.height - HEADER + GAP) * len(rows))
    picture = Image.new("RGB", size, PAPER)
    for row, panels in enumerate(rows):
        top = row * (panel.height - HEADER + GAP)
        _title(picture, TITLES[clips[row].name], (margin - 12, top + (panel.height - HEADER - FOOTER) / 2))
        for column, each in enumerate(panels):
            picture.paste(each.crop((0, HEADER, each.width, each.height)), (margin + column * (panel.width + GAP), top))
    picture.save(path)
    return path


def _title(picture: Image, text: str, right_middle: tuple[float, float]) -> None:
    from PIL import ImageDraw

    ImageDraw.Draw(picture).text(right_middle, text, INK, _font(16), anchor="rm")
