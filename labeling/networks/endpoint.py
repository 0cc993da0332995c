"""Models on other machines: an endpoint that speaks OpenAI's chat completions, as vLLM and `transformers serve` do.

The key of a service comes from an environment variable, and goes nowhere but into the header of a request.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.inputs import InputError, one_line

_TRIED_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REFUSED = frozenset({401, 403, 404})  # by a key, or for a model or an address: no row is to blame
_LONGEST_ANSWER = 1 << 20  # bytes
_LONGEST_MESSAGE = 200  # characters of what an endpoint says, in an error
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between tries where the endpoint does not say how long


@dataclass(frozen=True)
class Answer:
    """What came of one request: a text, or why there is none.

    is_row: whether the reason may be the row's own; where it is not, the endpoint itself does not work.
    """

    text: str = ""
    error: str = ""
    is_row: bool = False


@dataclass(frozen=True)
class Endpoint:
    """Where requests are sent, and how long.

    address: base of the API, up to "/v1"; key: name of the environment variable that holds the key; retries: tries
    after the first; patience: seconds for one row, with all tries and the time between them.
    """

    address: str
    key: str
    retries: int
    patience: float

    def ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """The answers to requests, which are sent at once and once each, but for tries that have failed."""
        return asyncio.run(self._ask(bodies))

    async def _ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[Answer]:
        import aiohttp

        secret = os.environ.get(self.key, "")
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        # A proxy is taken from the environment, as by other clients; a redirection would take a request elsewhere.
        async with aiohttp.ClientSession(headers=headers, trust_env=True) as session:
            return list(await asyncio.gather(*(self._answer(session, body, secret) for body in bodies)))

    async def _answer(self, session: Any, body: Mapping[str, Any], secret: str) -> Answer:
        deadline = time.monotonic() + self.patience
        answer, wait = Answer(), 0.0
        for number in range(self.retries + 1):
            answer, wait = await self._try(session, body, secret, deadline - time.monotonic())
            if wait < 0:
                return answer
            # Some time more than asked for, so that rows that were refused together do not come back together.
            own = min(_LONGEST_WAIT, _FIRST_WAIT * 2**number)
            wait = max(wait, own) * random.uniform(1.0, 1.25)  # noqa: S311
            if number == self.retries or time.monotonic() + wait >= deadline:
                break
            await asyncio.sleep(wait)
        tries = f"{number + 1} tries" if number else "1 try"
        return Answer(error=f"{answer.error} (after {tries})", is_row=answer.is_row)

    async def _try(self, session: Any, body: Mapping[str, Any], secret: str, left: float) -> tuple[Answer, float]:
        """The answer to one request, and how many seconds to wait before another; below 0 where there is to be none."""
        import aiohttp

        try:
            async with session.post(
                f"{self.address.rstrip('/')}/chat/completions",
                json=body,
                timeout=aiohttp.ClientTimeout(total=max(left, 0.001)),
                allow_redirects=False,
            ) as response:
                data = await _read(response.content)
        except TimeoutError:
            return Answer(error=f"the endpoint gave no answer within {self.patience:g} s"), 0.0
        except (aiohttp.ClientError, OSError) as error:
            return Answer(error=_without(secret, f"the endpoint cannot be reached: {_kind(error)}")), 0.0
        status = response.status
        if status == 200:
            text, problem = _text_of(data)
            if not problem:
                return Answer(text=text), -1.0
            # What a filter has kept back, it keeps back again, and each try may cost.
            return Answer(error=_without(secret, problem), is_row=True), -1.0 if "content_filter" in problem else 0.0
        answer = Answer(
            error=f"the endpoint says {status} {_without(secret, response.reason or '')}{_message(data, secret)}",
            is_row=status not in _TRIED_AGAIN | _REFUSED and 400 <= status < 500,
        )
        return answer, _asked_wait(response.headers) if status in _TRIED_AGAIN else -1.0


def key_problem(name: str) -> str | None:
    """What is wrong with the name of the variable of a key; the line never repeats it."""
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
        return "it looks like a secret, and must be the name of an environment variable that holds the key"
    return None


def address_problem(address: str) -> str | None:
    """What is wrong with an endpoint's address; the line does not repeat one with a password."""
    if "@" in address or "?" in address or "#" in address:
        return "what it holds besides a host and a path looks like a secret; a key is read from the environment"
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", address):
        return "write it as http://HOST:PORT/v1"
    return None


def check_key(name: str, default: str, parameter: str) -> None:
    """Raise InputError where a key was asked for by a name of its own, and is not there."""
    if name != default and not os.environ.get(name):
        raise InputError(f"{parameter}: {name} is not in the environment where labels are made; export it there")


async def _read(stream: Any) -> bytes:
    data = bytearray()
    async for part in stream.iter_chunked(1 << 16):
        data += part
        if len(data) > _LONGEST_ANSWER:
            break
    return bytes(data)


def _text_of(data: bytes) -> tuple[str, str]:
    """The text of an answer, or what is wrong with it."""
    try:
        choice = json.loads(data)["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return "", "the endpoint's answer is no chat completion"
    if isinstance(text, list):  # parts, as some servers give them
        parts = [part.get("text") for part in text if isinstance(part, dict)]
        text = " ".join(part for part in parts if isinstance(part, str))
    if text is not None and not isinstance(text, str):
        return "", "the endpoint's answer is no chat completion"
    if not (text or "").strip():
        reason = choice.get("finish_reason")
        return "", f"the model wrote nothing{f' ({one_line(reason, 40)})' if isinstance(reason, str) else ''}"
    return str(text), ""


def _message(data: bytes, secret: str) -> str:
    """ ": …" of the message of an error, in whichever place it is."""
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError):
        value = data.decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(key):
            value = value[key]
    # The key goes before the text is cut, which could leave a part of it.
    text = one_line(_without(secret, value if isinstance(value, str) else json.dumps(value)), _LONGEST_MESSAGE)
    return f": {text}" if text else ""


def _asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds that an endpoint asks to wait for, 0 where it does not."""
    from email.utils import parsedate_to_datetime

    text = headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def _without(secret: str, text: str) -> str:
    """A text without the key: a server may repeat what it was sent."""
    return text.replace(secret, "…") if len(secret) > 3 else text


def _kind(error: BaseException) -> str:
    """The last cause of an error of the network; its own text names addresses."""
    while error.__cause__ is not None:
        error = error.__cause__
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else type(error).__name__
