#!/usr/bin/env bash
# Calls a small local cluster that speaks TLS with clients that are not its own: grpcurl, curl and Prometheus, each with the right
# CA and a wrong one, without a certificate, with one that has expired, by a wrong name and in a wrong role.
#
#   scripts/check-tls.sh
#
# grpcurl is taken from PATH, or built once with Go into ${XDG_CACHE_HOME:-~/.cache}/switchyard/bin; Prometheus is left out, and
# said to be, where it is not in PATH. Ends with a line `N passed, N failed`, and with 1 if something failed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/switchyard/bin
module=github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
program=$root/dist/bin/switchyard.js
scratch=$(mktemp -d)
processes=()
source "$root/scripts/checks.sh"

clean_up() {
  for process in "${processes[@]}"; do
    kill "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
  done
  rm -rf "$scratch"
}
trap clean_up EXIT

grpcurl=$(command -v grpcurl || echo "$cache/grpcurl")
if [[ ! -x $grpcurl ]]; then
  echo "building $module …" >&2
  GOBIN=$cache go install "$module" >&2
fi

key_pair=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)

# authority NAME: a CA in NAME.pem.
authority() {
  openssl req -x509 "${key_pair[@]}" -subj "/CN=$1" -days 2 -out "$scratch/$1.pem" -keyout "$scratch/$1.key" 2>/dev/null
}

# issue CA NAME DAYS SAN: a certificate in NAME.pem.
issue() {
  openssl req -new "${key_pair[@]}" -subj "/CN=$2" -out "$scratch/$2.csr" -keyout "$scratch/$2.key" 2>/dev/null
  openssl x509 -req -in "$scratch/$2.csr" -CA "$scratch/$1.pem" -CAkey "$scratch/$1.key" -days "$3" \
    -extfile <(echo "subjectAltName=$4") -out "$scratch/$2.pem" 2>/dev/null
}

authority ca
authority stranger
issue ca server 1 'IP:127.0.0.1,DNS:coordinator,URI:switchyard://node/*,URI:switchyard://operator'
issue ca client 1 URI:switchyard://client
issue ca operator 1 URI:switchyard://operator
issue ca node 1 URI:switchyard://node/worker-7
issue ca expired -1 URI:switchyard://operator

openssl rand -hex 16 >"$scratch/operator-token"
node "$program" up --preset tiny --workers 1 --routers 1 --threads 1 --port 0 --metrics-port 0 \
  --operator-token-file "$scratch/operator-token" --tls-ca "$scratch/ca.pem" --tls-cert "$scratch/server.pem" --tls-key "$scratch/server.key" --tls-client-ca "$scratch/ca.pem" \
  >"$scratch/up.log" 2>&1 &
processes+=($!)
for ((waited = 0; waited < 600; waited++)); do
  grep -qs '^ready in' "$scratch/up.log" && break
  kill -0 "${processes[0]}" 2>/dev/null || { tail -n 20 "$scratch/up.log" >&2; exit 1; }
  sleep 0.1
done
# The table that `up` prints: process, pid, address, metrics.
column() { awk -v name="$1" -v column="$2" '$1 == name && $2 ~ /^[0-9]+$/ { print $column; exit }' "$scratch/up.log"; }
coordinator=$(column coordinator 3)
metrics=$(column coordinator 4)
listening=$(awk '$2 ~ /^[0-9]+$/ { print $4 }' "$scratch/up.log" | sed 's#https://##; s#/metrics##')

# says TEXT COMMAND...: whatever it ends with, the output has the text.
says() {
  local text=$1 output
  shift
  output=$("$@" 2>&1 || true)
  [[ $output == *"$text"* ]] || { echo "expected \"$text\" in: $output"; return 1; }
}
# as NAME: what grpcurl and curl show of it.
as_grpcurl() { echo -cert "$scratch/$1.pem" -key "$scratch/$1.key"; }
as_curl() { echo --cert "$scratch/$1.pem" --key "$scratch/$1.key"; }
describe() { "$grpcurl" -max-time 20 "$@" switchyard.v1.Inference/DescribeModel; }
rpc() { describe -cacert "$scratch/ca.pem" -import-path "$root/proto" -proto switchyard/v1/client.proto "$@" "$coordinator"; }
list() { "$grpcurl" -max-time 20 -cacert "$scratch/ca.pem" "$@" "$coordinator" list; }
health() {
  "$grpcurl" -max-time 20 -cacert "$scratch/ca.pem" -import-path "$root/node_modules/grpc-health-check/proto" \
    -proto health/v1/health.proto "$coordinator" grpc.health.v1.Health/Check
}
get() { curl --silent --show-error --max-time 20 --write-out '%{http_code}' "$@"; }

check "grpcurl: a client" says '"name": "tiny"' rpc $(as_grpcurl client)
check "grpcurl: an operator lists services" says switchyard.v1.Coordinator list $(as_grpcurl operator)
check "grpcurl: a client may not" says "a certificate with switchyard://client; allowed: the operator token, or a certificate" list $(as_grpcurl client)
check "grpcurl: health without a certificate" says '"status": "SERVING"' health
check "grpcurl: no certificate" says "it shows no certificate" rpc
check "grpcurl: an expired certificate" says "its certificate has expired" rpc $(as_grpcurl expired)
check "grpcurl: the certificate of a node" says "PermissionDenied" rpc $(as_grpcurl node)
check "grpcurl: a wrong CA" says "certificate signed by unknown authority" "$grpcurl" -max-time 10 -cacert "$scratch/stranger.pem" "$coordinator" list
check "grpcurl: a wrong name" says "valid for coordinator, not localhost" "$grpcurl" -max-time 10 -cacert "$scratch/ca.pem" "localhost:${coordinator##*:}" list
check "grpcurl: no TLS" says "Failed to dial" "$grpcurl" -max-time 5 -plaintext "$coordinator" list

check "curl: an operator" says switchyard_ get --cacert "$scratch/ca.pem" $(as_curl operator) "$metrics"
check "curl: no certificate" says 401 get --cacert "$scratch/ca.pem" "$metrics"
check "curl: an expired certificate" says 401 get --cacert "$scratch/ca.pem" $(as_curl expired) "$metrics"
check "curl: a client" says 403 get --cacert "$scratch/ca.pem" $(as_curl client) "$metrics"
check "curl: a wrong CA" says "SSL certificate problem" get --cacert "$scratch/stranger.pem" "$metrics"
check "curl: no TLS" says "Empty reply" get "${metrics/https/http}"

# scraped: what Prometheus, with the configuration in $scratch/prometheus.yml, says of its targets, one a line: health, and why.
scraped() {
  local directory=$scratch/prometheus port
  rm -rf "$directory"
  mkdir "$directory"
  port=$(node -e "const s = require('node:net').createServer().listen(0, '127.0.0.1', () => { console.log(s.address().port); s.close(); })")
  prometheus --config.file="$scratch/prometheus.yml" --storage.tsdb.path="$directory/data" \
    --web.listen-address="127.0.0.1:$port" >"$directory/log" 2>&1 &
  local process=$! answer=
  for ((waited = 0; waited < 300; waited++)); do
    answer=$(curl --silent "http://127.0.0.1:$port/api/v1/targets" || true)
    [[ $answer == *'"health":"'* && $answer != *'"health":"unknown"'* ]] && break
    sleep 0.1
  done
  kill "$process"
  wait "$process" 2>/dev/null || true
  node -e "for (const { health, lastError } of JSON.parse(process.argv[1]).data.activeTargets) console.log(health, lastError)" "$answer"
}

targets=$(paste -sd, <<<"$listening")
# scraped_as CA NAME SERVER-NAME
scraped_as() {
  {
    echo 'global: { scrape_interval: 1s, scrape_timeout: 1s }'
    echo 'scrape_configs:'
    echo "  - { job_name: switchyard, scheme: https, static_configs: [{ targets: [$targets] }],"
    echo "      tls_config: { ca_file: $scratch/$1.pem${2:+, cert_file: $scratch/$2.pem, key_file: $scratch/$2.key}${3:+, server_name: $3} } }"
  } >"$scratch/prometheus.yml"
  scraped
}
# With the file of docker-compose.watch.tls.yml, but for where things are.
scraped_as_composed() {
  sed -e "s#targets: .*#targets: [$targets]#" -e "s#/etc/switchyard-tls/ca.pem#$scratch/ca.pem#" -e "/^rule_files/d" \
    -e "s#/tmp/operator-token#$scratch/operator-token#" -e 's/_interval: 15s/_interval: 1s/' \
    "$root/deploy/prometheus/prometheus-tls.yml" >"$scratch/prometheus.yml"
  scraped
}

if command -v prometheus >/dev/null; then
  check "Prometheus: an operator reads every process" test "$(scraped_as ca operator | sort -u | xargs)" = up
  check "Prometheus: no certificate" says "401" scraped_as ca
  check "Prometheus: with the token, as docker-compose.watch.tls.yml has it" test "$(scraped_as_composed | sort -u | xargs)" = up
  check "Prometheus: a client" says "403" scraped_as ca client
  check "Prometheus: an expired certificate" says "401" scraped_as ca expired
  check "Prometheus: a wrong CA" says "certificate signed by unknown authority" scraped_as stranger operator
  check "Prometheus: a wrong name" says "valid for coordinator, not elsewhere" scraped_as ca operator elsewhere
else
  echo "not checked: Prometheus is not in PATH"
fi

count_checks
