"""Renders the manifests of cluster/ with a real kubectl and checks them: definitions first, then our own policy."""
