"""A forest plot shows every interval to scale, and is the same file each time."""

import numpy as np
import pytest
from PIL import Image

from affnorm_zoo.studies.forest import Effect, draw_forest

COLOURS = {"narrow": "#ff0000", "wide": "#0000ff", "unused": "#00ff00"}
GROUPS = {
    "one": [Effect("a", -1.5, -2.0, 0.0, "narrow"), Effect("b", 1.0, -2.0, 4.0, "wide")],
    "empty": [],
}


def span(image, channel):
    """The first and the last column with the hue of an interval, in the row where it is longest."""
    red_less_blue = np.asarray(image.convert("RGB")).astype(int)[..., 0] - np.asarray(image.convert("RGB"))[..., 2]
    found = np.abs(red_less_blue) > 60  # edges are blended with the white beside them
    found &= (red_less_blue > 0) == (channel == "red")
    (columns,) = np.nonzero(found[found.sum(axis=1).argmax()])
    return columns.min(), columns.max()


def test_intervals_are_to_scale_and_the_file_is_reproducible(tmp_path):
    for name in ("first.png", "second.png"):
        draw_forest(GROUPS, COLOURS, tmp_path / name, "points")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    with Image.open(tmp_path / "first.png") as image:
        narrow, wide = span(image, "red"), span(image, "blue")
    # both begin at -2; the ends of a line are rounded to pixels
    assert narrow[0] == pytest.approx(wide[0], abs=1)
    assert wide[1] - wide[0] == pytest.approx(3 * (narrow[1] - narrow[0]), rel=0.02)


def test_effects_of_one_label_share_a_line(tmp_path):
    heights = []
    for labels in ("aab", "abc"):
        effects = [Effect(label, 1.0, 0.5, 1.5, "wide") for label in labels]
        draw_forest({"one": effects}, COLOURS, tmp_path / "plot.png", "ratio", none=1.0)
        with Image.open(tmp_path / "plot.png") as image:
            heights.append(image.height)
    assert heights[1] - heights[0] == 19  # pixels of a line
