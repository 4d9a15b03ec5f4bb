"""Trains, gates and registers card-fraud models on Ray, from partitioned parquet.

Ray reads its environment when it is imported, so what this package wants of it is said here, before any module imports
Ray. A value that is there already goes first.
"""

import os
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # reports wait for this poll, 2 s apart by default
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Tune would end an interrupted search as if it were whole
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # of two reporters the older is quiet at verbosity 0
# A cluster that is joined has its own mode; a Ray that was imported before would not notice, and asks for a token too.
if "RAY_ADDRESS" not in os.environ and "ray" not in sys.modules:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
