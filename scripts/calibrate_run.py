"""Calibrate the best weights of a run that was trained before trainings did so themselves.

python scripts/calibrate_run.py runs/certified certified.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lipdet.checkpoint import load_detector, save_detector
from lipdet.detector.calibration import calibrated
from lipdet.job import load_job
from lipdet.train import Trainer, open_packs, training_data


def main() -> None:
    """Write the run's best weights, calibrated on the pictures that its training held out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    job, loaded = load_job(options.run), load_detector(str(options.run))
    data = training_data(job.train, job.weights, open_packs(job))
    trainer = Trainer(job, options.run, *data)
    detector = calibrated(loaded.detector, trainer.held_out(trainer.validation))
    measured = trainer.validate(detector)
    assert measured is not None, "the run held no pictures out"
    info = {name: value for name, value in loaded.info.items() if name != "detector"}
    save_detector(options.out, detector, job.detector, {**info, "validation_ap50": measured.ap50})
    print(f"{options.out}: validation AP50 {100 * measured.ap50:.1f}")


if __name__ == "__main__":
    main()
