"""Weights between those of two runs, the second trained on from the first: a dial without training.

    python scripts/interpolate_runs.py runs/certified runs/certified-margin-1 0.5 OUT

Parameters of 1-Lipschitz layers are free numbers, so whatever lies between two of them is exactly
1-Lipschitz too. The result is calibrated on the pictures that the second run held out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lipdet.checkpoint import load_detector, save_detector
from lipdet.hardware import chosen_device
from lipdet.train import set_up
from lipdet.train.job import load_job
from lipdet.train.tasks import Boxes


def main() -> None:
    """Write the weights and print their validation AP50."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("share", type=float, help="of the second run, between 0 and 1")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    job = load_job(options.second)
    task = Boxes(set_up(job), chosen_device())
    first, second = (load_detector(str(run)) for run in (options.first, options.second))
    detector = second.detector
    mine = first.detector.state_dict()
    detector.load_state_dict(
        {
            name: mine[name].lerp(value, options.share)
            for name, value in detector.state_dict().items()
        }
    )
    detector = task.calibrated(detector)
    measured = task.validate(detector)
    assert measured is not None, "the second run held no pictures out"
    info = {
        "training": {"first": first.info["training"], "second": second.info["training"]},
        "share_of_second": options.share,
        "validation_ap50": measured["ap50"],
        "versions": second.info["versions"],
    }
    save_detector(options.out, detector, job.detector, info)
    print(f"{options.out}: validation AP50 {100 * measured['ap50']:.1f}")


if __name__ == "__main__":
    main()
