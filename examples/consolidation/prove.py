"""Asks each server of the office from outside. Exits with 1 if one is not as it should be."""

import imaplib
import json
import smtplib
import time
import urllib.request


def patiently(what, ask, seconds=120):
    """Services take a moment until they listen."""
    end = time.monotonic() + seconds
    while True:
        try:
            result = ask()
            print(f"== {what}: {result}")
            return result
        except (OSError, smtplib.SMTPException, imaplib.IMAP4.error, AssertionError) as error:
            if time.monotonic() > end:
                raise SystemExit(f"{what}: {error!r}")
            time.sleep(1)


def http(method, url, body=None):
    request = urllib.request.Request(url, data=body, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def send():
    with smtplib.SMTP("127.0.0.1", 2525, timeout=60) as mail:
        message = "Subject: hello\r\n\r\nfrom outside\r\n"
        mail.sendmail("bob@elsewhere.example", ["alice@office.example"], message)
    return "accepted"


def subjects(*wanted):
    """The subjects in alice's mailbox, with all that are wanted."""
    box = imaplib.IMAP4("127.0.0.1", 1143, timeout=60)
    box.login("alice", "honeycomb")
    box.select("INBOX", readonly=True)
    numbers = box.search(None, "ALL")[1][0].split()
    found = []
    for number in numbers:
        header = box.fetch(number, "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")[1][0][1].decode()
        found.append(header.removeprefix("Subject:").strip())
    box.logout()
    assert set(wanted) <= set(found), f"only {found}"
    return found


def page():
    text = http("GET", "http://127.0.0.1:8080/")
    assert "Customer portal" in text
    return text


def item():
    body = json.dumps({"name": "comb", "count": 6}).encode()
    http("PUT", "http://127.0.0.1:8081/", body)
    items = json.loads(http("GET", "http://127.0.0.1:8081/"))
    assert items.get("comb") == 6, items
    return items


patiently("a mail by SMTP", send)
patiently("read by IMAP", lambda: subjects("hello"))
patiently("the portal's page", page)
patiently("an order", lambda: http("POST", "http://127.0.0.1:8080/", b"six combs"))
patiently("the portal's mail, read by IMAP", lambda: subjects("hello", "order"))
patiently("the internal application", item)
