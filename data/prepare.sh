# Sourced by prepare_voc12.sh and prepare_coco14.sh, which set $module: the environment, and the command.

usage="usage: bash data/$(basename "$0") DIR [--from DIR2 ...] [options; --help lists them]"
case ${1:-} in
    -h | --help) set -- . --help ;;
    "" | -*) echo "error: DIR, the folder to make, comes first; $usage" >&2; exit 2 ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/env.sh"
dir=$1
shift
PYTHONPATH=$weaktr_root${PYTHONPATH:+:$PYTHONPATH} exec "$PYTHON" -m "$module" --output-dir "$dir" "$@"
