#!/usr/bin/env bash
# Released checkpoints, masks and ImageNet weights: fetch, check, record their hashes (checkpoints/README.md).
#
#   bash scripts/download_checkpoints.sh NAME|all|list... [--from FILE] [--output-dir DIR]
#
#          NAME: of the list. all: every released checkpoint; groups of them are weaktr, getam, voc12, coco14; further
#          groups are masks and imagenet. list: the table, with what is here.
#          --from FILE: register a file that a browser has fetched. --output-dir DIR: instead of checkpoints/ (or
#          of the folder that the environment variable WEAKTR_CHECKPOINTS names).
# Needs    the packages (installed on first use, scripts/env.sh), and the network, but for list and --from.
# Writes   checkpoints/NAME.pth, checkpoints/masks/NAME/ID.png, checkpoints/imagenet/BACKBONE.*, checkpoints/sha256.json.
# Resumes  Run the same line again: what is here is checked, what has stopped is continued.
# Expect   one line for each file, with its sha256. Published scores are in the list.
# Time     that of the network; not measured here (a small checkpoint is some 90 MB).
set -euo pipefail

usage() {
    echo "error: $1; usage: bash scripts/download_checkpoints.sh NAME|all|list... [--from FILE] [--output-dir DIR]" >&2
    exit 2
}
names=() options=()
while [ $# -gt 0 ]; do
    case $1 in
        --from|--output-dir|--workers)
            [ $# -ge 2 ] || usage "$1 wants a value"
            options+=("$1" "$2")
            shift ;;
        -*) usage "unknown option $1" ;;
        *) names+=("$1") ;;
    esac
    shift
done
[ ${#names[@]} -gt 0 ] || usage "a name is needed"

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
export PYTHONPATH=$weaktr_root${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" -m wsss.download_checkpoints --name "${names[@]}" ${options[@]+"${options[@]}"}
