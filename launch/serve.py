"""Serve a checkpoint over a websocket to openpi's clients and to ours; see docs/serve.md.

    python launch/serve.py --checkpoint=runs/tiny/objective_bridge
    ETCVLA_API_KEY=... python launch/serve.py --checkpoint=RUN --host=0.0.0.0

The port opens after everything is compiled. Ctrl-C answers the requests in progress and stops.
"""

import asyncio
import dataclasses
import ipaddress
import logging
import os
import signal

from absl import flags

from etcvla.errors import UserError
from etcvla.policy import HEADS, Policy
from etcvla.serve.server import Limits, Server
from etcvla.serve.service import Service
from launch import common

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Workdir (its newest checkpoint) or checkpoint to serve.", required=True
)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen at. 0.0.0.0: all addresses; requires a key."
)
_PORT = flags.DEFINE_integer(
    "port", 8000, "Port; 0: any free port.", lower_bound=0, upper_bound=65535
)
_NO_KEY = flags.DEFINE_bool("no_key", False, "Accept other machines without a key.")
_PROMPT = flags.DEFINE_string("prompt", "", "Instruction for clients that send none.")
_HEAD = flags.DEFINE_enum("head", None, HEADS, "Action head; default: the one that was trained.")
_NUM_STEPS = flags.DEFINE_integer(
    "num_steps", 10, "Euler steps of the action expert.", lower_bound=1
)
_SUBTASK = flags.DEFINE_string(
    "subtask", None, "Question with {instruction} that the policy answers before it acts."
)
_TEXT_LEN = flags.DEFINE_integer(
    "text_len", 0, "Longest prompt in tokens; 0: that of the last stage's rows.", lower_bound=0
)
_QUANTIZE = flags.DEFINE_enum("quantize", None, ["int8"], "Type of the weights.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise that chunks are integrated from.")


def _limit_flag(field: dataclasses.Field) -> flags.FlagHolder:
    """Define the flag of one of the server's limits."""
    define = flags.DEFINE_integer if isinstance(field.default, int) else flags.DEFINE_float
    return define(f"max_{field.name}", field.default, "Limit; see etcvla/serve/server.py.")


_LIMITS = {field.name: _limit_flag(field) for field in dataclasses.fields(Limits)}


def main(_: list[str]) -> None:
    """Load the policy, compile it, and serve until a signal."""
    # Not a flag: all users of a machine see the flags of its processes.
    key = os.environ.get("ETCVLA_API_KEY", "")
    if not (key or _NO_KEY.value or _is_loopback(_HOST.value)):
        raise UserError(
            f"--host={_HOST.value} is reachable from other machines: set ETCVLA_API_KEY (clients "
            "send it as their api_key), or pass --no_key"
        )
    logging.getLogger("etcvla").setLevel(logging.INFO)
    policy = Policy.load(
        _CHECKPOINT.value,
        head=_HEAD.value,
        num_steps=_NUM_STEPS.value,
        subtask_question=_SUBTASK.value,
        quantize=_QUANTIZE.value,
        text_len=_TEXT_LEN.value or None,
        keep_image_cache=True,
    )
    service = Service(policy, instruction=_PROMPT.value, seed=_SEED.value)
    limits = Limits(**{name: flag.value for name, flag in _LIMITS.items()})
    server = Server(service, service.metadata, key=key, limits=limits)
    seconds = service.warm_up()
    print(f"compiled in {seconds:.1f} s; cameras: {', '.join(policy.cameras)}", flush=True)
    asyncio.run(_serve(server))


async def _serve(server: Server) -> None:
    """Run the server until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    def _announce(port: int) -> None:
        print(f"listening at ws://{_HOST.value}:{port}", flush=True)

    await server.run(_HOST.value, _PORT.value, stop, _announce)
    print("stopped", flush=True)


def _is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    common.run(main)
