#!/usr/bin/env bash
# Everything that only a GPU can show, in one command: builds, checks, measures, writes
# bench/results/<card>-<date>.{json,md}. Needs torch with CUDA, triton, nvcc and a C++ compiler;
# downloads nothing and installs nothing. --check does all that can be done without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m bench.speed.gpu "$@"
