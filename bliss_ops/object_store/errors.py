"""What the file system of `s3://` raises; only an object that is not there is a FileNotFoundError, as on a disk."""

import errno


class StoreError(OSError):
    """The object store cannot do what was asked; the message says why and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.EIO  # an OSError without a number is taken for one of Arrow's about damaged content


class BucketMissingError(StoreError):
    """There is no such bucket."""


class AccessDeniedError(StoreError, PermissionError):
    """The credentials are missing, wrong, expired, or not enough."""


class WrongRegionError(StoreError):
    """The bucket is in another region than requests are signed for."""


class WrongEndpointError(StoreError):
    """Nothing answers at the endpoint, or nothing that speaks S3."""


class ClockSkewError(StoreError):
    """This machine's clock is wrong."""


class UnavailableError(StoreError):
    """The store has failed for longer than requests are tried again."""


class ReplacedMeanwhileError(StoreError):
    """An object was replaced while it was read."""
