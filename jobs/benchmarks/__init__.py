"""The benchmark: the pipeline's own functions and their peers, in turn, on this machine."""
