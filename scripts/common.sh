# Sourced by the scripts of the stages, after they know DATASET and DATA ($dataset, $data): environment, options that
# all commands share, which lists there are, and run_step, which runs a command unless it is done, on one machine or more.

refuse() { echo "error: $1" >&2; exit 2; }
whole_number() {  # whole_number NAME LEAST MOST: the variable is one, in base ten
    local value=${!1}
    [[ $value =~ ^[0-9]{1,6}$ ]] && [ "$((10#$value))" -ge "$2" ] && [ "$((10#$value))" -le "$3" ] \
        || refuse "$1=$value: give a whole number, $2 to $3"
    printf -v "$1" %d "$((10#$value))"
}
GPUS=${GPUS:-1} NODES=${NODES:-1} NODE=${NODE:-0}
whole_number GPUS 1 1024
whole_number NODES 1 1024
whole_number NODE 0 "$((NODES - 1))"
[ -z "${WORKERS:-}" ] || whole_number WORKERS 0 1024
if [ "$NODES" -gt 1 ]; then
    [[ ${MASTER:-} =~ ^[^:]+:[0-9]{1,5}$ ]] \
        || refuse "MASTER=${MASTER:-}: with NODES, give the address of node 0 and a port free there, such as node0:29500"
    master_host=${MASTER%:*} master_port=$((10#${MASTER##*:}))
    gate_port=$((master_port + 1))  # torchrun has the other
    [ "$master_port" -ge 1 ] && [ "$gate_port" -le 65535 ] || refuse "MASTER=$MASTER: the port must be 1 to 65534"
fi

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$scripts/env.sh"
export PYTHONPATH=$weaktr_root${PYTHONPATH:+:$PYTHONPATH}

common=(--dataset "$dataset" --data-path "$data" ${VOC_MASKS:+--voc-masks "$VOC_MASKS"})
workers=(${WORKERS:+--workers "$WORKERS"})

# starting_weights BACKBONE: PRETRAINED_WEIGHTS, else the first file named like the backbone in the folder PRETRAINED or in
# checkpoints/imagenet, else timm's hub.
starting_weights() {
    local folder file
    [ -z "${PRETRAINED_WEIGHTS:-}" ] || { echo "$PRETRAINED_WEIGHTS"; return; }
    for folder in ${PRETRAINED:+"$PRETRAINED"} "$weaktr_root/checkpoints/imagenet"; do
        for file in "$folder/$1"{,.*}.{pth,safetensors,npz}; do
            [ ! -f "$file" ] || { echo "$file"; return; }
        done
    done
    echo hub
}

# Which lists there are, and which of them have masks: the data set knows (all.sh asks it once).
lists=${WEAKTR_LISTS:-$("$PYTHON" - "$dataset" "$data" ${VOC_MASKS:+"$VOC_MASKS"} <<'PYTHON'
import sys
from wsss.datasets import load_dataset
from wsss.errors import UserError
try:
    data = load_dataset(sys.argv[1], sys.argv[2], **({"voc_masks": sys.argv[3]} if sys.argv[3:] else {}))
    train = next((s for s in (data.train_split, "train", "all") if s in data.splits), data.train_split)
    val = data.val_split if data.val_split in data.splits else ""
    scored = data.cam_split if data.cam_split in data.splits else train
    print(train, scored, val or "-", *(s for s in {train, scored, val} - {""} if data.has_masks(s)))
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
PYTHON
)}
read -r train_split scored_split val_split with_masks <<<"$lists"
has_masks() { [[ " $with_masks " == *" $1 "* ]]; }

earlier=()  # folders of the steps so far: a step that began before one of them ended is not done
step_number=${WEAKTR_STEP:-0}  # the same on all nodes

# run_step PROCESSES TITLE FOLDER MODULE OPTIONS...: python -m MODULE --output-dir FOLDER with the common options,
# unless that is done before (scripts/steps.py). PROCESSES: "one", "all" (GPUS on each node), or at most so many in all.
run_step() {
    local processes=$1 title=$2 folder=$3 each=$GPUS nodes=$NODES
    local words=(-m "$4" "${common[@]}" --output-dir "$folder" "${@:5}" ${OVERWRITE:+--overwrite})
    [ "$processes" != one ] || processes=1
    if [ "$processes" != all ]; then
        [ "$each" -le "$processes" ] || each=$processes
        [ "$nodes" -le "$((processes / each))" ] || nodes=$((processes / each))
        [ "$processes" -eq 1 ] || [ "$((each * nodes))" -eq "$((GPUS * NODES))" ] \
            || title+=", on $((each * nodes)) of $((GPUS * NODES)) processes"
    fi
    step_number=$((step_number + 1))
    echo; echo "== $title"
    if [ "$NODE" -ge "$nodes" ]; then
        echo "not on node $NODE"
    elif is_done "$nodes" "$folder" "${words[@]}"; then
        :
    elif [ "$nodes" -gt 1 ]; then
        "$PYTHON" -m torch.distributed.run --nnodes="$nodes" --node_rank="$NODE" --nproc_per_node="$each" \
            --master_addr="$master_host" --master_port="$master_port" "${words[@]}"
    elif [ "$each" -gt 1 ]; then
        "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$each" "${words[@]}"
    else
        "$PYTHON" "${words[@]}"
    fi
    earlier+=("$folder")
}

# is_done NODES FOLDER WORDS...: node 0 looks, the others ask it. Where it is not done, all NODES are at this step now.
is_done() {
    local status=0
    if [ "$NODE" -gt 0 ]; then
        "$PYTHON" "$scripts/nodes.py" ask "$master_host:$gate_port" "$step_number" "$NODE" "$NODES" || status=$?
        [ "$status" -ne 3 ] || { echo "done before, says node 0"; return 0; }
        [ "$status" -eq 0 ] || exit "$status"
        return 1
    fi
    "$PYTHON" "$scripts/steps.py" "$2" --after ${earlier[@]+"${earlier[@]}"} -- "${@:3}" && return 0
    [ "$1" -eq 1 ] || "$PYTHON" "$scripts/nodes.py" open "$gate_port" "$step_number" "$1" "$NODES" || exit
    return 1
}

# The outermost script on several nodes ends when node 0 does, and fails if node 0 has failed.
part() {
    local status=$1 last=1000000
    if [ "$NODE" -eq 0 ] && [ "$status" -eq 0 ]; then
        "$PYTHON" "$scripts/nodes.py" open "$gate_port" "$last" "$NODES" "$NODES" --patience 60
    elif [ "$NODE" -eq 0 ]; then
        "$PYTHON" "$scripts/nodes.py" stop "$gate_port" "$NODES" --patience 10
    elif [ "$status" -eq 0 ]; then
        "$PYTHON" "$scripts/nodes.py" ask "$master_host:$gate_port" "$last" "$NODE" "$NODES" || status=$?
    fi
    exit "$status"
}
[ "$NODES" -eq 1 ] || [ -n "${WEAKTR_STEP:-}" ] || trap 'part $?' EXIT
