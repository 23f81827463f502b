"""Decides which errors are passing: another attempt may succeed."""

import errno
import ssl
from collections.abc import Iterator, Mapping

from codec.errors import StrataError

# By class name, because most of these libraries need not be installed.
_PASSING_CLASSES = frozenset(
    {
        "ConnectionError",  # Python's own, botocore's and requests'
        "HTTPClientError",  # botocore: timeouts and broken connections
        "Timeout",  # requests
        "ClientConnectionError",  # aiohttp
        *("ClientPayloadError", "IncompleteRead", "ResponseParserError"),  # answers that were cut
    }
)
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509})
# S3's codes that come with status 400 or 409 (or with 200, in the body).
_PASSING_CODES = frozenset(
    {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}  # cut on the way
    | {"OperationAborted", "ConditionalRequestConflict"}  # another client writes this name
    | {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException"}
    | {"InternalError", "ServiceUnavailable"}
)
_PASSING_ERRNO = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EMFILE, errno.ENFILE}
    | {errno.EIO, errno.ESTALE}  # mounts of network stores give these for any fault
    | {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
    | {errno.ENOSPC, errno.EDQUOT}  # a disk is often filled by temporary files
)


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed after ``error``.

    It may after timeouts, failed and broken connections, cut answers, throttling, 5xx and full
    disks. It cannot if files, buckets or credentials are missing, after 403 and other 4xx, after an
    unknown certificate, and after any error that is not known here. The error's causes count too,
    because libraries wrap one another's errors.
    """
    chain = list(causes(error))
    if any(isinstance(one, ssl.SSLCertVerificationError) for one in chain):
        return False
    statuses = {_status(one) for one in chain}
    if s3_codes(error) & _PASSING_CODES or statuses & _PASSING_STATUS or any(map(_passes, chain)):
        return True
    # A 404 may come from a look-up before the request that failed.
    if any(status not in (0, 404) for status in statuses):
        return False
    return any(isinstance(one, OSError) and one.errno in _PASSING_ERRNO for one in chain)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, its cause, the cause's cause, and so on, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def s3_codes(error: BaseException) -> set[str]:
    """S3's error codes in an exception and in its causes."""
    responses = (getattr(one, "response", None) for one in causes(error))
    return {
        str(response.get("Error", {}).get("Code", ""))
        for response in responses
        if isinstance(response, Mapping)
    }


def _status(error: BaseException) -> int:
    """The HTTP status in an exception, 0 if there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return found if isinstance(found, int) and found >= 400 else 0
    values = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return next((one for one in values if isinstance(one, int) and 400 <= one < 600), 0)


def _passes(error: BaseException) -> bool:
    if isinstance(error, StrataError):
        return error.passing
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, TimeoutError) or bool(names & _PASSING_CLASSES)
