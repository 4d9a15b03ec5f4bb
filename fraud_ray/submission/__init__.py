"""Runs as jobs on KubeRay: what is submitted, the manifests that say so, and the jobs that come of it."""
