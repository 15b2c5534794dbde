"""A describer that uses a server: order of answers, retries, clear errors and server faults."""

import asyncio
import base64
import io
import json
import random
import signal
import threading

import pytest
from PIL import Image, ImageChops

from spr.core.errors import ConfigError, GroundingError
from spr.grounding import final_answer
from spr.models.describers.json_client import MAX_REPLY_BYTES, ServerError, backoff
from spr.models.describers.openai import parse_completion, read_key
from spr.models.protocols import Answer


def texts(answers):
    return [answer.text for answer in answers]


def test_answers_come_in_the_order_of_the_requests_whichever_is_ready_first(server, describer, ask):
    # Each reply waits until all eight requests have arrived; then the last is answered first.
    turns = [threading.Event() for _ in range(8)]
    turns[7].set()

    def answer(_, body):
        assert turns[body["seed"]].wait(20)
        if body["seed"]:
            turns[body["seed"] - 1].set()
        return f"answer {body['seed']}"

    server.answer = answer
    assert texts(describer(concurrency=8).describe([ask(k) for k in range(8)])) == [f"answer {k}" for k in range(8)]


def test_as_many_requests_run_concurrently_as_configured_and_no_more(server, describer, ask):
    together = threading.Barrier(3, timeout=20)
    server.answer = lambda *_: f"{together.wait()}"  # only answers when three requests have arrived
    assert len(describer(concurrency=3).describe([ask(k) for k in range(12)])) == 12
    assert server.most == 3


def test_a_request_contains_everything_that_decides_the_answer(server, describer, ask):
    image = Image.effect_noise((37, 23), 90).convert("RGB")
    fields = {"skip_special_tokens": False, "top_p": None, "top_k": 40}
    model = describer(temperature=0.7, max_new_tokens=99, request_fields=fields)
    assert texts(model.describe([ask(2**40 + 5, image, "Wo ist «das»?\ud800")])) == ["a cup"]
    (body,) = server.bodies
    assert (body["model"], body["temperature"], body["max_tokens"], body["top_k"]) == ("m", 0.7, 99, 40)
    assert (body["stream"], body["skip_special_tokens"]) == (False, False)
    assert "top_p" not in body
    assert body["seed"] == 5  # 2⁴⁰ + 5 in 31 bits
    picture, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "Wo ist «das»?\ud800"}
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    seen = Image.open(io.BytesIO(base64.b64decode(data)))
    assert ImageChops.difference(seen, image).getbbox() is None


def test_an_image_of_several_requests_is_encoded_once(server, describer, ask):
    encoded = []

    def counted(size):
        image = Image.new("RGB", size)
        save = image.save
        image.save = lambda *args, **options: (encoded.append(image.width), save(*args, **options))
        return image

    one, two = counted((5, 5)), counted((6, 6))
    describer().describe([ask(k, image) for k, image in enumerate((one, one, two, one, two))])
    assert sorted(encoded) == [5, 6]
    assert len(server.bodies) == 5


TEMPORARY = {
    "429": lambda raw: raw('{"error": {"message": "slow down"}}', 429),
    "429 with Retry-After": lambda raw: raw("", 429, Retry_After="0"),
    "408": lambda raw: raw("", 408),
    "500": lambda raw: raw("Internal Server Error", 500),
    "503 of a proxy": lambda raw: raw("<html><title>503 Backend</title></html>", 503, Content_Type="text/html"),
    "529": lambda raw: raw("", 529),
    "a page instead of an answer": lambda raw: raw("<html><body>Welcome</body></html>", Content_Type="text/html"),
    "nothing": lambda raw: raw(""),
    "half a reply": lambda raw: raw('{"choices": [', cut=True),
    "half a JSON": lambda raw: raw('{"choices": ['),
    "JSON without choices": lambda raw: raw('{"error": "overloaded"}'),
    "an empty list of choices": lambda raw: raw('{"choices": []}'),
    "a number": lambda raw: raw("7"),
    "bytes that are no text": lambda raw: raw(b'{"choices": "\xff\xfe"}'),
    "JSON too deep to read": lambda raw: raw("[" * 200_000),
    "content of another kind": lambda raw: raw('{"choices": [{"message": {"content": 5}}]}'),
    "too much": lambda raw: raw(b" " * (MAX_REPLY_BYTES + 1)),
}


@pytest.mark.parametrize("name", TEMPORARY)
def test_a_temporary_failure_is_retried(name, server, describer, ask, raw):
    server.answer = lambda number, _: TEMPORARY[name](raw) if number < 2 else "a cup"
    assert texts(describer().describe([ask(7)])) == ["a cup"]
    assert [body["seed"] for body in server.bodies] == [7, 7, 7]
    assert server.bodies[0] == server.bodies[2]


def test_dropped_and_hanging_connections_are_retried(server, describer, ask, drop, hang):
    server.answer = lambda number, _: {0: drop, 1: hang}.get(number, "a cup")
    assert texts(describer(timeout=0.4).describe([ask()])) == ["a cup"]
    assert len(server.bodies) == 3


def test_the_time_limit_covers_a_reply_that_arrives_byte_by_byte(describer, ask, server, raw, monkeypatch):
    # No single byte is late; the limit applies to the whole reply.
    model = describer(timeout=0.3, retries=0)

    def trickle(*_):
        slow = raw()
        slow.body = type("Slow", (), {"__len__": lambda _: 1000})()
        return slow

    class Writer:
        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            return getattr(self.real, name)

        def write(self, body):
            if isinstance(body, bytes):
                return self.real.write(body)
            while not server.closing.wait(0.05):
                self.real.write(b" ")
                self.real.flush()
            return 0

    handler = server.http.RequestHandlerClass
    real = handler.setup
    monkeypatch.setattr(handler, "setup", lambda self: (real(self), setattr(self, "wfile", Writer(self.wfile)))[0])
    server.answer = trickle
    with pytest.raises(ServerError, match=r"no answer within 0\.3 s"):
        model.describe([ask()])


REFUSALS = [
    (400, '{"error": {"message": "prompt has 5000 tokens, at most 4096", "type": "BadRequestError"}}', "refuses the"),
    (401, '{"error": {"message": "Incorrect API key provided"}}', "api_key_env"),
    (403, '{"detail": "forbidden"}', "api_key_env"),
    (404, '{"object": "error", "message": "The model `m` does not exist.", "code": 404}', "describer.model"),
    (404, "<html><head><title>404 Not Found</title></head><body>nginx</body></html>", "ends in /v1"),
    (405, '{"detail":"Method Not Allowed"}', "describer.base_url"),
    (413, "Request Entity Too Large", "refuses the request"),
    (422, '{"detail": "Unexpected fields in the request: {\'seed\'}"}', "describer.request_fields"),
]


@pytest.mark.parametrize(("status", "body", "said"), REFUSALS)
def test_a_permanent_failure_stops_at_once_with_the_message_of_the_server(
    status, body, said, server, describer, ask, raw
):
    server.answer = lambda *_: raw(body, status)
    with pytest.raises(ServerError) as caught:
        describer().describe([ask()])
    message = str(caught.value)
    assert len(server.bodies) == 1
    assert said in message
    assert f"status {status}: " in message
    quoted = {404: "exist" if "exist" in body else "404 Not Found", 400: "prompt has 5000 tokens, at most 4096"}
    assert quoted.get(status, "") in message
    assert "<" not in message
    if status in (400, 404):
        assert "asked about 0/0 with an image of 30 × 20 px" in message


def test_a_redirect_is_not_followed_with_the_key(server, describer, ask, raw):
    server.answer = lambda *_: raw("", 307, Location="https://elsewhere.example/v1")
    with pytest.raises(ServerError, match=r"set describer\.base_url to .*https://elsewhere\.example/v1"):
        describer(api_key="secret-key").describe([ask()])


def test_after_the_last_try_one_error_reports_the_last_failure(server, describer, ask, raw):
    server.answer = lambda number, _: raw(f"trouble {number}", 500)
    with pytest.raises(ServerError, match=r"status 500: trouble 3 \(4 tries\)[\s\S]*finished answers are kept"):
        describer().describe([ask()])
    assert len(server.bodies) == 4


def test_a_failing_server_is_warned_about_once_and_not_per_request(server, describer, ask, raw, caplog):
    server.answer = lambda number, _: raw("loading", 503) if number < 6 else "a cup"
    assert texts(describer(retries=9).describe([ask(k) for k in range(4)])) == ["a cup"] * 4
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("spr")]
    assert line == f"{server.url}/chat/completions: status 503: loading; retrying in 0 s"


def test_answers_before_a_failure_are_delivered(server, describer, ask, raw):
    told = {}
    server.answer = lambda _, body: raw("no", 400) if body["seed"] == 5 else f"answer {body['seed']}"
    with pytest.raises(ServerError):
        describer(concurrency=1).describe_each([ask(k) for k in range(9)], told.__setitem__)
    assert told == {k: Answer(f"answer {k}", "stop") for k in range(5)}
    assert len(server.bodies) == 6  # the three after it are cancelled


def test_an_error_of_the_callback_ends_the_work(server, describer, ask):
    def full(*_):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        describer(concurrency=1).describe_each([ask(k) for k in range(9)], full)
    assert len(server.bodies) == 1


@pytest.fixture
def waiting(describer, monkeypatch):
    """A describer that records its waits instead of waiting, and the record; the random part is the largest."""
    monkeypatch.setattr(random, "uniform", lambda _, high: high)

    def make(**changes):
        model, waits = describer(**changes), []

        async def sleep(seconds):
            waits.append(seconds)

        model.server.sleep = sleep
        return model, waits

    return make


def test_the_wait_doubles_up_to_one_minute(server, waiting, ask, raw):
    model, waits = waiting(first_wait=1.0, retries=8)
    server.answer = lambda *_: raw("", 500)
    with pytest.raises(ServerError):
        model.describe([ask()])
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]  # 183 s: "about 3 minutes" in the config's help


def test_retry_after_sets_the_wait(server, waiting, ask, raw):
    model, waits = waiting(first_wait=1.0)
    server.answer = lambda number, _: raw("", (429, 503)[number], Retry_After="7") if number < 2 else "a cup"
    assert texts(model.describe([ask()])) == ["a cup"]
    assert waits == [8, 8]  # 7 s, and up to first_wait more, so that not all retry at the same time


def test_a_retry_after_of_hours_is_an_error(server, waiting, ask, raw):
    model, waits = waiting()
    server.answer = lambda *_: raw('{"error": {"message": "daily quota"}}', 429, Retry_After="86400")
    with pytest.raises(ServerError, match=r"a longer wait than SPR allows[\s\S]*daily quota, Retry-After: 86400 s"):
        model.describe([ask()])
    assert waits == []


def test_the_wait_is_partly_random():
    waited = {backoff(4) for _ in range(50)}
    assert len(waited) > 10
    assert min(waited) >= 4  # half of 2³
    assert max(waited) <= 8


def test_a_missing_server_is_an_error_at_the_start(server):
    from spr.models.describers.openai import OpenAiDescriber

    server.http.server_close()
    with pytest.raises(ServerError, match=r"gives no answer[\s\S]*ConnectError[\s\S]*describer\.base_url"):
        OpenAiDescriber("m", base_url=server.url, dialect="llava", first_wait=0.001)


@pytest.mark.parametrize(
    ("listed", "name"),
    [
        ('{"data": [{"id": "other", "root": "x"}, {"id": "m", "root": "Qwen/Qwen2.5-VL-7B"}]}', "m@Qwen/Qwen2.5-VL-7B"),
        ('{"data": [{"id": "m", "created": 1795571544}]}', "m@m"),
        ('{"data": [{"id": "other"}, 5]}', "m@unlisted"),
        ('{"data": []}', "m@unlisted"),
    ],
)
def test_the_name_is_what_the_server_calls_the_model(listed, name, server, describer, raw):
    server.models = raw(listed)
    assert describer().name == name


@pytest.mark.parametrize("status", [404, 405, 500])
def test_a_server_without_a_list_of_models_works(status, server, describer, raw, ask):
    server.models = raw("Internal Server Error", status)
    model = describer()
    assert model.name == "m@unlisted"
    assert texts(model.describe([ask()])) == ["a cup"]


def test_a_refused_key_is_an_error_before_any_work(server, describer, raw):
    server.models = raw('{"error": {"message": "Incorrect API key provided: sk-12345678."}}', 401)
    with pytest.raises(ServerError, match=r"refuses access[\s\S]*Incorrect API key provided: \*\*\*\."):
        describer(api_key="sk-12345678")
    assert server.keys == ["Bearer sk-12345678"]


def test_the_key_is_sent_with_each_request_and_only_if_there_is_one(server, describer, ask):
    describer(api_key="sk-1").describe([ask(1)])
    assert server.keys == ["Bearer sk-1"] * 2
    describer().describe([ask(1)])
    assert server.keys[2:] == [None, None]


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("SPR_TEST_KEY", " sk-1\n")
    assert read_key("SPR_TEST_KEY") == "sk-1"
    assert read_key(None) is None
    for wrong in ("", "  ", "sk-\n1", "clé"):
        monkeypatch.setenv("SPR_TEST_KEY", wrong)
        with pytest.raises(ConfigError, match="SPR_TEST_KEY") as caught:
            read_key("SPR_TEST_KEY")
        assert not wrong.strip() or wrong not in str(caught.value)
    monkeypatch.delenv("SPR_TEST_KEY")
    with pytest.raises(ConfigError, match=r"has no key[\s\S]*export SPR_TEST_KEY"):
        read_key("SPR_TEST_KEY")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("", ""),
        ("\x00\x1b[31m\r\n", "\x00\x1b[31m\r\n"),
        ("чашка 🫖 [0.1, 0.1, 0.2, 0.2]", "чашка 🫖 [0.1, 0.1, 0.2, 0.2]"),
        ("a\ud83eb", "a\ufffdb"),
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "cup"}, {"type": "image"}], "a cup"),
    ],
)
def test_any_text_is_passed_on_and_no_text_becomes_the_empty_answer(content, text, server, describer, ask, raw):
    server.answer = lambda *_: raw(json.dumps({"choices": [{"message": {"content": content}}]}))
    assert texts(describer().describe([ask()])) == [text]
    text.encode()  # valid UTF-8


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": "stop"}, "stop"),
        ({"finish_reason": "stop", "stop_reason": None}, "stop"),
        ({"finish_reason": "stop", "stop_reason": 151645}, "stop"),  # vLLM: the id of an end-of-turn token
        ({"finish_reason": "stop", "stop_reason": "</answer>"}, "stop_string"),  # vLLM
        ({"finish_reason": "stop", "matched_stop": "</answer>"}, "stop_string"),  # SGLang
        ({"finish_reason": "stop", "matched_stop": 2}, "stop"),
        ({"finish_reason": "length", "stop_reason": "x"}, "length"),
        ({"finish_reason": "content_filter"}, "content_filter"),
        ({"finish_reason": None}, None),
        ({"finish_reason": 3}, None),
        ({}, None),
    ],
)
def test_the_finish_reason_of_the_server_is_that_of_the_answer(choice, reason, server, describer, ask, raw):
    reply = {"choices": [{"message": {"content": "a cup [0.1, 0."}, **choice}]}
    server.answer = lambda *_: raw(json.dumps(reply))
    (answer,) = describer().describe([ask()])
    assert answer == Answer("a cup [0.1, 0.", reason)
    assert answer.truncated == (reason in ("length", "content_filter"))


@pytest.mark.parametrize(
    ("dialect", "fields", "warned"),
    [("qwen2_vl", {}, True), ("qwen2_vl", {"skip_special_tokens": False}, False), ("qwen2_5_vl", {}, False)],
)
def test_markup_that_a_server_may_remove_causes_a_warning(dialect, fields, warned, describer, caplog):
    describer(dialect=dialect, request_fields=fields)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("spr")]
    assert bool(said) == warned
    assert all("skip_special_tokens: false" in line for line in said)


def test_an_image_that_the_family_refuses_is_not_sent(server, describer, ask):
    long, square = Image.new("RGB", (201, 1)), Image.new("RGB", (200, 1))
    assert texts(describer(dialect="qwen2_5_vl").describe([ask(1, long), ask(2, square)])) == ["", "a cup"]
    assert [body["seed"] for body in server.bodies] == [2]


def test_an_empty_list_of_requests_needs_no_server(server, describer):
    model = describer()
    server.http.server_close()
    assert model.describe([]) == []


def test_it_works_inside_a_running_event_loop(server, describer, ask):
    async def notebook():
        return describer().describe([ask()])

    assert texts(asyncio.run(notebook())) == ["a cup"]
    assert len(server.bodies) == 1


def test_ctrl_c_does_not_wait_for_a_hanging_server(server, describer, ask, hang):
    first = iter([True])  # one signal for all requests: a second one would interrupt the next test

    def answer(*_):
        if next(first, False):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return hang

    server.answer = answer
    with pytest.raises(KeyboardInterrupt):
        describer(timeout=3600).describe([ask(k) for k in range(3)])


def test_settings_out_of_range_are_refused(describer):
    for wrong in ({"temperature": -1}, {"top_p": 0}):
        with pytest.raises(ConfigError):
            describer(**wrong)
    with pytest.raises(GroundingError, match="Unknown dialect"):
        describer(dialect="qwen")


def test_a_reply_of_another_shape_is_not_an_answer():
    for wrong in ([], {}, {"choices": [{}]}, {"choices": [{"message": {"content": {"text": "x"}}}]}, "text"):
        with pytest.raises(ValueError, match=r"^"):
            parse_completion(wrong)


def message(**fields):
    """A chat completion with these fields of the message."""
    finish = fields.pop("finish_reason", "stop")
    return json.dumps({"choices": [{"message": {"role": "assistant", **fields}, "finish_reason": finish}]})


@pytest.mark.parametrize("thinking", [False, True])
def test_reasoning_is_asked_for_and_never_part_of_the_answer(thinking, server, describer, ask, raw):
    replies = [
        (message(content="I see [1, 2].\n</think>\n\na cup"), "a cup", "stop"),
        (message(content="<think>I see.</think>a cup"), "a cup", "stop"),
        (message(content="a cup", reasoning_content="I see."), "a cup", "stop"),
        (message(content=None, reasoning="I see", finish_reason="length"), "", "length"),
        (message(content="a c", reasoning="I see", finish_reason="length"), "a c", "length"),
        (message(content="a cup"), "a cup", "stop"),
        # Cut before its end, the reasoning can't be told from an answer unless it was asked for.
        (message(content="I see", finish_reason="length"), "" if thinking else "I see", "length"),
        (message(content="I see</think>a c", finish_reason="length"), "a c", "length"),
    ]
    server.answer = lambda number, _: raw(replies[number][0])
    answers = describer(thinking=thinking, concurrency=1).describe([ask()] * len(replies))
    found = [(final_answer(answer.text).text, answer.finish_reason) for answer in answers]
    assert found == [tuple(expected) for _, *expected in replies]
    switch = {"chat_template_kwargs": {"enable_thinking": True}}
    assert all({k: v for k, v in body.items() if k in switch} == (switch if thinking else {}) for body in server.bodies)
