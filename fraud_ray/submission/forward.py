"""The pages of a cluster's servers on this machine, which Kubernetes' API forwards."""

from __future__ import annotations

from urllib.parse import urlsplit

from fraud_ray.errors import SettingsError
from fraud_ray.registry.server import service_of, uri_of
from fraud_ray.settings import Settings
from fraud_ray.submission.render import find_kubectl, render_overlay


def forward_command(settings: Settings, port: int, tensorboard: bool = False) -> tuple[list[str], str]:
    """kubectl's command that forwards a port of this machine to MLflow, or to TensorBoard; and who may log in there.

    kubectl, which renders the overlay too, finds the Service's pod, and takes any number of connections: the Python
    client's own portforward is one connection a call. Raises SettingsError where registry.uri is no Service.
    """
    kubectl = find_kubectl("forwards a port")
    if tensorboard:
        namespace, target, there = render_overlay(settings.cluster.overlay).namespace, "deploy/tensorboard", 6006
        who = "TensorBoard asks nobody; "
    else:
        uri = uri_of(settings.registry)
        found = service_of(uri)
        if found is None:
            raise SettingsError(f"registry.uri is {uri}, which is no Service of a cluster: without --to, see it here")
        (name, namespace), there = found, urlsplit(uri).port or 80
        target, who = f"svc/{name}", "log in with your account of MLflow, or the runs' (secret mlflow-client); "
    return [kubectl, "--namespace", namespace, "port-forward", target, f"{port}:{there}"], who
