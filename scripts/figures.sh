#!/usr/bin/env bash
# The README's figures, from a run: pictures at every step beside each other, and the weights of the heads.
#
#   bash scripts/figures.sh RUN [OUT]     RUN: output folder of scripts/quickstart.sh; OUT: default img
#
# Needs    the packages (installed on first use, scripts/env.sh), and a run with panels (PANELS=N): the folders
#          panels of stage 1's and stage 2's commands on one list, and head_weights.json (docs/formats.md).
# Writes   OUT/quickstart.png (five of the run's pictures, at most 600 kB), OUT/head_weights.png.
# Expect   both files, the same for the same run.
# Time     seconds.
set -euo pipefail
usage="usage: bash scripts/figures.sh RUN [OUT]"
[ $# -eq 1 ] || [ $# -eq 2 ] || { echo "error: 1 or 2 arguments are needed, $# were given; $usage" >&2; exit 2; }
scripts=$(dirname "${BASH_SOURCE[0]}")
source "$scripts/env.sh"
PYTHONPATH=$weaktr_root${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" "$scripts/figures.py" \
    --run "$1" --output-dir "${2:-$weaktr_root/img}"
