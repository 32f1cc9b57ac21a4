"""dataset.json: what a training was given, in numbers a reader can check (docs/formats.md)."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from wsss.datasets import Dataset
from wsss.distributed import rank
from wsss.errors import UserError
from wsss.io import write_json


def write_dataset_facts(output_dir: Path, spec: Dataset, splits: Iterable[str | None]) -> None:
    """Write ``OUTPUT_DIR/dataset.json``; the first process does, unless a training continues that has it.

    Args:
        output_dir: The training's folder.
        spec: The data set.
        splits: Lists the training uses; None and repetitions are left out.
    """
    path = Path(output_dir) / "dataset.json"
    continued = path.is_file() and (path.parent / "last.pth").is_file()
    if rank() == 0 and not continued:  # reading the labels of a large data set takes a while
        lists = {split: list_facts(spec, split) for split in dict.fromkeys(splits) if split}
        facts = {"dataset": spec.name, "root": str(spec.root), "class_names": spec.class_names}
        write_json(path, facts | {"lists": lists})


def list_facts(spec: Dataset, split: str) -> dict:
    """Counts of one list.

    Returns:
        ``images``; ``with_masks``, whether the data set has a mask of every picture; ``pictures_per_class``,
        by name, in class order; ``classes_per_picture``: for 0, 1, ... how many pictures have that many
        classes. The last two are None where a picture has no labels, which stage 2 can do without.
    """
    ids = spec.image_ids(split)
    facts = {"images": len(ids), "with_masks": spec.has_masks(split)}
    try:
        found = [spec.label_indices(image_id) for image_id in ids]
    except UserError:
        return facts | {"pictures_per_class": None, "classes_per_picture": None}
    pictures = Counter(index for indices in found for index in indices)
    sizes = Counter(map(len, found))
    return facts | {
        "pictures_per_class": {name: pictures[k] for k, name in enumerate(spec.class_names)},
        "classes_per_picture": {str(n): sizes[n] for n in range(max(sizes) + 1)},
    }
