"""Fluency by a language model, from 1 to 5, over any OpenAI-compatible endpoint.

The paper scores fluency so, without giving its prompt or its judge; the prompt here is ours. It is recorded beside the
scores, with the model's name, and every grade is kept on disk by the hash of the whole request, so that no answer is
ever paid for twice and a table can be made again without a network.
"""

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

from swjax.data.json_lines import cut_half_line, parse_line, read_lines
from swjax.evaluation.errors import EvaluationError
from swjax.plain import Json, JsonView
from swjax.storage import AnyPath, append_line, sync_logs

PROMPT = """\
You grade the fluency of English text. The text was written by a program that describes a video. Do not judge whether \
the description is true or complete, only how it reads: grammar, word order, whole sentences, no needless repetition.

5: reads like the text of a careful native writer
4: small slips that do not disturb reading
3: clear errors, but every sentence can be understood
2: broken sentences or much repetition; hard to follow
1: not readable: fragments, loops or word salad

Answer with one JSON object and nothing else: {"fluency": N}, where N is 1, 2, 3, 4 or 5.

Text:
<<<
%s
>>>"""

OPTIONS = {"temperature": 0, "max_tokens": 64}
MALFORMED_TRIES = 3
_GRADE = re.compile(r'\{\s*"fluency"\s*:\s*([1-5])(?:\.0)?\s*\}')
_PASSING = (408, 409, 425, 429)
"""HTTP errors below 500 that may pass."""


class JudgeError(EvaluationError):
    """The judge gave no grade."""


class BudgetError(JudgeError):
    """The judge would cost more than was allowed; what has been graded is kept."""


@dataclass
class Judge:
    """A judge of fluency.

    Attributes:
        url: of the endpoint, up to and without /chat/completions (`https://api.openai.com/v1`).
        model: its name there.
        cache: file of grades, JSON lines; made if it is not there.
        options: further fields of a request; a limit on the length of a reply bounds the cost.
        key: sent as a bearer token; None sends none.
        max_requests: most requests that may be sent, repeated ones included; answers from the cache cost nothing.
        max_tokens: most tokens that may be used, as the endpoint counts them.
        tries: how often a request is sent when the endpoint fails or asks to wait.
        longest_wait_s: longest pause before trying again.
        timeout_s: longest wait for a reply.
        requests, tokens: used so far.
    """

    url: str
    model: str
    cache: AnyPath
    options: JsonView = field(default_factory=lambda: dict(OPTIONS))
    key: str | None = field(default=None, repr=False)
    max_requests: int = 1000
    max_tokens: int = 1_000_000
    tries: int = 6
    longest_wait_s: float = 60.0
    timeout_s: float = 60.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    requests: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise JudgeError(f"the judge's URL is {self.url!r}; it must begin with http:// or https://")
        if self.max_requests < 1 or self.max_tokens < 1 or self.tries < 1:
            raise JudgeError("the judge's max_requests, max_tokens and tries must be at least 1")
        self.url = self.url.rstrip("/").removesuffix("/chat/completions")
        self._grades = _read_cache(self.cache)

    def describe(self) -> Json:
        """What grades depend on: for the record."""
        return {"model": self.model, "url": self.url, "prompt": PROMPT, "options": dict(self.options)}

    def fluency(self, texts: Sequence[str]) -> Iterator[int]:
        """Grade texts one after another; an empty text is a 1, and nobody is asked.

        Raises:
            BudgetError: before a request that the budget does not allow.
            JudgeError: if the endpoint refuses, or fails as often as it is tried, or its replies hold no grade.
        """
        for text in texts:
            yield self._grade(text) if text.strip() else 1

    def _grade(self, text: str) -> int:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": PROMPT % text}],
            **self.options,
        }
        name = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
        if name not in self._grades:
            self._grades[name] = self._ask(body)
            line = {"request": name, "model": self.model, "text": text, "fluency": self._grades[name]}
            append_line(self.cache, json.dumps(line))
        return self._grades[name]

    def _ask(self, body: Json) -> int:
        """A grade; a reply without one is asked for again a few times."""
        reply = ""
        for _ in range(MALFORMED_TRIES):
            reply = self._send(body)
            try:
                parsed = parse_line(reply)
                self.tokens += _used_tokens(parsed)
                content = parsed["choices"][0]["message"]["content"]
            except (ValueError, LookupError, TypeError):
                continue
            found = set(_GRADE.findall(content)) if isinstance(content, str) else set()
            if len(found) == 1:
                return int(found.pop())
        raise JudgeError(
            f"{self.model} at {self.url} gave no grade in {MALFORMED_TRIES} replies; the last begins {reply[:200]!r}"
        )

    def _send(self, body: Json) -> str:
        """One reply; tried again, after longer and longer pauses, where the failure may pass."""
        request = urllib.request.Request(
            f"{self.url}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        for attempt in range(self.tries):
            self._check_budget()
            self.requests += 1
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                    return reply.read().decode("utf-8", errors="replace")
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {error.read(200).decode('utf-8', errors='replace')}"
                if error.code < 500 and error.code not in _PASSING:
                    raise JudgeError(f"{self.url} refused: {reason}") from error
                wait = _retry_after(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:  # no connection, a timeout, a reply that was cut off
                reason, wait = str(error), None
            except ValueError as error:  # no such URL can be
                raise JudgeError(f"{self.url} cannot be asked: {error}") from error
            if attempt + 1 < self.tries:
                self.sleep(min(self.longest_wait_s, 2.0**attempt if wait is None else wait))
        raise JudgeError(f"{self.url} failed {self.tries} times; the last time: {reason}")

    def _check_budget(self) -> None:
        if self.requests >= self.max_requests or self.tokens >= self.max_tokens:
            raise BudgetError(
                f"the judge has used {self.requests} requests and {self.tokens} tokens, of {self.max_requests} and "
                f"{self.max_tokens} allowed; grades so far are kept in {self.cache}, raise the limit to go on"
            )


def _read_cache(path: AnyPath) -> dict[str, int]:
    sync_logs()  # an earlier judge of this process may have appended to it
    if not path.exists():
        return {}
    cut_half_line(path)
    grades = {}
    for number, line in read_lines(path):
        try:
            record = parse_line(line)
            grades[record["request"]] = int(record["fluency"])
        except (ValueError, LookupError, TypeError) as error:
            raise JudgeError(
                f"{path}:{number} is no grade ({error!r}); delete the line to have it graded anew"
            ) from error
    return grades


def _used_tokens(reply: JsonView) -> int:
    used = reply.get("usage")
    total = used.get("total_tokens") if isinstance(used, dict) else None
    return total if isinstance(total, int) and total > 0 else 0


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait: a number or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
