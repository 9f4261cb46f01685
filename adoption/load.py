"""Client of a released model: ``python load.py MODEL ALIAS FEATURES`` loads it by its alias and prints its version."""

from __future__ import annotations

import sys

import mlflow
import numpy as np


def main(name: str, alias: str, features: int) -> None:
    """Load the model, run it on a batch of five and print the version."""
    model = mlflow.pyfunc.load_model(f"models:/{name}@{alias}")
    outputs = model.predict(np.zeros((5, features), np.float32))
    (output,) = outputs.values() if isinstance(outputs, dict) else (outputs,)
    if output.shape != (5, 2) or not np.isfinite(output).all():
        sys.exit(f"The released model returned {output!r}.")
    print(mlflow.MlflowClient().get_model_version_by_alias(name, alias).version)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
