#!/usr/bin/env bash
# Submits a run to a Ray cluster from this checkout, which needs Ray's command and nothing else installed:
#   RAY_ADDRESS=http://127.0.0.1:8265 deploy/submit.sh --recipe doom_tiny_ar run.name=first
# The arguments are those of `python -m rlir_ray train`. A cluster with token authentication: RAY_AUTH_MODE=token and
# RAY_AUTH_TOKEN_PATH=FILE. Exit code 0 if the run succeeded, 1 if not.
set -euo pipefail
cd "$(dirname "$0")/.."
address=${RAY_ADDRESS:-http://127.0.0.1:8265}
# The package that travels has no .git: this is how the job's page tells what it ran.
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
exec ray job submit --address "$address" --working-dir . --runtime-env deploy/runtime_env.yaml \
    --metadata-json "{\"commit\": \"$commit\"}" -- python -m rlir_ray train "$@"
