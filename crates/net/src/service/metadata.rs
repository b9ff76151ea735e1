//! The instance metadata over HTTP, in the layout and with the tokens of
//! EC2's instance metadata service, version 2, which cloud-init's "Ec2" data
//! source and other guests' tools read.
//!
//! Every path but the token's wants a token, got by PUT: so what a guest's web
//! server can be tricked into fetching doesn't leak the user data. There is no
//! version 1.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::{Network, Port};
use crate::program::flow::Milliseconds;

/// The longest request read, in bytes.
pub const MAXIMUM_REQUEST: usize = 8192;

/// How long a token may last, in seconds: 6 hours.
const MAXIMUM_TOKEN_LIFETIME: u64 = 21_600;

/// How many tokens a port may have; the oldest goes first.
const MAXIMUM_TOKENS: usize = 64;

const MAXIMUM_HEADERS: usize = 64;

/// What an instance is told about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Changes when the instance is to be set up anew.
    pub instance_id: String,
    /// The keys that may log in, in OpenSSH's format.
    pub public_keys: Vec<String>,
    /// What its owner has cloud-init do.
    pub user_data: Option<Vec<u8>>,
    /// What its provider has cloud-init do.
    pub vendor_data: Option<Vec<u8>>,
}

/// One port's metadata service.
#[derive(Debug)]
pub struct MetadataServer {
    files: BTreeMap<String, Vec<u8>>,
    tokens: VecDeque<(String, Milliseconds)>,
}

/// A response to send, after which the connection closes.
#[derive(Debug, PartialEq, Eq)]
pub enum Response {
    /// The request isn't whole yet.
    Incomplete,
    /// These bytes.
    Whole(Vec<u8>),
}

impl MetadataServer {
    /// Serves what is known about a port.
    pub fn new(network: &Network, port: &Port, metadata: &Metadata) -> Self {
        Self {
            files: files(network, port, metadata),
            tokens: VecDeque::new(),
        }
    }

    /// Tells something else from now on; tokens stay good.
    pub fn update(&mut self, network: &Network, port: &Port, metadata: &Metadata) {
        self.files = files(network, port, metadata);
    }

    /// Answers what has been received on a connection so far.
    pub fn respond(&mut self, received: &[u8], now: Milliseconds) -> Response {
        let mut headers = [httparse::EMPTY_HEADER; MAXIMUM_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let whole = match request.parse(received) {
            Ok(httparse::Status::Complete(_)) => true,
            Ok(httparse::Status::Partial) if received.len() < MAXIMUM_REQUEST => {
                return Response::Incomplete;
            }
            _ => false,
        };
        let (Some(method), Some(path), true) = (request.method, request.path, whole) else {
            return Response::Whole(error(400, "Bad Request"));
        };
        let header = |name: &str| {
            let found = request
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case(name));
            found.and_then(|header| std::str::from_utf8(header.value).ok())
        };
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let response = match method {
            "PUT" if path == "/latest/api/token" => {
                // A proxy between means that somebody else asks.
                if header("x-forwarded-for").is_some() {
                    error(403, "Forbidden")
                } else {
                    let lifetime = header("x-aws-ec2-metadata-token-ttl-seconds");
                    self.new_token(lifetime, now)
                }
            }
            "GET" | "HEAD" => {
                let token = header("x-aws-ec2-metadata-token");
                if self.is_good(token, now) {
                    self.get(path, method == "HEAD")
                } else {
                    error(401, "Unauthorized")
                }
            }
            _ => error(405, "Method Not Allowed"),
        };
        Response::Whole(response)
    }

    fn new_token(&mut self, lifetime: Option<&str>, now: Milliseconds) -> Vec<u8> {
        let lifetime = lifetime
            .and_then(|seconds| seconds.trim().parse::<u64>().ok())
            .filter(|seconds| (1..=MAXIMUM_TOKEN_LIFETIME).contains(seconds));
        let Some(seconds) = lifetime else {
            return error(400, "Bad Request");
        };
        let mut random = [0; 24];
        match rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()) {
            Ok(24) => {}
            _ => return error(503, "Service Unavailable"),
        }
        let mut token = String::with_capacity(48);
        for byte in random {
            // Writing to a string can't fail.
            let _ = write!(token, "{byte:02x}");
        }
        self.tokens.retain(|(_, until)| *until > now);
        if self.tokens.len() >= MAXIMUM_TOKENS {
            self.tokens.pop_front();
        }
        self.tokens.push_back((token.clone(), now + seconds * 1000));
        let extra = format!("X-aws-ec2-metadata-token-ttl-seconds: {seconds}\r\n");
        response(200, "OK", &extra, token.as_bytes(), false)
    }

    fn is_good(&self, token: Option<&str>, now: Milliseconds) -> bool {
        token.is_some_and(|token| {
            self.tokens
                .iter()
                .any(|(known, until)| *until > now && known == token.trim())
        })
    }

    /// A file, or what is in a directory.
    fn get(&self, path: &str, head: bool) -> Vec<u8> {
        let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return response(200, "OK", "", b"latest\n", head);
        }
        // Dated versions are the same as the latest.
        let dated = parts[0].len() == 10
            && parts[0]
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'-');
        if parts[0] != "latest" && !dated {
            return error(404, "Not Found");
        }
        parts.remove(0);
        let path = parts.join("/");
        if let Some(content) = self.files.get(&path) {
            return response(200, "OK", "", content, head);
        }
        let directory = if path.is_empty() {
            String::new()
        } else {
            format!("{path}/")
        };
        let mut entries: Vec<String> = self
            .files
            .keys()
            .filter_map(|file| file.strip_prefix(&directory))
            .map(|rest| match rest.split_once('/') {
                Some((name, _)) => format!("{name}/"),
                None => rest.to_owned(),
            })
            .collect();
        entries.dedup();
        if entries.is_empty() {
            return error(404, "Not Found");
        }
        if path == "meta-data/public-keys" {
            // Keys are listed with a name (EC2's way).
            for entry in &mut entries {
                *entry = format!("{0}=key-{0}", entry.trim_end_matches('/'));
            }
        }
        response(200, "OK", "", entries.join("\n").as_bytes(), head)
    }
}

/// Everything that is served, by path.
fn files(network: &Network, port: &Port, metadata: &Metadata) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut set = |path: String, content: String| {
        files.insert(path, content.into_bytes());
    };
    let meta = |path: &str| format!("meta-data/{path}");
    let id = if metadata.instance_id.is_empty() {
        format!("i-{}", port.mac.to_string().replace(':', ""))
    } else {
        metadata.instance_id.clone()
    };
    let hostname = if network.domain.is_empty() {
        port.name.clone()
    } else {
        format!("{}.{}", port.name, network.domain)
    };
    set(meta("instance-id"), id);
    set(meta("hostname"), hostname.clone());
    set(meta("local-hostname"), hostname.clone());
    set(meta("ami-id"), "favo".to_owned());
    set(meta("instance-type"), "favo".to_owned());
    set(meta("placement/availability-zone"), network.name.clone());
    set(meta("placement/region"), network.name.clone());
    set(meta("mac"), port.mac.to_string());
    let card = |path: &str| format!("meta-data/network/interfaces/macs/{}/{path}", port.mac);
    set(card("mac"), port.mac.to_string());
    set(card("device-number"), "0".to_owned());
    set(card("local-hostname"), hostname);
    if let (Some(address), Some(subnet)) = (port.v4, network.v4) {
        set(meta("local-ipv4"), address.to_string());
        set(card("local-ipv4s"), IpAddr::V4(address).to_string());
        set(card("subnet-ipv4-cidr-block"), subnet.prefix.to_string());
    }
    if let (Some(address), Some(subnet)) = (port.v6, network.v6) {
        set(card("ipv6s"), IpAddr::V6(address).to_string());
        set(card("subnet-ipv6-cidr-blocks"), subnet.prefix.to_string());
    }
    for (index, key) in metadata.public_keys.iter().enumerate() {
        set(
            meta(&format!("public-keys/{index}/openssh-key")),
            format!("{}\n", key.trim()),
        );
    }
    if let Some(data) = &metadata.user_data {
        files.insert("user-data".to_owned(), data.clone());
    }
    if let Some(data) = &metadata.vendor_data {
        files.insert("vendor-data".to_owned(), data.clone());
    }
    files
}

fn error(code: u16, reason: &str) -> Vec<u8> {
    response(
        code,
        reason,
        "",
        format!("{code} {reason}\n").as_bytes(),
        false,
    )
}

fn response(code: u16, reason: &str, extra: &str, body: &[u8], head: bool) -> Vec<u8> {
    let length = body.len();
    let mut bytes = format!(
        "HTTP/1.1 {code} {reason}\r\nServer: favo\r\nContent-Type: text/plain\r\n\
         Content-Length: {length}\r\nConnection: close\r\n{extra}\r\n"
    )
    .into_bytes();
    if !head {
        bytes.extend_from_slice(body);
    }
    bytes
}

#[cfg(test)]
#[path = "metadata_test.rs"]
mod test;
