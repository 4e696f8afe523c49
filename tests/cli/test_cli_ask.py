"""`m2rag ask`."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.chat_server import TEXT, ChatServer, chatting, chunk, event, streamed
from support.embedding_server import complaint

KEY = "sk-very-secret-0123456789"
QUESTION = "old houses near rivers"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "TOGETHER_API_KEY", "M2RAG_CHAT_API_KEY", "M2RAG_CHAT_MODEL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("M2RAG_CHAT_BASE_URL", "M2RAG_CHAT_CONTEXT_TOKENS"):
        monkeypatch.delenv(name, raising=False)


def there(server: ChatServer) -> tuple[str, ...]:
    return ("--chat-base-url", server.url, "--chat-model", "any-model")


def test_an_answer_and_its_sources(run, built: Path) -> None:
    with chatting() as server:
        told = run("ask", QUESTION, "-i", built, *there(server))
    assert told.exit_code == 0
    lines = told.stdout.splitlines()
    assert lines[0] == TEXT and lines[1] == ""
    assert [line[:3] for line in lines[2:]] == ["[1]", "[2]", "[3]"]
    assert ["not cited" in line for line in lines[2:]] == [False, False, True]
    assert all("characters 0 to " in line for line in lines[2:])
    [request] = server.requests
    assert request.body["stream"] is True and "Old stone houses near rivers." in server.prompts[0]


def test_without_a_model_the_passages_are_shown(run, data, built: Path) -> None:
    told = run("ask", QUESTION, "-i", built, "-k", "2")
    assert told.exit_code == 0
    assert [line.split()[0] for line in told.stdout.splitlines() if line[:3].strip()] == ["1", "2"]
    hint = " ".join(told.stderr.split())
    assert "No model to answer is set" in hint and "--chat-model" in hint and "OPENAI_API_KEY" in hint
    bare = run("ask", QUESTION, "-i", built, "-k", "2", "--json")
    assert bare.exit_code == 0 and "--chat-model" in bare.stderr
    assert data(bare)["answer"] is None and data(bare)["model"] is None and data(bare)["sources"] == []
    assert [len(hit["passages"]) <= 3 for hit in data(bare)["hits"]] == [True, True]


def test_json(run, data, built: Path) -> None:
    with chatting(text="Near rivers [1], so [9].") as server:
        told = data(run("ask", QUESTION, "-i", built, *there(server), "--json", "--passages"))
    assert told["question"] == QUESTION and told["index"] == str(built)
    assert (told["answer"], told["unknown"], told["finish"]) == ("Near rivers [1], so [9].", [9], "stop")
    assert told["usage"] == {"prompt_tokens": 321, "answer_tokens": 12} and told["model"] == "told-model"
    [citation] = told["citations"]
    assert citation["at"] == [[12, 15]] and citation["number"] == 1 and citation["id"] == told["hits"][0]["id"]
    assert {source["id"] for source in told["sources"]} | set(told["left_out"]) == {hit["id"] for hit in told["hits"]}
    assert "stream" not in server.requests[0].body


def test_settings_of_the_environment(run, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2RAG_CHAT_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    with chatting() as server:
        monkeypatch.setenv("M2RAG_CHAT_BASE_URL", server.url)
        monkeypatch.setenv("M2RAG_CHAT_MODEL", "env-model")
        told = run("-v", "ask", QUESTION, "-i", built, "--answer-tokens", "99")
    assert told.exit_code == 0 and KEY not in told.stdout + told.stderr
    [request] = server.requests
    assert (request.body["model"], request.body["max_tokens"]) == ("env-model", 99)
    assert request.headers["authorization"] == f"Bearer {KEY}"


def test_what_to_beware_of_is_told(run, built: Path) -> None:
    with chatting(text="Somewhere [7].") as server:
        told = run("ask", QUESTION, "-i", built, *there(server))
        assert told.exit_code == 0 and "cites [7], and there is no such source" in told.stderr
        server.text = "Somewhere."
        assert "cites no source" in run("ask", QUESTION, "-i", built, *there(server)).stderr
        server.fault = lambda request: streamed(event(chunk("By [1]", finish="length")), b"data: [DONE]\n\n")
        assert "cut at 50 tokens" in run("ask", QUESTION, "-i", built, *there(server), "--answer-tokens", "50").stderr
        server.fault = lambda request: streamed(event(chunk("By [1]", finish="content_filter")))
        assert "content filter" in run("ask", QUESTION, "-i", built, *there(server)).stderr


def test_an_answer_gives_the_terminal_no_commands(run, built: Path) -> None:
    with chatting(text="Near\x1b[2J rivers\r\x07\x9b [1].\nSo.\tYes.") as server:
        told = run("ask", QUESTION, "-i", built, *there(server))
    assert told.stdout.startswith("Near[2J rivers [1].\nSo.\tYes.\n")


def test_an_answer_that_breaks_off_is_an_error(run, built: Path) -> None:
    with chatting(lambda request: streamed(event(chunk("Near")), event(chunk(" ri")))) as server:
        told = run("ask", QUESTION, "-i", built, *there(server))
    assert told.exit_code == 1 and told.stdout == "Near ri\n" and "broke off after 7 characters" in told.stderr


def test_nothing_found(run, data, built: Path) -> None:
    with chatting() as server:
        told = run("ask", QUESTION, "-i", built, *there(server), "-f", "suffix=.pdf")
        assert told.exit_code == 0 and "Nothing found among 3 documents with this filter." in told.stdout
        far = run("ask", QUESTION, "-i", built, *there(server), "--min-score", "1")
        assert far.exit_code == 0 and "Nothing found among 3 documents this near to the question." in far.stdout
        empty = data(run("ask", QUESTION, "-i", built, *there(server), "-f", "suffix=.pdf", "--json"))
        assert empty["answer"] is None and empty["hits"] == []
    assert not server.requests


def test_errors(run, built: Path, tmp_path: Path) -> None:
    gone = complaint(404, "The model `any-model` does not exist", code="model_not_found")
    with chatting(lambda request: gone) as server:
        told = run("ask", QUESTION, "-i", built, *there(server))
    assert told.exit_code == 1 and "is not served" in told.stderr and "Traceback" not in told.stderr
    keyless = run("ask", QUESTION, "-i", built, "--chat-model", "gpt-4o")
    assert keyless.exit_code == 2 and "OPENAI_API_KEY" in keyless.stderr
    assert run("ask", QUESTION, "-i", built, "--chat-base-url", "http://127.0.0.1:1/v1").exit_code == 2
    assert run("ask", QUESTION, "-i", built, "--chat-tokenizer", tmp_path / "nowhere").exit_code == 2
    assert run("ask", " ", "-i", built).exit_code == 1
    assert run("ask", QUESTION, "-i", tmp_path / "nowhere").exit_code == 1
    assert run("ask", QUESTION).exit_code == 2
