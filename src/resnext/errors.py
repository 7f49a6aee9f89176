"""Every error the library raises on purpose.

    ResNeXtError
    ├── ConfigError             also ValueError: a value that is out of range
    │   ├── ConfigTypeError     also TypeError: a value of the wrong type, an unknown field
    │   └── UnknownNameError    also KeyError: an unknown variant, layer type or depth
    ├── InputError              also ValueError: images the network cannot take
    ├── DataError               a data set that cannot be used
    ├── ResourceError           memory, shared memory or processes that the machine does not have
    └── CheckpointError         a model file that cannot be used
        └── MissingFileError    also FileNotFoundError

Each message says what was wanted, what came, and what to do.

`Terminated` is not an error: SIGTERM and SIGHUP raise it where Ctrl-C raises KeyboardInterrupt.
"""


class ResNeXtError(Exception):
    """Root of all errors raised by this library."""


class ConfigError(ResNeXtError, ValueError):
    """A configuration value is out of range or contradicts another."""


class ConfigTypeError(ConfigError, TypeError):
    """A configuration value has the wrong type, or the field does not exist."""


class UnknownNameError(ConfigError, KeyError):
    """A variant, layer type or other name is unknown."""

    __str__ = Exception.__str__  # KeyError would print the message in quotes


class InputError(ResNeXtError, ValueError):
    """Images have the wrong shape, number of channels or size for the network."""


class DataError(ResNeXtError):
    """A data set is missing, empty or damaged."""


class ResourceError(ResNeXtError):
    """The machine lacks memory, shared memory, open files or processes."""


class CheckpointError(ResNeXtError):
    """A model file is damaged, does not hold a usable model, or cannot be written."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """A model file does not exist."""


class ResNeXtWarning(UserWarning):
    """Root of all warnings of this library; the command line prints them as one line."""


class AmbiguityWarning(ResNeXtWarning):
    """Several networks fit a file as well, and nothing in it or its name decides."""


class UntrainedWarning(ResNeXtWarning):
    """A name of trained weights was given where only its architecture is used."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end. The command line exits with 128 plus the signal's number.

    Args:
        number: The signal: SIGTERM (15), or SIGHUP (1) of a terminal that was closed.
    """

    def __init__(self, number: int = 15) -> None:
        super().__init__()
        self.number = number
