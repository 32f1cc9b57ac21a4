"""What a result of stage 1 depends on, in words."""


def chosen_by(entries: dict) -> str:
    """What made a checkpoint's weights the ones it holds.

    Args:
        entries: Of the checkpoint, from ``load_weaktr``: ``best``, where weaktr.train wrote it.
    """
    best = entries.get("best")
    if not best:
        return f"not recorded, epoch {entries['epoch']}" if "epoch" in entries else "not recorded"
    if best["measure"] == "epoch":
        return f"the last epoch, {best['epoch']}"
    every = f", every {best['every']}th picture" if best["every"] > 1 else ""
    on_masks = "; chosen on masks" if best["measure"] == "cam_miou" else ""
    value = f"{best['measure']} {100 * best['score']:.2f}%"
    return f"epoch {best['epoch']}, {value} on {best['split']}{every}{on_masks}"
