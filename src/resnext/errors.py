"""Every error the library raises on purpose.

    ResNeXtError
    ├── ConfigError             also ValueError: a value no network can have
    │   ├── ConfigTypeError     also TypeError: a value of the wrong type, a field nobody knows
    │   └── UnknownNameError    also KeyError: a variant, layer type or depth nobody knows
    ├── InputError              also ValueError: images the network cannot take
    ├── DataError               a data set that cannot be used
    └── CheckpointError         a file that is not, or not only, what it should be
        └── MissingFileError    also FileNotFoundError

Each message says what was wanted, what came, and what to do.

`Terminated` is not an error: SIGTERM raises it where Ctrl-C raises KeyboardInterrupt.
"""


class ResNeXtError(Exception):
    """Root of all errors raised by this library."""


class ConfigError(ResNeXtError, ValueError):
    """A configuration value is out of range or contradicts another."""


class ConfigTypeError(ConfigError, TypeError):
    """A configuration value has the wrong type, or the field does not exist."""


class UnknownNameError(ConfigError, KeyError):
    """A name is not in the table it was looked up in."""

    __str__ = Exception.__str__  # KeyError would print the message in quotes


class InputError(ResNeXtError, ValueError):
    """Images have the wrong shape, number of channels or size for the network."""


class DataError(ResNeXtError):
    """A data set is missing, empty or damaged."""


class CheckpointError(ResNeXtError):
    """A file does not hold a usable model."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """A model file does not exist."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM). The command line exits with code 143."""
