"""The judge against a local server that fails, limits and babbles as it is told."""

import email.utils
import http.server
import json
import threading
import time

import pytest

from swjax.evaluation.judge import PROMPT, BudgetError, Judge, JudgeError
from swjax.storage import as_path

FLUENT = "The video shows a red circle entering from the left."


def graded(content, tokens=10):
    return 200, {}, json.dumps({"choices": [{"message": {"content": content}}], "usage": {"total_tokens": tokens}})


def grade(number, tokens=10):
    return graded(json.dumps({"fluency": number}), tokens)


@pytest.fixture
def server():
    """A server that gives the replies in `replies` one after another, the last of them for ever."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.seen.append((self.path, dict(self.headers), body))
            replies = self.server.replies
            status, headers, content = replies.pop(0) if len(replies) > 1 else replies[0]
            if status is None:
                self.close_connection = True
                return  # hangs up without a word
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.replies = [], [grade(4)]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def make(server, tmp_path):
    waits = []

    def make(**options):
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        return Judge(
            **{"url": url, "model": "m", "cache": tmp_path / "c" / "j.jsonl", "sleep": waits.append, **options}
        )

    make.waits = waits
    return make


def test_a_grade_is_asked_for_by_the_recorded_prompt(server, make):
    judge = make(key="secret")
    assert list(judge.fluency([FLUENT, ""])) == [4, 1]
    ((path, headers, body),) = server.seen
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body["messages"] == [{"role": "user", "content": PROMPT % FLUENT}]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 64)
    assert judge.describe()["prompt"] == PROMPT
    assert "secret" not in json.dumps(judge.describe()) + repr(judge) + judge.cache.read_text()


def test_grades_are_kept_in_a_bucket(server, make, gcs):
    cache = as_path("gs://bucket/judge/grades.jsonl")
    for texts in ([FLUENT], [FLUENT, "Another."], [FLUENT, "Another."]):
        assert list(make(cache=cache).fluency(texts)) == [4] * len(texts)
    assert len(server.seen) == 2
    assert len(cache.read_text().splitlines()) == 2


def test_graded_texts_are_never_asked_for_again(server, make):
    assert list(make().fluency([FLUENT, FLUENT])) == [4, 4]
    cache = make().cache
    cache.write_text(cache.read_text() + '{"request": "half')
    assert list(make().fluency([FLUENT])) == [4]
    assert len(server.seen) == 1
    assert list(make(model="other").fluency([FLUENT])) == [4]
    assert len(server.seen) == 2, "another model grades anew"
    cache.write_text("{}\n")
    with pytest.raises(JudgeError, match=r"j\.jsonl:1 is no grade"):
        make()


def test_grades_that_another_program_wrote_again_are_read(server, make):
    """With characters that end no line, Windows' line ends, a byte order mark and half a line at the end."""
    texts = ["One.\u2028Two.", "Three.\x85Four."]
    judge = make()
    assert list(judge.fluency(texts)) == [4, 4]
    lines = [json.dumps(json.loads(line), ensure_ascii=False) for line in judge.cache.read_text().splitlines()]
    judge.cache.write_bytes(b"\xef\xbb\xbf" + "".join(f"{line}\r\n" for line in lines).encode() + b'{"request": "a')
    server.replies = [grade(1)]
    assert list(make().fluency(texts)) == [4, 4]
    assert len(server.seen) == 2
    judge.cache.write_text("[" * 100_000 + "\n")
    with pytest.raises(JudgeError, match=r"j\.jsonl:1 is no grade"):
        make()


def test_failures_that_pass_are_waited_for_longer_and_longer(server, make):
    server.replies = [(500, {}, "oh"), (503, {}, ""), (None, {}, ""), grade(2)]
    assert list(make().fluency([FLUENT])) == [2]
    assert make.waits == [1, 2, 4]


def test_rate_limits_are_obeyed(server, make):
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    server.replies = [
        (429, {"Retry-After": "7"}, "slow down"),
        (429, {"Retry-After": later}, ""),
        (429, {"Retry-After": "9999"}, ""),
        (429, {"Retry-After": "soon"}, ""),
        grade(5),
    ]
    assert list(make().fluency([FLUENT])) == [5]
    assert make.waits[0] == 7
    assert 20 < make.waits[1] <= 30
    assert make.waits[2:] == [60, 8]


def test_failures_that_stay_are_told(server, make):
    server.replies = [(500, {}, "broken")]
    with pytest.raises(JudgeError, match="failed 3 times; the last time: HTTP 500: broken"):
        list(make(tries=3).fluency([FLUENT]))
    server.replies = [(401, {}, "no such key")]
    server.seen.clear()
    with pytest.raises(JudgeError, match="refused: HTTP 401: no such key"):
        list(make().fluency([FLUENT]))
    assert len(server.seen) == 1, "a refusal is not tried again"


@pytest.mark.parametrize(
    "reply",
    [
        (200, {}, "<html>"),
        (200, {}, '{"choices": []}'),
        (200, {}, '{"choices": [{"message": {"content": null}}]}'),
        (200, {}, "[1, 2]"),
        graded("5"),
        graded('{"fluency": 6}'),
        graded('{"fluency": 2} or {"fluency": 3}'),
    ],
)
def test_malformed_replies_are_asked_for_again_and_never_guessed_at(server, make, reply):
    server.replies = [reply, grade(3)]
    assert list(make().fluency([FLUENT])) == [3]
    server.replies = [reply]
    server.seen.clear()
    with pytest.raises(JudgeError, match="gave no grade in 3 replies"):
        list(make().fluency(["Another text."]))
    assert len(server.seen) == 3


def test_a_grade_within_words_is_found(server, make):
    server.replies = [graded('Here it is:\n```json\n{"fluency": 4}\n```')]
    assert list(make().fluency([FLUENT])) == [4]


def test_the_budget_is_kept(server, make):
    texts = [f"Text number {number}." for number in range(9)]
    with pytest.raises(BudgetError, match="2 requests"):
        list(make(max_requests=2).fluency(texts))
    assert len(server.seen) == 2
    server.seen.clear()
    with pytest.raises(BudgetError, match="raise the limit"):
        list(make(max_tokens=25).fluency(texts))
    assert len(server.seen) == 3, "two are known, three make 30 tokens"
    server.replies = [(500, {}, "")]
    with pytest.raises(BudgetError, match="3 requests"):
        list(make(max_requests=3).fluency(["New."]))
    assert list(make().fluency(texts[:5])) == [4] * 5


def test_settings_are_checked(make):
    with pytest.raises(JudgeError, match="begin with http"):
        make(url="file:///etc/passwd")
    with pytest.raises(JudgeError, match="at least 1"):
        make(max_requests=0)
