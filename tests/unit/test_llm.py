"""The LLM judge against a local server that speaks the real protocol over HTTP."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import scipy.sparse

from lib.interp import autointerp, refusals
from lib.interp.autointerp import Trial
from lib.interp.examples import Encoded, Example, Explanation, Sequences
from lib.interp.judges import Judge
from lib.interp.llm import BudgetSpent, LLMJudge, Settings

KEY = "sk-secret-0123456789"


def chat(text, finish="stop"):
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    head = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return head | {"choices": [choice], "usage": usage}


def error(status):
    return status, {"error": {"message": f"refused, your key is {KEY}", "type": "e", "code": None}}


class Server(ThreadingHTTPServer):
    """Answers with ``script`` in order (a status and body, or a function of the request), then with ``rest``."""

    def __init__(self):
        self.script, self.rest, self.requests, self.keys, self.lock = [], None, [], set(), threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.keys.add(self.headers["authorization"])
            reply = self.server.script.pop(0) if self.server.script else self.server.rest
        if callable(reply):
            reply = reply(body)
        status, value = (200, chat(reply)) if isinstance(reply, str) else reply
        data = json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("retry-after-ms", "10")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except BrokenPipeError:
            pass  # the client did not wait

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    running = Server()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def judge(server, tmp_path):
    def make(max_requests=1000, max_tokens=1_000_000, **options):
        settings = Settings("m", server.url, "JUDGE_KEY", tmp_path / "cache", max_requests, max_tokens)
        return LLMJudge(settings, **options)

    return make


RULE = Explanation("fires on digits")
TEXTS = [[" a", " 1"], [" b"], [" c"]]


def test_an_explanation_shows_the_marked_examples(server, judge):
    server.rest = '{"explanation": " Fires on digits. "}'
    active = Example([" in", " 19", "99", " it"], np.array([0, 10, 4, 0]), 0)
    silent = Example([" none"], np.array([0]), 1)
    assert judge().explain([active, silent]) == Explanation("Fires on digits.")
    (body,) = server.requests
    assert body["model"] == "m" and body["response_format"]["json_schema"]["schema"]["required"] == ["explanation"]
    shown = body["messages"][-1]["content"].splitlines()
    assert shown == ['1. "in «19»(10)«99»(4) it"', '2. "none"']


def test_answers_in_order_and_kept_in_range(server, judge):
    server.rest = '{"answers": [12, 0, -3]}'
    assert judge().simulate(RULE, TEXTS) == [10.0, 0.0, 0.0]
    assert "fires on digits" in server.requests[0]["messages"][0]["content"]
    server.rest = '{"answers": [true, false, true]}'
    assert judge().detect(RULE, TEXTS) == [True, False, True]
    assert judge().fuzz(RULE, TEXTS, [{1}, {0}, {0}]) == [True, False, True]
    assert server.requests[-1]["messages"][-1]["content"].splitlines()[0] == '1. "a «1»"'


def test_refusals_are_judged_in_batches_and_a_spent_budget_leaves_the_rest_unknown(server, judge):
    def answer(body):
        shown = body["messages"][-1]["content"].splitlines()
        return json.dumps({"answers": ["no" in line for line in shown]})

    server.rest = answer
    responses = ["yes", "no", "yes"] * 4
    assert refusals.judged(responses, judge(), batch=5) == [text == "no" for text in responses]
    assert len(server.requests) == 3 and "refuses the request" in server.requests[0]["messages"][0]["content"]
    others = [f"{text} {i}" for i, text in enumerate(responses)]
    partial = refusals.judged(others, judge(max_requests=1, workers=1), batch=6)
    assert partial.count(None) == 6
    server.rest = "nonsense"
    assert refusals.judged(["unread"], judge()) == [None]


def test_refusals_by_the_name_of_a_judge(server, judge):
    settings = judge().settings
    server.rest = '{"answers": [false, true]}'
    responses = ["I cannot help with that.", "Sure, a poem."]
    assert refusals.refused(responses, "llm", settings) == [False, True]
    assert refusals.refused(responses, "phrases", settings) == [True, False]
    assert refusals.refused([], "llm", settings._replace(model="")) == []
    with pytest.raises(ValueError, match="unknown refusal judge 'gpt'; allowed are phrases, llm"):
        refusals.refused(responses, "gpt", settings)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_failures_are_repeated(server, judge, status):
    server.script, server.rest = [error(status)] * 2, '{"answers": [1, 2, 3]}'
    assert judge(retries=3).simulate(RULE, TEXTS) == [1, 2, 3]
    assert len(server.requests) == 3


def test_a_time_out_is_repeated(server, judge):
    server.script = [lambda body: time.sleep(1.5) or '{"answers": [9, 9, 9]}']
    server.rest = '{"answers": [1, 2, 3]}'
    assert judge(retries=2, timeout=0.5).simulate(RULE, TEXTS) == [1, 2, 3]


BAD = {
    "malformed": "the answers are 1, 2 and 3",
    "half an object": '{"answers": [1, 2',
    "another key": '{"levels": [1, 2, 3]}',
    "too few": '{"answers": [1, 2]}',
    "too many": '{"answers": [1, 2, 3, 4]}',
    "another type": '{"answers": [1, 2, "3"]}',
    "booleans for numbers": '{"answers": [1, true, 3]}',
    "not finite": '{"answers": [1, NaN, 3]}',
    "truncated": (200, chat('{"answers": [1, 2, 3]}', "length")),
    "empty": (200, chat(None)),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_an_answer_that_cannot_be_read_is_repaired_once_then_counted(server, judge, bad):
    server.script = [bad, '```json\n{"answers": [1, 2, 3]}\n```']
    repaired = judge()
    assert repaired.simulate(RULE, TEXTS) == [1, 2, 3] and repaired.usage.unparsed == 0
    *_, answer, complaint = server.requests[1]["messages"]
    assert "cannot be read" in complaint["content"] and answer["role"] == "assistant"
    server.rest = bad
    unread = judge()
    assert unread.simulate(Explanation("other"), TEXTS) is None
    assert unread.usage.unparsed == 1 and unread.usage.requests == 2


def test_a_rerun_asks_nothing_again(server, judge):
    server.script, server.rest = ["nonsense"], '{"answers": [1, 2, 3]}'
    first, second = judge(), judge()
    assert first.simulate(RULE, TEXTS) == second.simulate(RULE, TEXTS) == [1, 2, 3]
    assert len(server.requests) == 2 and second.usage.requests == 0 and second.usage.cached == 2
    assert first.usage.input_tokens == 200 and first.cost(1.0, 10.0) == pytest.approx((200 + 140) / 1e6)
    assert first.bill((1e4, 1e5)).endswith("'input_tokens': 200, 'output_tokens': 14}, cost 3.40")


def test_a_server_without_structured_answers_is_asked_without(server, judge):
    server.script, server.rest = [error(400)], '{"answers": [1, 2, 3]}'
    asking = judge()
    assert asking.simulate(RULE, TEXTS) == asking.simulate(Explanation("other"), TEXTS) == [1, 2, 3]
    assert ["response_format" in body for body in server.requests] == [True, False, False]


@pytest.mark.parametrize(("status", "said"), [
    (401, "JUDGE_KEY"),
    (403, "JUDGE_KEY"),
    (404, "'m'"),
    (400, "status 400"),
    (500, "status 500"),
])
def test_what_cannot_be_helped_is_one_sentence_without_the_key(server, judge, status, said):
    server.rest = error(status)
    with pytest.raises(ValueError, match=said) as raised:
        judge(retries=1).simulate(RULE, TEXTS)
    assert KEY not in str(raised.value) and raised.value.__cause__ is None


def test_no_server(server, judge):
    asking = judge(retries=0)
    server.shutdown()
    server.server_close()
    with pytest.raises(ValueError, match=r"no answer from http://127.0.0.1:\d+/v1 after 1 tries"):
        asking.simulate(RULE, TEXTS)


@pytest.mark.parametrize(("model", "url", "said"), [
    ("", "http://localhost/v1", "needs a model"),
    ("m", "localhost:11434", "base URL"),
    ("m", f"http://me:{KEY}@host/v1", "NO_KEY"),
    ("m", "https://api.host/v1", "NO_KEY holds no key"),
])
def test_wrong_settings(tmp_path, model, url, said):
    with pytest.raises(ValueError, match=said) as raised:
        LLMJudge(Settings(model, url, "NO_KEY", tmp_path))
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("url", ["http://localhost/v1", "https://api.host/v1", "http://me:word@host/v1"])
def test_a_key_in_the_place_of_its_variable_is_not_repeated(tmp_path, url):
    with pytest.raises(ValueError, match="llm_key_variable must be the name of an environment variable") as raised:
        LLMJudge(Settings("m", url, KEY, tmp_path))
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("budget", [{"max_requests": 3}, {"max_tokens": 320}])
def test_the_budget_stops_before_it_is_overrun(server, judge, budget):
    server.rest = '{"answers": [1, 2, 3]}'
    asking = judge(**budget)
    for i in range(3):
        asking.simulate(Explanation(str(i)), TEXTS)
    with pytest.raises(BudgetSpent, match="3 of"):
        asking.simulate(Explanation("one more"), TEXTS)
    assert len(server.requests) == 3
    assert asking.simulate(Explanation("0"), TEXTS) == [1, 2, 3]  # known answers are free


def reader(body):
    """A language model that understands one thing: digits."""
    system, user = body["messages"][0]["content"], body["messages"][-1]["content"]
    texts = [json.loads(line.split(". ", 1)[1]) for line in user.splitlines()]
    if "explanation" in body["response_format"]["json_schema"]["schema"]["properties"]:
        n_digits = sum(len(re.findall(r"«\d+»", text)) for text in texts)
        n_marked = sum(text.count("«") for text in texts)
        return json.dumps({"explanation": "digits" if n_digits > 0.8 * n_marked else "anything"})
    if "highest-activating" in system:
        on_digits = "as: digits" in system
        return json.dumps({"answers": [10 if on_digits and re.search(r"\d", text) else 0 for text in texts]})
    pattern = r"«\d+»" if "«" in user else r"\d"
    return json.dumps({"answers": [bool(re.search(pattern, text)) for text in texts]})


def planted_text(n=400, width=16, seed=0):
    rng = np.random.default_rng(seed)
    tokens = []
    for _ in range(n * width):
        is_digit = rng.random() < 0.02
        tokens.append(f" {rng.integers(9)}" if is_digit else f" w{'abcdefgh'[rng.integers(8)]}")
    activations = np.zeros((n * width, 1), dtype=np.float16)
    return Sequences(tokens, np.arange(n + 1) * width, np.arange(n) % 2 == 1, activations)


def on_digits(text):
    """Activations of a latent that fires on digits, at every token."""
    return np.array([token.strip().isdigit() for token in text.tokens], dtype=np.float32)


@pytest.mark.parametrize("task", ["simulation", "detection", "fuzzing"])
def test_a_planted_latent_scores_well_and_a_shuffled_one_nothing(server, judge, task):
    server.rest, text = reader, planted_text()
    digits = on_digits(text)
    shuffled = [np.random.default_rng(seed).permutation(digits) for seed in range(12)]
    encoded = Encoded(text, scipy.sparse.csc_matrix(np.stack([digits, *shuffled], axis=1)))
    asking = judge(workers=4)
    assert isinstance(asking, Judge)
    table = autointerp.score_sae(asking, encoded, Trial(50, seed=0, task=task)).table
    assert (table["status"] == "scored").all()
    assert table["score"][0] >= 0.8 and abs(table["score"][1:].mean()) <= 0.1


def test_a_budget_spent_half_way_keeps_the_judged_part(server, judge, tmp_path):
    server.rest, text = reader, planted_text()
    rng = np.random.default_rng(0)
    latents = on_digits(text)[:, None] * (rng.random((len(text.tokens), 10)) < 0.6)
    encoded, trial = Encoded(text, scipy.sparse.csc_matrix(latents)), Trial(50, seed=0)
    partial = autointerp.score_sae(judge(workers=2, max_requests=9), encoded, trial)
    statuses = partial.table["status"].value_counts()
    assert statuses["scored"] >= 3 and statuses["scored"] + statuses["budget spent"] == 10
    assert "9 of 9 requests" in partial.stopped
    again = autointerp.score_sae(judge(workers=2), encoded, trial)
    assert (again.table["status"] == "scored").all() and len(server.requests) == 20
    kept = partial.table["status"] == "scored"
    np.testing.assert_array_equal(partial.table["score"][kept], again.table["score"][kept])


def test_the_key_reaches_the_server_and_no_file(server, judge, tmp_path, capfd):
    server.script, server.rest = [error(500), error(429)], reader
    text = planted_text(100)
    encoded = Encoded(text, scipy.sparse.csc_matrix(on_digits(text)[:, None]))
    scored = autointerp.score_sae(judge(), encoded, Trial(50, seed=0))
    scored.table.to_parquet(tmp_path / "table.parquet")
    assert server.keys == {f"Bearer {KEY}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3 and not any(KEY.encode() in path.read_bytes() for path in files)
    assert KEY not in "".join(capfd.readouterr())
