"""An animation of a policy that acts, with its own answers drawn into the images."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw

from etcvla import sims
from etcvla.etc.question_types import BOX, PATH, clean_instruction, format_question
from etcvla.etc.score import parse_answer
from etcvla.files import write_atomically
from etcvla.policy import Policy

PATH_COLOR = (216, 27, 154)
BOX_COLOR = (34, 197, 94)
CAPTION_HEIGHT = 22  # pixels
HOLD_FRAMES = 8  # the last frame is repeated so often


@dataclasses.dataclass(frozen=True)
class AnimationOptions:
    """What an animation shows."""

    simulator: str = "metaworld"
    scene: str = "source"
    size: int = 240  # pixels of one panel
    image_size: int = 96  # pixels of the images that the policy gets
    max_steps: int = 150  # control steps
    replan_steps: int = 5  # control steps between two queries
    frame_steps: int = 2  # control steps between two frames


def record_episode(
    policy: Policy, task: str, seed: int, options: AnimationOptions
) -> list[Image.Image]:
    """Let the policy act once and return the frames with its path and the target's box.

    A second environment in the same state renders the frames in their own size, so that the policy
    gets images of the size that it was trained on.

    Args:
      seed: of the layout and of the policy's noise.
    """
    env = sims.make(options.simulator, task, options.scene, options.image_size)
    display = sims.make(options.simulator, task, options.scene, options.size)
    env.reset(seed)
    display.reset(seed)
    instruction = env.instruction()
    questions = [
        format_question("path_task", 0.0, {"instruction": clean_instruction(instruction)}),
        format_question("locate_box", 0.0, {"object": env.objects[env.target].name}),
    ]
    camera = policy.cameras[0]
    frames = []
    actions: np.ndarray = np.zeros((0, 0))
    path = box = None
    for step in range(options.max_steps):
        if step % options.replan_steps == 0:
            observation = {**env.observe(), "instruction": instruction}
            actions = policy.act([observation], [(seed, step)])[0]
            images = policy.camera_images(observation["images"])
            path_text, box_text = policy.answer([images, images], questions)
            path = parse_answer(PATH, path_text)
            box = parse_answer(BOX, box_text)
        if step % options.frame_steps == 0:
            frames.append(draw_answers(display.observe()["images"][camera], path, box))
        action = actions[step % options.replan_steps]
        display.step(action)
        if env.step(action):
            break
    frames.append(Image.fromarray(display.observe()["images"][camera]))
    env.close()
    display.close()
    return [add_caption(frame, instruction) for frame in frames]


def draw_answers(image: np.ndarray, path: np.ndarray | None, box: np.ndarray | None) -> Image.Image:
    """Draw a path float[k, 2] (y, x) and a box float[4] (ymin, xmin, ymax, xmax) in [0, 1]."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    height, width = image.shape[:2]
    if box is not None:
        ymin, xmin, ymax, xmax = box.reshape(4).tolist()
        left, right = sorted((xmin * width, xmax * width))
        top, bottom = sorted((ymin * height, ymax * height))
        pen.rectangle((left, top, right, bottom), outline=BOX_COLOR, width=2)
    if path is not None:
        points = [(x * width, y * height) for y, x in path.tolist()]
        if len(points) > 1:
            pen.line(points, fill=PATH_COLOR, width=3, joint="curve")
        pen.circle(points[-1], 5, fill=PATH_COLOR)
    return picture


def add_caption(image: Image.Image, text: str) -> Image.Image:
    """Return the image with a line of text below it."""
    panel = Image.new("RGB", (image.width, image.height + CAPTION_HEIGHT), "white")
    panel.paste(image)
    ImageDraw.Draw(panel).text((4, image.height + 5), text, fill="black")
    return panel


def write_animation(path: epath.PathLike, episodes: Sequence[Sequence[Image.Image]]) -> None:
    """Write episodes side by side as one GIF; shorter ones keep their last frame."""
    length = max(len(frames) for frames in episodes) + HOLD_FRAMES
    width = sum(frames[0].width for frames in episodes)
    height = episodes[0][0].height
    pictures = []
    for i in range(length):
        picture = Image.new("RGB", (width, height))
        left = 0
        for frames in episodes:
            frame = frames[min(i, len(frames) - 1)]
            picture.paste(frame, (left, 0))
            left += frame.width
        pictures.append(picture)
    # One palette for all frames: colors of their own would flicker and take more bytes.
    palette = pictures[0].quantize(160)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=80, loop=0
    )
    write_atomically(path, buffer.getvalue())
