"""Markdown tables, aligned."""

from wsss.tables import markdown_table


def test_columns_are_aligned_over_heading_and_body():
    assert markdown_table([("class", "IoU"), ("cat", "7.50"), ("pixel accuracy", "100.00"), ("x", "")]) == [
        "| class          |    IoU |",
        "|----------------|-------:|",
        "| cat            |   7.50 |",
        "| pixel accuracy | 100.00 |",
        "| x              |        |",
    ]
