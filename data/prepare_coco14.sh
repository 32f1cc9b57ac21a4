#!/usr/bin/env bash
# COCO 2014, ready for --dataset coco14: pictures, annotations, image labels, and class masks from the annotations.
#
#   bash data/prepare_coco14.sh DIR [--from DIR2 ...] [--no-masks] [--partial] [--keep-archives]
#
#          --from      folders with what is there already: train2014.zip, val2014.zip, annotations_trainval2014.zip, or
#                      train2014, val2014 (or images) and annotations, unpacked. They are not written to.
#          --no-masks  pictures, annotations and image labels only
#          --partial   a part of the official set: other counts are accepted, nothing is downloaded
#          Further options: bash data/prepare_coco14.sh --help
# Needs    the packages (installed on first use, scripts/env.sh), and the network for what --from lacks; 2 GB of memory.
# Writes   DIR/{train2014,val2014,annotations,masks}, DIR/prepared.json (what came from where); while it runs DIR/downloads
# Resumes  Run the same line again: what is done is kept, a download continues.
# Expect   published: 82,081 train and 40,137 val pictures with annotations; the check at the end compares them
# Time     not measured. Disk: archives 13.5, 6.6 and 0.25 GB, published; with what is unpacked about 34 GB at most.
set -euo pipefail
module=wsss.prepare.coco14
source "$(dirname "${BASH_SOURCE[0]}")/prepare.sh"
