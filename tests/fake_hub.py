"""A Hugging Face Hub on loopback: the routes that uploading and downloading a repository use, in a thread.

Files of over 100 bytes without a text suffix go through LFS, as on the real Hub. Every request needs the token.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"  # noqa: S105 (the fake's own)
TEXTS = (".json", ".jsonl", ".md", ".yaml", ".txt")


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class FakeHub(ThreadingHTTPServer):
    """``repos`` maps ``(type, id)`` to its branches: name → {path: content}. ``uploaded`` are the blobs sent by LFS."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.private, self.blobs, self.uploaded, self.commits = {}, set(), {}, [], []
        self.fail_after = None  # uploads that succeed before the Hub breaks
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def commit_of(self, files):
        return hashlib.sha1(
            json.dumps(sorted((k, git_oid(v)) for k, v in files.items())).encode(), usedforsecurity=False
        ).hexdigest()

    def files(self, key, revision):
        branches = self.repos.get(key)
        if branches is None:
            return None
        if revision in branches:
            return branches[revision]
        return next((files for files in branches.values() if self.commit_of(files) == revision), False)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status=200, content=b"", **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def refuse(self, code, status=404):
        self.send(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def do_any(self):
        hub, data = self.server, self.body()
        path = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if path[0] != "blobs" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse("Unauthorized", 401)
        elif path[0] == "blobs":
            if hub.fail_after is not None and len(hub.uploaded) >= hub.fail_after:
                self.refuse("Broken", 403)
                return
            hub.blobs[path[1]] = data
            hub.uploaded.append(path[1])
            self.send()
        elif path == ["api", "repos", "create"]:
            asked = json.loads(data)
            kind = asked.get("type") or "model"
            key = kind, f"{asked.get('organization') or 'me'}/{asked['name']}"
            if key in hub.repos:
                self.send(409, {"url": f"{hub.url}/{key[1]}", "error": "exists"})
                return
            hub.repos[key] = {"main": {".gitattributes": b"* lfs"}}
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(key)
            self.send(200, {"url": f"{hub.url}/{'datasets/' if kind == 'dataset' else ''}{key[1]}"})
        elif path == ["api", "validate-yaml"]:
            self.send(200, {"errors": [], "warnings": []})
        elif path[0] == "api":
            self.api((path[1][:-1], "/".join(path[2:4])), path[4:], data)
        elif path[-4:] == ["info", "lfs", "objects", "batch"]:
            asked = json.loads(data)["objects"]
            objects = [
                item
                if item["oid"] in hub.blobs
                else {**item, "actions": {"upload": {"href": f"{hub.url}/blobs/{item['oid']}"}}}
                for item in asked
            ]
            self.send(200, {"transfer": "basic", "objects": objects})
        else:
            self.resolve(path)

    do_GET = do_HEAD = do_POST = do_PUT = do_any  # noqa: N815

    def api(self, key, path, data):
        hub = self.server
        if key not in hub.repos:
            return self.refuse("RepoNotFound")
        if not path or path[0] == "revision":
            files = hub.files(key, path[1] if path else "main")
            if not isinstance(files, dict):
                return self.refuse("RevisionNotFound")
            return self.send(200, {"id": key[1], "sha": hub.commit_of(files), "siblings": [], "private": False})
        if path[0] == "branch":
            if path[1] in hub.repos[key]:
                return self.refuse("exists", 409)
            hub.repos[key][path[1]] = dict(hub.repos[key]["main"])
            return self.send()
        files = hub.files(key, path[1])
        if not isinstance(files, dict):
            return self.refuse("RevisionNotFound")
        if path[0] == "tree":
            rows = []
            for name, content in files.items():
                row = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
                if not name.endswith(TEXTS):
                    row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
                rows.append(row)
            return self.send(200, rows)
        if path[0] == "preupload":
            asked = json.loads(data)["files"]
            modes = [
                {
                    "path": item["path"],
                    "uploadMode": "regular" if item["path"].endswith(TEXTS) else "lfs",
                    "shouldIgnore": False,
                    "oid": self.oid(files, item["path"]),
                }
                for item in asked
            ]
            return self.send(200, {"files": modes})
        assert path[0] == "commit"
        changed = dict(files)
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changed[value["path"]] = hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del changed[value["path"]]
        hub.repos[key][path[1]] = changed
        hub.commits.append(sorted(set(changed) - set(files)))
        oid = hub.commit_of(changed)
        return self.send(200, {"commitUrl": f"{hub.url}/{key[1]}/commit/{oid}", "commitOid": oid})

    def oid(self, files, name):
        if name not in files:
            return None
        return git_oid(files[name]) if name.endswith(TEXTS) else hashlib.sha256(files[name]).hexdigest()

    def resolve(self, path):
        kind = "dataset" if path[0] == "datasets" else "model"
        path = path[1:] if kind == "dataset" else path
        key, revision, name = (kind, "/".join(path[:2])), path[3], "/".join(path[4:])
        files = self.server.files(key, revision)
        if files is None:
            return self.refuse("RepoNotFound")
        if files is False:
            return self.refuse("RevisionNotFound")
        if name not in files:
            return self.refuse("EntryNotFound")
        content = files[name]
        etag = self.oid(files, name)
        commit = self.server.commit_of(files)
        return self.send(200, content, ETag=f'"{etag}"', X_Repo_Commit=commit, X_Linked_Size=str(len(content)))
