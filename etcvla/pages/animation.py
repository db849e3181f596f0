"""An animation of a policy that acts, with its own answers drawn into the images."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw

from etcvla import sims
from etcvla.etc.question_types import format_question
from etcvla.files import write_atomically
from etcvla.pages import palette
from etcvla.pages.shapes import answer_shapes, draw_shape
from etcvla.pages.videos import path_question
from etcvla.policy import Policy

SIZE = 240  # pixels of one panel
IMAGE_SIZE = 96  # pixels of the images that the policy gets
MAX_STEPS = 150  # control steps
REPLAN_STEPS = 5  # control steps between two queries
FRAME_STEPS = 2  # control steps between two frames
CAPTION_HEIGHT = 22  # pixels
HOLD_FRAMES = 8  # the last frame is repeated so often
# Questions that the policy answers while it acts -> colour of the answers.
COLORS = {"path_task": palette.PREDICTION, "locate_box": palette.GOOD}


def record_episode(policy: Policy, task: str, scene: str, seed: int) -> np.ndarray:
    """Let the policy act once, and return the frames with its path and the target's box.

    A second environment in the same state renders the frames in their own size, so that the policy
    gets images of the size that it was trained on.

    Args:
      policy: the policy that acts and answers.
      task: a task of Meta-World.
      scene: its scene.
      seed: of the layout and of the policy's noise.

    Returns:
      uint8[n, H, W, 3].
    """
    env = sims.make("metaworld", task, scene, IMAGE_SIZE)
    display = sims.make("metaworld", task, scene, SIZE)
    env.reset(seed)
    display.reset(seed)
    instruction = env.instruction()
    target = {"object": env.objects[env.target].name}
    questions = [path_question(instruction), format_question("locate_box", 0.0, target)]
    camera = policy.cameras[0]
    frames = []
    for step in range(MAX_STEPS):
        if step % REPLAN_STEPS == 0:
            observation = {**env.observe(), "instruction": instruction}
            actions = policy.act([observation], [(seed, step)])[0]
            images = policy.camera_images(observation["images"])
            answers = policy.answer([images, images], questions)
        if step % FRAME_STEPS == 0:
            image = display.observe()["images"][camera]
            frames.append(draw_frame(image, instruction, dict(zip(COLORS, answers, strict=True))))
        action = actions[step % REPLAN_STEPS]
        display.step(action)
        if env.step(action):
            break
    frames.append(draw_frame(display.observe()["images"][camera], instruction, {}))
    env.close()
    display.close()
    return np.stack(frames)


def draw_frame(image: np.ndarray, caption: str, answers: dict[str, str]) -> np.ndarray:
    """Draw answers into an image and the caption below it.

    Args:
      image: uint8[H, W, 3].
      caption: one line of text.
      answers: question type -> answer of the policy. Answers that cannot be parsed are left out.
    """
    picture = Image.fromarray(image)
    for question_type, answer in answers.items():
        for shape in answer_shapes(question_type, answer):
            draw_shape(picture, shape, COLORS[question_type], 2)
    panel = Image.new("RGB", (picture.width, picture.height + CAPTION_HEIGHT), "white")
    panel.paste(picture)
    ImageDraw.Draw(panel).text((4, picture.height + 5), caption, fill="black")
    return np.asarray(panel)


def write_animation(path: epath.PathLike, episodes: Sequence[np.ndarray]) -> None:
    """Write episodes uint8[n, H, W, 3] side by side as a GIF; short ones keep their last frame."""
    length = max(len(frames) for frames in episodes) + HOLD_FRAMES
    indices = [np.minimum(np.arange(length), len(frames) - 1) for frames in episodes]
    columns = [frames[index] for frames, index in zip(episodes, indices, strict=True)]
    frames = np.concatenate(columns, axis=2)
    # One palette for all frames, from five of them: palettes of their own flicker and take more
    # bytes.
    samples = frames[np.linspace(0, length - 1, 5).astype(int)]
    colors = Image.fromarray(np.concatenate(samples)).quantize(160)
    pictures = []
    for frame in frames:
        picture = Image.fromarray(frame).quantize(palette=colors, dither=Image.Dither.NONE)
        pictures.append(picture)
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": pictures[1:], "duration": 80, "loop": 0}
    pictures[0].save(buffer, format="GIF", **options)
    write_atomically(path, buffer.getvalue())
