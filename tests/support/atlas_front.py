"""A test double of MongoDB Atlas: a real driver and a real document store, Atlas Search emulated in front of it.

What is real: requests come from an unmodified `pymongo` (or anything built on it) over TCP on 127.0.0.1; documents,
ordinary indexes, filters, aggregation stages, write errors and the 16 MB limit are those of SecantusDB, a server that
speaks MongoDB's wire protocol, in a process of its own (`SecantusProcess`).

What is emulated, in this file, after the public documentation: the commands for search indexes and the stages
`$listSearchIndexes`, `$vectorSearch` (always exact), `$search` (its `text` operator with a plain BM25) and
`$rankFusion`. What such a pipeline does afterwards runs in the store again. What is not known here is refused, never
ignored. Not verified against a real Atlas: error texts and codes, scores other than cosine, statuses between building
and ready, the time anything takes. Not there: approximate search, so recall; mongot's delays, other than those that a
test orders; clusters, TLS, SRV records; authentication is SecantusDB's.

A test that passes here shows that driver, requests and store agree; it does not replace a run against Atlas, for which
the same tests take the environment variable MONGODB_URI.
"""

from __future__ import annotations

import math
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias

import bson
import numpy as np
from bson.binary import Binary, BinaryVectorDtype
from pymongo import MongoClient
from pymongo.errors import OperationFailure

Doc: TypeAlias = "dict[str, Any]"
Namespace: TypeAlias = "tuple[str, str]"
Ranked: TypeAlias = "list[tuple[Any, float]]"
"""Ids with their scores, best first."""

OP_MSG = 2013
MORE_TO_COME = 2
SEARCH_STAGES = {"$vectorSearch", "$search", "$rankFusion"}
FILTER_OPERATORS = {"$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$not"}
RRF_K = 60
OPTIONS = "directConnection=true&serverMonitoringMode=poll"
"""How to connect. The store calls itself a replica set at its own address, which is not ours; and it does not know of
the errors a test orders, so that a driver would wait for news from it."""


class Refusal(Exception):
    """An error as the answer."""

    def __init__(self, text: str, code: int = 8) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Fault:
    """What goes wrong with the next `times` commands whose name matches `command`.

    Attributes:
        code: answer with this error code; 0 breaks the connection without an answer.
        done_first: do what was asked before that: the driver cannot know it was done.
        text: of the error.
        after: commands of that name that go well before.
    """

    times: int
    command: str
    code: int = 0
    done_first: bool = False
    text: str = "as the test ordered"
    after: int = 0


@dataclass
class SearchIndex:
    """A search index; while a new definition is built, queries go by the old one."""

    name: str
    type: str
    latest: Doc
    ready_at: float
    active: Doc | None = None
    id: str = field(default_factory=lambda: str(bson.ObjectId()))


class SecantusProcess:
    """The document store, in a process of its own and in memory; `port` once it is started."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "secantus", "--port", str(self.port), "--storage-path", ":memory:"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("SecantusDB did not start") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(20)


class AtlasFront:
    """The server a test talks to; as a context manager it runs inside the `with`.

    Args:
        backend: port of the document store. Search indexes belong to this object, documents to the store.
        build_seconds: how long a search index takes to build.
        rank_fusion: whether `$rankFusion` is known, as of MongoDB 8.0.

    Attributes:
        hold: search indexes do not get ready.
        broken: with a text, they fail with it.
        building_is_an_error: a query of an index that is not ready is refused; otherwise it finds nothing.
        frozen: searches see only documents that were there when it was set by `freeze`.
        commands: names of the commands that came, in order.
        before: called with each command before it is handled.
    """

    def __init__(self, backend: int, *, build_seconds: float = 0.0, rank_fusion: bool = True) -> None:
        self.build_seconds = build_seconds
        self.rank_fusion = rank_fusion
        self.hold = False
        self.broken: str | None = None
        self.building_is_an_error = False
        self.frozen: dict[Namespace, set[Any]] | None = None
        self.commands: list[str] = []
        self.before: Callable[[str, Doc], None] | None = None
        self.faults: list[Fault] = []
        self.indexes: dict[Namespace, dict[str, SearchIndex]] = {}
        self._backend = ("127.0.0.1", backend)
        self._store: MongoClient[Doc] = MongoClient(*self._backend, directConnection=True)
        self._port = 0
        self._listening: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._changing = threading.Lock()

    def __enter__(self) -> AtlasFront:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._store.close()

    @property
    def url(self) -> str:
        """mongodb://127.0.0.1:PORT; the port stays the same when it is stopped and started again."""
        return f"mongodb://127.0.0.1:{self._port}"

    @property
    def uri(self) -> str:
        """What drivers take."""
        return f"{self.url}/?{OPTIONS}"

    def start(self) -> None:
        """Listen."""
        self._listening = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections and break those there are; what is stored stays for the next `start`."""
        if self._listening is not None:
            _close(self._listening)
            self._listening = None
        with self._changing:
            connections = list(self._open)
        for connection in connections:
            _close(connection)

    def fail(self, times: int, command: str, **what: Any) -> None:
        """Let the next commands go wrong; see `Fault`."""
        self.faults.append(Fault(times, command, **what))

    def freeze(self) -> None:
        """From now on searches do not see what is written, until `frozen` is None again."""
        self.frozen = {}
        for database in self._store.list_database_names():
            for name in self._store[database].list_collection_names():
                self.frozen[database, name] = set(self._store[database][name].distinct("_id"))

    # Connections

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        backend = socket.create_connection(self._backend)
        with self._changing:
            self._open |= {client, backend}
        try:
            while self._one(client, backend):
                pass
        except OSError:
            pass
        finally:
            with self._changing:
                self._open -= {client, backend}
            _close(client)
            _close(backend)

    def _one(self, client: socket.socket, backend: socket.socket) -> bool:
        """Answer one request; False ends the connection."""
        raw, request, op = _read(client)
        command = _command(raw) if op == OP_MSG else {}
        name = next(iter(command), "")
        fault = self._noted(name, command)
        if fault is not None and not fault.done_first:
            return self._go_wrong(fault, client, request)
        answer = self._answer(name, command)
        if answer is not None:
            answers: Iterator[bytes] = iter([_op_msg(answer, request)])
        else:
            backend.sendall(raw)
            silent = op == OP_MSG and struct.unpack_from("<I", raw, 16)[0] & MORE_TO_COME
            answers = iter(()) if silent else _answers(backend)
        if fault is not None:
            list(answers)
            return self._go_wrong(fault, client, request)
        for told in answers:
            client.sendall(told)
        return True

    def _noted(self, name: str, command: Doc) -> Fault | None:
        if name in ("", "hello", "ismaster", "endSessions"):
            return None
        self.commands.append(name)
        if self.before is not None:
            self.before(name, command)
        for fault in self.faults:
            if fault.times > 0 and re.fullmatch(fault.command, name):
                if fault.after > 0:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def _go_wrong(self, fault: Fault, client: socket.socket, request: int) -> bool:
        if fault.code:
            client.sendall(_op_msg({"ok": 0.0, "errmsg": fault.text, "code": fault.code}, request))
        return fault.code != 0

    def _answer(self, name: str, command: Doc) -> Doc | None:
        """The answer to a command of Atlas Search; None leaves it to the store."""
        handler = _HANDLERS.get(name)
        if handler is None or not isinstance(command[name], str):
            return None
        try:
            return handler(self, (command["$db"], command[name]), command)
        except Refusal as refusal:
            return {"ok": 0.0, "errmsg": str(refusal), "code": refusal.code}
        except OperationFailure as error:  # of the store, for what a search's pipeline does afterwards
            return {"ok": 0.0, "errmsg": (error.details or {}).get("errmsg", str(error)), "code": error.code or 8}

    # Search indexes

    def _of(self, place: Namespace) -> dict[str, SearchIndex]:
        return self.indexes.setdefault(place, {})

    def _create(self, place: Namespace, command: Doc) -> Doc:
        if place[1] not in self._store[place[0]].list_collection_names():
            raise Refusal(f"Collection '{'.'.join(place)}' does not exist.", 26)
        made = []
        with self._changing:
            for asked in command["indexes"]:
                _only(asked, "name", "type", "definition")
                name, kind = asked.get("name", "default"), asked.get("type", "search")
                if name in self._of(place):
                    raise Refusal("Duplicate Index", 68)
                _check_definition(kind, asked["definition"])
                index = SearchIndex(name, kind, asked["definition"], time.monotonic() + self.build_seconds)
                self._of(place)[name] = index
                made.append({"id": index.id, "name": name})
        return {"ok": 1.0, "indexesCreated": made}

    def _update(self, place: Namespace, command: Doc) -> Doc:
        index = self._of(place).get(command["name"])
        if index is None:
            raise Refusal("Search index not found", 27)
        _check_definition(index.type, command["definition"])
        index.active = self._active(index)
        index.latest, index.ready_at = command["definition"], time.monotonic() + self.build_seconds
        return {"ok": 1.0}

    def _drop(self, place: Namespace, command: Doc) -> Doc:
        if self._of(place).pop(command.get("name", ""), None) is None:
            raise Refusal("Search index not found", 27)
        return {"ok": 1.0}

    def _built(self, index: SearchIndex) -> bool:
        return not self.hold and self.broken is None and time.monotonic() >= index.ready_at

    def _active(self, index: SearchIndex) -> Doc | None:
        """The definition queries go by; None while the first one is built."""
        return index.latest if self._built(index) else index.active

    def _shown(self, index: SearchIndex) -> Doc:
        status = "READY" if self._built(index) else "FAILED" if self.broken else "BUILDING"
        return {
            "id": index.id,
            "name": index.name,
            "type": index.type,
            "status": status,
            "queryable": self._active(index) is not None,
            "latestDefinition": index.latest,
            **({"message": self.broken} if self.broken else {}),
        }

    # Queries

    def _aggregate(self, place: Namespace, command: Doc) -> Doc | None:
        pipeline = command["pipeline"]
        first = next(iter(pipeline[0])) if pipeline else ""
        if first == "$listSearchIndexes":
            wanted = pipeline[0][first].get("name")
            found = [self._shown(index) for name, index in self._of(place).items() if wanted in (None, name)]
        elif first in SEARCH_STAGES:
            found = self._rest(place, self._ranked(place, first, pipeline[0][first]), pipeline[1:])
        else:
            return None
        return {"ok": 1.0, "cursor": {"id": bson.Int64(0), "ns": ".".join(place), "firstBatch": found}}

    def _ranked(self, place: Namespace, stage: str, asked: Doc) -> Ranked:
        if stage == "$vectorSearch":
            return self._by_vector(place, asked)
        return self._by_text(place, asked) if stage == "$search" else self._fused(place, asked)

    def _definition(self, place: Namespace, name: str, kind: str) -> Doc | None:
        """Of the index a query names; None, and so no result, if there is none that is ready."""
        index = self._of(place).get(name)
        if index is None or index.type != kind:
            return None
        active = self._active(index)
        if active is None and self.building_is_an_error:
            raise Refusal(f"cannot query index {name} while in state INITIAL_SYNC")
        return active

    def _visible(self, place: Namespace, filter: Doc, fields: list[str]) -> list[Doc]:
        found = self._store[place[0]][place[1]].find(filter, dict.fromkeys(fields, 1))
        seen = None if self.frozen is None else self.frozen.get(place, set())
        return [document for document in found if seen is None or document["_id"] in seen]

    def _by_vector(self, place: Namespace, asked: Doc) -> Ranked:
        _only(asked, "index", "path", "queryVector", "limit", "numCandidates", "filter", "exact")
        limit, candidates, exact = asked.get("limit"), asked.get("numCandidates"), asked.get("exact", False)
        if not isinstance(limit, int) or limit < 1:
            raise Refusal('"limit" must be a positive integer')
        if exact == (candidates is not None):
            raise Refusal('"numCandidates" is required for approximate search and must be omitted for exact search')
        if candidates is not None and not limit <= candidates <= 10_000:
            raise Refusal('"numCandidates" must be within bounds [limit, 10000]')
        definition = self._definition(place, asked["index"], "vectorSearch")
        if definition is None:
            return []
        fields = {(one["type"], one["path"]): one for one in definition["fields"]}
        spec = fields.get(("vector", asked["path"]))
        if spec is None:
            raise Refusal(f"Path '{asked['path']}' needs to be indexed as vector")
        kind, query = _vector(asked["queryVector"])
        if len(query) != spec["numDimensions"]:
            raise Refusal(
                f"vector field is indexed with {spec['numDimensions']} dimensions but queried with {len(query)}"
            )
        where = asked.get("filter") or {}
        _check_filter(where, {path for type, path in fields if type == "filter"})
        ids, rows = [], []
        for document in self._visible(place, where, [asked["path"]]):
            stored = _at(document, asked["path"])
            stored_kind, row = _vector(stored) if stored is not None else ("", [])
            if stored_kind == kind and len(row) == len(query):  # others are not indexed
                ids.append(document["_id"])
                rows.append(row)
        if not ids:
            return []
        scores = _similarities(np.array(rows, dtype=np.float64), np.array(query), spec["similarity"])
        best = np.argsort(-scores, kind="stable")[:limit]
        return [(ids[i], float(scores[i])) for i in best]

    def _by_text(self, place: Namespace, asked: Doc) -> Ranked:
        _only(asked, "index", "text")
        _only(asked["text"], "query", "path")
        definition = self._definition(place, asked.get("index", "default"), "search")
        if definition is None:
            return []
        path = asked["text"]["path"]
        paths = [path] if isinstance(path, str) else list(path)
        mapped = definition["mappings"]
        if not mapped.get("dynamic"):
            paths = [path for path in paths if path in mapped.get("fields", {})]
        texts = {
            document["_id"]: Counter(_words(" ".join(str(_at(document, path) or "") for path in paths)))
            for document in self._visible(place, {}, paths)
        }
        lengths = {id: sum(words.values()) for id, words in texts.items()}
        mean = sum(lengths.values()) / max(len(lengths), 1)
        scores: Counter[Any] = Counter()
        for word in set(_words(asked["text"]["query"])):
            having = [id for id, words in texts.items() if words[word]]
            rarity = math.log(1 + (len(texts) - len(having) + 0.5) / (len(having) + 0.5))
            for id in having:
                times = texts[id][word]
                scores[id] += rarity * times / (times + 1.2 * (0.25 + 0.75 * lengths[id] / mean))
        return scores.most_common()

    def _fused(self, place: Namespace, asked: Doc) -> Ranked:
        if not self.rank_fusion:
            raise Refusal("Unrecognized pipeline stage name: '$rankFusion'", 40324)
        _only(asked, "input", "combination", "scoreDetails")
        weights = asked.get("combination", {}).get("weights", {})
        scores: Counter[Any] = Counter()
        for name, pipeline in asked["input"]["pipelines"].items():
            first = next(iter(pipeline[0]))
            if first not in ("$vectorSearch", "$search"):
                raise Refusal(f"the test double does not fuse {first}")
            found = self._rest(place, self._ranked(place, first, pipeline[0][first]), pipeline[1:])
            for rank, document in enumerate(found, start=1):
                scores[document["_id"]] += weights.get(name, 1) / (RRF_K + rank)
        return scores.most_common()

    def _rest(self, place: Namespace, ranked: Ranked, stages: list[Doc]) -> list[Doc]:
        """What a pipeline does with what was found: the store does it, with rank and score as fields for the while."""
        ids, scores = [id for id, _ in ranked], [score for _, score in ranked]
        pipeline: list[Doc] = [
            {"$match": {"_id": {"$in": ids}}},
            {"$set": {"__rank": {"$indexOfArray": [{"$literal": ids}, "$_id"]}}},
            {"$set": {"__score": {"$arrayElemAt": [{"$literal": scores}, "$__rank"]}}},
            {"$sort": {"__rank": 1}},
        ]
        for stage in stages:
            stage = _with_scores(stage)
            kept = stage.get("$project")
            if kept is not None and any(value not in (0, False) for name, value in kept.items() if name != "_id"):
                stage = {"$project": {**kept, "__rank": 1, "__score": 1}}
            pipeline.append(stage)
        return list(self._store[place[0]][place[1]].aggregate([*pipeline, {"$unset": ["__rank", "__score"]}]))


_HANDLERS: dict[str, Callable[[AtlasFront, Namespace, Doc], Doc | None]] = {
    "createSearchIndexes": AtlasFront._create,
    "updateSearchIndex": AtlasFront._update,
    "dropSearchIndex": AtlasFront._drop,
    "aggregate": AtlasFront._aggregate,
}


# The wire


def _read(connection: socket.socket) -> tuple[bytes, int, int]:
    """One message: all of it, its id, its kind."""
    head = _exactly(connection, 16)
    length, request, _, op = struct.unpack("<iiii", head)
    return head + _exactly(connection, length - 16), request, op


def _exactly(connection: socket.socket, n: int) -> bytes:
    parts = []
    while n:
        part = connection.recv(min(n, 1 << 20))
        if not part:
            raise ConnectionError("closed")
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


def _answers(backend: socket.socket) -> Iterator[bytes]:
    """The answer to one request: usually one message, a stream of them for a watching `hello`."""
    while True:
        raw, _, op = _read(backend)
        yield raw
        if op != OP_MSG or not struct.unpack_from("<I", raw, 16)[0] & MORE_TO_COME:
            return


def _command(raw: bytes) -> Doc:
    """The body of an OP_MSG; documents that are sent beside it are left out."""
    at, end = 20, len(raw) - (4 if struct.unpack_from("<I", raw, 16)[0] & 1 else 0)
    while at < end:
        kind, length = raw[at], struct.unpack_from("<i", raw, at + 1)[0]
        if kind == 0:
            return bson.decode(raw[at + 1 : at + 1 + length])
        at += 1 + length
    return {}


def _op_msg(document: Doc, answers: int) -> bytes:
    body = b"\0\0\0\0\0" + bson.encode(document)
    return struct.pack("<iiii", 16 + len(body), 1, answers, OP_MSG) + body


def _close(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
    except OSError:
        pass
    connection.close()


# The rules of Atlas


def _only(asked: Doc, *known: str) -> None:
    """Refuse what would otherwise be ignored in silence."""
    unknown = [key for key in asked if key not in known]
    if unknown:
        raise Refusal(f"the test double does not know {', '.join(unknown)}")


def _check_definition(kind: str, definition: Doc) -> None:
    if kind == "search":
        _only(definition, "mappings", "analyzer", "searchAnalyzer")
        return
    if kind != "vectorSearch":
        raise Refusal(f"the test double does not know indexes of type {kind}")
    _only(definition, "fields")
    for one in definition["fields"]:
        if one["type"] == "filter":
            _only(one, "type", "path")
            continue
        _only(one, "type", "path", "numDimensions", "similarity", "quantization")
        if one["type"] != "vector" or not 1 <= one["numDimensions"] <= 8192:
            raise Refusal(f'"fields.numDimensions" must be within bounds [1, 8192], or type {one["type"]} is unknown')
        if one["similarity"] not in ("cosine", "dotProduct", "euclidean"):
            raise Refusal('"fields.similarity" must be one of [cosine, dotProduct, euclidean]')
        if one.get("quantization", "none") not in ("none", "scalar", "binary"):
            raise Refusal('"fields.quantization" must be one of [none, scalar, binary]')


def _check_filter(where: Any, allowed: set[str]) -> None:
    for key, value in where.items():
        if key in ("$and", "$or", "$nor"):
            for one in value:
                _check_filter(one, allowed)
            continue
        if key not in allowed:
            raise Refusal(f"Path '{key}' needs to be indexed as filter")
        if isinstance(value, dict) and (unknown := set(value) - FILTER_OPERATORS):
            raise Refusal(f"Operator {', '.join(sorted(unknown))} is not allowed in this context")


def _vector(value: Any) -> tuple[str, list[float]]:
    """Kind and numbers of a stored or asked vector; bits as 0 and 1."""
    if not isinstance(value, Binary):
        return "float", [float(number) for number in value]
    found = value.as_vector()
    if found.dtype == BinaryVectorDtype.PACKED_BIT:
        bits = np.unpackbits(np.array(list(found.data), dtype=np.uint8))
        return "bit", [float(bit) for bit in bits[: len(bits) - (found.padding or 0)]]
    return "float" if found.dtype == BinaryVectorDtype.FLOAT32 else "int8", [float(number) for number in found.data]


def _similarities(rows: np.ndarray, query: np.ndarray, similarity: str) -> np.ndarray:
    if similarity == "euclidean":
        return 1 / (1 + ((rows - query) ** 2).sum(axis=1))
    if similarity == "cosine":
        norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
        return (1 + rows @ query / np.maximum(norms, 1e-30)) / 2
    return (1 + rows @ query) / 2


def _with_scores(value: Any) -> Any:
    """A stage whose `$meta` expressions read the field that holds the score."""
    if isinstance(value, dict):
        if set(value) == {"$meta"}:
            return "$__score"
        return {key: _with_scores(one) for key, one in value.items()}
    return [_with_scores(one) for one in value] if isinstance(value, list) else value


def _at(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
