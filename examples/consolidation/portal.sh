# Runs in the guest: nginx in front of an application that tells the office by
# mail of each order.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends nginx-light python3
cat >/usr/local/bin/portal <<'PY'
#!/usr/bin/python3
import http.server, smtplib

class Portal(http.server.BaseHTTPRequestHandler):
    def answer(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, "<h1>Customer portal</h1>")

    def do_POST(self):
        order = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with smtplib.SMTP("mail", timeout=60) as mail:
            mail.sendmail("portal@office.example", ["alice@office.example"],
                          "Subject: order\r\n\r\n" + order + "\r\n")
        self.answer(201, "ordered")

http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Portal).serve_forever()
PY
chmod 755 /usr/local/bin/portal
printf '[Service]\nExecStart=/usr/local/bin/portal\nDynamicUser=yes\nRestart=on-failure\n[Install]\nWantedBy=multi-user.target\n' \
    >/etc/systemd/system/portal.service
printf 'server { listen 80 default_server; location / { proxy_pass http://127.0.0.1:8000; } }\n' \
    >/etc/nginx/sites-available/default
systemctl daemon-reload
systemctl enable -q --now portal
systemctl restart nginx
