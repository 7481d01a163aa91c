#!/usr/bin/env bash
# Starts and stops a Ray of its own on this machine, with dashboard and job server. Everything listens on 127.0.0.1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'EOF'
usage: cluster/local.sh up [--cpus N] [--port N] [--dashboard-port N] [--object-store-mb N]
       cluster/local.sh down
       cluster/local.sh status

  up      starts the cluster, or says where it is; prints how to submit a job
  down    stops what `up` started, and no other Ray of this machine
  status  says whether it runs; exit code 0 if so, 3 if not

  --cpus N             logical CPUs; as many as the machine has unless given, at least 4
  --port N             of the cluster; default 6390. The two ports after it are used, too
  --dashboard-port N   of the dashboard and job server; default 8275
  --object-store-mb N  shared memory for objects, MiB; default 300

environment:
  SAFECLIP_CLUSTER_DIR  where the cluster keeps its logs and what it started; a short path, since sockets lie there
  RAY_AUTH_MODE         disabled unless set: nothing but this machine reaches the cluster. On a machine that you
                        share, set token here and for each command that talks to the cluster
EOF
}

fail() { echo "local: $*" >&2; exit 1; }

whole_number() { [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || { echo "local: $1 $2: must be a whole number above 0" >&2; exit 2; }; }

answers() { (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null; }

serves() {
  (exec 3<> "/dev/tcp/127.0.0.1/$1" && printf 'GET /api/version HTTP/1.0\r\n\r\n' >&3 && grep -q '"ray_version"' <&3) 2> /dev/null
}

# One cluster for each copy of the repository and user.
dir=${SAFECLIP_CLUSTER_DIR:-/tmp/safeclip-$(id -u)-$(pwd -P | cksum | cut -d' ' -f1)}
state=$dir/started

# What `up` wrote down: the process, when that began (a number alone may be another process by now), and the ports.
pid='' began='' port='' dashboard=''
read_state() {
  [ -f "$state" ] || return 1
  { read -r pid && read -r began && read -r port && read -r dashboard; } < "$state" || return 1
  [ -n "$pid" ] && [ "$(began_at "$pid")" = "$began" ]
}

began_at() { ps -p "$1" -o lstart= 2> /dev/null | tr -s ' ' || true; }

say_where() {
  echo "a local cluster runs: address 127.0.0.1:$port, dashboard http://127.0.0.1:$dashboard"
  echo "submit a job:  .venv/bin/ray job submit --address http://127.0.0.1:$dashboard --working-dir . -- python -m jobs.pipeline"
  echo "or join it:    RAY_ADDRESS=127.0.0.1:$port .venv/bin/python -m jobs.pipeline"
}

stop() {
  # The leader of the session that `up` began stops all that it started; whoever outlives it is ended here.
  kill -TERM "$pid" 2> /dev/null || true
  for _ in $(seq 100); do
    [ -n "$(ps -o pid= -s "$pid")" ] || break
    sleep 0.2
  done
  local left
  left=$(ps -o pid= -s "$pid" || true)
  [ -z "$left" ] || kill -KILL $left 2> /dev/null || true
  rm -f "$state"
}

up() {
  local cpus port_wanted=6390 dashboard_wanted=8275 store=300
  cpus=$(nproc)
  [ "$cpus" -ge 4 ] || cpus=4
  while [ $# -gt 0 ]; do
    case $1 in
      --cpus | --port | --dashboard-port | --object-store-mb)
        [ $# -ge 2 ] || { echo "local: $1 needs a number" >&2; exit 2; }
        whole_number "$1" "$2" ;;&
      --cpus) cpus=$2 ;;
      --port) port_wanted=$2 ;;
      --dashboard-port) dashboard_wanted=$2 ;;
      --object-store-mb) store=$2 ;;
      *) echo "local: $1: no such option; see cluster/local.sh --help" >&2; exit 2 ;;
    esac
    shift 2
  done
  if read_state; then say_where; return; fi

  [ -x .venv/bin/ray ] || fail "there is no .venv/bin/ray; run cluster/setup.sh first"
  command -v setsid > /dev/null || fail "needs setsid (package util-linux)"
  local client=$((port_wanted + 1)) agent=$((port_wanted + 2)) each
  for each in "$port_wanted --port" "$client --port" "$agent --port" "$dashboard_wanted --dashboard-port"; do
    ! answers "${each% *}" || fail "port ${each% *} is in use; name another with ${each#* }"
  done
  mkdir -p -m 700 "$dir" 2> /dev/null && [ -O "$dir" ] && [ -w "$dir" ] || fail "$dir: cannot be written; name another folder with SAFECLIP_CLUSTER_DIR"

  # Jobs find .venv's python first, and keep their results here (SAFECLIP_HOME), not in the copy that they run in.
  export PATH="$PWD/.venv/bin:$PATH" SAFECLIP_HOME="$PWD"
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="${RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S:-180}"
  export RAY_AUTH_MODE="${RAY_AUTH_MODE:-disabled}" RAY_USAGE_STATS_ENABLED=0
  # Ray's name for: this cluster has one node, so nothing needs to listen beyond 127.0.0.1.
  export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
  unset RAY_ADDRESS
  setsid .venv/bin/ray start --head --block --port "$port_wanted" --num-cpus "$cpus" \
    --object-store-memory $((store * 1024 * 1024)) --temp-dir "$dir/ray" --ray-client-server-port "$client" \
    --dashboard-agent-listen-port "$agent" \
    --include-dashboard true --dashboard-host 127.0.0.1 --dashboard-port "$dashboard_wanted" \
    > "$dir/head.log" 2>&1 < /dev/null &
  pid=$!
  trap 'stop; exit 130' INT TERM
  began=$(began_at "$pid") port=$port_wanted dashboard=$dashboard_wanted
  printf '%s\n' "$pid" "$began" "$port" "$dashboard" > "$state"
  for _ in $(seq 300); do
    kill -0 "$pid" 2> /dev/null || break
    if serves "$dashboard" && answers "$agent"; then say_where; return; fi
    sleep 0.2
  done
  tail -n 5 "$dir/head.log" >&2
  stop
  fail "Ray did not start; the whole log is in $dir/head.log"
}

command=${1:---help}
[ $# -eq 0 ] || shift
case $command in
  up) up "$@" ;;
  down)
    if read_state; then stop; echo "stopped"; else rm -f "$state"; echo "no local cluster runs"; fi ;;
  status)
    if read_state; then say_where; else echo "no local cluster runs"; exit 3; fi ;;
  -h | --help | help) usage ;;
  *) echo "local: $command: must be up, down or status; see cluster/local.sh --help" >&2; exit 2 ;;
esac
