"""Faults that a person can mend, and the exit code that each one ends a command with."""

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_SETTINGS = 2
EXIT_REJECTED = 3
EXIT_CONTRACT = 4
EXIT_DRIFTED = 5


class FraudRayError(Exception):
    """A fault whose message says what is wrong, where, and what to do; shown without a stack trace."""

    exit_code = EXIT_FAULT


class SettingsError(FraudRayError):
    """A missing configuration file, an unknown or invalid setting, or resources that cannot be had."""

    exit_code = EXIT_SETTINGS


class DataError(FraudRayError):
    """Data that is absent, empty, breaks the contract, or does not hold the folds asked for."""

    exit_code = EXIT_CONTRACT


class DriftError(FraudRayError):
    """Today's data is too far from what the champion was fitted on."""

    exit_code = EXIT_DRIFTED


class ServerError(FraudRayError):
    """A tracking server, an object store or a cluster that does not answer."""


class RunHeldError(FraudRayError):
    """The run is being worked on by another process."""


class RunDiffersError(SettingsError):
    """The run exists with other settings or other data."""


def as_raised(fault: BaseException) -> BaseException:
    """A fault as it was raised; a FraudRayError comes wrapped from a Ray task, with the task's trace in its text."""
    cause = getattr(fault, "cause", None)
    return cause if isinstance(cause, FraudRayError) else fault
