#!/usr/bin/env bash
# Everything that says whether this checkout is sound: lint, format, tests.
#
#   bash scripts/test.sh [pytest's arguments]
#
# Needs   what scripts/env.sh needs. Tests on real pictures, real weights and recorded results run where the
#         variables VOC_ANIMALS, PRETRAINED and RECORDED name their folders (docs/install.md), else they skip.
# Expect  "N passed", exit status 0.
# Time    minutes on 2 CPU cores; no GPU is used.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$weaktr_root"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
[ $# -gt 0 ] || set -- -n auto  # the whole suite: a process per core, one thread each
"$PYTHON" -m pytest "$@"
