use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    net::SocketAddr,
    rc::Rc,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::protocol::http2;

pub(crate) type Boxed = UnsyncBoxBody<Bytes, hyper::Error>;

pub(crate) fn full(text: impl Into<Bytes>) -> Boxed {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// The program behind a proxy: serves HTTP/1.1 and h2c and records its requests.
pub(crate) struct Program {
    pub(crate) address: SocketAddr,
    pub(crate) requests: Rc<Cell<usize>>,
    pub(crate) seen: Rc<RefCell<Vec<http::request::Parts>>>,
    /// Bodies that [`Program::echo`] read to their end, and those that broke off.
    pub(crate) whole: Rc<Cell<usize>>,
    pub(crate) broken: Rc<Cell<usize>>,
}

impl Program {
    /// Answers every request with its own request line and body: `GET /path host body`.
    pub(crate) async fn echo() -> Self {
        let (whole, broken) = (Rc::<Cell<usize>>::default(), Rc::<Cell<usize>>::default());
        let ends = (Rc::clone(&whole), Rc::clone(&broken));
        let this = Self::serving(async move |request: Request<Incoming>| {
            let host = request
                .headers()
                .get("host")
                .map(|host| host.to_str().unwrap().to_owned());
            let host = host
                .or(request.uri().authority().map(ToString::to_string))
                .unwrap_or_default();
            let line = format!(
                "{} {} {host} ",
                request.method(),
                request.uri().path_and_query().unwrap()
            );
            let body = request.into_body().collect().await;
            let end = if body.is_ok() { &ends.0 } else { &ends.1 };
            end.set(end.get() + 1);
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            Response::new(full([line.as_bytes(), &body].concat()))
        });
        Self {
            whole,
            broken,
            ..this.await
        }
    }

    /// Answers every request with `answer`.
    pub(crate) async fn serving(
        answer: impl AsyncFn(Request<Incoming>) -> Response<Boxed> + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            requests: Rc::default(),
            seen: Rc::default(),
            whole: Rc::default(),
            broken: Rc::default(),
        };
        let (requests, seen) = (Rc::clone(&this.requests), Rc::clone(&this.seen));
        let answer = Rc::new(answer);
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (requests, seen, answer) =
                    (Rc::clone(&requests), Rc::clone(&seen), Rc::clone(&answer));
                tokio::task::spawn_local(async move {
                    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                        requests.set(requests.get() + 1);
                        let (parts, body) = request.into_parts();
                        seen.borrow_mut().push(parts.clone());
                        let answer = Rc::clone(&answer);
                        async move {
                            Ok::<_, Infallible>(answer(Request::from_parts(parts, body)).await)
                        }
                    });
                    let mut preface = [0; 4];
                    let mut h2 = false;
                    while let Ok(read) = stream.peek(&mut preface).await
                        && read > 0
                    {
                        if read == 4 {
                            h2 = &preface == b"PRI ";
                            break;
                        }
                    }
                    let io = TokioIo::new(stream);
                    if h2 {
                        let mut server =
                            hyper::server::conn::http2::Builder::new(http2::LocalExecutor);
                        let _ = server
                            .timer(TokioTimer::new())
                            .serve_connection(io, service)
                            .await;
                    } else {
                        let server = hyper::server::conn::http1::Builder::new()
                            .serve_connection(io, service);
                        let _ = server.with_upgrades().await;
                    }
                });
            }
        });
        this
    }

    /// Accepts TCP: `serve` gets each connection.
    pub(crate) async fn raw(serve: impl AsyncFn(TcpStream) + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            requests: Rc::default(),
            seen: Rc::default(),
            whole: Rc::default(),
            broken: Rc::default(),
        };
        let requests = Rc::clone(&this.requests);
        let serve = Rc::new(serve);
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                requests.set(requests.get() + 1);
                let serve = Rc::clone(&serve);
                tokio::task::spawn_local(async move { serve(stream).await });
            }
        });
        this
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn last_request(&self) -> http::request::Parts {
        self.seen
            .borrow()
            .last()
            .expect("the program received no request")
            .clone()
    }

    pub(crate) fn assert_not_reached(&self) {
        assert_eq!(self.requests.get(), 0, "the program must not be reached");
    }
}

/// An address to which connecting takes forever: its queue of connections is full, and no process accepts one.
pub(crate) async fn full_queue() -> (SocketAddr, impl Sized) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let first = TcpStream::connect(address).await.unwrap();
    (address, (listener, first))
}
