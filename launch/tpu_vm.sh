#!/usr/bin/env bash
# Trains on a TPU VM or on all VMs of a pod slice, and starts again after every preemption until the stage is trained.
#
#   launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE --type=TYPE [OPTION ...] [-- FLAGS OF launch/train.py]
#
# Commands:
#   run      up, install, start; then watch, and do it all again after a preemption
#   up       create the queued resource, or take the one of that name, and wait until it is ACTIVE
#   install  copy the committed code to all workers and install it there
#   start    start training on all workers; where it runs already, nothing happens
#   watch    show the log's last line until training ends; exits as it did
#   tail     follow the log of the first worker
#   stop     SIGTERM to training on all workers: it saves and ends
#   delete   delete the queued resource with its VMs
#
# Options:
#   --name=NAME        of queued resource and TPU
#   --zone=ZONE        such as us-central1-a
#   --type=TYPE        accelerator type: v5litepod-16, v6e-64, v5p-128, v4-32, ...
#   --runtime=VERSION  the VMs' image; the type's own unless given
#   --project=PROJECT  gcloud's own unless given
#   --spot             a spot TPU: cheaper, taken away at any time
#   --poll=SECONDS     between looks at the state (30)
#   --restarts=N       give up after so many preemptions (1000)
#   --extras=LIST      extras of setup.py to install (tpu,gcs)
#   --dry_run          print every command and run none
#
# Checkpoints must outlive the VMs: --config.workdir has to be a gs:// path.
set -euo pipefail

# A training process that saved because it was told to stop ends so: PREEMPTED of etcvla/train/hosts.py.
readonly RESTART=75

die() { echo "error: $*" >&2; exit 2; }
say() { echo "tpu_vm: $*" >&2; }

usage() { sed -n '2,/^set -euo/{/^#/{s/^# \{0,1\}//;p}}' "$0"; }

# Runs a command, or only prints it.
run() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpus() { run gcloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"}; }

# on WORKERS SCRIPT: runs a script on "all" workers, or on that of a number.
on() { tpus tpu-vm ssh "$name" --worker="$1" --command="$2" </dev/null; }

# The state of the queued resource: ABSENT if there is none, SUSPENDED also where only its VMs are gone. A dry run takes
# it for ready.
state() {
  local found
  if [[ -n $dry_run ]]; then
    tpus queued-resources describe "$name" --format='value(state.state)' >&2
    tpus tpu-vm describe "$name" --format='value(state)' >&2
    echo ACTIVE
    return
  fi
  if ! found=$(tpus queued-resources describe "$name" --format='value(state.state)' 2>&1); then
    [[ $found == *NOT_FOUND* || $found == *"not found"* ]] || die "cannot ask for the state of $name: $found"
    echo ABSENT
  elif [[ $found == ACTIVE ]] && [[ $(tpus tpu-vm describe "$name" --format='value(state)') =~ PREEMPTED|TERMINATED ]]; then
    echo SUSPENDED
  else
    echo "$found"
  fi
}

create() {
  say "creating $name ($type in $zone)"
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime" \
    ${spot:+--spot}
}

delete() { tpus queued-resources delete "$name" --force --quiet; }

up() {
  local now="" before=""
  if [[ -n $dry_run ]]; then
    create  # as if there were none
  fi
  while :; do
    now=$(state) || exit 2
    [[ $now == "$before" ]] || say "$name is $now"
    before=$now
    case $now in
      ACTIVE) return ;;
      ABSENT) create ;;
      SUSPENDED) delete ;;  # it will not come back by itself
      FAILED) tpus queued-resources describe "$name" >&2; die "$name cannot be had; why stands above" ;;
    esac
    sleep "$poll"
  done
}

# The image has an old Python, so uv brings one.
install() {
  local archive=${TMPDIR:-/tmp}/etcvla_$name.tgz
  say "installing on all workers"
  run git -C "$root" archive --format=tgz --output="$archive" HEAD &&
    tpus tpu-vm scp "$archive" "$name:etcvla.tgz" --worker=all &&
    on all "set -e
mkdir -p etcvla && tar xzf etcvla.tgz -C etcvla && cd etcvla
python3 -m pip install --user --quiet uv
[ -d .venv ] || python3 -m uv venv --quiet --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv -e '.[$extras]'" &&
    run rm -f "$archive"
}

# Every worker keeps its training going until it ends with something else than RESTART, which it leaves in `ended`.
start() {
  local flags=""
  (($# == 0)) || flags=$(printf '%q ' "$@")
  say "starting on all workers"
  on all "cd etcvla || exit 1
if [ -f pid ] && kill -0 \"\$(cat pid)\" 2>/dev/null; then echo 'it runs already'; exit 0; fi
cat >job.sh <<'JOB'
code=$RESTART
while [ \$code -eq $RESTART ]; do
  code=0
  .venv/bin/python -u launch/train.py $flags>>train.log 2>&1 || code=\$?
done
echo \$code >ended
JOB
rm -f ended
nohup setsid bash job.sh >/dev/null 2>&1 </dev/null &
echo \$! >pid"
}

stop() {
  on all "cd etcvla && [ -f pid ] && kill -TERM -- -\$(cat pid) && rm pid && echo stopped >ended"
}

tail_log() { on 0 "tail -n 100 -F etcvla/train.log"; }

# Watches until training ends. Returns 0 if it is done, 1 if it failed, RESTART if the TPU is gone.
watch() {
  local now ended look="cat etcvla/ended 2>/dev/null || echo running" last="tail -n 1 etcvla/train.log"
  while :; do
    now=$(state) || exit 2
    [[ $now == ACTIVE ]] || { say "$name is $now"; return $RESTART; }
    if [[ -n $dry_run ]]; then
      on all "$look"
      on 0 "$last"
      return 0
    fi
    # A VM that does not answer may just be going: the state will tell.
    if ended=$(on all "$look" | grep -xE 'running|stopped|[0-9]+'); then
      case $(sort -u <<<"$ended" | tr '\n' ' ') in
        "0 ") say "training is done"; return 0 ;;
        "running " | "0 running ") on 0 "$last" || true ;;
        *)
          say "training failed; its workers ended with: ${ended//$'\n'/ }"
          on 0 "tail -n 30 etcvla/train.log" || true
          say "$name is still there, and paid for; \`$0 delete\` ends that"
          return 1
          ;;
      esac
    fi
    sleep "$poll"
  done
}

train_to_the_end() {
  local code tries
  for ((tries = 0; tries <= restarts; tries++)); do
    up
    # A VM can be lost at any moment, so what fails here may only mean that it is gone.
    if ! { install && start "$@"; }; then
      [[ $(state) != ACTIVE ]] || die "cannot install or start on $name; why stands above"
      continue
    fi
    code=0
    watch || code=$?
    if [[ -n $dry_run ]]; then
      say "after a preemption (the state is SUSPENDED):"
      delete
      create
      say "then install, start and watch again, as above"
    fi
    ((code == RESTART)) || return $code
    say "preempted; starting again"
  done
  die "$name was preempted more than $restarts times"
}

check_options() {
  [[ -n $name ]] || die "--name is missing"
  [[ -n $zone ]] || die "--zone is missing"
  case $command in run | up) [[ -n $type ]] || die "--type is missing" ;; esac
  [[ -n $runtime ]] && return
  case $type in
    "" | v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) die "--type=$type is no type whose runtime is known (v4-N, v5litepod-N, v5p-N, v6e-N); give --runtime" ;;
  esac
}

# A disk of a VM goes with it.
check_flags() {
  local flag
  for flag in "$@"; do
    [[ $flag != --config.workdir=gs://* ]] || return 0
  done
  die "the flags of launch/train.py need --config.workdir=gs://BUCKET/..., or a preemption loses all checkpoints"
}

main() {
  name="" zone="" type="" runtime="" project="" spot="" poll=30 restarts=1000 extras=tpu,gcs dry_run=""
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  command=${1:-help}
  shift || true
  while (($#)); do
    case $1 in
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --runtime=*) runtime=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --poll=*) poll=${1#*=} ;;
      --restarts=*) restarts=${1#*=} ;;
      --extras=*) extras=${1#*=} ;;
      --spot) spot=1 ;;
      --dry_run) dry_run=1 ;;
      --) shift; break ;;
      *) die "unknown option $1 (flags of launch/train.py stand after --)" ;;
    esac
    shift
  done
  case $command in
    run | start) check_options; check_flags "$@" ;;
    up | install | watch | tail | stop | delete) check_options ;;
    help | -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown command $command" ;;
  esac
  case $command in
    run) train_to_the_end "$@" ;;
    start) start "$@" ;;
    tail) tail_log ;;
    *) "$command" ;;
  esac
}

main "$@"
