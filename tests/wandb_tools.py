"""Reading W&B's offline files without W&B's own reader, and a stand-in for its server."""

from __future__ import annotations

import gzip
import json
import re
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_BLOCK, _HEAD = 32768, 7


def records(path: Path):
    """Raw records of a .wandb file; ends quietly at a torn tail."""
    data = path.read_bytes()
    assert struct.unpack_from("<4sHB", data) == (b":W&B", 0xBEE1, 0)
    place, parts = _HEAD, None
    while True:
        left = _BLOCK - place % _BLOCK
        place += left if left < _HEAD else 0
        if place + _HEAD > len(data):
            return
        crc, size, kind = struct.unpack_from("<IHB", data, place)
        piece = data[place + _HEAD : place + _HEAD + size]
        if len(piece) < size or zlib.crc32(piece, zlib.crc32(bytes([kind]))) != crc:
            return
        place += _HEAD + size
        if kind == 1:
            yield piece
        elif kind == 2:
            parts = [piece]
        elif parts is not None:
            parts.append(piece)
            if kind == 4:
                yield b"".join(parts)


def _put(tree, item) -> None:
    *path, last = list(item.nested_key) or [item.key]
    for key in path:
        tree = tree.setdefault(key, {})
    tree[last] = json.loads(item.value_json)


def read_run(path: Path) -> dict:
    """What one offline run holds."""
    from wandb.proto import wandb_internal_pb2 as pb

    out = {"run": {}, "config": {}, "summary": {}, "history": [], "files": [], "artifacts": []}
    for raw in records(path):
        record = pb.Record.FromString(raw)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            names = ("run_id", "project", "run_group", "job_type", "display_name")
            out["run"] = {name: getattr(record.run, name) for name in names}
            for item in record.run.config.update:
                _put(out["config"], item)
        elif kind == "summary":
            for item in record.summary.update:
                _put(out["summary"], item)
        elif kind == "history":
            out["history"].append({})
            for item in record.history.item:
                _put(out["history"][-1], item)
        elif kind == "files":
            out["files"] += [file.path for file in record.files.files]
        elif kind == "artifact":
            files = [content.path for content in record.artifact.manifest.contents]
            out["artifacts"].append((record.artifact.name, record.artifact.type, files))
    return out


ARTIFACT = "QXJ0aWZhY3Q6MQ=="
#: of any table: its entries are asked for by name
MANIFEST = {
    "version": 1, "storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {},
    "contents": {f"{name}.table.json": {"digest": "1B2M2Y8AsgTpgAmY7PhCfg==", "size": 1}
                 for name in ("cells", "predictions")},
}  # fmt: skip


class FakeServer:
    """Accepts runs, files and views, and remembers every request as (kind, name, payload)."""

    def __init__(self, entity="lab", project="visual-token-pruning") -> None:
        self.entity, self.project, self.calls = entity, project, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def _body(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                packed = self.headers.get("Content-Encoding") == "gzip"
                return gzip.decompress(body) if packed else body

            def _send(self, content):
                body = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self._send(MANIFEST if self.path == "/manifest" else {})

            def do_PUT(self):
                outer.calls.append(("put", self.path, self._body()))
                self._send({})

            def do_POST(self):
                body = self._body()
                if self.path.startswith("/graphql"):
                    return self._send({"data": outer.graphql(json.loads(body))})
                try:
                    payload = json.loads(body)
                except ValueError:
                    payload = body
                outer.calls.append(("post", self.path, payload))
                return self._send({"exitcode": None, "limits": {}})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def operations(self, name: str) -> list[dict]:
        return [v for kind, n, v in self.calls if kind == "graphql" and n.lower() == name.lower()]

    def graphql(self, request: dict) -> dict:
        query, given = request.get("query", ""), request.get("variables") or {}
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = request.get("operationName") or (match.group(1) if match else "viewer")
        self.calls.append(("graphql", name, given))
        project = {
            "id": "P", "name": given.get("project") or self.project, "entityName": self.entity,
            "internalId": "I", "entity": {"id": "E", "name": self.entity},
        }  # fmt: skip
        answer = getattr(self, f"_{name.lower()}", None)
        if name.lower().startswith("upsertview"):
            answer = self._upsertview
        return answer(given, project) if answer else self._viewer()

    def _viewer(self, given=None, project=None) -> dict:
        return {
            "viewer": {"id": "U", "entity": self.entity, "username": "lab", "flags": "{}",
                       "admin": False, "email": "a@b", "teams": {"edges": []}},
            "serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "0.99.0"},
                           "latestLocalVersionInfo": None},
        }  # fmt: skip

    def _upsertbucket(self, given, project) -> dict:
        bucket = {"id": "R", "name": given.get("name") or given.get("id"), "description": "",
                  "displayName": given.get("displayName"), "config": given.get("config"),
                  "sweepName": None, "historyLineCount": 0, "project": project}  # fmt: skip
        return {"upsertBucket": {"inserted": True, "bucket": bucket}}

    def _createrunfiles(self, given, project) -> dict:
        names = given.get("files", [])
        files = [{"name": f, "uploadUrl": f"{self.url}/upload/{f}"} for f in names]
        edges = [{"node": {"name": f["name"], "url": f["uploadUrl"], "updatedAt": None}}
                 for f in files]  # fmt: skip
        bucket = {"id": "R", "files": {"uploadHeaders": [], "edges": edges}}
        return {
            "createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files},
            "model": {"bucket": bucket},
        }

    _runuploadurls = _createrunfiles

    def _createartifact(self, given, project) -> dict:
        latest = {"id": ARTIFACT, "versionIndex": 0}
        made = {"id": ARTIFACT, "state": "COMMITTED",
                "artifactSequence": {"id": "S", "latestArtifact": latest}}  # fmt: skip
        return {"createArtifact": {"artifact": made}}

    def _artifactbyid(self, given, project) -> dict:
        """What a table has become: the client asks for it once it is stored."""
        sequence = {"id": "S", "name": "t", "project": project, "__typename": "ArtifactSequence"}
        return {
            "artifact": {
                "__typename": "Artifact", "id": given["id"], "artifactSequence": sequence,
                "versionIndex": 0, "artifactType": {"name": "run_table"}, "description": None,
                "metadata": "{}", "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [],
                "historyStep": 0, "state": "COMMITTED", "size": 1, "digest": "d",
                "commitHash": "c", "fileCount": 1, "createdAt": "2026-01-01T00:00:00",
                "updatedAt": None, "aliases": [],
            }
        }  # fmt: skip

    def _fetchartifactmanifest(self, given, project) -> dict:
        file = {"directUrl": f"{self.url}/manifest"}
        return {"artifact": {"currentManifest": {"file": file}}}

    def _inputfields(self, given, project) -> dict:
        return {"TypeInfo": {"inputFields": [{"name": "entityName"}, {"name": "clientID"}]}}

    def _typefields(self, given, project) -> dict:
        return {"TypeInfo": {"fields": []}}

    def _artifacttype(self, given, project) -> dict:
        return {"project": None}  # no artefact of that name yet

    def _projectinternalid(self, given, project) -> dict:
        return {"project": project}

    def _getprojects(self, given, project) -> dict:
        node = {"__typename": "Project", "id": "P", "name": self.project, "user": None,
                "entityName": self.entity, "createdAt": "2026-01-01T00:00:00", "tags": [],
                "isBenchmark": False, "access": "PRIVATE", "readOnly": False, "rateLimits": None,
                "internalId": "I"}  # fmt: skip
        page = {"__typename": "PageInfo", "endCursor": "c", "hasNextPage": False}
        edges = [{"cursor": "c", "node": node}]
        return {"models": {"totalCount": 1, "edges": edges, "pageInfo": page}}

    def _upsertview(self, given, project) -> dict:
        names = ("type", "name", "displayName", "description", "spec")
        view = {"id": "V", **{name: given.get(name) for name in names}, "user": {"username": "lab"},
                "project": {"id": "P", "name": self.project, "entityName": self.entity},
                "createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00"}  # fmt: skip
        return {"upsertView": {"inserted": True, "view": view}}
