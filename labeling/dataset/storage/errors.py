"""What a disk or S3 answers to a user's mistake, in one line."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from model.inputs import InputError, WorkFailed

# What pyarrow says; a number alone may be of a shard's name.
_S3_REFUSES = re.compile(r"\bACCESS_DENIED\b|\bHTTP (?:status|response code):? 403\b", re.IGNORECASE)
_DISK_REFUSES = {errno.ENOENT, errno.ENOSPC, errno.EROFS}  # ENOENT is what /proc gives for mkdir


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Raise what a disk or S3 answers to a user's mistake as an InputError of one line; other errors pass.

    Raises WorkFailed for an endpoint that does not answer: it may answer an attempt that begins later.
    """
    try:
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise InputError(f"{address}: cannot write there ({error.strerror}); choose another folder") from None
    except OSError as error:
        if error.errno in _DISK_REFUSES:
            raise InputError(f"{address}: cannot write there ({error.strerror})") from None
        if error.errno is None and _S3_REFUSES.search(str(error)):
            raise InputError(f"{address}: S3 refused these credentials; check AWS_ACCESS_KEY_ID and its key") from None
        raise
    except Exception as error:
        if not type(error).__module__.startswith(("botocore", "boto3")):
            raise
        raise _s3_error(address, error) from None


@contextmanager
def dispensable() -> Iterator[None]:
    """Go on where a cache cannot be read or written, whatever a disk or S3 says of it."""
    try:
        yield
    except (InputError, WorkFailed, OSError):
        pass
    except Exception as error:
        if not type(error).__module__.startswith(("botocore", "boto3")):
            raise


def _s3_error(address: str, error: Exception) -> Exception:
    from boto3.exceptions import S3UploadFailedError
    from botocore import exceptions as s3

    code = error.response["Error"]["Code"] if isinstance(error, s3.ClientError) else ""
    if code in ("404", "NoSuchKey"):
        return FileNotFoundError(address)
    if code == "NoSuchBucket":
        return InputError(f"{address}: there is no such bucket; create it, or correct the name")
    denied = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
    if code in denied or (isinstance(error, S3UploadFailedError) and any(word in str(error) for word in denied)):
        return InputError(f"{address}: S3 refused these credentials; check AWS_ACCESS_KEY_ID and its secret key")
    if isinstance(error, s3.NoCredentialsError | s3.PartialCredentialsError):
        return InputError(f"{address}: no S3 credentials; set AWS_ACCESS_KEY_ID and its secret key, or a profile")
    if isinstance(error, s3.EndpointConnectionError | s3.ConnectTimeoutError):
        return WorkFailed(f"{address}: the S3 endpoint does not answer; check AWS_ENDPOINT_URL and the network")
    return error
