"""Small but real models of many kinds, each with the expected result of its release.

`entry.py` defines an entry; `models_*.py` contain the models with their entries, by field; `storing.py` saves them as
training scripts do; `running.py` releases one; `table.py` prints all of them (`make zoo`).
"""

from __future__ import annotations

import os

# The models of `transformers` are built from configurations, without a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
