"""What each tightening of the certificate is worth, in certified AP50 on one detector.

    python benchmarks/certificate_tightenings.py DETECTOR --data rendered:256 --epsilon 0.05 0.1

All tightenings are on in the first row; each further row has one of them off, the last all.

Notable choices:
- Forward passes are shared by all rows, so that they differ by the tightening alone.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import fields, replace

from lipdet.boxes import AP_SELECTION
from lipdet.certificate.conditions.certify import ALL, Tightenings
from lipdet.certificate.verifier import verifier_of
from lipdet.checkpoint import load_detector
from lipdet.detector.forward import BATCH_SIZE, raw_output
from lipdet.evaluate.certified import (
    certify_batch,
    join,
    summary,
)
from lipdet.images.spec import open_data


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector")
    parser.add_argument("--data", default="rendered:256")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.05, 0.1])
    options = parser.parse_args()
    detector = load_detector(options.detector).detector
    pack = open_data(options.data, "test", detector.framing, 0)
    starts = range(0, len(pack), BATCH_SIZE)
    batches = [range(start, min(start + BATCH_SIZE, len(pack))) for start in starts]
    raw = [raw_output(detector, pack.pixels(indices)) for indices in batches]
    targets = [[pack.target(index) for index in indices] for indices in batches]
    verifier = verifier_of(detector, AP_SELECTION, pack.pixels(batches[0]))
    names = [field.name for field in fields(Tightenings)]
    rows = {
        "all": ALL,
        **{f"without {name}": replace(ALL, **{name: False}) for name in names},
        "none": Tightenings(**dict.fromkeys(names, False)),
    }
    print("| tightenings | ε | AP50 | AP | recall | precision | s |")
    print("|---|---|---|---|---|---|---|")
    for epsilon in options.epsilon:
        for name, chosen in rows.items():
            started = time.process_time()
            one = replace(verifier, tightenings=chosen)
            parts = [
                certify_batch(one, outputs_of, truth, epsilon)
                for outputs_of, truth in zip(raw, targets, strict=True)
            ]
            found = summary(epsilon, join(parts), pack.class_names, one.rounding_known)
            shares = (found[key] or 0.0 for key in ("ap50", "ap", "recall", "precision"))
            cells = " | ".join(f"{100 * share:.2f}" for share in shares)
            print(f"| {name} | {epsilon:g} | {cells} | {time.process_time() - started:.1f} |")


if __name__ == "__main__":
    main()
