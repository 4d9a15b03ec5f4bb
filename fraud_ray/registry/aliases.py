"""The registered model itself: which version holds which alias, and the tags on it, its versions and their runs."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow.exceptions import MlflowException

from fraud_ray.registry.tracking import RUN_TAG, Tracking, every, reported


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model's aliases, each with the version that holds it, and its tags."""

    name: str
    aliases: dict[str, int]
    tags: dict[str, str]

    def aliases_of(self, version: int) -> tuple[str, ...]:
        return tuple(alias for alias, holder in self.aliases.items() if holder == version)


def registered_model(tracking: Tracking) -> RegisteredModel | None:
    """The settings' registered model, or None while it has no version."""
    with reported(tracking.uri):
        try:
            found = tracking.client.get_registered_model(tracking.registry.model_name)
        except MlflowException as fault:
            if fault.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        aliases = {alias: int(version) for alias, version in found.aliases.items()}
        return RegisteredModel(found.name, aliases, dict(found.tags))


def set_alias(tracking: Tracking, alias: str, version: int) -> None:
    """Gives the alias to this version, and so takes it from any other."""
    with reported(tracking.uri):
        tracking.client.set_registered_model_alias(tracking.registry.model_name, alias, str(version))


def delete_alias(tracking: Tracking, alias: str) -> None:
    """Leaves the alias to no version."""
    with reported(tracking.uri):
        tracking.client.delete_registered_model_alias(tracking.registry.model_name, alias)


def tag_model(tracking: Tracking, key: str, value: str) -> None:
    """Sets a tag of the registered model."""
    with reported(tracking.uri):
        tracking.client.set_registered_model_tag(tracking.registry.model_name, key, value)


def tags_of_version(tracking: Tracking, version: int) -> dict[str, str]:
    """The tags of one version."""
    with reported(tracking.uri):
        return dict(tracking.client.get_model_version(tracking.registry.model_name, str(version)).tags)


def tags_of_runs(tracking: Tracking) -> dict[str, dict[str, str]]:
    """The tags of every pipeline run of the experiment, by the run's name."""
    condition = f"tags.`{RUN_TAG}` != ''"
    with reported(tracking.uri):
        runs = every(lambda token: tracking.client.search_runs([tracking.experiment_id], condition, page_token=token))
        return {run.data.tags[RUN_TAG]: run.data.tags for run in runs}
