"""`fraud-ray backtest` as a Ray job: `ray job submit --working-dir . -- exec python jobs/backtest.py -c FILE`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A job's working folder is an upload of this repository, in which the package need not be installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from fraud_ray.cli import main

    main(["backtest", *sys.argv[1:]], in_job=True)
