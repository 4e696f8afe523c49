"""`m2rag ask`: an answer from the documents of an index, with citations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from m2rag.cli.common import (
    API_KEY,
    AS_JSON,
    DEVICE,
    DTYPE,
    INDEX,
    MODEL,
    VERBOSE,
    Dtype,
    hit_as_json,
    note,
    open_index,
    plural,
    say,
    say_json,
    stderr,
)
from m2rag.cli.search import FILTER, filter_conditions, show_hit

if TYPE_CHECKING:
    from m2rag.answers import Answer, ChatEndpoint, Retrieved, Source, Sources

_HOW_TO_SET_ONE = (
    "No model to answer is set, so these are the passages. For an answer, name any OpenAI-style chat model: "
    "--chat-model NAME with OPENAI_API_KEY in the environment, or --chat-base-url http://localhost:8080/v1 "
    "--chat-model NAME for another server (its key: M2RAG_CHAT_API_KEY). Or set M2RAG_CHAT_MODEL and "
    "M2RAG_CHAT_BASE_URL once."
)
_PASSAGES = 3  # of a hit, in JSON
# A terminal must not take what a model or a document says for commands.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def ask(
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="What you want to know, in any words.", show_default=False)
    ],
    index: INDEX,
    api_key: API_KEY = None,
    k: Annotated[int, typer.Option("-k", help="From at most how many documents.", min=1)] = 5,
    whole: Annotated[
        bool | None,
        typer.Option(
            "--whole/--passages",
            help="Give the model whole documents as far as they fit, or passages and what stands around them. "
            "Default: whole documents where they fit, else passages.",
            show_default=False,
        ),
    ] = None,
    filter: FILTER = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score",
            help="Leave out documents farther from the question than this, by the cosine of their best passage.",
            min=-1.0,
            max=1.0,
            show_default=False,
        ),
    ] = None,
    chat_model: Annotated[
        str | None,
        typer.Option(
            "--chat-model", metavar="NAME", help="Model that answers. Default: M2RAG_CHAT_MODEL.", show_default=False
        ),
    ] = None,
    chat_base_url: Annotated[
        str | None,
        typer.Option(
            "--chat-base-url",
            metavar="URL",
            help="Its server, https://HOST/v1, or openai, or together. Default: M2RAG_CHAT_BASE_URL, else openai. Key: "
            "OPENAI_API_KEY, TOGETHER_API_KEY; for other servers M2RAG_CHAT_API_KEY.",
            show_default=False,
        ),
    ] = None,
    context_tokens: Annotated[
        int | None,
        typer.Option(
            "--context-tokens",
            help="Tokens it takes, answer included. Default: M2RAG_CHAT_CONTEXT_TOKENS, else as known, else 8192.",
            min=1,
            show_default=False,
        ),
    ] = None,
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", help="At most how long an answer.", min=1)] = 1_024,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--chat-tokenizer",
            metavar="FILE",
            help="tokenizer.json of the chat model, to count its tokens; without it they are bounded by bytes.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    model: MODEL = None,
    device: DEVICE = None,
    dtype: DTYPE = Dtype.AUTO,
    as_json: AS_JSON = False,
    verbose: VERBOSE = False,
) -> None:
    """Answer a question from the documents of an index, with citations.

    Without a chat model the passages that fit best are shown. The text of the documents is sent to the chat model's
    server.

    JSON: {question, index, answer, citations: [{number, id, title, start, end, text, at}], unknown, sources: [{number,
    id, title, start, end, text}], left_out, finish, model, usage: {prompt_tokens, answer_tokens}, hits}; answer is null
    where no model was asked; unknown: numbers cited that no source has; at: places of the citation in the answer; hits
    as in `m2rag search`.
    """
    from m2rag.answers import retrieve

    chat = _endpoint(chat_model, chat_base_url, context_tokens, answer_tokens, tokenizer)
    conditions = filter_conditions(filter)
    with open_index(index, model, device=device, dtype=dtype, api_key=api_key) as opened:
        place = opened.location
        documents = len(opened)
        retrieved = retrieve(opened, question, k=k, filter=conditions, min_score=min_score)
    limits = f"{' with this filter' if conditions else ''}{'' if min_score is None else ' this near to the question'}"
    if as_json:
        answer = _answer(retrieved, chat, whole) if chat else None
        say_json({"question": question, "index": place, **_as_json(retrieved, answer)})
    elif not retrieved.found:
        say(f"Nothing found among {plural(documents, 'document')}{limits}.")
    elif chat is None:
        for rank, found in enumerate(retrieved.found, start=1):
            show_hit(rank, found.hit, question)
    else:
        _show(retrieved, chat, whole)
    if chat is None:
        note(_HOW_TO_SET_ONE)


def _endpoint(
    model: str | None, base_url: str | None, context_tokens: int | None, answer_tokens: int, tokenizer: Path | None
) -> ChatEndpoint | None:
    from m2rag.answers import ChatEndpoint

    try:
        return ChatEndpoint.from_environment(
            model=model,
            base_url=base_url,
            context_tokens=context_tokens,
            answer_tokens=answer_tokens,
            tokenizer=tokenizer,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _answer(retrieved: Retrieved, chat: ChatEndpoint, whole: bool | None) -> Answer | None:
    """The answer in one piece; None if there was nothing to ask about."""
    from m2rag.answers import stream_answer

    *_, answer = stream_answer(retrieved, chat, whole=whole, live=False)
    chat.close()
    return answer if retrieved.found else None  # type: ignore[return-value]


def _as_json(retrieved: Retrieved, answer: Answer | None) -> dict[str, Any]:
    hits = [hit_as_json(replace(found.hit, passages=found.hit.passages[:_PASSAGES])) for found in retrieved.found]
    if answer is None:
        nothing: dict[str, Any] = dict.fromkeys(("citations", "unknown", "sources", "left_out"), [])
        return {"answer": None, **nothing, "finish": None, "model": None, "usage": None, "hits": hits}
    told = asdict(answer)
    return {"answer": told.pop("text"), **told, "hits": hits}


def _show(retrieved: Retrieved, chat: ChatEndpoint, whole: bool | None) -> None:
    """The answer as it comes, then its sources."""
    from m2rag.answers import stream_answer

    with closing(stream_answer(retrieved, chat, whole=whole)) as events:
        answer = _spoken(events)
    chat.close()
    say()
    _show_sources(answer)
    if answer.finish == "length":
        note(f"The answer was cut at {plural(chat.answer_tokens, 'token')}: --answer-tokens sets more.", style="yellow")
    elif answer.cut:
        note("The answer was cut by the provider's content filter.", style="yellow")
    if answer.unknown:
        numbers = ", ".join(f"[{number}]" for number in answer.unknown)
        note(f"The answer cites {numbers}, and there is no such source: check what it says there.", style="yellow")
    elif not answer.citations:
        note("The answer cites no source: check what it says.", style="yellow")


def _spoken(events: Iterator[Sources | str | Answer]) -> Answer:
    """The last event, after the others were shown."""
    from m2rag.answers import Answer, Sources

    begun = False
    status = stderr.status("Asking")
    status.start()
    try:
        for event in events:
            if isinstance(event, Sources):
                parts = plural(len({source.id for source in event.sources}), "document")
                status.update(f"Asking about {plural(len(event.sources), 'part')} of {parts}, {event.tokens:,} tokens")
            elif isinstance(event, Answer):
                answer = event
            else:
                if not begun:
                    status.stop()
                begun = True
                typer.echo(_CONTROL.sub("", event), nl=False)
    finally:
        status.stop()
        if begun:
            typer.echo()
    return answer


def _show_sources(answer: Answer) -> None:
    cited = {citation.number for citation in answer.citations}
    for source in answer.sources:
        say(_line(source, source.number in cited))
    if answer.left_out:
        say(f"Found, and not given to the model for want of room: {', '.join(answer.left_out)}", style="dim")


def _line(source: Source, cited: bool) -> Text:
    line = Text(f"[{source.number}] ", style="bold" if cited else "dim")
    line.append(source.title or source.id)
    if source.title and source.title != source.id:
        line.append(f"  {source.id}", style="cyan")
    line.append(f"  characters {source.start:,} to {source.end:,}{'' if cited else ', not cited'}", style="dim")
    return line
