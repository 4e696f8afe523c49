"""`m2rag serve`: embeddings for OpenAI's clients, and a page to search documents with."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m2rag._optional import require
from m2rag.cli.common import (
    API_KEY,
    DEVICE,
    DTYPE,
    MODEL,
    SOME_INDEX,
    VERBOSE,
    Dtype,
    TooLong,
    loading_a_model,
    note,
    with_index_model,
)
from m2rag.errors import M2RagError

if TYPE_CHECKING:
    from m2rag.server.app import Server
    from m2rag.server.settings import ServerSettings
    from m2rag.stores import VectorStore

KEYS_VARIABLE = "M2RAG_SERVER_KEYS"
_GRACE_SECONDS = 30

# A connection that is closed for being idle just when its client sends loses that request. Clients should be the first
# to close: httpx, and with it OpenAI's client, does after 5 s.
_IDLE_SECONDS = 75


def serve(
    index: SOME_INDEX = None,
    api_key: API_KEY = None,
    model: MODEL = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What clients call the model. Default: its own name.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", help="0: any that is free.", min=0, max=65_535)] = 8_000,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file",
            help=f"File of API keys, one a line. Or in the environment variable {KEYS_VARIABLE}, with commas between.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="Serve other machines without asking for a key.")] = False,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve the page and its documents too.")] = True,
    on_too_long: Annotated[
        TooLong, typer.Option("--on-too-long", help="Inputs longer than the model takes, where a request is silent.")
    ] = TooLong.ERROR,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="A lower limit than the model's.", min=1, show_default=False)
    ] = None,
    query_prompt: Annotated[str, typer.Option("--query-prompt", help="Text in front of queries.")] = "",
    document_prompt: Annotated[str, typer.Option("--document-prompt", help="Text in front of documents.")] = "",
    max_request_mb: Annotated[int, typer.Option("--max-request-mb", help="Largest body.", min=1)] = 64,
    max_waiting_tokens: Annotated[
        int, typer.Option("--max-waiting-tokens", help="Beyond it requests are answered 429.", min=1)
    ] = 4_000_000,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds until a request is given up.", min=0.1)] = 300.0,
    device: DEVICE = None,
    dtype: DTYPE = Dtype.AUTO,
    verbose: VERBOSE = False,
) -> None:
    """Serve embeddings at /v1 (as OpenAI's API does), and a page at / to index and search documents.

    Without --index the page's documents are kept until the server ends. Beyond this machine it listens only with API
    keys, or with --no-key. Ctrl-C, or SIGTERM, finishes what has begun.
    """
    require("fastapi", extra="serve")
    require("uvicorn", extra="serve")
    require("prometheus_client", extra="serve")
    from m2rag.server.settings import MEBIBYTE, ServerSettings, is_loopback

    keys = _keys(key_file)
    if not keys and not no_key and not is_loopback(host):
        raise typer.BadParameter(
            f"{host} can be reached from other machines, and there is no API key: set {KEYS_VARIABLE}, or give "
            "--key-file, or --no-key if everybody may embed, read and delete",
            param_hint="--host",
        )
    options = {"max_tokens": max_tokens, "query_prompt": query_prompt, "document_prompt": document_prompt}
    try:
        settings = ServerSettings(
            keys=keys,
            hosts=ServerSettings.hosts if is_loopback(host) else (),
            name=name,
            on_too_long=on_too_long.value,
            max_request_bytes=max_request_mb * MEBIBYTE,
            max_waiting_tokens=max_waiting_tokens,
            timeout=timeout,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error

    def build(model: str | None, store: str | Path | VectorStore | None) -> Server:
        with loading_a_model(device):
            from m2rag.backends.local import LocalBackend
            from m2rag.server.app import Server

            backend = LocalBackend.load(model, device=device, dtype=dtype.value)
            return Server(
                backend, settings=settings, index=store, temporary=index is None, api_key=api_key, options=options
            )

    with ExitStack() as stack:
        # Before the model is loaded: it is quickly told.
        listening = stack.enter_context(_listen(host, port))
        if not page:
            server = build(model, None)
        else:
            place = index or str(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="m2rag-"))) / "index")
            server = with_index_model(place, model, build, create=True, api_key=api_key)
        _run(server, settings, listening, verbose)


def _run(server: Server, settings: ServerSettings, listening: socket.socket, verbose: bool) -> None:
    import uvicorn

    class Announced(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                _announce(server, settings, listening)

    config = uvicorn.Config(
        server.app,
        lifespan="on",
        log_config=None,  # the command line has set up logging already
        access_log=verbose,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        timeout_keep_alive=_IDLE_SECONDS,
    )
    running = Announced(config)
    # Once it has shut down it hands the signal on, and there are temporary files to be removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        running.run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # how a server in a terminal is ended; it has shut down by now
    if not running.started:
        raise M2RagError("the server could not start: its log says why")
    note("Stopped.")


def _announce(server: Server, settings: ServerSettings, listening: socket.socket) -> None:
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    note(f"{server.embeddings.name} at {address}/v1 (base_url of OpenAI's clients)")
    if server.library is not None:
        kept = ", kept until the server ends" if server.library.temporary else ""
        note(f"Page: {address}/ (documents in {server.library.index.location}{kept})")
    note(f"API keys: {len(settings.keys) or 'none asked for'}. Ctrl-C ends it.")


def _keys(file: Path | None) -> tuple[str, ...]:
    lines = os.environ.get(KEYS_VARIABLE, "").split(",")
    if file is not None:
        lines += file.read_text(encoding="utf-8").splitlines()
    keys = tuple(line.strip() for line in lines if line.strip())
    if file is not None and not keys:
        raise typer.BadParameter(f"{file} holds no key", param_hint="--key-file")
    return keys


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
        return listening
    except OSError as error:
        raise M2RagError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}. Give another --port or --host"
        ) from error
