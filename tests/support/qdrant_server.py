"""A test double of the Qdrant server: the real engine, the real client, and our own HTTP layer between them.

What is real: everything that stores, filters, scores and fuses is Qdrant Edge, Qdrant's own engine, one shard a
collection; requests come from an unmodified `qdrant_client` (or anything built on it) over TCP on 127.0.0.1.
What is emulated: routes, status codes and error texts, API keys, collection metadata, the payload schema. They follow
the published REST interface as far as the client and the tests use it; what is not known here is refused with
status 501, never ignored. What is not there: gRPC, clusters, shards, replication, snapshots, users and roles,
background optimization, persistence beyond the life of the object, versions of a real server's quirks.

A test that passes here shows that client, requests and engine agree; it does not replace a run against a real
server, for which the same tests take the environment variable QDRANT_URL.
"""

from __future__ import annotations

import json
import os
import re
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import qdrant_edge as engine

VERSION = "1.20.0"
"""What it says it is: a server that keeps collection metadata."""

Json = dict[str, Any]

_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match `route`, a regular expression on "METHOD /path".

    Attributes:
        status: answer with this instead; 0 breaks the connection without an answer.
        said: the error text of that answer.
        done_first: do what was asked before that: the client cannot know it was done.
        retry_after: the header, in seconds.
    """

    times: int
    route: str = ".*"
    status: int = 503
    said: str = "as the test ordered"
    done_first: bool = False
    retry_after: int | None = None


@dataclass
class Collection:
    """A shard, what it was created with, and its field indexes."""

    shard: Any
    config: Json
    fields: Json = field(default_factory=dict)
    writing: threading.Lock = field(default_factory=threading.Lock)


class QdrantTestServer:
    """The server; as a context manager it runs inside the `with`.

    Shards lie in memory where the system has a folder there (creating one elsewhere waits for the disk) and go away
    with the server.

    Args:
        api_key: required of every request; None asks for none.
        before: called with "METHOD /path" before each request is handled, for tests that act at a moment.
    """

    def __init__(self, *, api_key: str | None = None, before: Callable[[str], None] | None = None) -> None:
        self.collections: dict[str, Collection] = {}
        self.aliases: dict[str, str] = {}
        self.api_key = api_key
        self.before = before
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        """ "METHOD /path?query" of every request, in order of arrival."""
        self.sizes: list[int] = []
        """Bytes of their bodies."""
        self._folder = tempfile.TemporaryDirectory(prefix="qdrant-double-", dir=_MEMORY)
        self._changing = threading.Lock()
        self._port = 0
        self._http: ThreadingHTTPServer | None = None
        self._made = 0

    def __enter__(self) -> QdrantTestServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for collection in self.collections.values():
            collection.shard.close()
        self.collections.clear()
        self._folder.cleanup()

    @property
    def url(self) -> str:
        """http://127.0.0.1:PORT; the port stays the same when it is stopped and started again."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen."""
        handler = type("Handler", (_Handler,), {"server_object": self})
        self._http = _Server(("127.0.0.1", self._port), handler)
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections; what is stored stays for the next `start`."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def fail(self, times: int, route: str = ".*", **what: Any) -> None:
        """Let the next requests go wrong; see `Fault`."""
        self.faults.append(Fault(times, route, **what))

    def fault_for(self, route: str) -> Fault | None:
        """The fault of this request, counted down."""
        for fault in self.faults:
            if fault.times > 0 and re.fullmatch(fault.route, route):
                fault.times -= 1
                return fault
        return None

    def handle(self, method: str, path: str, query: dict[str, list[str]], body: Json) -> Any:
        """The result of one request."""
        if path in ("/", "/healthz", "/readyz"):
            return {"title": "qdrant - vector search engine (test double)", "version": VERSION}
        if path == "/collections":
            return {"collections": [{"name": name} for name in sorted(self.collections)]}
        if (method, path) == ("GET", "/aliases"):
            pairs = sorted(self.aliases.items())
            return {"aliases": [{"alias_name": alias, "collection_name": name} for alias, name in pairs]}
        if (method, path) == ("POST", "/collections/aliases"):
            return self._change_aliases(body)
        match = re.fullmatch(r"/collections/([^/]+)(/.*)?", path)
        if match is None:
            raise Refusal(501, f"the test double has no {method} {path}")
        name, rest = unquote(match[1]), (match[2] or "").rstrip("/")
        if rest == "/exists":
            return {"exists": self.aliases.get(name, name) in self.collections}
        if (method, rest) == ("PUT", ""):
            return self._create(name, body)
        if (method, rest) == ("DELETE", ""):
            with self._changing:
                removed = self.collections.pop(name, None)
                self.aliases = {alias: of for alias, of in self.aliases.items() if of != name}
            if removed is not None:
                removed.shard.close()
            return removed is not None
        collection = self.collections.get(self.aliases.get(name, name))
        if collection is None:
            raise Refusal(404, f"Not found: Collection `{name}` doesn't exist!")
        action = _ROUTES.get((method, rest))
        if action is None and (method, rest.rpartition("/")[0]) == ("DELETE", "/index"):
            name = unquote(rest.rpartition("/")[2])
            _write(collection, engine.UpdateOperation.delete_field_index(name))
            collection.fields.pop(_plain_key(name), None)
            return _done(query)
        if action is None:
            raise Refusal(501, f"the test double has no {method} {rest}")
        return action(collection, body, query)

    def _create(self, name: str, body: Json) -> bool:
        _only(body, "vectors", "sparse_vectors", "metadata", "hnsw_config", "quantization_config", "on_disk_payload")
        with self._changing:
            if name in self.collections:
                raise Refusal(409, f"Wrong input: Collection `{name}` already exists!")
            self._made += 1
            try:
                shard = engine.EdgeShard.create(f"{self._folder.name}/{self._made}", _shard_config(body))
            except Exception as error:  # the engine raises nothing narrower
                raise Refusal(400, f"Wrong input: {error}") from error
            self.collections[name] = Collection(shard, body)
        return True

    def _change_aliases(self, body: Json) -> bool:
        """All of the changes or none."""
        _only(body, "actions")
        with self._changing:
            aliases = dict(self.aliases)
            for action in body["actions"]:
                _only(action, "create_alias", "delete_alias")
                if gone := action.get("delete_alias"):
                    if aliases.pop(gone["alias_name"], None) is None:
                        raise Refusal(404, f"Not found: Alias {gone['alias_name']} does not exists!")
                if new := action.get("create_alias"):
                    if new["collection_name"] not in self.collections:
                        raise Refusal(404, f"Not found: Collection `{new['collection_name']}` doesn't exist!")
                    if new["alias_name"] in self.collections:
                        raise Refusal(409, f"Wrong input: Collection `{new['alias_name']}` already exists!")
                    aliases[new["alias_name"]] = new["collection_name"]
            self.aliases = aliases
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def server_bind(self) -> None:  # without the look-up of the machine's own name
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]


class _Handler(BaseHTTPRequestHandler):
    server_object: QdrantTestServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing: the tests look at `requests`."""

    def _answer(self) -> None:
        server = self.server_object
        parts = urlsplit(self.path)
        route = f"{self.command} {parts.path}"
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        server.requests.append(f"{self.command} {self.path}")
        server.sizes.append(len(raw))
        if server.before is not None:
            server.before(route)
        fault = server.fault_for(route)
        status, told = 200, {"result": None, "status": "ok", "time": 0.0}
        if fault is None or fault.done_first:
            try:
                if server.api_key is not None and self.headers.get("api-key") != server.api_key:
                    raise Refusal(401, "Must provide an API key or an Authorization bearer token")
                result = server.handle(self.command, parts.path, parse_qs(parts.query), json.loads(raw or b"{}"))
                told = result if parts.path == "/" else {**told, "result": result}
            except Refusal as refusal:
                status, told = refusal.status, {"status": {"error": str(refusal)}, "time": 0.0}
        if fault is not None and fault.status == 0:
            self.close_connection = True
            return
        if fault is not None:
            status, told = fault.status, {"status": {"error": fault.said}, "time": 0.0}
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if fault is not None and fault.retry_after is not None:
            self.send_header("retry-after", str(fault.retry_after))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer


def _only(body: Json, *known: str) -> None:
    """Refuse what would otherwise be ignored in silence."""
    unknown = [key for key, value in body.items() if key not in known and value is not None]
    if unknown:
        raise Refusal(501, f"the test double does not know {', '.join(unknown)}")


def _done(query: dict[str, list[str]]) -> Json:
    waited = query.get("wait") == ["true"]
    return {"operation_id": 1, "status": "completed" if waited else "acknowledged"}


# Collections


def _named(name: str) -> str:
    """float16 -> Float16, max_sim -> MaxSim: the REST interface and the engine spell their constants differently."""
    return "".join(part.capitalize() for part in name.split("_"))


def _memory(value: str | None) -> Any:
    return getattr(engine.Memory, _named(value)) if value else None


def _hnsw(config: Json | None) -> Any:
    if config is None:
        return None
    _only(config, "m", "ef_construct", "full_scan_threshold", "on_disk", "memory", "payload_m")
    return engine.HnswIndexConfig(
        config.get("m", 16),
        config.get("ef_construct", 100),
        config.get("full_scan_threshold", 10_000),
        on_disk=config.get("on_disk"),
        payload_m=config.get("payload_m"),
        memory=_memory(config.get("memory")),
    )


def _quantization(config: Json | None) -> Any:
    if config is None:
        return None
    _only(config, "scalar", "binary")
    if "scalar" in config:
        how = config["scalar"]
        _only(how, "type", "quantile", "always_ram", "memory")
        return engine.ScalarQuantizationConfig(
            engine.ScalarType.Int8, how.get("quantile"), how.get("always_ram"), _memory(how.get("memory"))
        )
    how = config["binary"]
    _only(how, "always_ram", "memory")
    return engine.BinaryQuantizationConfig(always_ram=how.get("always_ram"), memory=_memory(how.get("memory")))


def _vector_params(params: Json) -> Any:
    _only(
        params,
        *("size", "distance", "hnsw_config", "quantization_config", "on_disk", "memory", "datatype"),
        "multivector_config",
    )
    multi = params.get("multivector_config")
    datatype = params.get("datatype")
    return engine.EdgeVectorParams(
        params["size"],
        getattr(engine.Distance, params["distance"]),
        on_disk=params.get("on_disk"),
        multivector_config=engine.MultiVectorConfig(getattr(engine.MultiVectorComparator, _named(multi["comparator"])))
        if multi
        else None,
        datatype=getattr(engine.VectorStorageDatatype, _named(datatype)) if datatype else None,
        quantization_config=_quantization(params.get("quantization_config")),
        hnsw_config=_hnsw(params.get("hnsw_config")),
        memory=_memory(params.get("memory")),
    )


def _sparse_params(params: Json) -> Any:
    _only(params, "modifier", "index")
    index = params.get("index") or {}
    _only(index, "full_scan_threshold", "on_disk")
    modifier = engine.Modifier.Idf if params.get("modifier") == "idf" else None
    return engine.EdgeSparseVectorParams(index.get("full_scan_threshold"), index.get("on_disk"), modifier)


def _shard_config(body: Json) -> Any:
    vectors = body.get("vectors") or {}
    dense = (
        _vector_params(vectors) if "size" in vectors else {name: _vector_params(one) for name, one in vectors.items()}
    )
    return engine.EdgeConfig(
        vectors=dense or None,
        sparse_vectors={name: _sparse_params(one) for name, one in (body.get("sparse_vectors") or {}).items()},
        hnsw_config=_hnsw(body.get("hnsw_config")),
        quantization_config=_quantization(body.get("quantization_config")),
        wal_enabled=False,
    )


def _info(collection: Collection, _: Json, __: Any) -> Json:
    config = collection.config
    hnsw = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000, **(config.get("hnsw_config") or {})}
    params = {name: config[name] for name in ("vectors", "sparse_vectors") if config.get(name)}
    count = collection.shard.count(engine.CountRequest(exact=True))
    return {
        "status": "green",
        "optimizer_status": "ok",
        "indexed_vectors_count": 0,
        "points_count": count,
        "segments_count": 1,
        "config": {
            "params": params,
            "hnsw_config": hnsw,
            "optimizer_config": {"default_segment_number": 0, "flush_interval_sec": 5},
            "quantization_config": config.get("quantization_config"),
            "metadata": config.get("metadata"),
        },
        "payload_schema": {
            name: {"data_type": kind, "points": count if kind else 0} for name, kind in collection.fields.items()
        },
    }


def _update(collection: Collection, body: Json, _: Any) -> bool:
    _only(body, "metadata")
    collection.config["metadata"] = {**(collection.config.get("metadata") or {}), **(body.get("metadata") or {})}
    return True


def _index_field(collection: Collection, body: Json, query: dict[str, list[str]]) -> Json:
    _only(body, "field_name", "field_schema")
    schema = body.get("field_schema") or "keyword"
    kind = schema["type"] if isinstance(schema, dict) else schema
    _write(
        collection,
        engine.UpdateOperation.create_field_index(body["field_name"], getattr(engine.PayloadSchemaType, _named(kind))),
    )
    collection.fields[_plain_key(body["field_name"])] = kind
    return _done(query)


def _plain_key(key: str) -> str:
    """A path as the server shows it: without the quotes it can do without."""
    return re.sub(r'"([A-Za-z0-9_-]+)"', r"\1", key)


# Points


def _write(collection: Collection, operation: Any) -> None:
    with collection.writing:
        try:
            collection.shard.update(operation)
        except Exception as error:  # the engine raises nothing narrower
            raise Refusal(400, f"Wrong input: {error}") from error


def _read(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # the engine raises nothing narrower
        raise Refusal(400, f"Wrong input: {error}") from error


def _one_vector(vector: Any) -> Any:
    return engine.SparseVector(vector["indices"], vector["values"]) if isinstance(vector, dict) else vector


def _vectors(vectors: Any) -> Any:
    if isinstance(vectors, dict):
        return {name: _one_vector(vector) for name, vector in vectors.items()}
    return vectors


def _shown_vectors(vectors: Any) -> Any:
    if isinstance(vectors, dict):
        return {name: _shown_vectors(vector) for name, vector in vectors.items()}
    if isinstance(vectors, engine.SparseVector):
        return {"indices": vectors.indices, "values": vectors.values}
    return vectors


def _shown(record: Any) -> Json:
    shown = {
        "id": record.id if isinstance(record.id, int) else str(record.id),
        "payload": record.payload,
        "vector": _shown_vectors(record.vector),
    }
    if isinstance(record, engine.ScoredPoint):
        shown |= {"score": record.score, "version": record.version}
    return shown


def _upsert(collection: Collection, body: Json, query: dict[str, list[str]]) -> Json:
    _only(body, "points", "batch", "update_mode", "update_filter")
    if "batch" in body:
        batch = body["batch"]
        payloads = batch.get("payloads") or [None] * len(batch["ids"])
        vectors = batch["vectors"]
        if isinstance(vectors, dict):
            rows: Iterable[Any] = [dict(zip(vectors, row, strict=True)) for row in zip(*vectors.values(), strict=True)]
        else:
            rows = vectors
        given = list(zip(batch["ids"], rows, payloads, strict=True))
    else:
        given = [(point["id"], point["vector"], point.get("payload")) for point in body["points"]]
    mode = getattr(engine.UpdateMode, _named(body["update_mode"])) if body.get("update_mode") else None
    points = _read(lambda: [engine.Point(id, _vectors(vector), payload or {}) for id, vector, payload in given])
    condition = _filter(body.get("update_filter"))
    _write(collection, engine.UpdateOperation.upsert_points(points, condition, mode))
    return _done(query)


def _delete(collection: Collection, body: Json, query: dict[str, list[str]]) -> Json:
    _only(body, "points", "filter")
    if "points" in body:
        _write(collection, engine.UpdateOperation.delete_points(body["points"]))
    else:
        _write(collection, engine.UpdateOperation.delete_points_by_filter(_filter(body["filter"])))
    return _done(query)


def _selected(value: Any) -> Any:
    """A payload selector."""
    if isinstance(value, dict):
        if "include" in value:
            return engine.PayloadSelector.Include(value["include"])
        return engine.PayloadSelector.Exclude(value["exclude"])
    return value


def _retrieve(collection: Collection, body: Json, _: Any) -> list[Json]:
    _only(body, "ids", "with_payload", "with_vector")
    payload, vector = _selected(body.get("with_payload", True)), body.get("with_vector", False)
    return [_shown(record) for record in _read(lambda: collection.shard.retrieve(body["ids"], payload, vector))]


def _scroll(collection: Collection, body: Json, _: Any) -> Json:
    _only(body, "offset", "limit", "filter", "with_payload", "with_vector", "order_by")
    request = engine.ScrollRequest(
        offset=body.get("offset"),
        limit=body.get("limit", 10),
        filter=_filter(body.get("filter")),
        with_payload=_selected(body.get("with_payload", True)),
        with_vector=body.get("with_vector", False),
        order_by=_order(body["order_by"]) if body.get("order_by") else None,
    )
    records, following = _read(lambda: collection.shard.scroll(request))
    following = following if following is None or isinstance(following, int) else str(following)
    return {"points": [_shown(record) for record in records], "next_page_offset": following}


def _count(collection: Collection, body: Json, _: Any) -> Json:
    _only(body, "filter", "exact")
    request = engine.CountRequest(exact=body.get("exact", True), filter=_filter(body.get("filter")))
    return {"count": _read(lambda: collection.shard.count(request))}


def _facet(collection: Collection, body: Json, _: Any) -> Json:
    _only(body, "key", "limit", "filter", "exact")
    if body["key"] not in collection.fields:
        raise Refusal(400, f'Bad request: Index required but not found for "{body["key"]}" of a facet')
    request = engine.FacetRequest(
        body["key"], body.get("limit", 10), body.get("exact", False), _filter(body.get("filter"))
    )
    hits = _read(lambda: collection.shard.facet(request)).hits
    return {"hits": [{"value": hit.value, "count": hit.count} for hit in hits]}


# Queries


def _search_params(params: Json | None) -> Any:
    if params is None:
        return None
    _only(params, "hnsw_ef", "exact", "quantization", "indexed_only")
    quantized = params.get("quantization")
    if quantized:
        _only(quantized, "ignore", "rescore", "oversampling")
    return engine.SearchParams(
        hnsw_ef=params.get("hnsw_ef"),
        exact=params.get("exact", False),
        indexed_only=params.get("indexed_only", False),
        quantization=engine.QuantizationSearchParams(
            quantized.get("ignore", False), quantized.get("rescore"), quantized.get("oversampling")
        )
        if quantized
        else None,
    )


def _order(order: Any) -> Any:
    if isinstance(order, str):
        return engine.OrderBy(order)
    _only(order, "key", "direction")
    return engine.OrderBy(order["key"], getattr(engine.Direction, _named(order.get("direction") or "asc")))


def _scoring(query: Any, using: str | None) -> Any:
    """The `query` of a request: a vector, or what to do with what was prefetched."""
    if query is None:
        return None
    if isinstance(query, list) or isinstance(query, dict) and "indices" in query:
        return engine.Query.Nearest(_one_vector(query), using)
    if not isinstance(query, dict):
        raise Refusal(501, "the test double does not know queries by point id")
    _only(query, "nearest", "mmr", "fusion", "rrf", "order_by")
    if query.get("mmr"):
        mmr = query["mmr"]
        diversity = mmr.get("diversity")
        return engine.Mmr(
            _one_vector(query["nearest"]),
            1 - (0.5 if diversity is None else diversity),
            mmr.get("candidates_limit") or 100,
            using,
        )
    if "nearest" in query:
        return _scoring(query["nearest"], using)
    if "order_by" in query:
        return _order(query["order_by"])
    if "rrf" in query:
        return engine.Fusion.Rrf(query["rrf"].get("k") or 2, query["rrf"].get("weights"))
    return engine.Fusion.Rrf(2) if query["fusion"] == "rrf" else engine.Fusion.Dbsf()


def _prefetches(given: Any) -> list[Any]:
    asked = [given] if isinstance(given, dict) else given or []
    for one in asked:
        _only(one, "prefetch", "query", "using", "filter", "params", "score_threshold", "limit")
    return [
        engine.Prefetch(
            one.get("limit") or 10,
            _scoring(one.get("query"), one.get("using")),
            _prefetches(one.get("prefetch")),
            _search_params(one.get("params")),
            _filter(one.get("filter")),
            one.get("score_threshold"),
        )
        for one in asked
    ]


def _query(collection: Collection, body: Json, _: Any) -> Json:
    _only(
        body,
        *("query", "using", "prefetch", "filter", "params", "score_threshold", "limit", "offset"),
        *("with_payload", "with_vector"),
    )
    prefetches = _read(lambda: _prefetches(body.get("prefetch")))
    query = _scoring(body.get("query"), body.get("using"))
    shared = dict(
        limit=body.get("limit") or 10,
        offset=body.get("offset") or 0,
        query=query,
        prefetches=prefetches,
        filter=_filter(body.get("filter")),
        params=_search_params(body.get("params")),
        score_threshold=body.get("score_threshold"),
        with_payload=_selected(body.get("with_payload", False)),
        with_vector=body.get("with_vector", False),
    )
    return {"points": [_shown(found) for found in _read(lambda: collection.shard.query(engine.QueryRequest(**shared)))]}


def _query_batch(collection: Collection, body: Json, _: Any) -> list[Json]:
    return [_query(collection, one, None) for one in body["searches"]]


def _filter(given: Json | None) -> Any:
    if not given:
        return None
    _only(given, "must", "should", "must_not", "min_should")
    minimum = given.get("min_should")
    return engine.Filter(
        must=_all_of(given.get("must")),
        should=_all_of(given.get("should")),
        must_not=_all_of(given.get("must_not")),
        min_should=engine.MinShould(_all_of(minimum["conditions"]), minimum["min_count"]) if minimum else None,
    )


def _all_of(given: Any) -> list[Any] | None:
    if given is None:
        return None
    return [_condition(one) for one in (given if isinstance(given, list) else [given])]


def _condition(given: Json) -> Any:
    if {"must", "should", "must_not", "min_should"} & given.keys():
        return _filter(given)
    if "has_id" in given:
        return engine.HasIdCondition(set(given["has_id"]))
    if "has_vector" in given:
        return engine.HasVectorCondition(given["has_vector"])
    if "is_empty" in given:
        return engine.IsEmptyCondition(given["is_empty"]["key"])
    if "is_null" in given:
        return engine.IsNullCondition(given["is_null"]["key"])
    if "nested" in given:
        return engine.NestedCondition(given["nested"]["key"], _filter(given["nested"]["filter"]))
    _only(given, "key", "match", "range", "values_count")
    if given.get("match") is not None:
        return engine.FieldCondition(given["key"], match=_match(given["match"]))
    if given.get("values_count") is not None:
        return engine.FieldCondition(given["key"], values_count=engine.ValuesCount(**given["values_count"]))
    limits = {name: value for name, value in given["range"].items() if value is not None}
    of_dates = any(isinstance(value, str) for value in limits.values())
    return engine.FieldCondition(
        given["key"], range=engine.RangeDateTime(**limits) if of_dates else engine.RangeFloat(**limits)
    )


def _match(given: Json) -> Any:
    kinds = {
        "value": lambda value: engine.MatchValue(_plain(value)),
        "any": engine.MatchAny,
        "except": engine.MatchExcept,
        "text": engine.MatchText,
        "phrase": engine.MatchPhrase,
    }
    _only(given, *kinds)
    ((kind, value),) = given.items()
    return kinds[kind](value)


def _plain(value: Any) -> Any:
    """The engine's bindings take a Python bool for an integer, and numpy's for a bool."""
    return np.bool_(value) if isinstance(value, bool) else value


_ROUTES: dict[tuple[str, str], Callable[[Collection, Json, Any], Any]] = {
    ("GET", ""): _info,
    ("PATCH", ""): _update,
    ("PUT", "/index"): _index_field,
    ("PUT", "/points"): _upsert,
    ("POST", "/points"): _retrieve,
    ("POST", "/points/delete"): _delete,
    ("POST", "/points/scroll"): _scroll,
    ("POST", "/points/count"): _count,
    ("POST", "/points/query"): _query,
    ("POST", "/points/query/batch"): _query_batch,
    ("POST", "/facet"): _facet,
}
