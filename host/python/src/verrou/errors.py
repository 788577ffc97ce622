"""The errors of locks: a class for each code, which is the same on every host."""


class LockError(Exception):
    """The error of a lock. `code` identifies the kind; it is the same on every host."""

    code = "E_LOCK"

    def __init__(self, message: str, temporary: bool = False, code: str | None = None):
        super().__init__(message)
        self.temporary = temporary
        """Whether the same call may succeed later without a change by the caller."""
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.code})"


class InvalidName(LockError, ValueError):
    """Not a valid name of a lock."""

    code = "E_INVALID_NAME"


class InvalidTtl(LockError, ValueError):
    """Not a valid ttl."""

    code = "E_INVALID_TTL"


class InvalidRetry(LockError, ValueError):
    """Not a valid retry policy."""

    code = "E_INVALID_RETRY"


class InvalidSerializedLock(LockError, ValueError):
    """Not a valid serialized lock."""

    code = "E_INVALID_SERIALIZED_LOCK"


class LockTimeout(LockError, TimeoutError):
    """Another owner held the lock through the last attempt of the retry policy."""

    code = "E_LOCK_TIMEOUT"


class LockLost(LockError):
    """The lease was lost while the lock was in use."""

    code = "E_LOCK_LOST"


class NotOwner(LockError):
    """This object never acquired the lock, or has lost it."""

    code = "E_LOCK_NOT_OWNER"


class NotSerializable(LockError):
    """The store ties a lease to the client that acquired it."""

    code = "E_LOCK_NOT_SERIALIZABLE"


class StorageError(LockError):
    """The store failed. `__cause__` is its exception."""

    code = "E_LOCK_STORAGE_ERROR"


class TooManyHandles(LockError):
    """Too many locks and attempts of one `Locks` are alive."""

    code = "E_TOO_MANY_HANDLES"


class LockDenied(LockError):
    """The host does not permit the operation."""

    code = "E_LOCK_DENIED"


CLASSES = {kind.code: kind for kind in LockError.__subclasses__()}
"""The class of each code."""


def lock_error(code: str, message: str, temporary: bool = False) -> LockError:
    """Returns an error of the class for `code`; a `LockError` with that code if there is none."""
    kind = CLASSES.get(code)
    return LockError(message, temporary, code) if kind is None else kind(message, temporary)
