//! The socket, with a handler that plays a machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use super::*;

struct Toy;

impl Handler for Toy {
    fn handle(&self, request: Request, _: Vec<OwnedFd>) -> Result<Reply, ControlError> {
        match request {
            Request::Pause => Ok(Answer::Done.into()),
            Request::Agent => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                (&ours).write_all(b"the agent").unwrap();
                Ok(Reply {
                    answer: Answer::Agent,
                    descriptors: vec![theirs.into()],
                })
            }
            other => Err(ControlError::new(
                "no",
                format!("{other:?}"),
                "ask for less",
            )),
        }
    }
}

fn toy() -> (tempfile::TempDir, PathBuf, Server) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("socket");
    let server = Server::start(&path, std::sync::Arc::new(Toy)).unwrap();
    (place, path, server)
}

#[test]
fn requests_are_answered_in_order_and_errors_have_one_shape() {
    let (_place, path, server) = toy();
    let mut client = Client::connect(&path).unwrap();
    for _ in 0..3 {
        assert_eq!(client.ask(&Request::Pause).unwrap().answer, Answer::Done);
        let request = Request::Snapshot {
            directory: "/x".into(),
            incremental: true,
        };
        let Err(ClientError::Refused(error)) = client.ask(&request) else {
            panic!("it was not refused");
        };
        assert_eq!(
            (error.code.as_str(), error.hint.as_str()),
            ("no", "ask for less")
        );
        assert!(error.message.contains("/x"));
    }
    let reply = client.ask(&Request::Agent).unwrap();
    let mut said = String::new();
    UnixStream::from(reply.descriptors.into_iter().next().unwrap())
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(said, "the agent");
    drop(server);
    assert!(!path.exists());
    assert!(client.ask(&Request::Pause).is_err());
}

#[test]
fn lines_that_are_no_requests_are_refused_by_name() {
    let (_place, path, _server) = toy();
    let stream = UnixStream::connect(&path).unwrap();
    let mut lines = BufReader::new(&stream).lines();
    for (line, code) in [
        ("{}", "bad-request"),
        ("[1,2", "bad-request"),
        ("{\"version\":1,\"verb\":\"explode\"}", "bad-request"),
        ("{\"version\":1,\"verb\":\"snapshot\"}", "bad-request"),
        ("{\"version\":9,\"verb\":\"pause\"}", "unsupported-version"),
    ] {
        (&stream).write_all(format!("{line}\n").as_bytes()).unwrap();
        let answer = lines.next().unwrap().unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"]["code"], code, "{line}");
        assert_eq!(answer["version"], 1);
    }
    (&stream)
        .write_all(b"{\"version\":1,\"verb\":\"pause\"}\n")
        .unwrap();
    let answer = lines.next().unwrap().unwrap();
    assert_eq!(answer, "{\"version\":1,\"ok\":{\"kind\":\"done\"}}");
    // A line without end is not kept.
    let stream = UnixStream::connect(&path).unwrap();
    let _ = (&stream).write_all(&vec![b'x'; 9 << 20]);
    let mut answer = String::new();
    let _ = (&stream).read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.contains("too long"), "{answer}");
}

#[test]
fn the_socket_is_its_owners_and_a_dead_one_is_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let (place, path, server) = toy();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let taken = Server::start(&path, std::sync::Arc::new(Toy)).map(|_| ());
    assert_eq!(taken.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    drop(server);
    let dead = place.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let _server = Server::start(&dead, std::sync::Arc::new(Toy)).unwrap();
    Client::connect(&dead)
        .unwrap()
        .ask(&Request::Pause)
        .unwrap();
    assert!(matches!(
        Client::connect(&path),
        Err(ClientError::Io { .. })
    ));
}
