"""The loader against tf.data: samples a CPU second, memory, time to the first batch.

Both sides give the same samples of a LIBERO-like set: two cameras uint8[256, 256, 3], the state, and a chunk of ten
actions. tf.data reads as openpi and Octo do: whole episodes, chunked, flattened to frames, shuffled in a buffer. In the
buffer frames wait decoded, as openpi has it for DROID (8 GB at 20,000 frames), or encoded, as Octo has it.
"""

from __future__ import annotations

import abc
import io
import itertools
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from etcvla.bench.worker import Worker
from etcvla.data.assets import Assets
from etcvla.data.loader import batches
from etcvla.data.norm_stats import stats_of
from etcvla.data.plan import Plan, Stream
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rows import RowBuilder, RowOptions, RowSizes
from etcvla.data.stage_dataset import StageDataset
from etcvla.data.tokenizer import Tokenizer

STEPS, SIZE, STATE, ACTION, HORIZON = 150, 256, 8, 7, 10  # LIBERO's
BUFFER = 20_000  # frames of tf.data's shuffle buffer
BATCH = 32
TURNS = 6
CAMERAS = ("image", "wrist_image")
FLOORS = {"rate_ratio": (">=", 1.2), "memory_ratio": ("<=", 0.3), "first_batch_ratio": ("<=", 0.1)}


# ---- The data --------------------------------------------------------------------------------------------------------


def write_set(folder: Path, episodes: int) -> Path:
    """The set's folder; it is written by TFDS the first time.

    A step takes 44 kB, as in a build of LIBERO: its frames at 256 pixels and TFDS's quality, 95, are files of 22 kB.
    """
    found = folder / f"libero_like_44kb_{episodes}"
    if (found / "features.json").is_file():
        return found
    import tensorflow_datasets as tfds

    F = tfds.features
    image = F.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg")
    features = F.FeaturesDict(
        {
            "steps": F.Dataset(
                {
                    "observation": F.FeaturesDict(
                        {
                            **dict.fromkeys(CAMERAS, image),
                            "state": F.Tensor(shape=(STATE,), dtype=np.float32),
                        }
                    ),
                    "action": F.Tensor(shape=(ACTION,), dtype=np.float32),
                    "language_instruction": F.Text(),
                    "is_first": F.Scalar(np.bool_),
                    "is_last": F.Scalar(np.bool_),
                }
            ),
            "episode_metadata": F.FeaturesDict({"file_path": F.Text()}),
        }
    )
    builder = tfds.dataset_builders.AdhocBuilder(
        name=found.name,
        version="1.0.0",
        features=features,
        data_dir=folder / "writing",
        split_datasets={"train": ((i, _episode(i)) for i in range(episodes))},
    )
    builder.download_and_prepare()
    Path(builder.data_path).rename(found)
    return found


def _episode(number: int) -> dict[str, Any]:
    """Pictures that move and have texture, in files of the size of LIBERO's."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).resize(
        (2 * SIZE, 2 * SIZE), Image.BICUBIC
    )
    scene = (
        (np.asarray(coarse) + rng.normal(0, 2, (2 * SIZE, 2 * SIZE, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    )
    state, action = rng.normal(size=(STEPS, STATE)), rng.uniform(-1, 1, (STEPS, ACTION))
    return {
        "steps": [
            {
                "observation": {
                    **{
                        name: _jpeg(scene[t : t + SIZE, SIZE * camera // 2 :][:, :SIZE])
                        for camera, name in enumerate(CAMERAS)
                    },
                    "state": state[t].astype(np.float32),
                },
                "action": action[t].astype(np.float32),
                "language_instruction": "put the bowl on the plate",
                "is_first": t == 0,
                "is_last": t == STEPS - 1,
            }
            for t in range(STEPS)
        ],
        "episode_metadata": {"file_path": f"episode {number}"},
    }


def _jpeg(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return io.BytesIO(file.getvalue())


# ---- The sides, each in a process of its own -------------------------------------------------------------------------


class Side(abc.ABC):
    """Draws batches when it is asked; a subclass opens the set."""

    def __init__(self, folder: str, threads: int):
        self.folder, self.threads = folder, threads
        self._batches = None

    @abc.abstractmethod
    def open(self):
        """An endless iterator over batches of {"images", "state", "actions"}."""

    def first(self) -> list[int]:
        """Opens the set and noise_samples a batch; returns the shape of its images."""
        self._batches = self.open()
        return list(np.shape(next(self._batches)["images"]))

    def draw(self, count: int) -> float:
        """Draws more batches, and waits until as many lie ready as before; returns the seconds that this took."""
        start = time.perf_counter()
        for batch in itertools.islice(self._batches, count):
            assert batch["images"].dtype == np.uint8
        return _end_of_work() - start


def _end_of_work() -> float:
    """When this process stopped working, once it has: until then it makes batches ahead, beside the other's turn."""
    while True:
        now, used = time.perf_counter(), time.process_time()
        time.sleep(0.1)
        if time.process_time() - used < 0.01:
            return now


def resident(pid: int) -> float:
    """RssAnon in MB of a process and its children: memory that is theirs, not the file cache's."""
    process, total = psutil.Process(pid), 0
    for one in (pid, *(child.pid for child in process.children(recursive=True))):
        try:
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
        except FileNotFoundError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return total / 1024


class ResourceMeter:
    """The most anonymous memory in MB that each worker has had at once; looked at from outside, at no cost to it."""

    def __init__(self, workers: Mapping[str, Worker]):
        self.peaks, self._workers = dict.fromkeys(workers, 0.0), workers
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._end.wait(0.2):
            for name, worker in self._workers.items():
                self.peaks[name] = max(self.peaks[name], resident(worker.process.pid))

    def stop(self) -> dict[str, float]:
        """The peaks."""
        self._end.set()
        self._thread.join()
        return self.peaks


class OurLoader(Side):
    """This project's rows, as a stage noise_samples them: every frame of the set once an epoch, in an order of its own."""

    def __init__(self, folder: str, threads: int):
        super().__init__(folder, threads)
        rng, self.assets = np.random.default_rng(0), Assets(Tokenizer.load())
        self.assets.action_stats, self.assets.state_stats = (
            stats_of(rng.normal(size=(9, n))) for n in (ACTION, STATE)
        )

    def open(self):
        dataset = RLDSDataset(self.folder)
        plan = Plan.make(
            [Stream("action", "set", "action", ((0.0, 1.0),), 0)],
            batch_size=BATCH,
            steps=10**4,
            seed=0,
        )
        sizes = RowSizes(
            num_cameras=2,
            image_size=SIZE,
            text_len=32,
            max_targets=16,
            state_dim=STATE,
            horizon=HORIZON,
            action_dim=ACTION,
        )
        builder = RowBuilder(
            plan,
            {"set": StageDataset(dataset, CAMERAS)},
            self.assets,
            sizes,
            RowOptions(prompt="pi0", use_fast=False),
        )
        return batches(builder, start=0, threads=self.threads)


class TFData(Side):
    """tf.data as openpi and Octo use it."""

    def __init__(self, folder: str, threads: int, decoded: bool):
        super().__init__(folder, threads)
        import tensorflow as tf
        import tensorflow_datasets as tfds

        self.tf, self.tfds, self.decoded = tf, tfds, decoded
        tf.config.set_visible_devices([], "GPU")

    def open(self):
        tf, parallel = self.tf, self.tf.data.AUTOTUNE
        builder = self.tfds.builder_from_directory(self.folder)
        data = builder.as_dataset(
            "train", shuffle_files=True, decoders={"steps": self.tfds.decode.SkipDecoding()}
        )
        data = data.repeat().map(self._chunk, num_parallel_calls=parallel)
        data = data.interleave(
            tf.data.Dataset.from_tensor_slices, cycle_length=1, num_parallel_calls=parallel
        )
        if self.decoded:
            data = data.map(self._decode, num_parallel_calls=parallel).shuffle(BUFFER)
        else:
            data = data.shuffle(BUFFER).map(self._decode, num_parallel_calls=parallel)
        return data.batch(BATCH).prefetch(4).with_options(self._options()).as_numpy_iterator()

    def _options(self):
        """Those of dlimp, by which both read; and 1 GiB for what lies ready, as both have it."""
        options = self.tf.data.MonitorOptions()
        options.deterministic = False
        options.experimental_optimization.map_fusion = True
        options.experimental_optimization.map_and_filter_fusion = True
        options.experimental_optimization.inject_prefetch = False
        options.experimental_warm_start = True
        options.autotune.ram_budget = 1 << 30
        options.threading.private_threadpool_size = self.threads
        return options

    def _chunk(self, episode):
        tf, steps = self.tf, episode["steps"]
        length = tf.shape(steps["action"])[0]
        index = tf.minimum(tf.range(length)[:, None] + tf.range(HORIZON)[None], length - 1)
        return {
            "images": tf.stack([steps["observation"][name] for name in CAMERAS], axis=1),
            "state": steps["observation"]["state"],
            "actions": tf.gather(steps["action"], index),
            "prompt": steps["language_instruction"],
        }

    def _decode(self, frame):
        tf = self.tf
        pixels = [
            tf.io.decode_image(frame["images"][i], expand_animations=False, dtype=tf.uint8)
            for i in range(2)
        ]
        return {
            **frame,
            "images": tf.stack([tf.ensure_shape(image, (SIZE, SIZE, 3)) for image in pixels]),
        }


# ---- The comparison --------------------------------------------------------------------------------------------------


def compare(folder: Path, *, samples: int, threads: int, decoded: bool) -> dict[str, float]:
    """Both sides in `TURNS` turns of `samples`, after one that warms up; keys `ours_*`, `tf_*` and those of FLOORS.

    The index is built anew, and is part of the time to the first batch; importing libraries, and loading the tokenizer
    that tf.data does without, are not.
    """
    shutil.rmtree(folder / ".etcvla", ignore_errors=True)
    result: dict[str, float] = {}
    with (
        Worker("etcvla.bench.loader:OurLoader", folder=str(folder), threads=threads) as ours,
        Worker(
            "etcvla.bench.loader:TFData", folder=str(folder), threads=threads, decoded=decoded
        ) as tf,
    ):
        workers = {"ours": ours, "tf": tf}
        watch = ResourceMeter(workers)
        for name, worker in workers.items():
            result[f"{name}_first_batch"] = worker("first").wall
        count, seconds = max(1, samples // BATCH), {name: [] for name in workers}
        for turn, (name, worker) in itertools.product(range(1 + TURNS), workers.items()):
            run = worker("draw", count=count)
            seconds[name] += [(run.cpu, run.result)] if turn else []
        for name, peak in watch.stop().items():
            cpu, wall = count * BATCH / np.median(seconds[name], axis=0)
            result |= {
                f"{name}_rate": float(cpu),
                f"{name}_wall_rate": float(wall),
                f"{name}_memory": peak,
            }
    ratios = np.median(np.array(seconds["tf"]) / seconds["ours"], axis=0).tolist()
    return result | {
        "rate_ratio": ratios[0],
        "wall_rate_ratio": ratios[1],
        "memory_ratio": result["ours_memory"] / result["tf_memory"],
        "first_batch_ratio": result["ours_first_batch"] / result["tf_first_batch"],
    }


def memory_over(folder: Path, *, samples: int, threads: int) -> dict[str, list[float]]:
    """Our memory in MB at eleven points on the way through `samples`."""
    points = []
    with Worker("etcvla.bench.loader:OurLoader", folder=str(folder), threads=threads) as ours:
        ours("first")
        for _ in range(11):
            ours("draw", count=max(1, samples // BATCH // 10))
            points.append(resident(ours.process.pid))
    return {"memory_over_samples": points, "memory_growth": points[-1] / points[1]}


def table(result: dict) -> str:
    """The numbers for people."""
    lines = [f"{'':<28}{'ours':>10}{'tf.data':>10}"]
    for key, what in (
        ("rate", "samples a CPU second"),
        ("wall_rate", "samples a second"),
        ("memory", "RssAnon, MB"),
        ("first_batch", "first batch, s"),
    ):
        lines.append(f"{what:<28}{result[f'ours_{key}']:>10.2f}{result[f'tf_{key}']:>10.2f}")
    for name, (sign, floor) in FLOORS.items():
        met = result[name] >= floor if sign == ">=" else result[name] <= floor
        lines.append(
            f"{name:<28}{result[name]:>10.2f}   {sign} {floor}: {'met' if met else 'MISSED'}"
        )
    return "\n".join(lines)
