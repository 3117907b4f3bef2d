"""The API as its clients see it: served answers are offline answers, refusals have OpenAI's shape."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.websockets import WebSocketDisconnect

from dmax import LLM, GenerationParams
from dmax.decoding import SoftParallelDecoder

BLOCK = 8
JSON = {"Content-Type": "application/json"}


def ask(client: Any, content: str = "w7 w8", **fields: Any) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}
    return client.post("/v1/chat/completions", content=json.dumps(body), headers=JSON)


def events(response: Any) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def offline(llm: LLM, content: str = "w7 w8", **params: Any) -> Any:
    settings = {"gen_length": 24, "block_length": BLOCK, **params}
    return llm.generate(LLM.chat_prompt(content), GenerationParams(**settings))[0]


def test_a_served_answer_is_the_offline_answer(serve: Any, llm: LLM) -> None:
    with serve() as client:
        for extra in ({}, {"decoder": "threshold", "threshold": 0.4}, {"threshold": 0.0, "block_length": 4}):
            reply = ask(client, **extra).json()
            expected = offline(llm, **extra)
            assert reply["choices"][0]["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
            assert reply["choices"][0]["finish_reason"] == expected.finish_reason
            assert reply["usage"]["completion_tokens"] == expected.num_tokens
            cost = reply["dmax"]
            assert (cost["nfe"], cost["passes"], cost["tpf"]) == (expected.nfe, expected.passes, expected.tpf)
            assert cost["params"] == {**expected.params, "seed": cost["params"]["seed"]}


def test_seeds_are_kept_and_choices_have_their_own(serve: Any, llm: LLM) -> None:
    with serve() as client:
        reply = ask(client, temperature=1.0, seed=7, n=3).json()
    texts = [choice["message"]["content"] for choice in reply["choices"]]
    assert texts == [offline(llm, temperature=1.0, seed=7 + i).text for i in range(3)]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]


def test_a_stream_is_the_answer_block_by_block(serve: Any, llm: LLM) -> None:
    with serve() as client:
        whole = ask(client, max_tokens=60).json()
        parts = events(ask(client, max_tokens=60, stream=True, stream_options={"include_usage": True}))
    pieces = [part["choices"][0]["delta"].get("content", "") for part in parts if part["choices"]]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert len([piece for piece in pieces if piece]) >= 2, "text comes before the answer is whole"
    assert parts[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert parts[-2]["dmax"]["nfe"] == whole["dmax"]["nfe"]
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"] == whole["usage"]
    assert len({part["id"] for part in parts}) == 1


def test_stop_strings_cut_across_blocks_in_streams_too(serve: Any, llm: LLM) -> None:
    text = offline(llm, gen_length=60).text
    words = text.split()
    stop = " ".join(words[BLOCK - 2 : BLOCK + 2])
    assert len(words) > BLOCK + 2, "or the stop string does not lie across a border"
    expected = text[: text.find(stop)]
    with serve() as client:
        assert ask(client, max_tokens=60, stop=stop).json()["choices"][0]["message"]["content"] == expected
        parts = events(ask(client, max_tokens=60, stop=[stop], stream=True))
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == expected
    assert parts[-1]["choices"][0]["finish_reason"] == "stop"


def test_text_completions_take_text_and_tokens(serve: Any, llm: LLM) -> None:
    expected = [o.text for o in llm.generate(["w7 w8", "w9"], GenerationParams(gen_length=24, block_length=BLOCK))]
    with serve() as client:
        for prompt in (["w7 w8", "w9"], [[7, 8], [9]]):
            reply = client.post("/v1/completions", json={"prompt": prompt}).json()
            assert [choice["text"] for choice in reply["choices"]] == expected
            assert reply["usage"]["prompt_tokens"] == 3
        parts = events(client.post("/v1/completions", json={"prompt": "w7 w8", "stream": True}))
    assert "".join(part["choices"][0]["text"] for part in parts) == expected[0]


def test_many_clients_get_what_each_gets_alone(serve: Any, llm: LLM) -> None:
    prompts = [f"w{3 + i} w{40 - i}" for i in range(24)]
    with serve({"max_batch_size": 4}) as client, ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda prompt: ask(client, prompt).json(), prompts))
    texts = [reply["choices"][0]["message"]["content"] for reply in replies]
    assert texts == [offline(llm, prompt).text for prompt in prompts]


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"model": "other"}, 404, "there is no model 'other'"),
        ({"threshold": 2}, 400, "threshold"),
        ({"treshold": 0.5}, 400, "did you mean threshold"),
        ({"decoder": "soft-paralel"}, 400, "soft-parallel"),
        ({"decoder": "fixed-steps", "threshold": 0.5}, 400, "threshold"),
        ({"max_tokens": 401}, 400, "up to 400 tokens"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty is not supported"),
        (
            {"block_length": 129},
            400,
            "block_length 129 with buffer_size 1 is 129 positions in flight; this server takes",
        ),
        ({"buffer_size": 16, "block_length": 9}, 400, "takes up to 128: lower one of the two"),
        ({"messages": "hi"}, 400, "messages"),
        ({"max_tokens": "12"}, 400, "max_tokens"),
        ({"threshold": True}, 400, "threshold"),
        ({"decoder_options": {"top_k": 65}}, 400, "at most 64"),
        ({"decoder_options": {"name": "x"}}, 400, "no option 'name'"),
        ({"decoder_options": {"self": 1}}, 400, "no option 'self'"),
        ({"decoder": "fixed-steps", "decoder_options": {"steps": 10**30}}, 400, "at most 2147483647"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
        ({"stop": "\ud800"}, 400, "surrogate"),
        ({"decoder": "\ud800"}, 400, "half of a surrogate pair"),
        ({"logit_bias": {"\ud800": "x"}}, 400, "logit_bias"),
        ({"\ud800": 1}, 400, "there is no field"),
    ],
)
def test_refusals_say_what_is_wrong_in_openais_shape(serve: Any, fields: Any, status: int, named: str) -> None:
    with serve() as client:
        for stream in (False, True):
            reply = ask(client, **{**fields, "stream": stream})
            assert reply.status_code == status
            error = reply.json()["error"]
            assert named in error["message"]
            assert set(error) == {"message", "type", "param", "code"}


def test_no_request_has_more_positions_in_flight_than_the_server_allows(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    widest: list[int] = []
    step = SoftParallelDecoder.step
    monkeypatch.setattr(
        SoftParallelDecoder, "step", lambda *args: widest.append(args[1].shape[:2].numel()) or step(*args)
    )
    eager = {"add_threshold": 0.0, "stable_threshold": 0.0, "semi_threshold": 0.0, "max_tokens": 200}
    with serve(max_positions_in_flight=3 * BLOCK) as client:
        replies = [
            ask(client, buffer_size=4, **eager),
            client.post("/v1/completions", json={"prompt": "w7", "buffer_size": 4, **eager}),
        ]
        errors = [reply.json()["error"] for reply in replies if reply.status_code == 400]
        with client.websocket_connect("/v1/trace") as socket:
            socket.send_json({"messages": [{"role": "user", "content": "w7"}], "buffer_size": 4, **eager})
            errors.append(socket.receive_json()["error"])
        assert ["this server takes up to 24: lower" in error["message"] for error in errors] == [True] * 3
        assert {error["param"] for error in errors} == {"buffer_size"}
        assert not widest
        assert ask(client, block_length=25).json()["error"]["param"] == "block_length"
        assert ask(client, block_length=24).status_code == 200
        assert ask(client, buffer_size=3, **eager).status_code == 200
    assert max(widest) == 3 * BLOCK


@pytest.mark.parametrize("prompt", [[7, 1, 8], "w7 <mask>"])
def test_a_prompt_that_holds_the_mask_token_is_refused(serve: Any, prompt: Any) -> None:
    with serve() as client:
        reply = client.post("/v1/completions", json={"prompt": prompt})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")
        assert "holds the mask token (id 1)" in reply.json()["error"]["message"]


def test_half_a_character_in_a_prompt_is_refused(serve: Any) -> None:
    with serve() as client:
        for prompt in ("\ud800", ["w7", "\udfff"]):
            reply = client.post("/v1/completions", content=json.dumps({"prompt": prompt}), headers=JSON)
            assert reply.status_code == 400
            assert "surrogate" in reply.json()["error"]["message"]


def test_a_mix_wider_than_the_vocabulary_is_the_clients_mistake(serve: Any) -> None:
    with serve() as client:
        reply = ask(client, decoder_options={"top_k": 60})
        assert reply.status_code == 400
        assert "the vocabulary has only 47 tokens" in reply.json()["error"]["message"]


def test_a_prompt_too_long_names_the_limit(serve: Any) -> None:
    with serve() as client:
        reply = ask(client, "w7 " * 600)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert "512" in reply.json()["error"]["message"]


def test_bodies_that_are_no_requests(serve: Any) -> None:
    with serve(max_body_bytes=2000) as client:
        post = client.post
        assert post("/v1/chat/completions", content=b"{nope").json()["error"]["code"] == "invalid_json"
        assert post("/v1/chat/completions", content=b"x" * 3000).status_code == 413
        assert (
            post("/v1/chat/completions", content=iter([b"{nope"]), headers=JSON).json()["error"]["code"]
            == "invalid_json"
        )
        assert post("/v1/chat/completions", content=iter([b"x" * 1500] * 2)).status_code == 413
        assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
        assert client.get("/v1/chat/completions").status_code == 405


def test_keys_guard_the_api_and_nothing_else(serve: Any) -> None:
    with serve(api_keys=("secret", "other")) as client:
        assert ask(client).status_code == 401
        assert client.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
        assert client.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer other"}).status_code == 200
        assert client.get("/health").status_code == 200
        with client.websocket_connect("/v1/trace") as socket:
            assert socket.receive_json()["error"]["code"] == "invalid_api_key"


def test_other_origins_are_not_let_in_unasked(serve: Any) -> None:
    headers = {"Origin": "http://elsewhere"}
    with serve() as client:
        assert "access-control-allow-origin" not in client.get("/health", headers=headers).headers
    with serve(cors_origins=("http://elsewhere",)) as client:
        assert client.get("/health", headers=headers).headers["access-control-allow-origin"] == "http://elsewhere"


def test_a_full_queue_is_429_and_recovers(serve: Any) -> None:
    slow = {"decoder": "fixed-steps", "max_tokens": 300}
    with serve({"max_batch_size": 1}, max_queue=1) as client, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: ask(client, **slow), range(8)))
        statuses = [reply.status_code for reply in replies]
        assert set(statuses) == {200, 429}
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"
        assert ask(client).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(serve: Any) -> None:
    slow = {"decoder": "fixed-steps", "max_tokens": 400}
    with serve(timeout=0.05) as client:
        reply = ask(client, **slow)
        assert reply.status_code == 504
        assert reply.json()["error"]["code"] == "timeout"
        stream = ask(client, stream=True, **slow)
        assert '"code": "timeout"' in stream.text
        assert "[DONE]" not in stream.text
        deadline = time.monotonic() + 10
        while "dmax_running 0.0" not in client.get("/metrics").text:
            assert time.monotonic() < deadline, "its row is free again"


def test_a_trace_tells_every_pass_and_the_answer(serve: Any, llm: LLM) -> None:
    expected = offline(llm, trace=True)
    request = {"messages": [{"role": "user", "content": "w7 w8"}]}
    with serve() as client, client.websocket_connect("/v1/trace") as socket:
        for _ in range(2):  # one connection serves turn after turn
            socket.send_json(request)
            messages = []
            while not messages or messages[-1]["type"] != "end":
                messages.append(socket.receive_json())
            start, *passes, end = messages
            assert start["prompt_pieces"] == ["w3", "w7", "w8", "w5"]
            assert (start["mask_token_id"], start["eos_token_ids"]) == (1, [2])
            records = [{k: v for k, v in p.items() if k not in ("type", "pieces")} for p in passes]
            assert records == [record.to_dict() for record in expected.trace]
            assert [len(p["pieces"]) for p in passes] == [BLOCK] * len(passes)
            assert (end["text"], end["nfe"]) == (expected.text, expected.nfe)
        socket.send_json({**request, "threshold": 3})
        assert "threshold" in socket.receive_json()["error"]["message"]
        socket.send_text("{")
        assert "error" in socket.receive_json()
        socket.send_bytes(b"{}")
        assert "binary" in socket.receive_json()["error"]["message"]
        socket.send_json(request)
        assert socket.receive_json()["type"] == "start"


def test_another_websites_page_cannot_watch(serve: Any) -> None:
    theirs = {"Origin": "http://elsewhere"}
    with serve() as client:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/trace", headers=theirs):
            pass
        with client.websocket_connect("/v1/trace", headers={"Origin": "http://testserver"}) as socket:
            socket.send_text("{")
            assert "error" in socket.receive_json()
    with (
        serve(cors_origins=("http://elsewhere",)) as client,
        client.websocket_connect("/v1/trace", headers=theirs) as socket,
    ):
        socket.send_text("{")
        assert "error" in socket.receive_json()


def test_requests_sent_ahead_are_answered_in_order_but_not_any_number_of_them(serve: Any) -> None:
    with serve() as client, client.websocket_connect("/v1/trace") as socket:
        for length in (5, 9):
            socket.send_json({"messages": [{"role": "user", "content": "w7"}], "max_tokens": length})
        ends = []
        while len(ends) < 2:
            message = socket.receive_json()
            ends += [message["params"]["gen_length"]] if message["type"] == "end" else []
        assert ends == [5, 9]
        for _ in range(100):
            socket.send_json({"messages": [{"role": "user", "content": "w7"}], "max_tokens": 300})
        while (message := socket.receive())["type"] != "websocket.close":
            assert message["type"] == "websocket.send"
        assert message["code"] == 1008


def test_metrics_count_what_was_done(serve: Any) -> None:
    with serve() as client:
        replies = [ask(client, "w7 " * 20).json() for _ in range(2)]
        text = client.get("/metrics").text
        tokens = sum(reply["usage"]["completion_tokens"] for reply in replies)
        nfe = sum(reply["dmax"]["nfe"] for reply in replies)
        for line in (
            f"dmax_tokens_total {float(tokens)}",
            f"dmax_nfe_total {float(nfe)}",
            "dmax_queue 0.0",
            "dmax_prefix_hits_total 2.0",
            "# TYPE dmax_prefix_hits_total counter",
            'dmax_requests_total{path="/v1/chat/completions",status="200"} 2.0',
            "dmax_tpf_count 2.0",
            "dmax_tps_count 2.0",
            "dmax_time_to_first_block_seconds_count 2.0",
            "dmax_answer_seconds_count 2.0",
            "dmax_pages_held 0.0",
        ):
            assert line in text
        assert client.get("/ready").json() == {"status": "ready"}


def test_models_are_listed(serve: Any) -> None:
    with serve() as client:
        [model] = client.get("/v1/models").json()["data"]
        assert (model["id"], model["max_model_len"], model["block_length"]) == ("tiny", 512, BLOCK)
        assert (model["default_gen_length"], model["max_gen_length"]) == (24, 400)
        assert model["max_positions_in_flight"] == 128
        assert client.get("/v1/models/tiny").json() == model
        assert client.get("/v1/models/other").status_code == 404


def test_a_server_that_stops_takes_no_more_and_finishes_what_it_has(serve: Any) -> None:
    with serve() as client:
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(ask(client, decoder="fixed-steps", max_tokens=300)))
        thread.start()
        deadline = time.monotonic() + 10
        while "dmax_running 1.0" not in client.get("/metrics").text:
            assert time.monotonic() < deadline
        client.app.state.engine.drain()
        assert client.get("/ready").status_code == 503
        assert ask(client).status_code == 503
        thread.join()
        assert answers[0].status_code == 200
