"""Which faults pass: where another attempt may succeed though this one did not."""

import errno
import ssl
from collections.abc import Iterator, Mapping

from codec.errors import StrataError

# By class name, because most of these libraries need not be installed.
_PASSING_CLASSES = frozenset(
    {
        "ConnectionError",  # Python's own, botocore's and requests'
        "HTTPClientError",  # botocore: time-outs, and connections that break
        "Timeout",  # requests
        "ClientConnectionError",  # aiohttp
        *("ClientPayloadError", "IncompleteRead", "ResponseParserError"),  # answers that were cut
    }
)
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509})
# Those that come with status 400 or 409 (or, in an answer's body, with 200).
_PASSING_CODES = frozenset(
    {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}  # cut on the way
    | {"OperationAborted", "ConditionalRequestConflict"}  # somebody else is at it
    | {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException"}
    | {"InternalError", "ServiceUnavailable"}
)
_PASSING_ERRNO = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EMFILE, errno.ENFILE}
    | {errno.EIO, errno.ESTALE}  # what mounts of networks say of anything
    | {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
    | {errno.ENOSPC, errno.EDQUOT}  # what fills a disk is often scratch, which goes away
)


def may_pass(error: BaseException) -> bool:
    """Whether the reason for ``error`` may be gone at the next attempt.

    It may for time-outs, connections that fail or break, answers that were cut, throttling, 5xx,
    and full disks. Files, buckets and credentials that are not there, refusals (403) and other
    errors of the caller's (4xx), unknown certificates and whatever is not known here stay. As
    libraries wrap one another's errors, all causes are asked.
    """
    chain = list(causes(error))
    if any(isinstance(one, ssl.SSLCertVerificationError) for one in chain):
        return False
    statuses = {_status(one) for one in chain}
    if s3_codes(error) & _PASSING_CODES or statuses & _PASSING_STATUS or any(map(_passes, chain)):
        return True
    if any(status and status != 404 for status in statuses):  # 404: perhaps it was looked up first
        return False
    return any(isinstance(one, OSError) and one.errno in _PASSING_ERRNO for one in chain)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what caused it, what caused that, ... (which may come round in a circle)"""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def s3_codes(error: BaseException) -> set[str]:
    """S3's error codes in an exception and its causes, in whichever wrapping."""
    responses = (getattr(one, "response", None) for one in causes(error))
    return {
        str(response.get("Error", {}).get("Code", ""))
        for response in responses
        if isinstance(response, Mapping)
    }


def _status(error: BaseException) -> int:
    """The HTTP status that an exception tells of, 0 if none."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return found if isinstance(found, int) and found >= 400 else 0
    told = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return next((one for one in told if isinstance(one, int) and 400 <= one < 600), 0)


def _passes(error: BaseException) -> bool:
    if isinstance(error, StrataError):
        return error.passing
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, TimeoutError) or bool(names & _PASSING_CLASSES)
