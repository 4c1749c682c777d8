"""Put the best weights of a run among the packaged ones.

    python scripts/package_weights.py RUN NAME [--start_from NAME]

What the file says about its training stays, but for the folders of the machine: of data the last
two parts of the path are kept, and a run that it started from is called by its packaged name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lipdet
from lipdet.checkpoint import BEST, read_tensors, write_tensors

PACKAGED = Path(lipdet.__file__).parent / "weights"


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--start_from", default="")
    options = parser.parse_args()
    tensors, info = read_tensors(options.run / BEST)
    training = info["training"]
    training["data"] = ["/".join(Path(one).parts[-2:]) for one in training["data"]]
    training["train"]["start_from"] = options.start_from
    write_tensors(PACKAGED / f"{options.name}.safetensors", tensors, info)


if __name__ == "__main__":
    main()
