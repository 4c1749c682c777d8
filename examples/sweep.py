"""Search settings of a training with optuna.

pip install '.[sweep]'

python examples/sweep.py --preset certified-small --data rendered:4000 --epochs 4 --trials 20

Every trial is a plain `lipdet train` and `lipdet eval`. The study is a file, so that a second call
goes on, and calls on several machines with a shared folder work on one study.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState


def main() -> None:
    """Run trials and print the best."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="certified-small")
    parser.add_argument("--data", required=True, help="SPEC to train on")
    parser.add_argument("--measure", default="rendered:100", help="SPEC to choose by, not the test")
    parser.add_argument("--epsilon", default="0.1", help="radius of the certified AP to maximise")
    parser.add_argument("--epochs", default="4")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    options = parser.parse_args()

    def certified_ap50(trial: optuna.Trial) -> float:
        out = options.out / str(trial.number)
        margin = trial.suggest_float("margin", 0.05, 1.0, log=True)
        rate = trial.suggest_float("learning_rate", 3e-4, 5e-3, log=True)
        training = ["--preset", options.preset, "--data", options.data, "--epochs", options.epochs]
        settings = ["--margin", str(margin), "--learning_rate", str(rate)]
        lipdet("train", *training, *settings, "--out", str(out))
        measuring = ["--data", options.measure, "--certify", "--epsilon", options.epsilon]
        lipdet("eval", str(out), *measuring, "--json", str(out / "result.json"))
        result = json.loads((out / "result.json").read_text())
        return float(result["certified"][0]["ap50"])

    options.out.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(options.out / "study.log")))
    study = optuna.create_study(
        storage=storage, study_name="sweep", direction="maximize", load_if_exists=True
    )
    try:
        study.optimize(certified_ap50, n_trials=options.trials)
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on with a new trial.")
    if not any(trial.state == TrialState.COMPLETE for trial in study.trials):
        sys.exit("No training came to an end: choose other --data, or more --epochs.")
    best = study.best_trial
    print(f"Best: {options.out / str(best.number)}, {100 * best.values[0]:.1f}, {best.params}")


def lipdet(*words: str) -> None:
    """One call of the command line."""
    done = subprocess.run([sys.executable, "-m", "lipdet", *words, "--quiet"])
    if done.returncode == 1:  # the training diverged: the next trial may not
        raise optuna.TrialPruned
    done.check_returncode()


if __name__ == "__main__":
    main()
