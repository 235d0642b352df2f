"""Errors a user can act on: one sentence each, shown without a traceback by the command line."""


class WeatheredError(ValueError):
    """Base of all errors that a user can mend; the command line prints it and exits with code 2."""


class SpecError(WeatheredError):
    """A name, an option or a value on the command line or in a recipe is wrong."""


class DataError(WeatheredError):
    """The data cannot be read or do not fit what was asked of them."""


class Incompatible(WeatheredError):
    """Two parts cannot work together, or a part lacks a fact it needs."""


class Unused(WeatheredError):
    """A part was given to a run but the procedure did not call it."""


class NonFinite(WeatheredError):
    """The loss became NaN or infinite; nothing was stepped and what was saved stays valid."""


class CheckpointError(WeatheredError):
    """A checkpoint is damaged or belongs to another recipe."""
