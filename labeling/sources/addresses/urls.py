"""Addresses as a list gives them: which can be fetched, and the form in which they are stored and shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

SCHEMES = ("http", "https")
# Parameters of a query that let their holder in: of S3, Google, CloudFront, Aliyun, Tencent, Akamai, Facebook; any.
_SECRET = re.compile(
    r"x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|ossaccesskeyid|key-pair-id|policy|q-.*|hdnts|hdntl|hdnea|oh|oe|"
    r"_nc_.*|signature|sig|sign|hmac|expires?|jwt|auth|authorization|(.*[_-])?(token|secret|password|apikey|api[_-]key)",
    re.IGNORECASE,
)
_USER = re.compile(r"//[^/]*@")
_AZURE = {"se", "sp", "sv", "sr", "st", "spr", "sip", "ss", "srt", "skoid", "sktid", "skt", "ske", "sks", "skv"}


def public_form(url: str) -> str:
    """An address without what is secret in it: user and password, signatures and tokens of the query; no fragment.

    It is what a dataset keeps and what people are shown; the address in the list is fetched as it is.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return re.split("[?#]", _USER.sub("//", url, count=1), maxsplit=1)[0]
    fields = [field for field in parts.query.split("&") if field]
    names = {field.partition("=")[0].lower() for field in fields}
    secret = _AZURE if "sig" in names else set()
    parameters = [
        field
        for field in fields
        if not _SECRET.fullmatch(name := field.partition("=")[0]) and name.lower() not in secret
    ]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "&".join(parameters), ""))
