#!/usr/bin/env bash
# Makes a machine of cluster.local.yaml ready. Ray copies it there and runs it; what is done already is not done again.
#   local.sh install        packages, and the environment of every command that Ray sends there
#   local.sh server         on the head: the tracking server, up when this returns
#   local.sh stop           on the head, before `ray down`: ends Ray everywhere, and the server; its data stay
set -euo pipefail
project=$HOME/fgst
fail() { echo "$(hostname): $*" >&2; exit 2; }

install() {
  # shellcheck disable=SC1091
  . "$HOME/.fgst_settings"
  # By the address at which Ray has just reached it: a machine may have others that the rest cannot reach.
  local own head role=head
  own=$(echo "${SSH_CONNECTION:?this is for Ray to run, over ssh}" | cut -d' ' -f3)
  head=${RAY_HEAD_IP:-$own} # Ray sets it where it sets up a worker
  [ -z "${RAY_HEAD_IP:-}" ] || role=worker
  shared_folder "$role" "$head"

  local ray="--node-ip-address=$own --object-store-memory=200000000 --disable-usage-stats" cores=$FGST_WORKER_CORES
  [ "$role" = worker ] || cores=$FGST_HEAD_CORES
  case $cores in
    all) ;;
    none) ray="$ray --num-cpus=0 --num-gpus=0" ;;
    *[!0-9]* | "") fail "cluster.local.yaml: cores are all, none or a number, not '$cores'" ;;
    *) ray="$ray --num-cpus=$cores" ;;
  esac
  [ "$role" = head ] || ray=${ray/ --disable-usage-stats/}
  # PYTHONPATH instead of an installed package: an environment that is there already need not be touched.
  cat >"$HOME/.fgst_env" <<END
export PATH="$FGST_VENV/bin:\$PATH" PYTHONPATH="$project"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_JOB_STOP_WAIT_TIME_S=120
export MLFLOW_TRACKING_URI=http://$head:5000
export FGST_SHARED="$FGST_SHARED" FGST_STORAGE="$FGST_SHARED/sweeps" FGST_ADDRESS=$own FGST_RAY="$ray"
END
  # At the end, and only for commands that come over ssh as Ray sends them: your own shells stay as they are.
  touch "$HOME/.bashrc"
  grep -q fgst_env "$HOME/.bashrc" ||
    printf '\n%s\n' '[ -z "${BASH_EXECUTION_STRING:-}" ] || . "$HOME/.fgst_env"  # of the fgst cluster' >>"$HOME/.bashrc"
  chmod 600 "$HOME/.ray/auth_token" "$HOME/.mlflow/credentials"
  packages
}

shared_folder() { # role, head's address
  [ "$FGST_SHARED" != /CHANGE/ME ] || fail "cluster.local.yaml: set shared, at its top, to the folder that all machines share"
  [ -d "$FGST_SHARED" ] && [ -w "$FGST_SHARED" ] || fail "$FGST_SHARED: is not there, or cannot be written; mount the shared folder"
  # A folder that was not mounted looks empty, and a sweep would find out hours later.
  local mark=$FGST_SHARED/.fgst-head
  if [ "$1" = head ]; then
    echo "$2" >"$mark"
  else
    [ "$(cat "$mark" 2>/dev/null)" = "$2" ] || fail "$FGST_SHARED: is not the folder that the head sees there; mount it here too"
  fi
}

packages() {
  local python=$FGST_VENV/bin/python needed
  needed=(-c "$project/constraints.txt" -r "$project/pyproject.toml" --extra cluster --extra server)
  if [ ! -x "$python" ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed as python3"
    python3 -m venv "$FGST_VENV" || fail "apt-get install python3-venv"
  fi
  # Without the network first: where all is there, nothing is asked for or changed.
  if [ -x "$FGST_VENV/bin/uv" ] && "$FGST_VENV/bin/uv" pip install --quiet --offline --python "$python" "${needed[@]}" 2>/dev/null; then
    return
  fi
  local links torch=--torch-backend=cpu # without an NVIDIA GPU: spares gigabytes
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
    fail "$HOME/.mlflow/credentials must name the user admin: the tracking server makes that one"
  if [ -e "$folder/mlflow.db" ] || { [ ! -d "$folder/postgres" ] && ! has_postgres; }; then
    options=--sqlite
    echo "tracking server without PostgreSQL (for more than two people: apt-get install postgresql, before its first start)"
  fi
  # It outlives this shell, and Ray.
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
  # The head first, or its autoscaler would start the workers again. `ray down` does not reach them at all: they would notice
  # after a minute that the head is gone, and leave a process behind.
  ray stop
  [ -e ~/ray_bootstrap_config.yaml ] || fail "this is for the head, after ray up cluster.local.yaml"
  user=$(config auth ssh_user) workers=$(config provider worker_ips)
  for worker in $workers; do
    # shellcheck disable=SC2029
    ssh -i ~/ray_bootstrap_key.pem -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
      -o LogLevel=ERROR -o ConnectTimeout=10 "$user@$worker" '[ ! -e ~/.fgst_env ] || { . ~/.fgst_env && ray stop; }' \
      >/dev/null 2>&1 </dev/null || echo "$worker: cannot be reached; if it still runs, type there: ray stop" &
  done
  wait
  pid=$(cat "$HOME/fgst-server.pid" 2>/dev/null || true)
  # After a power cut the number may be somebody else's.
  if [ -n "$pid" ] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q fgst.server; then
    kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.5; done
    echo "tracking server ended; its data stay in $HOME/fgst-server"
  fi
  rm -f "$HOME/fgst-server.pid"
}

config() { # section and field of what Ray keeps of cluster.local.yaml on the head
  python -c 'import json, pathlib, sys
value = json.loads(pathlib.Path("~/ray_bootstrap_config.yaml").expanduser().read_text())[sys.argv[1]][sys.argv[2]]
print(value if isinstance(value, str) else " ".join(value))' "$1" "$2"
}

case ${1:-} in
  install) install ;;
  server) server ;;
  stop) stop ;;
  *) fail "local.sh install, server or stop; not '${1:-}'" ;;
esac
