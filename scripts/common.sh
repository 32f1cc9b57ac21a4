# Sourced by the scripts of the stages, after they know DATASET, DATA and BACKBONE ($dataset, $data, $backbone):
# environment, options that all commands share, starting weights, and which lists there are.

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
export PYTHONPATH=$weaktr_root${PYTHONPATH:+:$PYTHONPATH}

common=(--dataset "$dataset" --data-path "$data")
parallel=("$PYTHON")
[ "${GPUS:-1}" -gt 1 ] && parallel+=(-m torch.distributed.run --standalone --nproc_per_node="$GPUS")
workers=(${WORKERS:+--workers "$WORKERS"})
step() { echo; echo "== $*"; }

# ImageNet weights: as told, else the first file named like the backbone in the folder PRETRAINED, else timm's hub.
weights=${PRETRAINED_WEIGHTS:-}
if [ -z "$weights" ]; then
    weights=hub
    for file in "${PRETRAINED:-}/$backbone"{,.*}.{pth,safetensors,npz}; do
        [ -f "$file" ] && weights=$file && break
    done
fi

# Which lists there are, and which of them have masks: the data set knows.
lists=$("$PYTHON" - "$dataset" "$data" <<'PYTHON'
import sys
from wsss.datasets import load_dataset
from wsss.errors import UserError
try:
    data = load_dataset(sys.argv[1], sys.argv[2])
    train = next((s for s in (data.train_split, "train", "all") if s in data.splits), data.train_split)
    val = data.val_split if data.val_split in data.splits else ""
    scored = data.cam_split if data.cam_split in data.splits else train
    print(train, scored, val or "-", *(s for s in {train, scored, val} - {""} if data.has_masks(s)))
except UserError as error:
    sys.exit(f"error: {error}")
PYTHON
)
read -r train_split scored_split val_split with_masks <<<"$lists"
has_masks() { [[ " $with_masks " == *" $1 "* ]]; }
