# Runs in the guest: an inventory, kept in SQLite.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends python3
cat >/usr/local/bin/inventory <<'PY'
#!/usr/bin/python3
import http.server, json, sqlite3

store = sqlite3.connect("/var/lib/inventory/items.db", check_same_thread=False)
store.execute("create table if not exists items (name text primary key, count integer)")

class Inventory(http.server.BaseHTTPRequestHandler):
    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(dict(store.execute("select name, count from items")))

    def do_PUT(self):
        item = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with store:
            store.execute("insert or replace into items values (?, ?)",
                          (item["name"], item["count"]))
        self.answer(item)

http.server.HTTPServer(("", 80), Inventory).serve_forever()
PY
chmod 755 /usr/local/bin/inventory
printf '[Service]\nExecStart=/usr/local/bin/inventory\nStateDirectory=inventory\nRestart=on-failure\n[Install]\nWantedBy=multi-user.target\n' \
    >/etc/systemd/system/inventory.service
systemctl daemon-reload
systemctl enable -q --now inventory
