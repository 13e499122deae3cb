#!/usr/bin/env bash
# Checks the gRPC servers of a small local cluster with grpcurl, a client that knows of them only what reflection says:
# it lists and describes every service of coordinator, router and worker, reads their health, and sends a small batch.
#
#   scripts/check-grpcurl.sh
#
# grpcurl is taken from PATH, or built once with Go into ${XDG_CACHE_HOME:-~/.cache}/switchyard/bin.
# Exits with 1 at the first thing that is not as it should be.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/switchyard/bin
module=github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
program=$root/dist/services/cli/main.js
scratch=$(mktemp -d)
up=

fail() {
  echo "check-grpcurl: $*" >&2
  [[ -s $scratch/up.log ]] && tail -n 20 "$scratch/up.log" >&2
  exit 1
}

clean_up() {
  if [[ -n $up ]]; then
    kill "$up" 2>/dev/null || true
    wait "$up" 2>/dev/null || true
  fi
  rm -rf "$scratch"
}
trap clean_up EXIT

find_grpcurl() {
  if command -v grpcurl; then return; fi
  if [[ ! -x $cache/grpcurl ]]; then
    command -v go >/dev/null || fail "neither grpcurl nor go is in PATH"
    echo "building $module …" >&2
    GOBIN=$cache go install "$module" >&2 || fail "go install $module failed"
  fi
  echo "$cache/grpcurl"
}

# Starts coordinator, router and worker, and leaves their addresses in $coordinator, $router and $worker.
start_cluster() {
  [[ -f $program ]] || fail "$program is missing; npm run build makes it"
  node "$program" up --preset tiny --workers 1 --routers 1 --threads 1 --port 0 --metrics-port 0 \
    >"$scratch/up.log" 2>&1 &
  up=$!
  local waited
  for ((waited = 0; waited < 600; waited++)); do
    grep -q '^ready in' "$scratch/up.log" && break
    kill -0 "$up" 2>/dev/null || fail "the cluster ended before it was ready"
    sleep 0.1
  done
  coordinator=$(address_of coordinator)
  router=$(address_of router-0)
  worker=$(address_of worker-0)
}

# The table that `up` prints: process, pid, address, metrics.
address_of() {
  awk -v name="$1" '$1 == name && $2 ~ /^[0-9]+$/ { print $3; found = 1; exit } END { exit !found }' \
    "$scratch/up.log" || fail "up names no address of $1"
}

# expect WHAT TEXT PART...: every part must be in the text.
expect() {
  local what=$1 text=$2 part
  shift 2
  for part in "$@"; do
    [[ $text == *"$part"* ]] || fail "$what: expected \"$part\" in: $text"
  done
}

call() {
  "$grpcurl" -plaintext -max-time 20 "$@" 2>&1 || fail "grpcurl $* failed"
}

# check_server NAME ADDRESS SERVICE...: it has these services, besides health, and no other of the product.
check_server() {
  local name=$1 address=$2 service listed described
  shift 2
  listed=$(call "$address" list)
  printf '%s (%s) lists\n%s\n' "$name" "$address" "$(sed 's/^/  /' <<<"$listed")"
  local own
  own=$(grep '^switchyard\.' <<<"$listed" | sort | xargs)
  [[ $own == "$*" ]] || fail "$name lists \"$own\" of switchyard; expected \"$*\""
  for service in "$@" grpc.health.v1.Health; do
    described=$(call "$address" describe "$service")
    expect "$name describes $service" "$described" "$service is a service" "rpc "
    check_messages "$address" "$described"
    expect "health of $service at $name" \
      "$(call -d "{\"service\":\"${service#grpc.health.v1.Health}\"}" "$address" grpc.health.v1.Health/Check)" \
      '"status": "SERVING"'
    echo "  $service: described with its messages, SERVING"
  done
}

# check_messages ADDRESS DESCRIPTION: every message that the methods take and return can be described.
check_messages() {
  local message
  for message in $(grep -oE '\.(switchyard|grpc)\.[A-Za-z0-9_.]+' <<<"$2" | sort -u); do
    expect "$message" "$(call "$1" describe "${message#.}")" "is a message"
  done
}

# A batch of 4 tokens of 256 BF16 values 1.0 (0x3f80, little-endian), in JSON with base64 rows.
check_forward() {
  local rows
  rows=$(for ((value = 0; value < 4 * 256; value++)); do printf '\200\077'; done | base64 -w 0)
  cat >"$scratch/batch.json" <<EOF
{"header": {"batchId": "grpcurl", "sequences": 2, "length": 2, "hidden": 256, "dtype": "BF16", "options": {"feedback": "OFF"}}}
{"chunk": {"offset": "0", "rows": "$rows"}}
EOF
  local answer
  answer=$(call -d @ "$1" switchyard.v1.Inference/Forward <"$scratch/batch.json")
  # 4 tokens, 2 layers, 2 experts each, 1 worker: 16 assignments in 2 token batches.
  expect "Forward at $1" "$answer" '"rows": "' '"batchId": "grpcurl"' '"tokens": "4"' '"assignments": "16"' \
    '"messagesSent": "2"' '"totalSeconds"'
  expect "Forward at $1" "$answer" "\"router\": \"$2\""
  echo "Forward at $2: summary of 4 tokens, 16 assignments, 2 token batches"
}

# What is wrong comes back as a status with the field, the value and what is allowed.
check_refusal() {
  local answer
  if answer=$("$grpcurl" -plaintext -max-time 20 -d '{"header": {"sequences": 1, "length": 1, "hidden": 7, "dtype": "BF16"}}' \
    "$1" switchyard.v1.Inference/Forward 2>&1); then
    fail "a batch of a wrong hidden size was taken: $answer"
  fi
  expect "a wrong hidden size" "$answer" "Code: InvalidArgument" "hidden is 7; allowed: 256"
  echo "Forward of a wrong hidden size: InvalidArgument, hidden is 7; allowed: 256"
}

grpcurl=$(find_grpcurl)
start_cluster
check_server coordinator "$coordinator" switchyard.v1.Coordinator switchyard.v1.Inference
check_server router-0 "$router" switchyard.v1.Inference
check_server worker-0 "$worker" switchyard.v1.Experts
expect "model" "$(call "$coordinator" switchyard.v1.Inference/DescribeModel)" '"name": "tiny"' '"hidden": 256'
check_forward "$coordinator" coordinator
check_forward "$router" router-0
check_refusal "$coordinator"
echo "check-grpcurl: all is as it should be"
