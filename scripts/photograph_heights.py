"""How high digits of SVHN are on the canvas of photographs, by the official annotations.

    python scripts/photograph_heights.py train_boxes.csv.gz test_boxes.csv.gz

PHOTOGRAPH and PHOTOGRAPH_SCALES in `lipdet.config` were chosen by what this prints. Each file has
the columns image_width, image_height and height; no picture is needed.
"""

from __future__ import annotations

import argparse
import csv
import gzip

import numpy as np

from lipdet.commands.options import parse_canvas
from lipdet.config import PHOTOGRAPH

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


def main() -> None:
    """Print percentiles of heights in pixels of a canvas, file by file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("annotations", nargs="+")
    parser.add_argument("--canvas", type=parse_canvas, default=PHOTOGRAPH)
    options = parser.parse_args()
    print(f"Heights on {options.canvas}, percentiles {PERCENTILES}")
    for file in options.annotations:
        with gzip.open(file, "rt") as stream:
            rows = [
                (float(row["image_height"]), float(row["image_width"]), float(row["height"]))
                for row in csv.DictReader(stream)
            ]
        heights, widths, digits = np.array(rows).T
        scale = np.minimum(options.canvas.height / heights, options.canvas.width / widths)
        print(file, np.percentile(digits * scale, PERCENTILES).round(1).tolist())


if __name__ == "__main__":
    main()
