"""Captions by a model behind an endpoint: answers, refusals, failures, and what becomes of the key."""

import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_server import Reply, chat_server, says
from free_ports import free_ports
from tiny_networks import save_llava

from labeling.declaration import declare
from labeling.labelers.caption import CaptionLabeler
from labeling.networks.text_writer import seed_of
from labeling.registry import load_labeler
from labeling.run import label_rows
from model.inputs import InputError
from model.pictures import decode_picture

KEY = "sk-abcdefghijklmnop"


def make(server, **parameters):
    given = {"model": "tiny", "endpoint": server.address, "prompt": "What is this?", "tokens": 20, **parameters}
    labeler = load_labeler("caption", given)
    labeler.load()
    return labeler


def rows(count=1, side=40):
    random = np.random.default_rng(0)
    return [
        {"id": f"row {number}", "images.image": random.integers(0, 256, (side, 2 * side, 3), np.uint8)}
        for number in range(count)
    ]


def label(reply, count=1, **parameters):
    """The labeled rows, and the server."""
    with chat_server(reply) as server:
        return label_rows(make(server, **parameters), rows(count)), server


def quick(reply):
    """The reply to the first try, then a caption, without the wait between tries that an endpoint does not ask for."""
    return lambda _body, number: reply if number == 1 else says("a cat")


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    monkeypatch.setattr("labeling.networks.endpoint._FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_request_holds_the_picture_the_prompt_and_the_sampling():
    (row,), server = label(lambda *_: says(" A\n cat. "), temperature=0.5, top_p=0.9, side=64)
    assert row["caption"] == "A cat." and row["error"] is None
    body = server.requests[0]["body"]
    assert body["path"] == "/v1/chat/completions"
    assert {key: body[key] for key in ("model", "max_tokens", "temperature", "top_p")} == {
        "model": "tiny", "max_tokens": 20, "temperature": 0.5, "top_p": 0.9,
    }  # fmt: skip
    assert isinstance(body["seed"], int)
    picture, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is this?"}
    kind, data = picture["image_url"]["url"].split(",")
    assert kind == "data:image/jpeg;base64" and decode_picture(base64.b64decode(data)).shape == (32, 64, 3)
    assert "Authorization" not in server.requests[0]["headers"]


def test_fields_of_a_request_can_be_put_over_it_or_left_out():
    _, server = label(lambda *_: says("a"), extra={"max_tokens": None, "max_completion_tokens": 7})
    body = server.requests[0]["body"]
    assert "max_tokens" not in body and body["max_completion_tokens"] == 7 and "seed" not in body


def test_rows_of_a_batch_are_asked_at_once_and_keep_their_order():
    def echo(body, _number):
        shape = decode_picture(base64.b64decode(body["messages"][0]["content"][0]["image_url"]["url"].split(",")[1]))
        return Reply(body=says(f"{shape[0, 0].tolist()}").body, seconds=0.3)

    labeled, server = label(echo, 6)
    assert server.most_at_once > 2 and len({row["caption"] for row in labeled}) == 6
    assert labeled == label(echo, 6)[0]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.2"}),
        Reply(503, b"<html>gateway</html>"),
        Reply(500, {"error": "broken"}),
        Reply(200, b"\x00rubbish"),
        Reply(200, {"choices": []}),
        Reply(200, {"choices": [{"message": {"content": 7}}]}),
        says(None),
        says("  "),
    ],
    ids=["429", "503", "500", "rubbish", "empty", "number", "null", "blank"],
)
def test_failed_request_is_retried(reply):
    (row,), server = label(quick(reply))
    assert row["caption"] == "a cat" and row["error"] is None and len(server.requests) == 2
    first, second = (request["time"] for request in server.requests)
    assert second - first >= float(reply.headers.get("Retry-After", 0))
    assert server.requests[0]["body"] == server.requests[1]["body"]


@pytest.mark.parametrize(
    ("reply", "error", "tries"),
    [
        (Reply(429, {"error": {"message": "slow down"}}), "EndpointError: the endpoint says 429", 3),
        (Reply(200, b"rubbish"), "the endpoint's answer is no chat completion (after 3 tries)", 3),
        (Reply(200, b"x" * (3 << 20)), "the endpoint's answer is no chat completion (after 3 tries)", 3),
        (says("", finish_reason="content_filter"), "the model wrote nothing (content_filter)", 1),
        (Reply(400, {"error": {"message": "no picture of that kind"}}), "the endpoint says 400", 1),
        (Reply(401, {"detail": "who are you"}), "EndpointError: the endpoint says 401", 1),
        (Reply(307, b"", {"Location": "http://127.0.0.1:1/v1"}), "EndpointError: the endpoint says 307", 1),
        (Reply(429, b"", {"Retry-After": "3600"}), "EndpointError: the endpoint says 429", 1),
        (Reply(429, b"", {"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"}), "EndpointError: the endpoint says 429", 1),
    ],
    ids=["429", "rubbish", "endless", "filtered", "400", "401", "redirected", "hour", "date"],
)
def test_row_is_in_error_after_all_retries(reply, error, tries):
    def answer(body, _number):
        return reply if body["seed"] == first else says("a dog")

    first = seed_of("row 0")
    (bad, good), server = label(answer, 2, retries=2, temperature=1.0)
    assert "caption" not in bad and bad["error"].startswith(error)
    assert good["caption"] == "a dog" and good["error"] is None
    bodies = [request["body"]["seed"] for request in server.requests]
    assert bodies.count(first) == tries and len(bodies) == tries + 1  # the other row was not sent again


def test_slow_answers_end_with_the_patience_for_a_row():
    (row,), server = label(lambda *_: Reply(body=says("late").body, seconds=1.5), patience=0.3)
    assert row["error"].startswith("EndpointError: the endpoint gave no answer within 0.3 s")
    assert len(server.requests) == 1


def test_endpoint_that_is_not_there_is_an_error_without_its_address():
    with chat_server(lambda *_: says("")) as server:
        pass
    (row,) = label_rows(make(server, retries=1), rows())
    assert row["error"] == "EndpointError: the endpoint cannot be reached: Connection refused (after 2 tries)"


def test_key_goes_into_the_header_and_nowhere_else(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with chat_server(lambda *_: Reply(401, {"error": f"wrong key {'x' * 175}{KEY}"})) as server:
        labeler = make(server, key="MY_KEY")
        (row,) = label_rows(labeler, rows())
    assert server.requests[0]["headers"]["Authorization"] == f"Bearer {KEY}"
    assert "wrong key" in row["error"] and "sk-" not in row["error"]
    assert KEY not in json.dumps(declare(labeler)) + repr(labeler.parameters) + labeler.model


def test_secrets_are_refused_and_not_repeated(monkeypatch):
    for parameters in ({"key": KEY}, {"endpoint": f"http://me:{KEY}@host/v1"}, {"endpoint": f"http://host/v1?k={KEY}"}):
        with pytest.raises(InputError, match="looks like a secret") as error:
            load_labeler("caption", {"model": "tiny", "endpoint": "http://host/v1", **parameters})
        assert KEY not in str(error.value)
    with pytest.raises(InputError, match="write it as http://HOST:PORT/v1"):
        load_labeler("caption", {"model": "tiny", "endpoint": "host:80"})
    with pytest.raises(InputError, match="set model too"):
        load_labeler("caption", {"endpoint": "http://host/v1"})
    labeler = load_labeler("caption", {"model": "tiny", "endpoint": "http://host/v1", "key": "NOT_THERE"})
    with pytest.raises(InputError, match=r"caption.key: NOT_THERE is not in the environment"):
        labeler.load()


def test_endpoint_takes_no_gpu_and_all_of_it_is_recorded():
    given = {"model": "tiny", "endpoint": "http://host/v1", "retries": 2, "temperature": 0.7}
    labeler = load_labeler("caption", given)
    declared = declare(labeler)
    assert labeler.has_network and not labeler.uses_device and declared["weights"] == ""
    assert {key: declared["parameters"][key] for key in given} == given
    assert declared["reads"] == ["images.image"]
    # What was labeled before this came is as fresh as it was.
    assert set(declare(CaptionLabeler("caption", CaptionLabeler.Parameters()))["parameters"]) == {
        "model", "tokens", "prompt", "threshold",
    }  # fmt: skip


@pytest.fixture
def transformers_serve(tmp_path):
    """A tiny model behind `transformers serve`: (address, folder of the model)."""
    torch.manual_seed(1)
    model = tmp_path / "llava"
    model.mkdir()
    save_llava(model)
    (port,) = free_ports(1)
    command = [Path(sys.executable).parent / "transformers", "serve", model, "--port", str(port), "--device", "cpu"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*map(str, command), "--dtype", "float32"],
            stdout=log,
            stderr=log,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        try:
            for _ in range(600):
                assert server.poll() is None, (tmp_path / "log").read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1", model
        finally:
            server.terminate()
            server.wait()


@pytest.mark.slow
def test_model_behind_a_server_of_transformers_writes_what_it_writes_here(transformers_serve):
    address, model = transformers_serve
    given = {"model": str(model), "tokens": 8, "prompt": "describe"}
    pictures = [np.full((64, 64, 3), level, np.uint8) for level in (20, 230)]  # which JPEG keeps
    rows = [{"id": str(number), "images.image": picture} for number, picture in enumerate(pictures)]
    here = load_labeler("caption", {**given, "dtype": "fp32"})
    there = load_labeler("caption", {**given, "endpoint": address})
    here.load()
    there.load()
    captions = [[row["caption"] for row in label_rows(labeler, rows)] for labeler in (here, there)]
    assert captions[0] == captions[1] and all(captions[0])
    assert there.model == "llava behind an endpoint"
