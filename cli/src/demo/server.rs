//! The shared parts of the demo's HTTP servers.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{rt::TokioIo, server::conn::auto};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::failure::Failure;

/// Binds, and writes the address to `addresses_file`, as all programs of Merlon do.
pub(crate) async fn listen(
    address: SocketAddr,
    addresses_file: &Path,
) -> Result<(TcpListener, SocketAddr), Failure> {
    let failed = |error| Failure::runtime(format!("cannot listen on {address}: {error}"));
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    write_atomically(addresses_file, &json!({ "listen": bound }).to_string())?;
    Ok((listener, bound))
}

/// Writes a file atomically: readers see the old text or the new one, never a part.
pub(crate) fn write_atomically(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error| Failure::runtime(format!("cannot write {}: {error}", path.display()));
    // Watchers of the resource folder ignore files with a leading dot.
    let name = path.file_name().unwrap_or_default().display();
    let temporary: PathBuf = path.with_file_name(format!(".{name}.new"));
    std::fs::write(&temporary, text).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}

/// Serves requests until the process gets a signal to stop.
pub(crate) async fn serve<A, F>(listener: TcpListener, answer: A) -> Result<(), Failure>
where
    A: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>> + 'static,
{
    let local = tokio::task::LocalSet::new();
    let accepting = async move {
        loop {
            // Out of file descriptors, or the client disconnected before the accept: try again.
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            };
            let answer = answer.clone();
            let connection = async move {
                let service = service_fn(answer);
                // The client sees errors of its connection.
                let _ = auto::Builder::new(LocalExecutor)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            };
            drop(tokio::task::spawn_local(connection));
        }
    };
    tokio::select! {
        () = local.run_until(accepting) => {}
        () = super::signals::shutdown() => {}
    }
    Ok(())
}

/// A JSON response.
pub(crate) fn answer(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

#[derive(Debug, Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(future));
    }
}
