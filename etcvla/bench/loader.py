"""The loader against tf.data: samples per CPU second, memory, time to the first batch.

Both sides draw the same samples of a LIBERO-like dataset: two cameras uint8[256, 256, 3], the state
and a chunk of ten actions. tf.data reads as openpi and Octo do: whole episodes, chunked, flattened
to frames, shuffled in a buffer. The buffer holds decoded frames, as in openpi for DROID (8 GB at
20,000 frames), or encoded ones, as in Octo.
"""

from __future__ import annotations

import abc
import io
import itertools
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
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

# LIBERO's sizes.
STEPS = 150
SIZE = 256
STATE = 8
ACTION = 7
HORIZON = 10
CAMERAS = ("image", "wrist_image")
BUFFER = 20_000  # frames of tf.data's shuffle buffer
BATCH = 32
TURNS = 6
FLOORS = {"rate_ratio": (">=", 1.2), "memory_ratio": ("<=", 0.3), "first_batch_ratio": ("<=", 0.1)}


def write_set(folder: Path, episodes: int) -> Path:
    """Return the dataset's folder; the first call writes it by TFDS.

    A step takes 44 kB, as in LIBERO: images of 256 pixels at TFDS's JPEG quality 95 take 22 kB.
    """
    path = folder / f"libero_like_44kb_{episodes}"
    if (path / "features.json").is_file():
        return path
    import tensorflow_datasets as tfds

    feature = tfds.features
    image = feature.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg")
    state = feature.Tensor(shape=(STATE,), dtype=np.float32)
    step = {
        "observation": feature.FeaturesDict({**dict.fromkeys(CAMERAS, image), "state": state}),
        "action": feature.Tensor(shape=(ACTION,), dtype=np.float32),
        "language_instruction": feature.Text(),
        "is_first": feature.Scalar(np.bool_),
        "is_last": feature.Scalar(np.bool_),
    }
    metadata = feature.FeaturesDict({"file_path": feature.Text()})
    builder = tfds.dataset_builders.AdhocBuilder(
        name=path.name,
        version="1.0.0",
        features=feature.FeaturesDict(
            {"steps": feature.Dataset(step), "episode_metadata": metadata}
        ),
        data_dir=folder / "writing",
        split_datasets={"train": ((i, _episode(i)) for i in range(episodes))},
    )
    builder.download_and_prepare()
    Path(builder.data_path).rename(path)
    return path


def _episode(number: int) -> dict[str, Any]:
    """Return an episode of textured, moving images whose files are as large as LIBERO's."""
    rng = np.random.default_rng(number)
    canvas = 2 * SIZE
    coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
    coarse = np.asarray(coarse.resize((canvas, canvas), Image.BICUBIC))
    noise = rng.normal(0, 2, (canvas, canvas, 3))
    scene = (coarse + noise).clip(0, 255).astype(np.uint8)
    state = rng.normal(size=(STEPS, STATE)).astype(np.float32)
    action = rng.uniform(-1, 1, (STEPS, ACTION)).astype(np.float32)
    steps = []
    for t in range(STEPS):
        observation: dict[str, Any] = {"state": state[t]}
        for camera, name in enumerate(CAMERAS):
            left = SIZE * camera // 2
            observation[name] = _jpeg(scene[t : t + SIZE, left : left + SIZE])
        steps.append(
            {
                "observation": observation,
                "action": action[t],
                "language_instruction": "put the bowl on the plate",
                "is_first": t == 0,
                "is_last": t == STEPS - 1,
            }
        )
    return {"steps": steps, "episode_metadata": {"file_path": f"episode {number}"}}


def _jpeg(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return io.BytesIO(file.getvalue())


class Side(abc.ABC):
    """One loader in a process of its own; it draws batches on request."""

    def __init__(self, folder: str, threads: int):
        self.folder = folder
        self.threads = threads
        self._batches: Iterator[dict[str, np.ndarray]] = iter(())

    @abc.abstractmethod
    def open(self) -> Iterator[dict[str, np.ndarray]]:
        """Open the dataset and return an endless iterator of {"images", "state", "actions"}."""

    def first(self) -> list[int]:
        """Open the dataset and draw a batch; return the shape of its images."""
        self._batches = self.open()
        return list(next(self._batches)["images"].shape)

    def draw(self, count: int) -> float:
        """Draw batches until `count` are drawn and the prefetch queue is full again.

        Returns: seconds.
        """
        start = time.perf_counter()
        for batch in itertools.islice(self._batches, count):
            assert batch["images"].dtype == np.uint8
        return _end_of_work() - start


def _end_of_work() -> float:
    """Wait until this process is idle (it prefetches batches); return when that was."""
    while True:
        now = time.perf_counter()
        cpu = time.process_time()
        time.sleep(0.1)
        if time.process_time() - cpu < 0.01:
            return now


def anonymous_memory(pid: int) -> float:
    """Return RssAnon in MB of a process and its children: memory without the file cache."""
    pids = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    kilobytes = 0
    for one in pids:
        try:
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
        except FileNotFoundError:  # the process has ended
            continue
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return kilobytes / 1024


class ResourceMeter:
    """Record the peak anonymous memory in MB of each worker, from outside its process."""

    def __init__(self, workers: Mapping[str, Worker]):
        self.peaks = dict.fromkeys(workers, 0.0)
        self._workers = workers
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._record, daemon=True)
        self._thread.start()

    def _record(self) -> None:
        while not self._end.wait(0.2):
            for name, worker in self._workers.items():
                memory = anonymous_memory(worker.process.pid)
                self.peaks[name] = max(self.peaks[name], memory)

    def stop(self) -> dict[str, float]:
        """Stop recording and return the peaks."""
        self._end.set()
        self._thread.join()
        return self.peaks


class OurLoader(Side):
    """This project's rows as a stage draws them: every frame once per epoch, in a new order."""

    def __init__(self, folder: str, threads: int):
        super().__init__(folder, threads)
        rng = np.random.default_rng(0)
        self.assets = Assets(Tokenizer.load())
        self.assets.action_stats = stats_of(rng.normal(size=(9, ACTION)))
        self.assets.state_stats = stats_of(rng.normal(size=(9, STATE)))

    def open(self) -> Iterator[dict[str, np.ndarray]]:
        """Open the dataset; see `Side`."""
        stream = Stream("action", "set", "action", ((0.0, 1.0),), 0)
        plan = Plan.make([stream], batch_size=BATCH, steps=10**4, seed=0)
        sizes = RowSizes(
            num_cameras=2,
            image_size=SIZE,
            text_len=32,
            max_targets=16,
            state_dim=STATE,
            horizon=HORIZON,
            action_dim=ACTION,
        )
        datasets = {"set": StageDataset(RLDSDataset(self.folder), CAMERAS)}
        options = RowOptions(prompt="pi0", use_fast=False)
        builder = RowBuilder(plan, datasets, self.assets, sizes, options)
        return batches(builder, start=0, threads=self.threads)


class TFData(Side):
    """tf.data as openpi and Octo use it."""

    def __init__(self, folder: str, threads: int, decoded: bool):
        super().__init__(folder, threads)
        import tensorflow as tf
        import tensorflow_datasets as tfds

        self.tf = tf
        self.tfds = tfds
        self.decoded = decoded
        tf.config.set_visible_devices([], "GPU")

    def open(self) -> Iterator[dict[str, np.ndarray]]:
        """Open the dataset; see `Side`."""
        tf = self.tf
        parallel = tf.data.AUTOTUNE
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

    def _options(self) -> Any:
        """Return the options of dlimp, which both projects use, and 1 GiB for prefetching."""
        options = self.tf.data.Options()
        options.deterministic = False
        options.experimental_optimization.map_fusion = True
        options.experimental_optimization.map_and_filter_fusion = True
        options.experimental_optimization.inject_prefetch = False
        options.experimental_warm_start = True
        options.autotune.ram_budget = 1 << 30
        options.threading.private_threadpool_size = self.threads
        return options

    def _chunk(self, episode: dict) -> dict:
        tf = self.tf
        steps = episode["steps"]
        length = tf.shape(steps["action"])[0]
        index = tf.minimum(tf.range(length)[:, None] + tf.range(HORIZON)[None], length - 1)
        return {
            "images": tf.stack([steps["observation"][name] for name in CAMERAS], axis=1),
            "state": steps["observation"]["state"],
            "actions": tf.gather(steps["action"], index),
            "prompt": steps["language_instruction"],
        }

    def _decode(self, frame: dict) -> dict:
        tf = self.tf
        images = []
        for i in range(len(CAMERAS)):
            image = tf.io.decode_image(frame["images"][i], expand_animations=False, dtype=tf.uint8)
            images.append(tf.ensure_shape(image, (SIZE, SIZE, 3)))
        return {**frame, "images": tf.stack(images)}


def compare(folder: Path, *, samples: int, threads: int, decoded: bool) -> dict[str, float]:
    """Run both sides for `TURNS` turns of `samples`, after one turn that warms up.

    The time to the first batch includes building our index. It excludes importing libraries and
    loading our tokenizer, which tf.data does not have.

    Returns: keys `ours_*`, `tf_*` and those of FLOORS.
    """
    shutil.rmtree(folder / ".etcvla", ignore_errors=True)
    arguments = {"folder": str(folder), "threads": threads}
    count = max(1, samples // BATCH)
    result: dict[str, float] = {}
    with (
        Worker("etcvla.bench.loader:OurLoader", **arguments) as ours,
        Worker("etcvla.bench.loader:TFData", decoded=decoded, **arguments) as tf,
    ):
        workers = {"ours": ours, "tf": tf}
        seconds: dict[str, list] = {name: [] for name in workers}  # (cpu, wall) of each turn
        meter = ResourceMeter(workers)
        for name, worker in workers.items():
            result[f"{name}_first_batch"] = worker("first").wall
        for turn, name in itertools.product(range(1 + TURNS), workers):
            run = workers[name]("draw", count=count)
            if turn > 0:
                seconds[name].append((run.cpu, run.result))
        for name, peak in meter.stop().items():
            cpu_rate, wall_rate = count * BATCH / np.median(seconds[name], axis=0)
            result[f"{name}_rate"] = float(cpu_rate)
            result[f"{name}_wall_rate"] = float(wall_rate)
            result[f"{name}_memory"] = peak
    cpu_ratio, wall_ratio = np.median(np.array(seconds["tf"]) / seconds["ours"], axis=0)
    result["rate_ratio"] = float(cpu_ratio)
    result["wall_rate_ratio"] = float(wall_ratio)
    result["memory_ratio"] = result["ours_memory"] / result["tf_memory"]
    result["first_batch_ratio"] = result["ours_first_batch"] / result["tf_first_batch"]
    return result


def memory_over(folder: Path, *, samples: int, threads: int) -> dict[str, Any]:
    """Return our memory in MB at eleven points while `samples` are drawn."""
    points = []
    with Worker("etcvla.bench.loader:OurLoader", folder=str(folder), threads=threads) as ours:
        ours("first")
        for _ in range(11):
            ours("draw", count=max(1, samples // BATCH // 10))
            points.append(anonymous_memory(ours.process.pid))
    return {"memory_over_samples": points, "memory_growth": points[-1] / points[1]}


def table(result: Mapping[str, float]) -> str:
    """Return the numbers as a table."""
    lines = [f"{'':<28}{'ours':>10}{'tf.data':>10}"]
    labels = {
        "rate": "samples per CPU second",
        "wall_rate": "samples per second",
        "memory": "RssAnon, MB",
        "first_batch": "first batch, s",
    }
    for key, label in labels.items():
        lines.append(f"{label:<28}{result[f'ours_{key}']:>10.2f}{result[f'tf_{key}']:>10.2f}")
    for name, (sign, floor) in FLOORS.items():
        met = result[name] >= floor if sign == ">=" else result[name] <= floor
        verdict = "met" if met else "MISSED"
        lines.append(f"{name:<28}{result[name]:>10.2f}   {sign} {floor}: {verdict}")
    return "\n".join(lines)
