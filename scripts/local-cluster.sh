# Sourced by scripts that check clients against a real cluster of processes on this machine, which ends with them. They set $name, for
# messages, and get $root, $scratch, $program and $cache, a folder for the tools that they install.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/switchyard
program=$root/dist/bin/switchyard.js
scratch=$(mktemp -d)
up=

fail() {
  echo "$name: $*" >&2
  [[ -s $scratch/up.log ]] && tail -n 20 "$scratch/up.log" >&2
  exit 1
}

stop_cluster() {
  [[ -n $up ]] || return 0
  kill "$up" 2>/dev/null || true
  wait "$up" 2>/dev/null || true
  up=
}

clean_up() {
  stop_cluster
  rm -rf "$scratch"
}
trap clean_up EXIT

# start_cluster OPTION...: of `switchyard up`, beside free ports and one thread a process.
start_cluster() {
  [[ -f $program ]] || fail "$program is missing; npm run build makes it"
  # What the last cluster said must not be taken for this one's: the job opens its log at a time of its own.
  : >"$scratch/up.log"
  node "$program" up --threads 1 --port 0 --metrics-port 0 "$@" >"$scratch/up.log" 2>&1 &
  up=$!
  local waited
  for ((waited = 0; waited < 1200; waited++)); do
    grep -q '^ready in' "$scratch/up.log" && return
    kill -0 "$up" 2>/dev/null || fail "the cluster ended before it was ready"
    sleep 0.1
  done
  fail "the cluster was not ready in 120 s"
}

# address_of PROCESS: by the table that `up` prints: process, pid, address, metrics.
address_of() {
  awk -v name="$1" '$1 == name && $2 ~ /^[0-9]+$/ { print $3; found = 1; exit } END { exit !found }' \
    "$scratch/up.log" || fail "up names no address of $1"
}

# go_tool COMMAND MODULE: its path; built once with Go unless it is in PATH.
go_tool() {
  if command -v "$1"; then return; fi
  if [[ ! -x $cache/bin/$1 ]]; then
    command -v go >/dev/null || fail "neither $1 nor go is in PATH"
    echo "building $2 …" >&2
    GOBIN=$cache/bin go install "$2" >&2 || fail "go install $2 failed"
  fi
  echo "$cache/bin/$1"
}

# python_environment NAME PACKAGE...: the interpreter of an environment that has them, made once.
python_environment() {
  local folder=$cache/$1
  shift
  [[ -x $folder/bin/python ]] || python3 -m venv "$folder" || fail "python3 -m venv does not work"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2 || fail "pip install $* failed"
  echo "$folder/bin/python"
}
