#!/usr/bin/env bash
# Sets up a node of cluster.yaml: `setup.sh head` or `setup.sh worker`. Ray copies this script to each node and runs it at
# every start, on workers more than once; all steps are idempotent.
# `setup.sh save`, on the head, before `ray down`: stops the tracking server and saves its runs in the bucket.
set -euo pipefail
role=${1:-} project=$HOME/fgst venv=$HOME/venv
case $role in head | worker | save) ;; *) echo "usage: setup.sh head|worker|save, not '$role'" >&2; exit 2 ;; esac

storage=$(cat "$HOME/.fgst_storage")
case $storage in
  *CHANGE-ME* | *[[:space:]]*) echo "cluster.yaml: set storage, at its top, to a URI such as s3://your-bucket/fgst" >&2; exit 2 ;;
esac

if [ "$role" = save ]; then
  server=$(cat "$HOME/server.pid" 2>/dev/null || true)
  if [ -n "$server" ] && kill "$server" 2>/dev/null; then
    while kill -0 "$server" 2>/dev/null; do sleep 0.2; done
  fi
  exec "$venv/bin/python" -m fgst.server_backup save "$HOME/server" "$storage/server.tar.gz"
fi

# For all shells, Ray's and interactive ones; before any early return in .bashrc.
cat >"$HOME/.fgst_env" <<END
export PATH="$venv/bin:$HOME/.local/bin:\$PATH"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export FGST_STORAGE="$storage/sweeps"
END
if [ "$role" = head ]; then
  # The private address, which the workers can reach; the security group blocks everything else.
  echo "export MLFLOW_TRACKING_URI=http://$(hostname -I | cut -d' ' -f1):5000" >>"$HOME/.fgst_env"
  # The time that `ray job stop` gives a sweep to save its state; Ray's default of three seconds is too short.
  echo "export RAY_JOB_STOP_WAIT_TIME_S=120" >>"$HOME/.fgst_env"
fi
touch "$HOME/.bashrc"
grep -q fgst_env "$HOME/.bashrc" || sed -i '1i . "$HOME/.fgst_env"' "$HOME/.bashrc" 2>/dev/null
grep -q fgst_env "$HOME/.bashrc" || echo '. "$HOME/.fgst_env"' >>"$HOME/.bashrc" # sed inserts nothing into an empty file
chmod 600 "$HOME/.ray/auth_token" "$HOME/.mlflow/credentials"
# shellcheck disable=SC1091
. "$HOME/.fgst_env"

# Python and all packages, at the versions of constraints.txt. The stamp identifies the files that were installed from. An
# image of a node that is set up (docs/cluster.md) contains it, and its nodes are ready in seconds.
stamp=$(echo "$role" | cat - "$project/pyproject.toml" "$project/constraints.txt" "$project/cluster/setup.sh" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$stamp" ]; then
  pinned() { sed -n "s/^$1==//p" "$project/constraints.txt"; }
  if [ "$(uv --version 2>/dev/null | cut -d' ' -f2)" != "$(pinned uv)" ]; then
    curl -LsSf --retry 5 "https://astral.sh/uv/$(pinned uv)/install.sh" | env UV_INSTALL_DIR="$HOME/.local/bin" UV_NO_MODIFY_PATH=1 sh
  fi
  [ -x "$venv/bin/python" ] || uv venv --quiet --python 3.11 "$venv"
  extras=cluster torch=""
  if [ "$role" = head ]; then # without a GPU, PyTorch's CPU build saves gigabytes
    extras=cluster,server torch=--torch-backend=cpu
    command -v pg_ctl >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || {
      sudo apt-get -o DPkg::Lock::Timeout=600 update -q
      sudo apt-get -o DPkg::Lock::Timeout=600 install -qy --no-install-recommends postgresql
    }
  fi
  # shellcheck disable=SC2086
  uv pip install --quiet --compile-bytecode --python "$venv/bin/python" $torch -c "$project/constraints.txt" -e "$project[$extras]"
  echo "$stamp" >"$venv/.installed"
fi

if [ "$role" = worker ]; then
  # Without a working driver, every trial would silently train on the CPU.
  python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("PyTorch detects no GPU on this node")'
else
  credential() { sed -n "s/^mlflow_tracking_$1 *= *//p" "$HOME/.mlflow/credentials"; }
  if [ "$(credential username)" != admin ]; then
    echo "$HOME/.mlflow/credentials must name the user admin, which the tracking server creates" >&2
    exit 2
  fi
  if ! kill -0 "$(cat "$HOME/server.pid" 2>/dev/null || echo none)" 2>/dev/null; then
    # The runs of the previous cluster, if they were saved by `setup.sh save`.
    [ -e "$HOME/server/known" ] || python -m fgst.server_backup restore "$HOME/server" "$storage/server.tar.gz"
    # In its own session, so that it outlives this shell.
    FGST_SERVER_PASSWORD=$(credential password) setsid nohup python -m fgst.server --dir "$HOME/server" --host 0.0.0.0 \
      --artifacts "$storage/mlflow" >>"$HOME/server.log" 2>&1 </dev/null &
    echo $! >"$HOME/server.pid"
  fi
fi
