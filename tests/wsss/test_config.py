"""Options from dataclasses, and errors as one line."""

import errno
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from wsss.config import DataOptions, next_command, option, parse, result_options, run_command
from wsss.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    scales: tuple[float, ...] = option((1.0, 1.2), "scales, 100% = the picture's size")
    flip: bool = option(True, "mirror")
    limit: int | None = option(None, "at most this many")
    kind: str = option("a", "which", choices=("a", "b"))
    workers: int = option(2, "processes", changes_result=False)
    batch: int = option(4, "pictures", minimum=1, maximum=64)
    rate: float | None = option(None, "step", above=0)
    shares: tuple[float, ...] = option((0.5,), "fractions", minimum=0, maximum=1)


NEEDED = ["--data-path", "d", "--output-dir", "o"]


def test_types_and_defaults():
    config = parse(Config, NEEDED)
    assert (config.scales, config.flip, config.limit, config.kind) == ((1.0, 1.2), True, None, "a")
    assert config.data_path == Path("d") and config.dataset == "folder" and config.device == "auto"
    changed = parse(Config, [*NEEDED, "--scales", "0.5", "--no-flip", "--limit", "3", "--kind", "b"])
    assert (changed.scales, changed.flip, changed.limit, changed.kind) == ((0.5,), False, 3, "b")


def test_names_that_python_reserves(capsys):
    @dataclass(frozen=True, kw_only=True)
    class Reserved:
        from_: tuple[Path, ...] | None = option(None, "folders")

    assert parse(Reserved, ["--from", "a", "b"]).from_ == (Path("a"), Path("b"))
    assert parse(Reserved, []).from_ is None
    with pytest.raises(SystemExit):
        parse(Reserved, ["--help"])
    assert "--from FROM [FROM ...]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong", [["--kind", "c"], ["--limit", "x"], ["--scal", "1"], ["--flip", "False"], ["--nothing"]]
)
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Config, [*NEEDED, *wrong])
    assert stopped.value.code == 2
    assert wrong[-1].lstrip("-") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--batch", "0"], "argument --batch: must be at least 1 and at most 64, got 0"),
        (["--batch", "65"], "argument --batch: must be at least 1 and at most 64, got 65"),
        (["--batch", "1.5"], "argument --batch: invalid int value: '1.5'"),
        (["--rate", "0"], "argument --rate: must be above 0, got 0"),
        (["--rate", "nan"], "argument --rate: must be above 0, got nan"),
        (["--rate", "inf"], "argument --rate: must be above 0, got inf"),
        (["--scales", "1", "nan"], "argument --scales: must be a finite number, got nan"),
        (["--shares", "0.5", "1.01"], "argument --shares: must be at least 0 and at most 1, got 1.01"),
        (["--shares", "-0.5"], "argument --shares: must be at least 0 and at most 1, got -0.5"),
    ],
)
def test_numbers_out_of_range_are_refused(given, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Config, [*NEEDED, *given])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_limits_themselves():
    for batch in (1, 64):
        assert parse(Config, [*NEEDED, "--batch", str(batch)]).batch == batch
    config = parse(Config, [*NEEDED, "--rate", "1e-9", "--shares", "0", "1"])
    assert (config.rate, config.shares) == (1e-9, (0.0, 1.0))


def test_help_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit):
        parse(Config, ["--help"], prog="x.y")
    text = " ".join(capsys.readouterr().out.split())
    assert "python -m x.y" in text
    assert "scales, 100% = the picture's size (default: 1.0 1.2)" in text
    assert "root folder of the data set (required)" in text
    assert "at most this many --" in text  # no "(default: None)"


def test_result_options_leave_out_what_may_change_between_starts():
    one = result_options(parse(Config, NEEDED))
    two = result_options(parse(Config, ["--data-path", "d", "--output-dir", "p", "--workers", "9"]))
    assert one == two
    assert one["scales"] == [1.0, 1.2] and one["data_path"] == str(Path("d").resolve())
    assert one != result_options(parse(Config, [*NEEDED, "--no-flip"]))


def test_voc_masks_decide_the_result_of_voc_only():
    voc = ["--dataset", "voc12"]
    own = ["--voc-masks", "SegmentationClass"]
    found = [result_options(parse(Config, [*NEEDED, *more])) for more in (voc, voc + own)]
    assert [f["voc_masks"] for f in found] == ["SegmentationClassAug", "SegmentationClass"]
    for layout in ("folder", "coco14"):
        assert "voc_masks" not in result_options(parse(Config, [*NEEDED, "--dataset", layout]))
    with pytest.raises(SystemExit):
        parse(Config, [*NEEDED, "--voc-masks", "masks"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a.jpg: broken;\n mend it"), "error: a.jpg: broken; mend it"),
        (OSError(errno.ENOSPC, "No space left", "o/x.pth"), "error: o/x.pth: disk full; free space"),
        (PermissionError(errno.EACCES, "Permission denied", "o"), "error: o: Permission denied; choose"),
    ],
)
def test_bad_input_is_one_line_and_status_2(error, line, capsys):
    def main(config):
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_command(main, Config, NEEDED, prog="x")
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert printed.startswith(line) and printed.count("\n") == 1


def test_other_errors_keep_their_traceback():
    def main(config):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main, Config, NEEDED, prog="x")


def test_next_command_can_be_pasted():
    config = parse(Config, ["--data-path", "my data", "--output-dir", "o"])
    found = next_command("weaktr.make_masks", config, cam_dir=Path("c"), mask_dir=None)
    line = "next: python -m weaktr.make_masks --dataset folder --data-path 'my data' --cam-dir c"
    assert found == line
    found = next_command("weaktr.make_masks", config, cam_dir="c", exif=True, crf=False, overlays=0)
    assert found == f"{line} --exif --overlays 0"
    config = parse(Config, ["--data-path", "d", "--output-dir", "o", "--dataset", "voc12"])
    assert "--voc-masks" not in next_command("wsss.score", config)
    config = replace(config, voc_masks="SegmentationClass")
    assert next_command("wsss.score", config).endswith("--data-path d --voc-masks SegmentationClass")
