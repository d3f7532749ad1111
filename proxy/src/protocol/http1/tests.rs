use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;
use crate::tests::harness::run;

/// The guard's output for these bytes, arriving in chunks of `size`, until their end or a refusal.
async fn guarded(bytes: &[u8], size: usize) -> (Vec<u8>, Option<Violation>, Option<io::ErrorKind>) {
    let (mut client, server): (DuplexStream, DuplexStream) = duplex(1 << 20);
    let (mut strict, guard) = GuardedStream::new(server, Vec::new());
    let mut out = Vec::new();
    let mut failed = None;
    let mut pieces = bytes.chunks(size);
    loop {
        // Yield, because tokio limits the number of reads per poll of a task.
        tokio::task::yield_now().await;
        match pieces.next() {
            Some(piece) => client.write_all(piece).await.unwrap(),
            None => client.shutdown().await.unwrap(),
        }
        let mut space = vec![0; 1 << 16];
        let read = async {
            loop {
                match strict.read(&mut space).await {
                    Ok(0) => return false,
                    Ok(read) => out.extend_from_slice(&space[..read]),
                    Err(error) => {
                        failed = Some(error.kind());
                        return false;
                    }
                }
            }
        };
        // Read as long as bytes are available; when the guard waits for more, write the next chunk.
        let mut read = std::pin::pin!(read);
        let more = std::future::poll_fn(|cx| match read.as_mut().poll(cx) {
            Poll::Ready(more) => Poll::Ready(more),
            Poll::Pending => Poll::Ready(true),
        })
        .await;
        if !more || guard.broken().is_some() {
            return (out, guard.broken(), failed);
        }
        if pieces.len() == 0 && bytes.is_empty() {
            return (out, None, failed);
        }
    }
}

async fn refuses(request: &str, expected: Violation) {
    for size in [1, 7, 1 << 16] {
        let (out, violation, _) = guarded(request.as_bytes(), size).await;
        assert_eq!(violation, Some(expected), "{request:?} in chunks of {size}");
        // No byte of a refused head is delivered, and nothing after it.
        assert!(
            out.is_empty() || out == PLACEHOLDER || !request.starts_with("GET /refused"),
            "{:?}",
            String::from_utf8_lossy(&out)
        );
    }
}

async fn passes(request: &str) {
    for size in [1, 7, 1 << 16] {
        let (out, violation, failed) = guarded(request.as_bytes(), size).await;
        assert_eq!(
            (violation, failed),
            (None, None),
            "{request:?} in chunks of {size}"
        );
        assert_eq!(
            String::from_utf8_lossy(&out),
            request,
            "in chunks of {size}"
        );
    }
}

#[test]
fn unambiguous_requests_pass_unchanged() {
    run(async {
        for request in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a?b=c HTTP/1.0\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET http://a/b HTTP/1.1\r\nhost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\nx-checksum: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: \tvalue with é\r\n\r\n",
        ] {
            passes(request).await;
        }
    });
}

/// The smuggling corpus: requests that servers interpret differently.
#[test]
fn ambiguous_requests_are_refused() {
    run(async {
        use Violation as V;
        let get = |fields: &str| format!("GET /refused HTTP/1.1\r\n{fields}\r\n");
        let post = |fields: &str| {
            format!(
                "POST /refused HTTP/1.1\r\nHost: a\r\n{fields}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
            )
        };
        for (request, expected) in [
            // CL.TE, TE.CL, TE.TE
            (
                post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
                V::LengthAndEncoding,
            ),
            (
                post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
                V::LengthAndEncoding,
            ),
            (
                post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
                V::TransferEncoding,
            ),
            (
                post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
                V::TransferEncoding,
            ),
            (
                post("Transfer-Encoding: identity, chunked\r\n"),
                V::TransferEncoding,
            ),
            (
                post("Transfer-Encoding: chunked, chunked\r\n"),
                V::TransferEncoding,
            ),
            (
                post("Transfer-Encoding: chunked, identity\r\n"),
                V::TransferEncoding,
            ),
            (post("Transfer-Encoding: xchunked\r\n"), V::TransferEncoding),
            (
                post("Transfer-Encoding: \"chunked\"\r\n"),
                V::TransferEncoding,
            ),
            (post("Transfer-Encoding: gzip\r\n"), V::TransferEncoding),
            (post("Transfer-Encoding:\r\n"), V::TransferEncoding),
            (
                post("Transfer-Encoding: chunked;q=1\r\n"),
                V::TransferEncoding,
            ),
            (post("Transfer-Encoding: \x0bchunked\r\n"), V::FieldValue),
            (post("Transfer-Encoding : chunked\r\n"), V::FieldName),
            (post("Transfer_Encoding: chunked\r\n"), V::FieldName),
            (post(" Transfer-Encoding: chunked\r\n"), V::Folded),
            (post("X: y\r\n\tTransfer-Encoding: chunked\r\n"), V::Folded),
            (post("X: y\rTransfer-Encoding: chunked\r\n"), V::LineEnd),
            (post("X: y\nTransfer-Encoding: chunked\r\n"), V::LineEnd),
            (post("Transfer-Encoding: chunked\n"), V::LineEnd),
            (
                post("Content-Length: 3\r\nContent-Length: 3\r\n"),
                V::ContentLength,
            ),
            (
                post("Content-Length: 3\r\nContent-Length: 30\r\n"),
                V::ContentLength,
            ),
            (post("Content-Length: 3, 3\r\n"), V::ContentLength),
            (post("Content-Length: +3\r\n"), V::ContentLength),
            (post("Content-Length: -3\r\n"), V::ContentLength),
            (post("Content-Length: 003\r\n"), V::ContentLength),
            (post("Content-Length: 0x3\r\n"), V::ContentLength),
            (post("Content-Length: 3 \x0c\r\n"), V::FieldValue),
            (post("Content-Length:\r\n"), V::ContentLength),
            (
                post("Content-Length: 99999999999999999999\r\n"),
                V::ContentLength,
            ),
            (post("Content-Length: 3\0\r\n"), V::FieldValue),
            // Hosts
            (get(""), V::Host),
            (get("Host: a\r\nHost: a\r\n"), V::Host),
            (get("Host: a\r\nhost: b\r\n"), V::Host),
            // Fields that must be unique
            (
                get("Host: a\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n"),
                V::Repeated,
            ),
            (
                get("Host: a\r\nContent-Type: a/b\r\nContent-Type: c/d\r\n"),
                V::Repeated,
            ),
            (
                get("Host: a\r\nTraceparent: 1\r\ntraceparent: 2\r\n"),
                V::Repeated,
            ),
            // Names and lines
            (get("Host: a\r\n: empty\r\n"), V::FieldName),
            (get("Host: a\r\nno colon\r\n"), V::FieldName),
            (get("Host: a\r\nX-Merlon_User: root\r\n"), V::FieldName),
            (get("Host: a\r\nX\x01: y\r\n"), V::FieldName),
            // Request lines
            (
                "GET /refused HTTP/1.1\nHost: a\r\n\r\n".to_owned(),
                V::LineEnd,
            ),
            (
                "GET  /refused HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                V::RequestLine,
            ),
            (
                "GET /refused  HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                V::RequestLine,
            ),
            (
                "GET /refused\tHTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                V::RequestLine,
            ),
            (
                "GET /refused x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                V::RequestLine,
            ),
            ("GET /refused\r\nHost: a\r\n\r\n".to_owned(), V::RequestLine),
            (
                "GET /refused HTTP/1.2\r\nHost: a\r\n\r\n".to_owned(),
                V::Version,
            ),
            (
                "GET /refused HTTP/2.0\r\nHost: a\r\n\r\n".to_owned(),
                V::Version,
            ),
            (
                "GET /refused HTTP/0.9\r\nHost: a\r\n\r\n".to_owned(),
                V::Version,
            ),
            (
                "GET /refused http/1.1\r\nHost: a\r\n\r\n".to_owned(),
                V::RequestLine,
            ),
            (
                "GET refused HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                V::Target,
            ),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), V::Target),
            (
                "GET /refused#x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                V::Target,
            ),
            (
                "GET /refused\x7f HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                V::Target,
            ),
            (
                "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                V::Target,
            ),
            (
                "G\x01T /refused HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                V::RequestLine,
            ),
            (
                "\r\nGET /refused HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                V::RequestLine,
            ),
            (
                "POST /refused HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                    .to_owned(),
                V::TransferEncoding,
            ),
        ] {
            refuses(&request, expected).await;
        }
    });
}

#[test]
fn a_malformed_chunked_body_ends_in_an_error() {
    run(async {
        use Violation as V;
        let with = |body: &str| {
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
        };
        for (body, expected) in [
            ("x\r\n", V::Chunk),
            ("\r\n", V::Chunk),
            (" 3\r\nabc\r\n", V::Chunk),
            ("3 \r\nabc\r\n", V::Chunk),
            ("+3\r\nabc\r\n", V::Chunk),
            ("0x3\r\nabc\r\n", V::Chunk),
            ("3\nabc\r\n", V::Chunk),
            ("3\r\nabcd\r\n", V::Chunk),
            ("3\r\nabc\n", V::Chunk),
            ("3;x\ny\r\nabc\r\n", V::Chunk),
            ("fffffffffffffffff\r\n", V::Chunk),
            ("0\r\nHost: b\r\n\r\n", V::Trailer),
            ("0\r\nContent-Length: 3\r\n\r\n", V::Trailer),
            ("0\r\nAuthorization: Bearer x\r\n\r\n", V::Trailer),
            ("0\r\nmerlon-user: root\r\n\r\n", V::Trailer),
            ("0\r\nX-Forwarded_For: 1\r\n\r\n", V::Trailer),
            ("0\r\n folded\r\n\r\n", V::Trailer),
            ("0\r\nx: y\n\r\n", V::LineEnd),
        ] {
            for size in [1, 7, 1 << 16] {
                let (_, violation, failed) = guarded(with(body).as_bytes(), size).await;
                // In one chunk the head was not delivered yet, so the whole message is refused.
                assert_eq!(violation, Some(expected), "{body:?} in chunks of {size}");
                assert!(failed.is_none_or(|kind| kind == io::ErrorKind::InvalidData));
            }
        }
        let long = format!("3;{}\r\n", "x".repeat(MAX_EXTENSIONS + 1));
        let (_, violation, _) = guarded(with(&long).as_bytes(), 4096).await;
        assert_eq!(violation, Some(V::ChunkExtensions));
        let many: String = (0..=MAX_TRAILER_FIELDS)
            .map(|n| format!("x{n}: y\r\n"))
            .collect();
        let (_, violation, _) = guarded(with(&format!("0\r\n{many}\r\n")).as_bytes(), 4096).await;
        assert_eq!(violation, Some(V::Trailer));
    });
}

#[test]
fn sizes_are_limited_before_the_end_arrives() {
    run(async {
        let long = format!(
            "GET /{} HTTP/1.1\r\nHost: a\r\n\r\n",
            "a".repeat(MAX_TARGET)
        );
        refuses(&long, Violation::TargetTooLong).await;
        let (_, violation, _) = guarded("a".repeat(10_000).as_bytes(), 4096).await;
        assert_eq!(violation, Some(Violation::TargetTooLong));
        let large = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
            "a".repeat(MAX_HEAD)
        );
        let (_, violation, _) = guarded(large.as_bytes(), 4096).await;
        assert_eq!(violation, Some(Violation::HeadTooLarge));
        let many: String = (0..MAX_FIELDS).map(|n| format!("x{n}: y\r\n")).collect();
        refuses(
            &format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"),
            Violation::TooManyFields,
        )
        .await;
    });
}

#[test]
fn bytes_after_an_upgrade_wait_for_the_response() {
    run(async {
        let ask = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
        for (switched, follows) in [
            (true, "\x01\x02\nraw"),
            (false, "GET /next HTTP/1.1\r\nHost: a\r\n\r\n"),
        ] {
            let (mut client, server) = duplex(1 << 16);
            let (mut strict, guard) = GuardedStream::new(server, Vec::new());
            client
                .write_all(format!("{ask}{follows}").as_bytes())
                .await
                .unwrap();
            let mut space = [0; 4096];
            let read = strict.read(&mut space).await.unwrap();
            assert_eq!(&space[..read], ask.as_bytes());
            let held = futures_util::poll!(std::pin::pin!(strict.read(&mut space)));
            assert!(held.is_pending(), "nothing is read before the response");
            guard.answered(1, switched);
            let read = strict.read(&mut space).await.unwrap();
            assert_eq!(&space[..read], follows.as_bytes());
            assert_eq!(guard.broken(), None);
        }
    });
}

#[test]
fn after_a_refused_upgrade_the_next_bytes_are_validated_as_a_request() {
    run(async {
        let (mut client, server) = duplex(1 << 16);
        let (mut strict, guard) = GuardedStream::new(server, Vec::new());
        let ask = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nnot http\r\n\r\n";
        client.write_all(ask.as_bytes()).await.unwrap();
        let mut space = [0; 4096];
        assert!(strict.read(&mut space).await.unwrap() > 0);
        guard.answered(1, false);
        let read = strict.read(&mut space).await.unwrap();
        assert_eq!(&space[..read], PLACEHOLDER);
        assert_eq!(guard.violation(2), Some(Violation::RequestLine));
        assert_eq!(
            guard.violation(1),
            None,
            "the first request was well formed"
        );
    });
}

#[test]
fn a_head_that_does_not_end_in_time_is_refused() {
    run(async {
        let (mut client, server) = duplex(1 << 16);
        let (mut strict, guard) = GuardedStream::new(server, Vec::new());
        strict.head_timeout = Duration::from_millis(10);
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n")
            .await
            .unwrap();
        let mut space = [0; 4096];
        let read = strict.read(&mut space).await.unwrap();
        assert_eq!(&space[..read], PLACEHOLDER);
        assert_eq!(guard.violation(1), Some(Violation::Timeout));
    });
}

#[test]
fn the_response_to_an_earlier_request_does_not_affect_an_upgrade() {
    run(async {
        let (mut client, server) = duplex(1 << 16);
        let (mut strict, guard) = GuardedStream::new(server, Vec::new());
        let first = "GET /first HTTP/1.1\r\nHost: a\r\n\r\n";
        let ask =
            "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        client
            .write_all(format!("{first}{ask}raw").as_bytes())
            .await
            .unwrap();
        let mut space = [0; 4096];
        assert_eq!(strict.read(&mut space).await.unwrap(), first.len());
        assert_eq!(strict.read(&mut space).await.unwrap(), ask.len());
        guard.answered(1, false);
        let held = futures_util::poll!(std::pin::pin!(strict.read(&mut space)));
        assert!(held.is_pending());
        guard.answered(2, true);
        let read = strict.read(&mut space).await.unwrap();
        assert_eq!(&space[..read], b"raw");
    });
}

mod property {
    use proptest::prelude::*;

    use super::*;

    /// Building blocks of smuggling attempts.
    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("Content-Length: 3\r\n".to_owned()),
            Just("Transfer-Encoding: chunked\r\n".to_owned()),
            Just("Host: a\r\n".to_owned()),
            Just("Connection: close\r\n".to_owned()),
            Just("\r\n".to_owned()),
            Just("\n".to_owned()),
            Just("\r".to_owned()),
            Just("GET / HTTP/1.1\r\n".to_owned()),
            Just("0\r\n\r\n".to_owned()),
            Just("3\r\nabc\r\n".to_owned()),
            "[ -~]{0,12}".prop_map(|text| text),
            "[A-Za-z-]{1,8}: [ -~]{0,8}\r\n".prop_map(|text| text),
        ]
    }

    proptest! {
    /// The result does not depend on how the bytes are split.
            #[test]
            fn the_result_does_not_depend_on_chunk_sizes(pieces in prop::collection::vec(piece(), 0..12), size in 1_usize..40) {
                let text = format!("POST / HTTP/1.1\r\n{}", pieces.concat());
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let (whole, one, _) = runtime.block_on(guarded(text.as_bytes(), 1 << 16));
                let (cut, other, _) = runtime.block_on(guarded(text.as_bytes(), size));
                prop_assert_eq!(one, other);
                if one.is_none() {
                    prop_assert_eq!(whole, cut);
                }
            }

    /// httparse reads every valid head with the same fields and the same end.
            #[test]
            fn another_parser_reads_valid_heads_the_same_way(pieces in prop::collection::vec(piece(), 0..12)) {
                let text = format!("POST / HTTP/1.1\r\nHost: b\r\n{}\r\n", pieces.concat());
                let bytes = text.as_bytes();
                if let Ok(Some(end)) = find_end(bytes, 0)
                    && let Ok(head) = parse(&bytes[..end])
                {
                    let mut fields = [httparse::EMPTY_HEADER; 128];
                    let mut request = httparse::Request::new(&mut fields);
                    let read = request.parse(bytes).unwrap();
                    prop_assert_eq!(read, httparse::Status::Complete(end));
                    let of = |name: &str| {
                        request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count()
                    };
                    prop_assert_eq!(of("host"), 1);
                    prop_assert!(of("content-length") + of("transfer-encoding") <= 1);
                    prop_assert_eq!(head.framing == Framing::Chunked, of("transfer-encoding") == 1);
                }
            }

    /// No input causes a panic.
            #[test]
            fn no_input_causes_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..512), size in 1_usize..64) {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(guarded(&bytes, size));
            }
        }
}

#[test]
fn every_valid_target_is_a_uri_for_the_http_crate() {
    let mut passed = 0;
    for byte in 0_u8..=255 {
        let byte = [byte];
        for (method, before, after) in [
            ("GET", "/a", "b"),
            ("GET", "/a?b", "c"),
            ("GET", "http://a", "b/"),
            ("GET", "http://a/b", "?c"),
            ("GET", "http://", "/"),
            ("GET", "http://a:8", "/"),
            ("CONNECT", "a", "b:80"),
            ("CONNECT", "a:80", ""),
            ("OPTIONS", "", ""),
        ] {
            let target = [before.as_bytes(), &byte, after.as_bytes()].concat();
            let head = [
                method.as_bytes(),
                b" ",
                &target,
                b" HTTP/1.1\r\nhost: a\r\n\r\n",
            ]
            .concat();
            if parse(&head).is_ok() {
                passed += 1;
                assert!(
                    http::Uri::try_from(&target[..]).is_ok(),
                    "{method} {}",
                    String::from_utf8_lossy(&target)
                );
            }
        }
    }
    assert!(passed > 400, "{passed}");
}
