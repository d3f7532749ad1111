//! Request smuggling: bytes that servers parse in different ways get 400, close the connection and reach no program.

use crate::tests::harness::*;

#[test]
fn no_smuggled_request_arrives() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let behind = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: orders\r\n\r\n";
        for (head, reason) in [
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                "http.framing",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
                "http.framing",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
                "http.framing",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: identity, chunked\r\n\r\n",
                "http.framing",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
                "http.framing",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding : chunked\r\n\r\n",
                "http.header",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding:\x0bchunked\r\n\r\n",
                "http.header",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n",
                "http.framing",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n",
                "http.framing",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
                "http.framing",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
                "http.framing",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 5, 5\r\n\r\n",
                "http.framing",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: +5\r\n\r\n",
                "http.framing",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 005\r\n\r\n",
                "http.framing",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nContent_Length: 5\r\n\r\n",
                "http.header",
            ),
            (
                "POST / HTTP/1.0\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n",
                "http.framing",
            ),
            (
                "GET / HTTP/1.1\r\nHost: orders\r\nHost: other\r\n\r\n",
                "http.authority",
            ),
            ("GET / HTTP/1.1\r\n\r\n", "http.authority"),
            ("GET / HTTP/1.1\nHost: orders\n\n", "http.framing"),
            (
                "GET / HTTP/1.1\r\nHost: orders\r\nX\0: y\r\n\r\n",
                "http.header",
            ),
            (
                "GET / HTTP/1.1\r\nHost: orders\r\n: y\r\n\r\n",
                "http.header",
            ),
            ("GET /a b HTTP/1.1\r\nHost: orders\r\n\r\n", "http.framing"),
            ("GET /a#b HTTP/1.1\r\nHost: orders\r\n\r\n", "http.path"),
            ("\r\nGET / HTTP/1.1\r\nHost: orders\r\n\r\n", "http.framing"),
        ] {
            let answer = raw(pair.web.outbound, format!("{head}{behind}").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer:?}");
            assert_eq!(
                answer.matches("HTTP/1.1 ").count(),
                1,
                "one response and nothing after it: {answer:?}"
            );
            assert!(
                answer.to_ascii_lowercase().contains("connection: close"),
                "{answer:?}"
            );
            assert!(answer.contains("application/problem+json"), "{answer:?}");
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            let problem: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(problem["reason"], reason, "{head:?}: {problem}");
            let id = problem["decision_id"].clone();
            let line = pair.web.log.line(|line| line["decision_id"] == id).await;
            assert_eq!(
                (&line["status"], &line["reason"]),
                (&400.into(), &reason.into())
            );
        }
        program.assert_not_reached();
        let control = http1(pair.web.outbound, get("orders", "/well-formed")).await;
        assert_eq!(control.status, 200);
    });
}

#[test]
fn oversized_heads_are_414_or_431_and_unknown_versions_are_505() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let long = format!(
            "GET /{} HTTP/1.1\r\nHost: orders\r\n\r\n",
            "a".repeat(9_000)
        );
        let large = format!(
            "GET / HTTP/1.1\r\nHost: orders\r\nX: {}\r\n\r\n",
            "a".repeat(70_000)
        );
        let many: String = (0..120).map(|n| format!("x{n}: y\r\n")).collect();
        let many = format!("GET / HTTP/1.1\r\nHost: orders\r\n{many}\r\n");
        for (request, status) in [
            (long.as_str(), "414"),
            (large.as_str(), "431"),
            (many.as_str(), "431"),
            ("GET / HTTP/1.2\r\nHost: orders\r\n\r\n", "505"),
            ("GET / HTTP/3.0\r\nHost: orders\r\n\r\n", "505"),
        ] {
            let answer = raw(pair.web.outbound, request.as_bytes()).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{status}: {answer:?}"
            );
        }
        program.assert_not_reached();
    });
}

#[test]
fn a_well_formed_request_before_a_malformed_one_is_answered() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let two = "GET /first HTTP/1.1\r\nHost: orders\r\n\r\nGET /second HTTP/1.1\r\nHost: orders\r\nHost: x\r\n\r\nGET /third HTTP/1.1\r\nHost: orders\r\n\r\n";
        let answer = raw(pair.web.outbound, two.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.contains("HTTP/1.1 400 "),
            "{answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 2, "{answer}");
        assert_eq!(program.requests.get(), 1);
    });
}

#[test]
fn a_request_with_malformed_chunks_is_refused() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        for chunks in [
            "5\r\nhelloX",
            "z\r\n",
            "5;\x01\r\nhello\r\n0\r\n\r\n",
            "0\r\nHost: other\r\n\r\n",
        ] {
            let head =
                "POST /broken HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n";
            let answer = raw(pair.web.outbound, format!("{head}{chunks}").as_bytes()).await;
            assert!(
                answer.starts_with("HTTP/1.1 400 "),
                "{chunks:?}: {answer:?}"
            );
        }
        program.assert_not_reached();
    });
}

#[test]
fn a_target_that_is_not_a_uri_is_refused_and_logged() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        for target in [
            "GET /a<b",
            "GET /a>b",
            "GET /a\"b",
            "GET /a`b",
            "GET /a?b<c",
            "GET /a?b\"c",
            "GET http://orders:x:80/",
            "GET http://[::1/",
            "GET http://orders\"/",
            "GET http:///a",
            "CONNECT a\"b:80",
            "CONNECT a:b:80",
        ] {
            let head = format!("{target} HTTP/1.1\r\nHost: orders\r\n\r\n");
            let answer = raw(pair.web.outbound, head.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer:?}");
            assert!(
                answer.contains("application/problem+json"),
                "{target}: {answer:?}"
            );
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            let problem: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(problem["reason"], "http.path", "{target}");
            let id = problem["decision_id"].as_str().unwrap().to_owned();
            let line = pair.web.log.line(|line| line["decision_id"] == id).await;
            assert_eq!(
                (&line["status"], &line["reason"]),
                (&400.into(), &"http.path".into())
            );
        }
        program.assert_not_reached();
    });
}
