"""launch/tpu_vm.sh, against a gcloud that records what it is asked and plays a TPU's life."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from etcvla.train.hosts import PREEMPTED

SCRIPT = Path(__file__).resolve().parent.parent / "launch" / "tpu_vm.sh"
WHERE = ("--name=pi", "--zone=us-central1-a", "--type=v5litepod-16")
TRAIN = (
    "--",
    "--config=configs/objective_bridge.py:paligemma_3b",
    "--config.workdir=gs://bucket/my run",
)

# One line of a file is one answer, and the last one stays.
GCLOUD = r"""#!/usr/bin/env bash
cd "$(dirname "$0")"
printf '%s\0' "$@" >>calls; printf '\n\0' >>calls
answer() { head -n 1 "$1"; if [ "$(wc -l <"$1")" -gt 1 ]; then sed -i 1d "$1"; fi; }
case "$*" in
  *"queued-resources describe"*)
    state=$(answer states)
    if [ "$state" = ABSENT ]; then echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; fi
    echo "$state" ;;
  *"tpu-vm describe"*) answer vm ;;
  *"cat etcvla/ended"*) answer ended | tr ' ' '\n' ;;
  *"tail -n 1 "*) echo "objective_bridge 20/100" ;;
  *" scp "*) [ "$(answer scp)" = ok ] ;;
esac
"""


@pytest.fixture
def tpu(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "gcloud").write_text(GCLOUD)
    (folder / "gcloud").chmod(0o755)

    def call(*arguments, **answers):
        for name, lines in {
            "states": ["ACTIVE"],
            "vm": ["READY"],
            "ended": ["0"],
            "scp": ["ok"],
            **answers,
        }.items():
            (folder / name).write_text("".join(f"{line}\n" for line in lines))
        (folder / "calls").write_text("")
        done = subprocess.run(
            ["bash", SCRIPT, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)},
        )
        done.calls = [
            call.split("\0") for call in (folder / "calls").read_text().split("\0\n\0")[:-1]
        ]
        return done

    return call


def verbs(calls):
    """What was done to the TPU, without the questions."""
    names = {
        "queued-resources create": "create",
        "queued-resources delete": "delete",
        "tpu-vm scp": "copy",
        "uv pip install": "install",
        "launch/train.py": "start",
    }
    joined = [" ".join(call) for call in calls]
    return [verb for call in joined for text, verb in names.items() if text in call]


def arguments_of(line):
    """As bash reads them."""
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def test_from_nothing_to_a_trained_stage(tpu):
    done = tpu(
        "run",
        *WHERE,
        "--spot",
        "--poll=0",
        *TRAIN,
        states=["ABSENT", "CREATING", "WAITING_FOR_RESOURCES", "ACTIVE"],
        ended=["running running", "0 running", "0 0"],
    )
    assert done.returncode == 0, done.stderr
    assert verbs(done.calls) == ["create", "copy", "install", "start"]
    create = next(call for call in done.calls if "create" in call)
    assert {
        "pi",
        "--node-id=pi",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
        "--zone=us-central1-a",
    } <= set(create)
    assert all("--zone=us-central1-a" in call for call in done.calls)
    assert all(
        "--worker=all" in call
        for call in done.calls
        if any(word in " ".join(call) for word in ("scp", "uv pip", "launch/train.py"))
    )
    assert done.stdout.count("objective_bridge 20/100") == 2  # the log's last line, at each look


def test_what_is_there_is_taken(tpu):
    assert verbs(tpu("up", *WHERE, "--poll=0", states=["PROVISIONING", "ACTIVE"]).calls) == []


@pytest.mark.parametrize(
    "life",
    [
        {
            "states": [
                "ACTIVE",
                "ACTIVE",
                "SUSPENDING",
                "SUSPENDING",
                "SUSPENDED",
                "ABSENT",
                "CREATING",
                "ACTIVE",
            ]
        },
        {
            "states": ["ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE", "ABSENT", "ACTIVE"],
            "vm": ["READY", "READY", "PREEMPTED", "PREEMPTED", "READY"],
        },
    ],
)
def test_a_preemption_starts_all_of_it_again(tpu, life):
    done = tpu("run", *WHERE, "--spot", "--poll=0", *TRAIN, ended=["running", "0"], **life)
    assert done.returncode == 0, done.stderr
    assert verbs(done.calls) == [
        "copy",
        "install",
        "start",
        "delete",
        "create",
        "copy",
        "install",
        "start",
    ]
    assert "preempted; starting again" in done.stderr


def test_a_vm_lost_during_installation_is_a_preemption_and_a_broken_one_an_error(tpu):
    lost = tpu(
        "run",
        *WHERE,
        "--poll=0",
        *TRAIN,
        scp=["broken", "ok"],
        states=["ACTIVE", "SUSPENDED", "SUSPENDED", "ABSENT", "ACTIVE"],
    )
    assert lost.returncode == 0 and verbs(lost.calls) == [
        "copy",
        "delete",
        "create",
        "copy",
        "install",
        "start",
    ]
    broken = tpu("run", *WHERE, "--poll=0", *TRAIN, scp=["broken"])
    assert broken.returncode == 2 and "cannot install or start on pi" in broken.stderr


def test_preemptions_without_end(tpu):
    done = tpu(
        "run",
        *WHERE,
        "--poll=0",
        "--restarts=1",
        *TRAIN,
        states=["ACTIVE", "SUSPENDED", "ACTIVE", "SUSPENDED"],
    )
    assert done.returncode == 2 and "was preempted more than 1 times" in done.stderr


def test_a_failure_ends_the_watch(tpu):
    done = tpu("run", *WHERE, "--poll=0", *TRAIN, ended=["running running", "1 running"])
    assert done.returncode == 1
    assert (
        "its workers ended with: 1 running" in done.stderr
        and "still there, and paid for" in done.stderr
    )


def test_a_resource_that_cannot_be_had_and_a_question_that_fails(tpu):
    failed = tpu("up", *WHERE, "--poll=0", states=["FAILED"])
    assert (
        failed.returncode == 2 and "pi cannot be had" in failed.stderr and verbs(failed.calls) == []
    )


def test_a_dry_run_prints_every_command_and_runs_none(tpu):
    done = tpu("run", *WHERE, "--spot", "--project=lab", "--dry_run", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.calls == []
    printed = [arguments_of(line) for line in done.stdout.splitlines()]
    assert all("--project=lab" in call for call in printed if call[0] == "gcloud")
    assert verbs(printed) == ["create", "copy", "install", "start", "delete", "create"]
    assert "queued-resources describe" in done.stderr


def test_the_job_on_a_worker_restarts_what_saved_itself_and_reports_how_it_ended(tpu, tmp_path):
    """Run the script that `start` sends: a trainer that saves and stops twice, then ends."""
    done = tpu("start", *WHERE, *TRAIN)
    script = next(
        part.removeprefix("--command=") for part in done.calls[0] if part.startswith("--command=")
    )
    home = tmp_path / "home"
    (home / "etcvla" / ".venv" / "bin").mkdir(parents=True)
    python = home / "etcvla" / ".venv" / "bin" / "python"
    python.write_text(
        '#!/bin/sh\nprintf "%s|" "$@" >>asked; echo >>asked\n[ $(wc -l <asked) -gt 2 ] || exit 75\n'
    )
    python.chmod(0o755)
    subprocess.run(["bash", "-c", f"{script}\nwait"], cwd=home, check=True, timeout=60)
    assert (home / "etcvla" / "ended").read_text() == "0\n"
    asked = (home / "etcvla" / "asked").read_text().splitlines()
    assert (
        asked
        == [
            "-u|launch/train.py|--config=configs/objective_bridge.py:paligemma_3b|"
            "--config.workdir=gs://bucket/my run|"
        ]
        * 3
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", *WHERE[1:], *TRAIN), "--name is missing"),
        (("run", *WHERE[:2], *TRAIN), "--type is missing"),
        (
            ("run", *WHERE[:2], "--type=v9-8", *TRAIN),
            "--type=v9-8 is no type whose runtime is known",
        ),
        (("run", *WHERE, "--sport", *TRAIN), "unknown option --sport"),
        (("fly", *WHERE), "unknown command fly"),
        (("run", *WHERE, "--", "--config=x", "--config.workdir=runs/x"), "--config.workdir=gs://"),
    ],
)
def test_what_a_person_gets_wrong(tpu, arguments, message):
    done = tpu(*arguments)
    assert done.returncode == 2 and message in done.stderr and done.calls == []


def test_the_code_of_a_run_that_saved_itself_is_the_trainers():
    assert f"readonly RESTART={PREEMPTED}\n" in SCRIPT.read_text()


def test_help_is_the_scripts_own_head(tpu):
    help_text = tpu("help").stdout
    for option in re.findall(r"^      (--\w+)=?\*?\)", SCRIPT.read_text(), re.MULTILINE):
        assert option in help_text, option
