"""Benchmarks against named peers, on this machine.

    python launch/bench.py model [--only=flops|time] [--out=FILE]
    python launch/bench.py loader [--episodes=200] [--samples=4500] [--out=FILE]
    python launch/bench.py policy [--rounds=5] [--calls=20] [--out=FILE]
    python launch/bench.py simulator [--suite=tabletop] [--rounds=5] [--calls=20] [--out=FILE]
    python launch/bench.py delay --checkpoint=RUN [--delays=0,2,4] [--trials=10] [--out=FILE]

`model`: pi0 of openpi and of this project with the same parameters, sizes, inputs and dtype, in
turns: seconds per training step and per action chunk; FLOPs per sample at full size; segments per
TFLOP of packed rows. openpi's package is installed alone into --openpi_dir the first time. Five
minutes on two cores; one for the FLOPs alone.

`loader`: this project's loader and tf.data as openpi and Octo use it, on one LIBERO-like dataset
that is written to --data_dir the first time (1.7 GB at 200 episodes; requires the extra `build`):
samples per CPU second, anonymous memory, time to the first batch. --drift=100000 then draws that
many samples and prints the memory along the way.

`policy`: from a raw observation to physical actions, openpi's `Policy.infer` and ours with the same
parameters, in turns: p50 and p99 of the latency, actions per second, with three cameras and with
two.

`simulator`: CPU time of a reset, a control step, a rendered frame, and the facts about a frame.

`delay`: success in Meta-World of a checkpoint whose chunks arrive late, with and without real-time
chunking.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from absl import flags

from configs import common as fields
from etcvla.bench import loader, model, openpi, ours, policy, simulator
from etcvla.errors import UserError
from etcvla.files import write_json
from etcvla.policy import Policy
from etcvla.serve import delay_benchmark
from launch import common

CACHE = Path.home() / ".cache" / "etcvla"

_OUT = flags.DEFINE_string("out", "", "JSON file for the numbers.")
_ONLY = flags.DEFINE_enum(
    "only", "all", ["all", "flops", "time"], "model: which part to run; flops compiles nothing."
)
_SIZE = flags.DEFINE_string(
    "size", "small", "Size of the timed model, a name in etcvla/models/variants.py."
)
_VOCAB = flags.DEFINE_integer("vocab", 2688, "Vocabulary size of the timed model.")
_ROWS = flags.DEFINE_integer("rows", 2, "Rows of a timed training batch.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Repetitions of each measurement.", lower_bound=1)
_CONFIG = flags.DEFINE_string(
    "config", "configs/objective_bridge.py", "Stage whose packed rows are counted."
)
_OPENPI_DIR = flags.DEFINE_string(
    "openpi_dir", str(CACHE / "openpi"), "Folder in which openpi's package is installed."
)
_EPISODES = flags.DEFINE_integer(
    "episodes", 200, "loader: episodes of the dataset, of 150 steps each.", lower_bound=1
)
_SAMPLES = flags.DEFINE_integer(
    "samples", 4500, "loader: samples per loader and repetition.", lower_bound=1
)
_THREADS = flags.DEFINE_integer("threads", 2, "loader: threads of each loader.", lower_bound=1)
_DRIFT = flags.DEFINE_integer("drift", 0, "loader: samples over which to record memory; 0: none.")
_BUFFER = flags.DEFINE_enum(
    "buffer",
    "decoded",
    ["decoded", "encoded"],
    "loader: frames in tf.data's shuffle buffer, decoded as in openpi or encoded as in Octo.",
)
_CALLS = flags.DEFINE_integer(
    "calls", 20, "policy, simulator: calls per repetition.", lower_bound=1
)
_SUITE = flags.DEFINE_string("suite", "tabletop", "simulator: suite whose simulator is timed.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "delay: workdir or checkpoint that acts.")
_TASKS = flags.DEFINE_list("tasks", list(fields.METAWORLD_TASKS), "delay: tasks.")
_DELAYS = flags.DEFINE_list(
    "delays", ["0", "2", "4"], "delay: control steps from an observation to its chunk."
)
_TRIALS = flags.DEFINE_integer("trials", 10, "delay: held-out layouts per task.", lower_bound=1)
_EXECUTE = flags.DEFINE_integer(
    "execute", 5, "delay: control steps between two queries, at least.", lower_bound=1
)
_QUANTIZE = flags.DEFINE_enum("quantize", None, ["int8"], "delay: type of the weights.")
_DATA_DIR = flags.DEFINE_string("data_dir", str(CACHE / "bench"), "loader: folder of the dataset.")


def main(argv: list[str]) -> None:
    """Run the benchmark that the command line names."""
    benchmarks = {
        "model": bench_model,
        "loader": bench_loader,
        "policy": bench_policy,
        "simulator": bench_simulator,
        "delay": bench_delay,
    }
    if len(argv) != 2 or argv[1] not in benchmarks:
        given = " ".join(argv[1:]) or "none"
        raise UserError(f"name one benchmark of {', '.join(benchmarks)}; got {given}")
    common.check_out_file(_OUT.value)
    start = time.time()
    result: dict[str, Any] = {"bench": argv[1], "machine": model.machine()}
    try:
        benchmarks[argv[1]](result)
    finally:  # numbers of the parts that finished are kept
        result["seconds"] = time.time() - start
        if _OUT.value:
            write_json(_OUT.value, result)
            print(f"numbers: {_OUT.value}", flush=True)


def bench_model(result: dict[str, Any]) -> None:
    """Print the model benchmark and add its numbers to `result`."""
    folder = Path(_OPENPI_DIR.value)
    if _ONLY.value != "time":
        result |= model.count_flops(common.load_config(_CONFIG.value, "paligemma_3b"))
        print(model.flops_table(result), flush=True)
    try:
        openpi.install(folder)
    except UserError as error:
        if _ONLY.value != "flops":
            raise
        print(f"openpi is not counted: {error}", flush=True)
        return
    if _ONLY.value != "time":
        result |= model.count_openpi(folder)
        tflop = result["openpi_tflop_per_sample"]
        print(f"openpi's pi0 at full size: {tflop:.2f} TFLOP per training sample", flush=True)
    if _ONLY.value != "flops":
        workload = ours.Workload(_SIZE.value, _VOCAB.value, _ROWS.value, dtype="float32")
        result |= model.compare(workload, folder, _ROUNDS.value)
        print(model.time_table(result), flush=True)


def bench_loader(result: dict[str, Any]) -> None:
    """Print the loader benchmark and add its numbers to `result`."""
    folder = loader.write_set(Path(_DATA_DIR.value), _EPISODES.value)
    result |= loader.compare(
        folder, samples=_SAMPLES.value, threads=_THREADS.value, decoded=_BUFFER.value == "decoded"
    )
    print(loader.table(result), flush=True)
    if _DRIFT.value:
        result |= loader.memory_over(folder, samples=_DRIFT.value, threads=_THREADS.value)
        megabytes = " ".join(f"{mb:.0f}" for mb in result["memory_over_samples"])
        print(f"MB over the samples: {megabytes}", flush=True)


def bench_policy(result: dict[str, Any]) -> None:
    """Print the policy benchmark and add its numbers to `result`."""
    folder = Path(_OPENPI_DIR.value)
    openpi.install(folder)
    workload = ours.Workload(_SIZE.value, _VOCAB.value, 1, dtype="float32")
    result |= policy.compare(workload, folder, _ROUNDS.value, _CALLS.value)
    print(policy.table(result), flush=True)


def bench_simulator(result: dict[str, Any]) -> None:
    """Print the CPU time of a simulator and add its numbers to `result`."""
    result["suite"] = _SUITE.value
    result["milliseconds"] = simulator.measure(_SUITE.value, _ROUNDS.value, _CALLS.value)
    print(simulator.table(result["milliseconds"]), flush=True)


def bench_delay(result: dict[str, Any]) -> None:
    """Print success by delay and add it to `result`."""
    if not _CHECKPOINT.value:
        raise UserError("bench.py delay requires --checkpoint=RUN")
    spec = delay_benchmark.DelaySpec(
        tasks=tuple(_TASKS.value),
        trials=_TRIALS.value,
        delays=tuple(int(delay) for delay in _DELAYS.value),
        execute=_EXECUTE.value,
    )
    acting = Policy.load(_CHECKPOINT.value, text_len=None, quantize=_QUANTIZE.value)
    result["checkpoint"] = _CHECKPOINT.value
    result["quantize"] = _QUANTIZE.value
    result["rows"] = delay_benchmark.evaluate(acting, spec)


if __name__ == "__main__":
    common.run(main)
