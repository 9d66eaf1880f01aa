#!/usr/bin/env bash
# Sets up a machine of cluster.local.yaml. Ray copies this script there and runs it; all steps are idempotent.
#   local.sh install        install packages, and write the environment of all commands that Ray runs there
#   local.sh server         on the head: start the tracking server, and wait until it is ready
#   local.sh stop           on the head, before `ray down`: stop Ray on all machines, and the server; its data remains
set -euo pipefail
project=$HOME/fgst
fail() { echo "$(hostname): $*" >&2; exit 2; }

install() {
  # shellcheck disable=SC1091
  . "$HOME/.fgst_settings"
  # The address at which Ray reached this machine; the others may not be able to reach its further addresses.
  local own head role=head
  own=$(echo "${SSH_CONNECTION:?this script is run by Ray, over ssh}" | cut -d' ' -f3)
  head=${RAY_HEAD_IP:-$own} # Ray sets it on workers
  [ -z "${RAY_HEAD_IP:-}" ] || role=worker
  shared_folder "$role" "$head"

  local ray="--node-ip-address=$own --object-store-memory=200000000 --disable-usage-stats" cores=$FGST_WORKER_CORES
  [ "$role" = worker ] || cores=$FGST_HEAD_CORES
  case $cores in
    all) ;;
    none) ray="$ray --num-cpus=0 --num-gpus=0" ;;
    *[!0-9]* | "") fail "cluster.local.yaml: cores must be all, none or a number, not '$cores'" ;;
    *) ray="$ray --num-cpus=$cores" ;;
  esac
  [ "$role" = head ] || ray=${ray/ --disable-usage-stats/}
  # PYTHONPATH instead of an installed package, so that an existing virtual environment remains unchanged.
  cat >"$HOME/.fgst_env" <<END
export PATH="$FGST_VENV/bin:\$PATH" PYTHONPATH="$project"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_JOB_STOP_WAIT_TIME_S=120
export MLFLOW_TRACKING_URI=http://$head:5000
export FGST_SHARED="$FGST_SHARED" FGST_STORAGE="$FGST_SHARED/sweeps" FGST_ADDRESS=$own FGST_RAY="$ray"
END
  # At the end, and only for commands over ssh as Ray runs them; interactive shells are not affected.
  touch "$HOME/.bashrc"
  grep -q fgst_env "$HOME/.bashrc" ||
    printf '\n%s\n' '[ -z "${BASH_EXECUTION_STRING:-}" ] || . "$HOME/.fgst_env"  # fgst cluster' >>"$HOME/.bashrc"
  chmod 600 "$HOME/.ray/auth_token" "$HOME/.mlflow/credentials"
  packages
}

shared_folder() { # role, head's address
  [ "$FGST_SHARED" != /CHANGE/ME ] || fail "cluster.local.yaml: set shared, at its top, to the folder that all machines share"
  [ -d "$FGST_SHARED" ] && [ -w "$FGST_SHARED" ] || fail "$FGST_SHARED: does not exist or is not writable; mount the shared folder"
  # An unmounted folder looks empty, which a sweep would notice only hours later.
  local marker=$FGST_SHARED/.fgst-head
  if [ "$1" = head ]; then
    echo "$2" >"$marker"
  else
    [ "$(cat "$marker" 2>/dev/null)" = "$2" ] || fail "$FGST_SHARED: is not the folder that the head shares; mount it here too"
  fi
}

packages() {
  local python=$FGST_VENV/bin/python needed
  needed=(-c "$project/constraints.txt" -r "$project/pyproject.toml" --extra cluster --extra server)
  if [ ! -x "$python" ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "python3 must be Python 3.11 or newer"
    python3 -m venv "$FGST_VENV" || fail "cannot create $FGST_VENV: apt-get install python3-venv"
  fi
  # Offline first: if everything is installed, nothing is downloaded or changed.
  if [ -x "$FGST_VENV/bin/uv" ] && "$FGST_VENV/bin/uv" pip install --quiet --offline --python "$python" "${needed[@]}" 2>/dev/null; then
    return
  fi
  local links torch=--torch-backend=cpu # without an NVIDIA GPU: saves gigabytes
  links=${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null || true)}
  if [ -n "$links" ] || command -v nvidia-smi >/dev/null; then torch=; fi
  "$python" -m pip install --quiet --disable-pip-version-check -c "$project/constraints.txt" uv
  # shellcheck disable=SC2086
  "$FGST_VENV/bin/uv" pip install --quiet --compile-bytecode --python "$python" $torch ${links:+--find-links "$links"} "${needed[@]}"
}

server() {
  # shellcheck disable=SC1091
  . "$HOME/.fgst_env"
  local folder=$HOME/fgst-server pid options=""
  if answers; then return; fi
  [ "$(credential username)" = admin ] ||
    fail "$HOME/.mlflow/credentials must name the user admin, which the tracking server creates"
  if [ -e "$folder/mlflow.db" ] || { [ ! -d "$folder/postgres" ] && ! has_postgres; }; then
    options=--sqlite
    echo "tracking server without PostgreSQL (for more than two users: apt-get install postgresql before its first start)"
  fi
  # In its own session, so that it outlives this shell and Ray.
  FGST_SERVER_PASSWORD=$(credential password) setsid nohup python -m fgst.server --dir "$folder" --host "$FGST_ADDRESS" \
    --allowed-hosts "$FGST_ADDRESS:5000,localhost:5000,127.0.0.1:5000" $options >"$folder.log" 2>&1 </dev/null &
  pid=$!
  echo "$pid" >"$folder.pid"
  until answers; do
    kill -0 "$pid" 2>/dev/null || fail "the tracking server did not start: $(tail -n 1 "$folder.log")"
    sleep 1
  done
  echo "tracking server on $MLFLOW_TRACKING_URI, data in $folder"
}

answers() {
  python -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1] + "/health", timeout=5)' "$MLFLOW_TRACKING_URI" 2>/dev/null
}

credential() { sed -n "s/^mlflow_tracking_$1 *= *//p" "$HOME/.mlflow/credentials"; }

has_postgres() { command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }

stop() {
  local workers user worker pid
  # The head first, or its autoscaler would restart the workers. `ray down` does not stop the workers: they would notice the
  # loss of the head after a minute, and leave a process behind.
  ray stop
  [ -e ~/ray_bootstrap_config.yaml ] || fail "run this on the head, after ray up cluster.local.yaml"
  user=$(config auth ssh_user) workers=$(config provider worker_ips)
  for worker in $workers; do
    # shellcheck disable=SC2029
    ssh -i ~/ray_bootstrap_key.pem -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
      -o LogLevel=ERROR -o ConnectTimeout=10 "$user@$worker" '[ ! -e ~/.fgst_env ] || { . ~/.fgst_env && ray stop; }' \
      >/dev/null 2>&1 </dev/null || echo "$worker: cannot be reached; if it is running, run there: ray stop" &
  done
  wait
  pid=$(cat "$HOME/fgst-server.pid" 2>/dev/null || true)
  # After a power failure, the PID may belong to another process.
  if [ -n "$pid" ] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q fgst.server; then
    kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.5; done
    echo "tracking server stopped; its data remains in $HOME/fgst-server"
  fi
  rm -f "$HOME/fgst-server.pid"
}

config() { # prints a field (section, name) of the configuration that Ray copied to the head
  python -c 'import json, pathlib, sys
value = json.loads(pathlib.Path("~/ray_bootstrap_config.yaml").expanduser().read_text())[sys.argv[1]][sys.argv[2]]
print(value if isinstance(value, str) else " ".join(value))' "$1" "$2"
}

case ${1:-} in
  install) install ;;
  server) server ;;
  stop) stop ;;
  *) fail "usage: local.sh install|server|stop, not '${1:-}'" ;;
esac
