"""Runs as jobs elsewhere, each on a KubeRay cluster of its own or on a Ray that is up: submit, list, follow, stop.

A job is one attempt at a run: a second submission of a run that is under way or done answers with that attempt, and
one that failed or was stopped is followed by the next, which resumes the run from its storage.
"""
