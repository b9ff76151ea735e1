use super::*;
use crate::protocol::{ByteString, Event, Exec, Exit, Request, WindowSize};
use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..2000)
}

fn byte_strings() -> impl Strategy<Value = Vec<ByteString>> {
    proptest::collection::vec(bytes().prop_map(ByteString), 0..5)
}

fn window() -> impl Strategy<Value = WindowSize> {
    (any::<u16>(), any::<u16>()).prop_map(|(rows, columns)| WindowSize { rows, columns })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (any::<u32>(), any::<u32>()).prop_map(|(magic, version)| Request::Hello { magic, version }),
        (
            byte_strings(),
            byte_strings(),
            proptest::option::of(bytes().prop_map(ByteString)),
            proptest::option::of(window())
        )
            .prop_map(|(argv, env, cwd, tty)| Request::Exec(Exec {
                argv,
                env,
                cwd,
                tty
            })),
        bytes().prop_map(Request::Stdin),
        Just(Request::StdinClosed),
        window().prop_map(Request::Resize),
        any::<i32>().prop_map(Request::Signal),
        Just(Request::PowerOff),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (any::<u32>(), any::<u32>()).prop_map(|(magic, version)| Event::Hello { magic, version }),
        bytes().prop_map(Event::Stdout),
        bytes().prop_map(Event::Stderr),
        any::<u32>().prop_map(Event::StdinConsumed),
        any::<u8>().prop_map(|code| Event::Exited(Exit::Code(code))),
        any::<u8>().prop_map(|signal| Event::Exited(Exit::Signal(signal))),
        (any::<u8>(), ".*").prop_map(|(status, message)| Event::ExecFailed { status, message }),
        ".*".prop_map(|message| Event::Refused { message }),
        Just(Event::PoweringOff),
    ]
}

/// Feeds `stream` in pieces of the given sizes (cycled) and returns all messages.
fn decode_in_pieces<T: serde::de::DeserializeOwned>(stream: &[u8], pieces: &[usize]) -> Vec<T> {
    let mut decoder = FrameDecoder::default();
    let (mut messages, mut at, mut turn) = (Vec::new(), 0, 0);
    while at < stream.len() {
        let end = (at + pieces[turn % pieces.len()]).min(stream.len());
        decoder.push(&stream[at..end]);
        while let Some(message) = decoder.next_message().unwrap() {
            messages.push(message);
        }
        (at, turn) = (end, turn + 1);
    }
    assert!(!decoder.is_mid_frame());
    messages
}

proptest! {
    #[test]
    fn requests_survive_any_cut(
        requests in proptest::collection::vec(request(), 1..8),
        pieces in proptest::collection::vec(1usize..700, 1..6),
    ) {
        let mut stream = Vec::new();
        for request in &requests {
            encode(request, &mut stream).unwrap();
        }
        prop_assert_eq!(decode_in_pieces::<Request>(&stream, &pieces), requests);
    }

    #[test]
    fn events_survive_any_cut(
        events in proptest::collection::vec(event(), 1..8),
        pieces in proptest::collection::vec(1usize..700, 1..6),
    ) {
        let mut stream = Vec::new();
        for event in &events {
            encode(event, &mut stream).unwrap();
        }
        prop_assert_eq!(decode_in_pieces::<Event>(&stream, &pieces), events);
    }

    /// Whatever a peer sends, the decoder neither panics nor reads past the frame.
    #[test]
    fn garbage_is_an_error_or_a_message(garbage in bytes()) {
        let mut decoder = FrameDecoder::default();
        decoder.push(&garbage);
        while let Ok(Some(_)) = decoder.next_message::<Request>() {}
        let mut decoder = FrameDecoder::default();
        decoder.push(&garbage);
        while let Ok(Some(_)) = decoder.next_message::<Event>() {}
    }

    /// A well-formed length around garbage: the body decoder is what is tested.
    #[test]
    fn garbage_bodies_never_panic(garbage in proptest::collection::vec(any::<u8>(), 1..300)) {
        let mut stream = (garbage.len() as u32).to_le_bytes().to_vec();
        stream.extend_from_slice(&garbage);
        let mut decoder = FrameDecoder::default();
        decoder.push(&stream);
        if let Ok(Some(request)) = decoder.next_message::<Request>() {
            let mut again = Vec::new();
            encode(&request, &mut again).unwrap();
        }
    }
}

#[test]
fn a_length_out_of_bounds_is_refused_before_its_body_is_there() {
    for length in [0u32, MAX_BODY as u32 + 1, u32::MAX] {
        let mut decoder = FrameDecoder::default();
        decoder.push(&length.to_le_bytes());
        assert_eq!(
            decoder.next_message::<Request>(),
            Err(FrameError::Length {
                length: length as usize
            })
        );
    }
}

#[test]
fn bytes_after_the_message_are_refused() {
    let mut body = postcard::to_stdvec(&Request::PowerOff).unwrap();
    body.push(0);
    let mut decoder = FrameDecoder::default();
    decoder.push(&(body.len() as u32).to_le_bytes());
    decoder.push(&body);
    assert!(matches!(
        decoder.next_message::<Request>(),
        Err(FrameError::Body { .. })
    ));
}

#[test]
fn a_message_too_large_to_send_is_an_error_and_sends_nothing() {
    let mut out = vec![7];
    let message = Request::Stdin(vec![0; MAX_BODY + 1]);
    assert!(matches!(
        encode(&message, &mut out),
        Err(FrameError::Length { .. })
    ));
    assert_eq!(out, [7]);
}
