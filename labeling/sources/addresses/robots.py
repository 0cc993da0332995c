"""The header X-Robots-Tag, by which a server says what a file must not be used for."""

from __future__ import annotations

from collections.abc import Collection, Iterable

_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_MEANS = {"none": ("noindex", "nofollow")}


def forbidding(headers: Iterable[str], directives: Collection[str], token: str) -> str | None:
    """The first directive that refuses a file, None where there is none.

    headers: values of X-Robots-Tag, each a list of directives, after "name:" for those addressed to one program; token:
    the name of this program. See https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag.
    """
    for header in headers:
        addressee = ""
        for part in header.lower().split(","):
            name, colon, rest = (text.strip() for text in part.partition(":"))
            if colon and name in _WITH_VALUE:
                continue
            directive = name
            if colon:
                addressee, directive = name, rest
            meant = _MEANS.get(directive, (directive,))
            if addressee in ("", "*", token.lower()) and any(one in directives for one in meant):
                return directive
    return None
