"""Serves a checkpoint over a websocket, to openpi's clients (LIBERO, DROID, ALOHA, ..) and ours; see docs/serving.md.

    python launch/serve.py --workdir=runs/tiny/objective_bridge
    ETCVLA_API_KEY=... python launch/serve.py --workdir=RUN --host=0.0.0.0

Listens once everything is compiled; Ctrl-C answers what is under way and stops.
"""

import asyncio
import dataclasses
import ipaddress
import logging
import os
import signal

from absl import flags

from etcvla.policy import HEADS, Policy
from etcvla.serve.server import Limits, Server
from etcvla.serve.service import Service
from launch import common

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run whose newest checkpoint is served.", required=True
)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen at; 0.0.0.0 is all of them, and wants a key."
)
_PORT = flags.DEFINE_integer(
    "port", 8000, "Port; 0 takes a free one.", lower_bound=0, upper_bound=65535
)
_OPEN = flags.DEFINE_bool("no_key", False, "Listen beyond this machine without a key.")
_PROMPT = flags.DEFINE_string("prompt", "", "Instruction for clients that send none.")
_HEAD = flags.DEFINE_enum("head", None, HEADS, "What acts, if not what the last stage trained.")
_STEPS = flags.DEFINE_integer("num_steps", 10, "Euler steps of the action expert.", lower_bound=1)
_SUBTASK = flags.DEFINE_string(
    "subtask", None, "A question with {instruction} that the policy answers first."
)
_TEXT_LEN = flags.DEFINE_integer(
    "text_len",
    0,
    "Tokens of a prompt, at most; 0: as a row of the last stage has them.",
    lower_bound=0,
)
_QUANTIZE = flags.DEFINE_enum("quantize", None, ["int8"], "Weights of this type.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise that chunks are made from.")
_LIMITS = {
    field.name: (flags.DEFINE_integer if isinstance(field.default, int) else flags.DEFINE_float)(
        f"max_{field.name}", field.default, "Limit; see etcvla/serve/server.py."
    )
    for field in dataclasses.fields(Limits)
}


def main(_):
    key = os.environ.get(
        "ETCVLA_API_KEY", ""
    )  # not a flag: those are seen by all users of the machine
    if not (key or _OPEN.value or _is_here(_HOST.value)):
        raise ValueError(
            f"--host={_HOST.value} can be reached from other machines: set ETCVLA_API_KEY, which clients "
            "then give as their api_key, or --no_key"
        )
    logging.getLogger("etcvla").setLevel(logging.INFO)
    options = {
        "head": _HEAD.value,
        "num_steps": _STEPS.value,
        "subtask_question": _SUBTASK.value,
        "quantize": _QUANTIZE.value,
    }
    policy = Policy.load(
        _WORKDIR.value, **options, text_len=_TEXT_LEN.value or None, keep_image_cache=True
    )
    service = Service(policy, instruction=_PROMPT.value, seed=_SEED.value)
    server = Server(
        service,
        service.metadata,
        key=key,
        limits=Limits(**{name: flag.value for name, flag in _LIMITS.items()}),
    )
    print(
        f"compiled in {service.warm_up():.1f} s; looks through {', '.join(policy.cameras)}",
        flush=True,
    )
    asyncio.run(_serve(server))


async def _serve(server: Server) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await server.run(
        _HOST.value,
        _PORT.value,
        stop,
        lambda port: print(f"listening at ws://{_HOST.value}:{port}", flush=True),
    )
    print("stopped", flush=True)


def _is_here(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    common.run(main)
