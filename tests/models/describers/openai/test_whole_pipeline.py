"""From annotations to pairs with a describer that uses a server, also one that fails midway."""

import re

import pytest

from spr.config import make_config
from spr.core.errors import ConfigError
from spr.core.randomness import stable_hash
from spr.models.describers.json_client import ServerError
from spr.pipeline.runner import run
from spr.runs.store import StageStore

FAKES = {"scorer": {"backend": "fake"}, "detector": {"backend": "none"}}


def describe(body):
    """The objects listed in the prompt, some omitted by seed; for other prompts, its region or one box."""
    prompt = body["messages"][0]["content"][1]["text"]
    boxes = re.findall(r"\[[0-9., ]+\]", prompt) or ["[0.20, 0.20, 0.70, 0.70]"]
    kept = [box for k, box in enumerate(boxes) if stable_hash(body["seed"], "keep", str(k)) % 3] or boxes[:1]
    return f"There is {' and '.join(f'a cup {box}' for box in kept)} ({body['seed']})."


@pytest.fixture
def settings(make_dataset, tmp_path, server):
    data = make_dataset(tmp_path / "data", images=12)
    server.answer = lambda _, body: describe(body)

    def make(**changes):
        describer = {"backend": "openai", "model": "m", "base_url": server.url, "dialect": "llava", "retries": 0}
        return make_config(data.config(**FAKES, shard_rows=5, describer={**describer, **changes}))

    return make


def rows(out, stage):
    return [row for table in StageStore(out / stage).tables() for row in table.to_pylist()]


def asked(bodies):
    return [(body["messages"][0]["content"][1]["text"], body["seed"]) for body in bodies]


def test_after_a_server_failure_answered_requests_are_not_repeated(server, settings, tmp_path, drop, raw):
    run(settings(), tmp_path / "whole")
    whole = asked(server.bodies)
    assert len(whole) == len(set(whole)) > 40
    assert len(rows(tmp_path / "whole", "pairs")) >= 6

    server.bodies.clear()
    server.answer = lambda number, body: describe(body) if number < 38 else drop
    with pytest.raises(ServerError, match=r"run the same command again: finished answers are kept"):
        run(settings(concurrency=1), tmp_path / "run")
    # 5 queries of 6 requests are the first shard; 8 requests of the second were answered, and the next was not.
    assert len(server.bodies) == 39
    kept = tmp_path / "run" / "candidates" / "unfinished-00001.jsonl"
    assert len(kept.read_text().splitlines()) == 8

    before = asked(server.bodies[:38])
    server.bodies.clear()
    server.answer = lambda number, body: raw("", 503) if number == 11 else describe(body)
    with pytest.raises(ServerError):
        run(settings(concurrency=3), tmp_path / "run")
    before += asked([body for number, body in enumerate(server.bodies) if number != 11])

    # Only the requests in progress at the failure are sent again.
    server.bodies.clear()
    server.answer = lambda _, body: describe(body)
    run(settings(concurrency=2, timeout=20), tmp_path / "run")
    after = asked(server.bodies)
    assert len(set(before) & set(after)) <= 2
    assert set(before) | set(after) == set(whole)
    for stage in ("candidates", "scores", "pairs"):
        assert rows(tmp_path / "run", stage) == rows(tmp_path / "whole", stage)
    assert not list((tmp_path / "run").rglob("unfinished*"))


def test_the_address_of_a_server_may_change_between_runs(server, settings, tmp_path, raw):
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    server.answer = lambda number, body: describe(body) if number < 38 else raw("", 500)
    with pytest.raises(ServerError):
        run(settings(concurrency=1), tmp_path / "run")
    server.answer = lambda _, body: describe(body)
    run(settings(base_url=elsewhere, api_key_env=None, retries=1), tmp_path / "run")
    assert rows(tmp_path / "run", "pairs")


def test_another_temperature_is_another_run(settings, tmp_path):
    run(settings(), tmp_path / "run", until="candidates")
    with pytest.raises(Exception, match=r"describer\.temperature: 1\.0 → 0\.5"):
        run(settings(temperature=0.5), tmp_path / "run")


def test_the_key_is_in_no_file_of_a_run(server, settings, tmp_path, monkeypatch, raw):
    monkeypatch.setenv("SPR_TEST_KEY", "sk-very-secret")
    run(settings(api_key_env="SPR_TEST_KEY"), tmp_path / "run")
    assert set(server.keys) == {"Bearer sk-very-secret"}
    server.answer = lambda *_: raw('{"error": {"message": "bad key sk-very-secret"}}', 401)
    with pytest.raises(ServerError, match=r"bad key \*\*\*"):
        run(settings(api_key_env="SPR_TEST_KEY"), tmp_path / "other")
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"]
    assert len(files) > 10
    assert not [path for path in files if b"sk-very-secret" in path.read_bytes()]


def test_candidates_have_the_model_name_of_the_server(settings, tmp_path):
    run(settings(), tmp_path / "run", until="candidates")
    assert {row["model"] for row in rows(tmp_path / "run", "candidates")} == {"m@owner/model"}


def test_missing_server_settings_are_an_error_at_the_start(settings):
    with pytest.raises(ConfigError, match=r"describer\.base_url is missing"):
        settings(base_url=None)
    with pytest.raises(ConfigError, match=r"describer\.dialect is missing"):
        settings(dialect=None)
    with pytest.raises(ConfigError, match=r"describer\.model is missing"):
        settings(model=None)
    for wrong in ("127.0.0.1:8000/v1", "ftp://x/v1", "http://", "http://x/v1?key=1", "http://x:99999/v1"):
        with pytest.raises(ConfigError, match=r"describer\.base_url"):
            settings(base_url=wrong)
    with pytest.raises(ConfigError, match=r"contains credentials[\s\S]*api_key_env"):
        settings(base_url="http://user:secret@x/v1")
    with pytest.raises(ConfigError, match=r"api_key_env"):
        settings(api_key_env="sk-this is no name")
    with pytest.raises(ConfigError, match=r"`messages` is reserved"):
        settings(request_fields={"messages": []})
    for field in ("concurrency", "timeout", "connect_timeout"):
        with pytest.raises(ConfigError, match=field):
            settings(**{field: 0})
