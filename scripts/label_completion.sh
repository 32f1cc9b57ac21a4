#!/usr/bin/env bash
# GETAM's pseudo-labels with and without label completion, on the same maps, against the true masks.
#
#   bash scripts/label_completion.sh DATA CHECKPOINT SPLIT [SIDE [BAND]]
#
#          DATA: a folder data set with masks. CHECKPOINT: of segmentation.getam.train. SPLIT: a list of DATA. SIDE: longer
#          side of the pictures, default 256 pixels. BAND: as --band of the training, default 0.3.
# Needs    the packages (installed on first use, scripts/env.sh).
# Expect   a table: mIoU of the labelled pixels, mIoU with unknown pixels as background, share of unknown pixels; measured,
#          docs/results.md.
# Time     one CPU core, DeiT-Ti: 3 pictures a second.
set -euo pipefail

usage() { echo "error: $1; usage: bash scripts/label_completion.sh DATA CHECKPOINT SPLIT [SIDE [BAND]]" >&2; exit 2; }
[ $# -ge 3 ] && [ $# -le 5 ] || usage "3 to 5 arguments are needed, $# were given"
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
export PYTHONPATH=$weaktr_root${PYTHONPATH:+:$PYTHONPATH}
"$PYTHON" "$weaktr_root/scripts/label_completion.py" --data-path "$1" --checkpoint "$2" --split "$3" ${4:+--side "$4"} ${5:+--band "$5"}
