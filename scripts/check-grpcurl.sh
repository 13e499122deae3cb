#!/usr/bin/env bash
# Checks the gRPC servers of a small local cluster with grpcurl, a client that knows of them only what reflection says:
# it lists and describes every service of coordinator, router and worker, reads their health, and sends a small batch.
#
#   scripts/check-grpcurl.sh
#
# grpcurl is taken from PATH, or built once with Go into ${XDG_CACHE_HOME:-~/.cache}/switchyard/bin.
# Exits with 1 at the first thing that is not as it should be.
set -euo pipefail

name=check-grpcurl
source "$(dirname "${BASH_SOURCE[0]}")/local-cluster.sh"

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

# check_server NAME ADDRESS SERVICE...: it has these services, besides health, and no other.
check_server() {
  local server=$1 address=$2 service listed described
  shift 2
  listed=$(call "$address" list)
  printf '%s (%s) lists\n%s\n' "$server" "$address" "$(sed 's/^/  /' <<<"$listed")"
  local own
  own=$(grep -v '^grpc\.' <<<"$listed" | sort | xargs)
  [[ $own == "$*" ]] || fail "$server lists \"$own\"; expected \"$*\""
  for service in "$@" grpc.health.v1.Health; do
    described=$(call "$address" describe "$service")
    expect "$server describes $service" "$described" "$service is a service" "rpc "
    check_messages "$address" "$described"
    expect "health of $service at $server" \
      "$(call -d "{\"service\":\"${service#grpc.health.v1.Health}\"}" "$address" grpc.health.v1.Health/Check)" \
      '"status": "SERVING"'
    echo "  $service: described with its messages, SERVING"
  done
}

# check_messages ADDRESS DESCRIPTION: every message that the methods take and return can be described.
check_messages() {
  local message
  for message in $(grep -oE '\.(switchyard|grpc|inference)\.[A-Za-z0-9_.]+' <<<"$2" | sort -u); do
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

grpcurl=$(go_tool grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3)
start_cluster --preset tiny --workers 1 --routers 1
coordinator=$(address_of coordinator)
router=$(address_of router-0)
worker=$(address_of worker-0)
check_server coordinator "$coordinator" inference.GRPCInferenceService switchyard.v1.Coordinator switchyard.v1.Inference switchyard.v1.Operator
check_server router-0 "$router" inference.GRPCInferenceService switchyard.v1.Inference
check_server worker-0 "$worker" switchyard.v1.Experts
expect "model" "$(call "$coordinator" switchyard.v1.Inference/DescribeModel)" '"name": "tiny"' '"hidden": 256'
check_forward "$coordinator" coordinator
check_forward "$router" router-0
check_refusal "$coordinator"
echo "check-grpcurl: all is as it should be"
