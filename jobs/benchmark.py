"""Measures every stage beside its peers: python jobs/benchmark.py [--only STAGE] [--full] [--json]"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.cli import main

    main()
