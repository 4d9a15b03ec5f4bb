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


class DamagedError(FraudRayError):
    """A file of our own that is not as it was written, or was written by another version."""


class DivergedError(FraudRayError):
    """Training whose loss, or whose scores, are no numbers any more. epoch: in which it came to that; what: which."""

    def __init__(self, epoch: int, what: str) -> None:
        super().__init__(epoch, what)
        self.epoch, self.what = epoch, what

    def __str__(self) -> str:
        return (
            f"training diverged: {self.what} in epoch {self.epoch}; lower train.learning_rate, or look for values far "
            "from all others in the columns that the model reads"
        )


class RunHeldError(FraudRayError):
    """The run is being worked on by another process."""


class RunDiffersError(SettingsError):
    """The run exists with other settings or other data."""


class TaskFault(Exception):  # noqa: N818 - no error that a person can mend
    """A fault of a task that is not ours. where: what it was at work on; told: the innermost cause; trace: its own.

    A Ray library's wrapping ends in advice on retries, and loses the causes on the way to the driver.
    """

    def __init__(self, where: str | None, told: str, trace: str) -> None:
        super().__init__(where, told, trace)
        self.where, self.told, self.trace = where, told, trace

    def __str__(self) -> str:
        return f"{self.where}: {self.told}" if self.where else self.told


def as_raised(fault: BaseException) -> BaseException:
    """A fault as it was raised; ours, and a TaskFault, come wrapped from a Ray task, with the task's trace in its text.

    Others stay wrapped: that text is the only trace of them.
    """
    cause = getattr(fault, "cause", None)
    return cause if isinstance(cause, FraudRayError | TaskFault) else fault


def innermost(fault: BaseException) -> BaseException:
    """What a fault was raised from, in this process or in a Ray task, and that one from, and so on."""
    while isinstance(cause := fault.__cause__ or getattr(fault, "cause", None), BaseException):
        fault = cause
    return fault
