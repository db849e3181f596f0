"""Benchmarks, one a name.

    python launch/bench.py model [--only=flops|time] [--json=FILE]
    python launch/bench.py loader [--episodes=200] [--samples=4500] [--json=FILE]
    python launch/bench.py policy [--rounds=5] [--calls=20] [--json=FILE]
    python launch/bench.py delay --workdir=RUN [--delays=0,2,4] [--trials=10] [--json=FILE]

`model`: pi0 of openpi and of this project with the same parameters, sizes, inputs and dtype, in turns on this machine:
seconds of a training step and of acting; FLOPs a sample at full size; segments a TFLOP of packed rows. openpi's package
is installed alone into --openpi_dir the first time. Five minutes on two cores, the FLOPs alone in one.

`loader`: this project's loader and tf.data as openpi and Octo use it, over one LIBERO-like set that is written into
--data_dir the first time (1.7 GB at 200 episodes; needs the extra `build`): samples a CPU second, anonymous memory,
time to the first batch. --drift=100000 then noise_samples so many samples and says whether memory grew.

`policy`: from a raw observation to physical actions, openpi's `Policy.infer` and ours with the same parameters, in
turns: p50 and p99 of the latency, actions a second, with three cameras and with two.

`delay`: success in Meta-World of a checkpoint whose chunks come so many control steps late, with real-time chunking and
without.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from absl import flags

from configs import common as fields
from etcvla.bench import loader, model, openpi, ours, policy
from etcvla.policy import Policy
from etcvla.serve import delay_benchmark
from launch import common

_JSON = flags.DEFINE_string("json", "", "Where the numbers go as JSON, if anywhere.")
_ONLY = flags.DEFINE_enum(
    "only", "all", ["all", "flops", "time"], "Which part: flops neither compiles nor computes."
)
_SIZE = flags.DEFINE_string(
    "size", "small", "Size of the timed model, a name in etcvla/models/variants.py."
)
_VOCAB = flags.DEFINE_integer("vocab", 2688, "Its vocabulary.")
_ROWS = flags.DEFINE_integer("rows", 2, "Rows of a timed training batch.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed runs of everything.", lower_bound=1)
_CONFIG = flags.DEFINE_string(
    "config", "configs/objective_bridge.py", "The stage whose packed rows are counted."
)
_OPENPI_DIR = flags.DEFINE_string(
    "openpi_dir",
    str(Path.home() / ".cache" / "etcvla" / "openpi"),
    "Where openpi's package lies or is installed.",
)
_EPISODES = flags.DEFINE_integer(
    "episodes", 200, "Episodes of the loader's set, of 150 steps.", lower_bound=1
)
_SAMPLES = flags.DEFINE_integer(
    "samples", 4500, "Samples of each turn of each loader.", lower_bound=1
)
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of each loader.", lower_bound=1)
_DRIFT = flags.DEFINE_integer("drift", 0, "Samples over which memory is watched, if any.")
_BUFFER = flags.DEFINE_enum(
    "buffer",
    "decoded",
    ["decoded", "encoded"],
    "How frames wait in tf.data's shuffle buffer: openpi's way, or Octo's.",
)
_CALLS = flags.DEFINE_integer("calls", 20, "Answers of each turn of each policy.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", "", "The run whose newest checkpoint acts with a delay.")
_TASKS = flags.DEFINE_list("tasks", list(fields.METAWORLD_TASKS), "Tasks to act in with a delay.")
_DELAYS = flags.DEFINE_list("delays", ["0", "2", "4"], "Control steps from a look to its chunk.")
_TRIALS = flags.DEFINE_integer("trials", 10, "Held-out layouts a task.", lower_bound=1)
_EXECUTE = flags.DEFINE_integer(
    "execute", 5, "Control steps between looks, at least.", lower_bound=1
)
_QUANTIZE = flags.DEFINE_enum(
    "quantize", None, ["int8"], "Weights of this type, for acting with a delay."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", str(Path.home() / ".cache" / "etcvla" / "bench"), "Where the set lies."
)


def main(argv):
    benches = {
        "model": bench_model,
        "loader": bench_loader,
        "policy": bench_policy,
        "delay": bench_delay,
    }
    if len(argv) != 2 or argv[1] not in benches:
        raise ValueError(
            f"python launch/bench.py NAME, where NAME is one of {', '.join(benches)}; got "
            f"{' '.join(argv[1:]) or 'none'}"
        )
    if _JSON.value and not Path(_JSON.value).resolve().parent.is_dir():
        raise ValueError(f"--json={_JSON.value}: its directory does not exist; make it first")
    began, result = time.time(), {"bench": argv[1], "machine": model.machine()}
    try:
        benches[argv[1]](result)
    finally:  # what was counted stays counted if openpi cannot be had
        result["seconds"] = time.time() - began
        if _JSON.value:
            Path(_JSON.value).write_text(json.dumps(result, indent=2))
            print(f"numbers: {_JSON.value}", flush=True)


def bench_model(result: dict) -> None:
    """Adds the model benchmark's numbers to `result`, and prints them as it goes."""
    folder = Path(_OPENPI_DIR.value)
    if _ONLY.value != "time":
        result |= model.count_flops(common.load_config(_CONFIG.value, "paligemma_3b"))
        print(model.flops_table(result), flush=True)
    try:
        openpi.install(folder)
    except RuntimeError as error:
        if _ONLY.value != "flops":
            raise
        print(f"openpi is not counted: {error}", flush=True)
        return
    if _ONLY.value != "time":
        result |= model.count_openpi(folder)
        print(
            f"openpi's pi0 at full size: {result['openpi_tflop_per_sample']:.2f} TFLOP a training sample",
            flush=True,
        )
    if _ONLY.value != "flops":
        workload = ours.Workload(_SIZE.value, _VOCAB.value, _ROWS.value, dtype="float32")
        result |= model.compare(workload, folder, _ROUNDS.value)
        print(model.time_table(result), flush=True)


def bench_loader(result: dict) -> None:
    """Adds the loader benchmark's numbers to `result`, and prints them."""
    folder = loader.write_set(Path(_DATA_DIR.value), _EPISODES.value)
    result |= loader.compare(
        folder, samples=_SAMPLES.value, threads=_THREADS.value, decoded=_BUFFER.value == "decoded"
    )
    print(loader.table(result), flush=True)
    if _DRIFT.value:
        result |= loader.memory_over(folder, samples=_DRIFT.value, threads=_THREADS.value)
        print(
            "MB over the samples: " + " ".join(f"{mb:.0f}" for mb in result["memory_over_samples"]),
            flush=True,
        )


def bench_policy(result: dict) -> None:
    """Adds the policy benchmark's numbers to `result`, and prints them."""
    folder = Path(_OPENPI_DIR.value)
    openpi.install(folder)
    workload = ours.Workload(_SIZE.value, _VOCAB.value, 1, dtype="float32")
    result |= policy.compare(workload, folder, _ROUNDS.value, _CALLS.value)
    print(policy.table(result), flush=True)


def bench_delay(result: dict) -> None:
    """Adds success by delay to `result`, and prints it as it goes."""
    if not _WORKDIR.value:
        raise ValueError("bench.py delay wants --workdir=RUN, the run whose newest checkpoint acts")
    spec = delay_benchmark.DelaySpec(
        tuple(_TASKS.value), _TRIALS.value, tuple(map(int, _DELAYS.value)), _EXECUTE.value
    )
    acting = Policy.load(_WORKDIR.value, text_len=None, quantize=_QUANTIZE.value)
    result |= {
        "workdir": _WORKDIR.value,
        "quantize": _QUANTIZE.value,
        "rows": delay_benchmark.evaluate(acting, spec),
    }


if __name__ == "__main__":
    common.run(main)
