"""Side-by-side videos (real, before, after) with the commanded actions below the frames, and a picture of one prompt.

Evaluations save their clips in the run's folder; this file reads the clips there. Independent of models.
Legend: V clips, C context frames, F generated frames, K fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rlir_ray.evaluation.keys import INK, PAPER, draw_keys, draw_target, label_font
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = "videos"
# Name of an evaluation -> title above its clip; clips stand in this order, from left to right.
TITLES = {"real": "real", "base": "before", "supervised": "supervised", "post-trained": "after"}
FRAMES_PER_SECOND = 4
HOLD_FRAMES = 3  # repeats of the last frame before the video starts again
PANEL_WIDTH = 256
HEADER, FOOTER, GAP = 22, 30, 8


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Some clips of an evaluation, with the commanded actions and the actions that the judge recovered.

    Args:
        name: name of the evaluation.
        frames: uint8 [V, C + F, H, W, 3].
        space: the K fields.
        commanded: float32 [V, F, K], values of the fields.
        recovered: the same as the judge read them; None: the run has no judge.
        prompt_ids: prompts of the V clips.
    """

    name: str
    frames: npt.NDArray[np.uint8]
    space: ActionSpace
    commanded: npt.NDArray[np.float32]
    recovered: npt.NDArray[np.float32] | None
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
        # Any: the stub of numpy takes a mapping of arrays for its own options.
        arrays: dict[str, Any] = {
            "frames": clips.frames,
            "commanded": clips.commanded,
            "space": np.asarray(clips.space.to_json()),
            "prompt_ids": np.asarray(clips.prompt_ids),
        }
        if clips.recovered is not None:
            arrays["recovered"] = clips.recovered
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
            found.append(_clips(name, content))
    return found


def _clips(name: str, content: dict[str, Any]) -> Clips:
    if "space" in content:
        space = ActionSpace.from_json(str(content["space"]))
        commanded, recovered = content["commanded"], content.get("recovered")
    else:
        # Evaluations of earlier versions hold classes of VPT's space, and -1 where no judge read the clip.
        space = ActionSpace(VPT_SPACE.select(content["groups"].tolist()))
        commanded, recovered = (_centres(space, content[key]) for key in ("commanded", "recovered"))
        recovered = None if (content["recovered"] < 0).all() else recovered
    return Clips(
        name=name,
        frames=content["frames"],
        space=space,
        commanded=commanded,
        recovered=recovered,
        prompt_ids=tuple(content["prompt_ids"].tolist()),
    )


def _centres(space: ActionSpace, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    columns = [field.centres(classes[..., column]) for column, field in enumerate(space.fields)]
    return np.stack(columns, -1).astype(np.float32)


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
    generated = frame - clips.num_context
    commanded = clips.commanded[index, generated] if generated >= 0 else None
    recovered = clips.recovered[index, generated] if generated >= 0 and clips.recovered is not None else None
    if commanded is not None:
        draw_target(ImageDraw.Draw(shot), shot.size, clips.space, commanded, recovered)
    panel = Image.new("RGB", (shot.width, HEADER + shot.height + FOOTER), PAPER)
    panel.paste(shot, (0, HEADER))
    draw = ImageDraw.Draw(panel)
    draw.text((0, HEADER / 2), title, INK, label_font(15), anchor="lm")
    if commanded is None:
        draw.text((0, HEADER + shot.height + FOOTER / 2), "given", INK, label_font(14), anchor="lm")
    else:
        box = (0, HEADER + shot.height + 5, shot.width, panel.height - 3)
        draw_keys(draw, box, clips.space.fields, commanded, recovered)
    return panel


def _enlarged(frame: npt.NDArray[np.uint8]) -> Image:
    """Enlarge a frame by a whole factor, up to `PANEL_WIDTH`, without smoothing."""
    from PIL import Image

    factor = max(1, PANEL_WIDTH // frame.shape[1])
    return Image.fromarray(frame.repeat(factor, 0).repeat(factor, 1))


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

    ImageDraw.Draw(picture).text(right_middle, text, INK, label_font(16), anchor="rm")
