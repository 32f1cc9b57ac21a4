"""Commands: one frozen dataclass each, its options derived from it, errors as one line.

@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    epochs: int = option(60, "passes over the training list")

def main(config: Config) -> None: ...

def run() -> None:  # also the console command weaktr-train, see setup.py
    run_command(main, Config, prog="weaktr.train", description=__doc__)

if __name__ == "__main__":
    run()
"""

import argparse
import dataclasses
import datetime
import errno
import gc
import logging
import math
import shlex
import sys
import types
import typing
from pathlib import Path

from wsss.errors import UserError

REQUIRED = dataclasses.MISSING
VOC_MASKS = ("SegmentationClassAug", "SegmentationClass")  # published scores: the first, for every list


def option(
    default,
    help: str,
    *,
    choices=None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    changes_result: bool = True,
):
    """A dataclass field that becomes ``--its-name``.

    Args:
        default: Default value, or ``REQUIRED``.
        help: One line, with the unit. The default is appended by ``--help``.
        choices: Allowed values.
        minimum, maximum, above: Range of a number, or of each number of a tuple; ``above`` is a lower bound
            that is itself not allowed. ``nan`` and ``inf`` are always refused.
        changes_result: False for options such as ``--workers`` that may differ when a run is continued.
    """
    metadata = {"help": help, "choices": choices, "changes_result": changes_result}
    metadata["range"] = {"minimum": minimum, "maximum": maximum, "above": above}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSource:
    """Options that name a data set."""

    dataset: str = option(
        "folder", "layout of the data, see docs/data.md", choices=("voc12", "coco14", "folder")
    )
    data_path: Path = option(REQUIRED, "root folder of the data set")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions(DataSource):
    """Options that every command takes which reads a data set and writes an output folder."""

    voc_masks: str = option(
        VOC_MASKS[0], "of voc12: the folder of true masks that scores are measured on", choices=VOC_MASKS
    )
    output_dir: Path = option(REQUIRED, "folder that receives everything the command writes")
    device: str = option(
        "auto", "where tensors live; auto takes the GPU if there is one", choices=("auto", "cpu", "cuda")
    )
    overwrite: bool = option(
        False, "start afresh in an output folder of a different run: what it holds is deleted first",
        changes_result=False,
    )  # fmt: skip


def _unwrap_optional(kind):
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(kind) if a is not type(None))
    return kind


def _number(kind: type, *, minimum, maximum, above):
    """argparse's ``type`` of a number within a range; argparse puts the option's name before the message."""
    limits = [
        f"{words} {limit}"
        for words, limit in (("above", above), ("at least", minimum), ("at most", maximum))
        if limit is not None
    ]
    wanted = " and ".join(limits) if limits else "a finite number"

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"invalid {kind.__name__} value: {text!r}") from None
        within = (
            (kind is int or math.isfinite(value))
            and (minimum is None or value >= minimum)
            and (maximum is None or value <= maximum)
            and (above is None or value > above)
        )
        if not within:
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text}")
        return value

    return convert


def _add_option(parser: argparse.ArgumentParser, field: dataclasses.Field, kind) -> None:
    kind = _unwrap_optional(kind)
    name = field.name.rstrip("_")  # from_ becomes --from, which is no name in Python
    required = field.default is dataclasses.MISSING
    default = None if required else field.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    text = field.metadata["help"].replace("%", "%%")
    text += " (required)" if required else f" (default: {shown})" if default is not None else ""
    arguments = {"dest": field.name, "required": required, "default": default, "help": text}
    if kind is bool:
        arguments["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
        arguments |= {"type": kind, "nargs": "+"}
    else:
        arguments |= {"type": kind, "choices": field.metadata["choices"]}
    if kind in (int, float):
        arguments["type"] = _number(kind, **field.metadata["range"])
    if kind is not bool and arguments.get("choices") is None:
        arguments["metavar"] = "DIR" if name.endswith("_dir") else name.split("_")[-1].upper()
    parser.add_argument("--" + name.replace("_", "-"), **arguments)


def _as_started(module: str) -> str:
    """How the user started it: by its name in setup.py, such as ``weaktr-train``, else with ``python -m``."""
    name = module.replace(".", "-").replace("_", "-")
    return name if Path(sys.argv[0]).stem == name else f"python -m {module}"


def parse(config_class, argv=None, *, prog: str | None = None, description: str | None = None):
    """Build ``config_class`` from command-line arguments (default: ``sys.argv[1:]``)."""
    parser = argparse.ArgumentParser(
        prog=_as_started(prog) if prog else None,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        _add_option(parser, field, hints[field.name])
    values = vars(parser.parse_args(argv))
    return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def as_plain(config) -> dict:
    """The dataclass as a dict of JSON-able values (paths as strings, tuples as lists)."""

    def plain(value):
        if isinstance(value, Path):
            return str(value)
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def result_options(config, *, leave_out: tuple[str, ...] = ()) -> dict:
    """The options that decide what is computed: what two runs in one output folder must share."""
    skip = {"output_dir", "device", *leave_out}
    if getattr(config, "dataset", None) != "voc12":
        skip.add("voc_masks")  # decides nothing there
    skip |= {f.name for f in dataclasses.fields(config) if not f.metadata.get("changes_result", True)}
    found = {k: v for k, v in as_plain(config).items() if k not in skip}
    paths = {f.name for f in dataclasses.fields(config) if isinstance(getattr(config, f.name), Path)}
    # the same file or folder, however it is written
    return found | {name: str(getattr(config, name).resolve()) for name in paths & found.keys()}


def next_command(module: str, config: DataOptions, **options) -> str:
    """The line that a command ends with: ``next: python -m MODULE ...``, on the same data, ready to paste.

    An option that is True becomes its bare name; None and False are left out.
    """
    words = ["python", "-m", module, "--dataset", config.dataset, "--data-path", config.data_path]
    if config.voc_masks != VOC_MASKS[0]:
        words += ["--voc-masks", config.voc_masks]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", value]
    return "next: " + shlex.join(map(str, words))


def run_command(main, config_class, argv=None, *, prog: str, description: str | None = None) -> None:
    """Parse, run ``main(config)``, and turn bad input into one line on stderr and exit status 2.

    When ``main`` ends well, the output folder's environment.json gets its time (``wsss.run.close_run``).
    """
    from wsss.distributed import count_failures, rank
    from wsss.run import close_run

    begun = datetime.datetime.now(datetime.UTC)
    config = parse(config_class, argv, prog=prog, description=description)
    logging.basicConfig(
        level=logging.INFO if rank() == 0 else logging.WARNING,
        format="%(message)s",
        stream=sys.stdout,
        force=True,
    )
    logging.captureWarnings(True)
    failure = None
    try:
        main(config)
        if (output_dir := getattr(config, "output_dir", None)) is not None:
            close_run(output_dir, begun)
    except UserError as error:
        failure = str(error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = error.filename or config.output_dir
            failure = f"{where}: disk full; free space and run the same command again"
        elif error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR):
            failure = f"{error.filename}: {error.strerror}; choose another path or mend its permissions"
        else:
            raise
    except RuntimeError:
        if not count_failures(0):
            raise
        sys.exit(2)  # a collective broke because a peer has stopped, which has said why
    if failure:
        gc.collect()  # frees what the exception held, so that progress bars end their line before the message
        if count_failures(1) > 1:
            sys.exit(2)  # a peer has said it
        _fail(failure)


def _fail(message: str) -> typing.NoReturn:
    sys.stdout.flush()
    print("error:", " ".join(message.split()), file=sys.stderr, flush=True)  # noqa: T201
    sys.exit(2)
