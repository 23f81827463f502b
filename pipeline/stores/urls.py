"""Queries and secrets in URLs.

URLs are written into plans, records, names, logs and messages, which others read. So a URL with a
secret in it is refused: secrets belong in storage options or the environment (``filesystems``). The
command line refuses them before it logs anything, ``open_filesystem`` wherever a URL is used.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, unquote_plus

from codec.errors import StrataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_SCHEME = re.compile(r"([A-Za-z][\w+.-]*)://")
_IN_TEXT = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+")
_WITH_QUERY = re.compile(rf"(?is)(.*(?:{'|'.join(map(re.escape, TAR_SUFFIXES))}))[?#][^/]*")
# user:password@host. A password may hold a slash, so host:8080/a@b and [::1]/a@b must not match.
_PASSWORD = re.compile(r"(?![^/?#@]*:\d*(?:[/?#]|$)|\[)[^/?#@]*:[^@]*@")
_KEY = re.compile(r"(?!arn:)[^/?#@]*(?:@|:[^@]*@)")  # key:secret@bucket: a bucket has no port
_USER = re.compile(r"[^/?#]*@")
_OTHER_MEANINGS = frozenset({"github", "git"})  # of a colon and an @: repository and revision
_SECRET_WORDS = re.compile(
    r"signature|token|secret|passw|credential|authorization|(api|access|auth|private|account)key"
)
_PUBLIC = frozenset({"profile", "region_name", "endpoint_url"})  # options that may be shown
_SECRET_NAMES = frozenset(
    {"sig", "sas", "auth", "jwt", "pw", "pwd", "pass", "hmac", "rlkey", "hdnts", "hdnea"}
)
_KEYS = frozenset({"key", "k"})  # parameters that name a secret or a file
_FILE = re.compile(r".*[/.].*|\d{0,5}")  # values of such a parameter that are no secrets
_IDS = frozenset({"versionid", "generation", "id", "etag", "revision", "commit"})  # random, public
# How the keys and tokens of providers begin, whatever the parameter is called.
_SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(AKIA|ASIA|AIza|gh[opsu]_|github_pat_|glpat-|hf_|xox[abpr]-|eyJ)[\w-]{12}"
)
_RUN = re.compile(r"[A-Za-z0-9_-]{20,}")
_KINDS = re.compile(r"[a-z]+|[A-Z]+|[0-9]+")
_ID = re.compile(r"[0-9a-fA-F-]+")  # hashes and UUIDs, which grant no access


class SecretInURLError(StrataError):
    """A URL holds a password, a key or a signature. The message does not repeat it."""


def refuse_secrets(*urls: str) -> None:
    """Raise SecretInURLError if a URL or one in it (``filecache::https://...``) holds a secret.

    Local paths are not checked. Queries that grant no access are allowed (``?versionId=...``,
    ``?download=true``).
    """
    for url in urls:
        for part in url.split("::") if "::" in url or "://" in url else []:
            secret, advice = _secret(part)
            if secret:
                raise SecretInURLError(
                    f"{_shown(part)}: this URL holds {secret}. URLs are written into plans, "
                    f"records and logs, so they may hold no secrets: {advice}"
                )


def without_secrets(text: str, options: Mapping[str, Any] | None = None) -> str:
    """``text``, such as another program's message, without secrets.

    Secrets are those in URLs, and the values of the storage ``options``.
    """
    for name, value in (options or {}).items():
        if isinstance(value, Mapping):
            text = without_secrets(text, value)
        elif name not in _PUBLIC and isinstance(value, str) and len(value) > 3:
            text = text.replace(value, "***")
    return _IN_TEXT.sub(lambda url: _shown(url[0]) if _secret(url[0])[0] else url[0], text)


def without_query(url: str) -> str:
    """``url`` up to its query or fragment.

    In HTTP a query begins with ``?`` and a fragment with ``#``. Elsewhere a file's name may hold
    these, so only what follows a tar's suffix counts (``s3://b/a.tar?versionId=x``).
    """
    scheme, _ = _split(url)
    if scheme in ("http", "https"):
        return re.split("[?#]", url, maxsplit=1)[0]
    is_plain = not scheme or url.lower().endswith(TAR_SUFFIXES)
    match = None if is_plain else _WITH_QUERY.fullmatch(url)
    return match[1] if match else url


def place_of(url: str) -> str:
    """Where the requests for ``url`` go, as ``scheme://host`` or ``s3://bucket``; '' if local."""
    scheme, rest = _split(url)
    if scheme in ("", "file", "local"):
        return ""
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    return f"{scheme}://{authority if scheme in ('s3', 's3a') else authority.lower()}"


def _secret(url: str) -> tuple[str, str]:
    """Which kind of secret ``url`` holds, and what to do instead; empty if it holds none."""
    scheme, rest = _split(url)
    if scheme in ("file", "local"):
        return "", ""
    if _user(scheme, rest):
        return "a user's name or password", _ADVICE.get(scheme, _OTHER_ADVICE)
    for name, value in _parameters(rest):
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        is_key = plain in _KEYS and not _FILE.fullmatch(value)
        if value and (is_key or plain in _SECRET_NAMES or _SECRET_WORDS.search(plain)):
            return f"a secret in its query ({name})", _QUERY_ADVICE
        is_token = _SECRET_VALUE.search(value) or (plain not in _IDS and _looks_random(value))
        if is_token or ("://" in value and _secret(value)[0]):
            return "what looks like a key or a token in its query", _QUERY_ADVICE
    path = re.split("[?#]", rest, maxsplit=1)[0]
    if scheme in ("http", "https") and any(map(_is_token, path.split("/")[1:])):
        return "what looks like a token in its path", _QUERY_ADVICE
    return "", ""


def _is_token(part: str) -> bool:
    """Whether a part of an HTTP path grants access. Elsewhere knowing a path grants none."""
    plain = unquote(part)
    is_file = plain.lower().endswith(TAR_SUFFIXES)
    return bool(_SECRET_VALUE.search(plain)) or (not is_file and _looks_random(plain))


def _looks_random(text: str) -> bool:
    """Whether ``text`` has 20 characters or more that look random.

    In random text, small letters, capitals and digits alternate more often than in names.
    """
    for run in _RUN.findall(text):
        kinds = _KINDS.findall(run)
        length = sum(map(len, kinds))
        has_all = all(re.search(kind, run) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
        long = sum(len(one) for one in kinds if len(one) > 3)
        if has_all and not _ID.fullmatch(run) and len(kinds) > 0.4 * length > long:
            return True
    return False


def _user(scheme: str, rest: str) -> bool:
    if scheme in _OTHER_MEANINGS:
        return False
    authority = unquote(rest.partition("/")[0])
    if scheme in ("s3", "s3a"):
        return bool(_KEY.match(authority) or _KEY.match(rest))
    if scheme in ("http", "https") and _USER.match(authority):
        return True  # without a password it may be a token
    return bool(_PASSWORD.match(authority) or _PASSWORD.match(rest))


def _parameters(rest: str) -> Iterator[tuple[str, str]]:
    """Names and values in query and fragment; the name is empty if there is only a value."""
    for parameter in re.split(r"[?#&;]", rest)[1:] if re.search(r"[?#]", rest) else []:
        name, equals, value = parameter.partition("=")
        yield (unquote_plus(name), unquote_plus(value)) if equals else ("", unquote_plus(name))


def _shown(url: str) -> str:
    """A ``url`` that holds a secret, without the parts that may be secret."""
    scheme, rest = _split(url)
    if _user(scheme, rest) or re.match(r"[^/?#@]*:[^@]*@", rest):
        # A password may hold any character, so its end is certain only if there is one @.
        rest = f"***@{rest.partition('@')[2]}" if rest.count("@") == 1 else "***"
    shown = re.split("[?#]", rest, maxsplit=1)[0]
    if scheme in ("http", "https"):
        host, *parts = shown.split("/")
        shown = "/".join([host, *("***" if _is_token(part) else part for part in parts)])
    return (f"{scheme}://" if scheme else "") + shown


def _split(url: str) -> tuple[str, str]:
    """The scheme in small letters (empty for a path) and the rest."""
    match = _SCHEME.match(url := url.lstrip())
    return (match[1].lower(), url[match.end() :]) if match else ("", url)


_S3_ADVICE = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in the environment, or give "
    '--input-options (--output-options) @FILE with {"key": ..., "secret": ...} in the file'
)
_HTTP_ADVICE = (
    "give --input-options @FILE with "
    '{"headers": {"Authorization": "Basic <base64 of user:password>"}} in the file (or "Bearer '
    '<token>"), or write the password into ~/.netrc and give '
    """--input-options '{"client_kwargs": {"trust_env": true}}'"""
)
_ADVICE = {"s3": _S3_ADVICE, "s3a": _S3_ADVICE, "http": _HTTP_ADVICE, "https": _HTTP_ADVICE}
_OTHER_ADVICE = (
    'give --input-options (--output-options) @FILE with {"username": ..., "password": ...}, or '
    "what else fsspec calls them for this kind of store, in the file"
)
_QUERY_ADVICE = (
    "instead of a signed URL give the file's own address (s3://bucket/key) with credentials from "
    "the environment or --input-options (--output-options), or '{\"anon\": true}' where it is "
    'public; give a token as {"headers": {"Authorization": "Bearer <token>"}}; or download the '
    "files first"
)
