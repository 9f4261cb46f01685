"""Small but real models of many kinds, each with what a release makes of it: the rung that exports it, or the refusal.

`entry.py` says what an entry is; `models_*.py` hold the models with their entries, by field; `storing.py` leaves them
on disk as training scripts do; `running.py` releases one; `table.py` prints all of them (`make zoo`).
"""

from __future__ import annotations

import os

# The models of `transformers` are built from configurations; nothing is ever fetched.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
